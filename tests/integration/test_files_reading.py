"""Hashing and the page cache of the real kernel, and mount points."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.workers.files import disk
from garrison.workers.files.reading import Hasher, resident
from tests.integration._files_support import config, running
from tests.integration._tmpfs_support import MountRefusedError, tmpfs

SIZE = 1024 * 1024 + 1234
PAGES = (SIZE + 4095) // 4096
TRIES = 5
"""The host reclaims pages of its own accord, rarely; what we would drop is dropped each time."""


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[int]:
    """A file that is on the disk and not in the cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached(fd):
            pytest.skip("this file system keeps its files in memory, or mincore does not tell")
        yield fd
    finally:
        os.close(fd)


def cached(fd: int) -> int:
    pages = resident(fd, 0, SIZE)
    assert pages is not None
    return sum(page & 1 for page in pages)


def digest(fd: int, hasher: Hasher) -> bytes:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        *counts, result = hasher.hash(again, os.fstat(again).st_size)
    finally:
        os.close(again)
    assert sum(count for count in counts if isinstance(count, int)) == SIZE
    assert isinstance(result, bytes)
    return result


@pytest.mark.parametrize("dontcache", [True, False], ids=["newest-way", "mincore"])
def test_a_file_that_was_not_cached_is_not_cached_after(cold: int, dontcache: bool) -> None:
    found = digest(cold, Hasher(dontcache=dontcache))
    assert cached(cold) == 0
    assert found == hashlib.sha256(os.pread(cold, SIZE, 0)).digest()


@pytest.mark.parametrize("dontcache", [True, False], ids=["newest-way", "mincore"])
def test_a_file_that_was_cached_stays_cached(cold: int, dontcache: bool) -> None:
    def stays() -> bool:
        os.pread(cold, SIZE, 0)
        assert cached(cold) == PAGES
        digest(cold, Hasher(dontcache=dontcache))
        return cached(cold) == PAGES

    assert any(stays() for _ in range(TRIES))


@pytest.mark.parametrize("dontcache", [True, False], ids=["newest-way", "mincore"])
def test_of_a_file_that_was_partly_cached_that_part_stays(cold: int, dontcache: bool) -> None:
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_RANDOM)

    def stays() -> bool:
        os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(cold, 64 * 1024, 256 * 1024)
        before = resident(cold, 0, SIZE)
        digest(cold, Hasher(dontcache=dontcache))
        return cached(cold) == 16 and resident(cold, 0, SIZE) == before

    assert any(stays() for _ in range(TRIES))


def test_a_whole_baseline_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    descriptors = []
    try:
        for number in range(40):
            path = tree / f"f{number}"
            path.write_bytes(os.urandom(SIZE))
            fd = os.open(path, os.O_RDONLY)
            descriptors.append(fd)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in descriptors[::2]:
            os.pread(fd, SIZE, 0)
        assert [cached(fd) > 0 for fd in descriptors] == [True, False] * 20
        with running(config(tree), tmp_path / "state") as module:
            assert module.stats()["hashed"] == 40
        after = [cached(fd) for fd in descriptors]
        assert after[1::2] == [0] * 20
        assert sum(after[::2]) > 0.95 * 20 * PAGES  # the host reclaims a page now and then
    finally:
        for fd in descriptors:
            os.close(fd)


def test_files_in_a_memory_file_system_are_hashed_too(tmp_path: Path) -> None:
    try:
        with tmpfs(tmp_path / "memory", 4 * 1024 * 1024) as folder:
            (folder / "x").write_bytes(b"hello" * 1000)
            with running(config(folder), tmp_path / "state") as module:
                (folder / "x").write_bytes(b"hallo" * 1000)
                event = module.change("modified", folder / "x")
            assert event["file"]["hash"]["sha256"] == hashlib.sha256(b"hallo" * 1000).hexdigest()
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")


def test_another_file_system_inside_is_not_entered_unless_asked_for(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    try:
        with tmpfs(tree / "mounted", 1024 * 1024) as folder:
            (folder / "x").write_bytes(b"x")
            with running(config(tree), tmp_path / "state") as module:
                event = module.event(event__action="mounts-skipped")
                assert event["garrison"]["files"]["mounts"] == [str(folder)]
                assert module.stats()["entries"] == 2
                module.configure(config(tree, cross_filesystems=True))
                module.scanned(2)
                assert module.stats()["entries"] == 3
                (folder / "y").write_bytes(b"y")
                module.change("created", folder / "y")
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x").write_bytes(b"x")
    os.utime(tree / "x", (1, 2**30))
    with running(config(tree), tmp_path / "state"):
        pass
    assert os.stat(tree / "x").st_atime == 1


def test_a_directory_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.close(disk.open_directory(str(tmp_path / "real" / "inside")))
    for path in ("link", "link/inside", "nothing"):
        with pytest.raises(OSError, match=r"Not a directory|No such file|symbolic links") as caught:
            disk.open_directory(str(tmp_path / path))
        assert caught.value.errno in disk.GONE
