"""The nursery: a clean, single-threaded interpreter that forks every worker, so that the master never forks.

`client` is the master's side, `process` what the nursery itself runs, `protocol` what they say to each
other. Nothing here may import asyncio (but for `client`), gRPC or Kafka: a fork copies what is loaded.
"""
