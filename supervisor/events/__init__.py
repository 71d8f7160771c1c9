"""Events on their way through the master: ledger, stamp, rate limit, bounded queue, sink, live tap."""
