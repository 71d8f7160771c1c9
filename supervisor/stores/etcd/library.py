"""The one place where gRPC and the etcd3 client are imported (from the ``cslab-etcd3`` wheel: docs/dependencies.md).

Of the client only the channel (`etcd3.Endpoint`) and the generated stubs (`etcd3.etcdrpc`) are used. Its calls stop
using an endpoint for 300 s after one failure, its watcher delivers an error as if it were an event and resumes
nothing, and it never renews a token.
"""

from __future__ import annotations

import os

# Before the import, which reads them: no lines on standard error past our own log, and no fork handlers (the master
# never forks; what gRPC does around a fork has hung every child).
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import etcd3
import grpc
from etcd3 import etcdrpc as rpc

__all__ = ["etcd3", "grpc", "rpc"]
