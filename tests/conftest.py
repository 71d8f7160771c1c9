"""Fixtures for tests of every kind."""

from __future__ import annotations

from tests.etcd.fixtures import etcd, etcd_cluster, make_etcd

__all__ = ["etcd", "etcd_cluster", "make_etcd"]
