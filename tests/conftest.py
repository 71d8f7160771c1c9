"""What holds for tests of every kind."""

from __future__ import annotations

import signal

from hypothesis import settings

from tests.etcd.fixtures import etcd, etcd_cluster, make_etcd

__all__ = ["etcd", "etcd_cluster", "make_etcd"]

# Machines are shared: how long one example takes says nothing about whether it is right.
settings.register_profile("garrison", deadline=None)
settings.load_profile("garrison")

# A shell starts what runs in its background with SIGINT ignored, and every program that a test starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
