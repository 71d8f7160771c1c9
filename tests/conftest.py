"""What holds for tests of every kind."""

from __future__ import annotations

from hypothesis import settings

from tests.etcd.fixtures import etcd, etcd_cluster, make_etcd

__all__ = ["etcd", "etcd_cluster", "make_etcd"]

# Machines are shared: how long one example takes says nothing about whether it is right.
settings.register_profile("garrison", deadline=None)
settings.load_profile("garrison")
