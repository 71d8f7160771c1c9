"""What every worker process runs: pipes, queues, tickers, and modules in threads, each with its sandbox."""
