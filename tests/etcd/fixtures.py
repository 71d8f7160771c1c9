"""etcd as fixtures. Tests that share a server keep to keys below a prefix of their own, or clean up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.etcd.binaries import MissingError
from tests.etcd.cluster import Cluster


def _made(folder: Path, *arguments: Any, **keywords: Any) -> Cluster:
    try:
        return Cluster(folder, *arguments, **keywords)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One member for all tests of a file, without TLS and authentication."""
    with _made(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three members for all tests of a file. A test that breaks something mends it."""
    with _made(tmp_path_factory.mktemp("cluster"), 3) as cluster:
        yield cluster


@pytest.fixture
def make_etcd(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make clusters for one test; the arguments are those of `Cluster` without the folder."""
    made: list[Cluster] = []

    def make(*arguments: Any, **keywords: Any) -> Cluster:
        cluster = _made(tmp_path / f"etcd{len(made)}", *arguments, **keywords)
        made.append(cluster)
        return cluster

    yield make
    for cluster in reversed(made):
        cluster.close()
