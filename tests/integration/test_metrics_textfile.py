"""The textfile: whole at any moment, and a disk that does not take it costs nothing."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.supervisor.metrics.textfile import TextfileWriter
from tests.integration._tmpfs_support import MountRefusedError, tmpfs

Make = Callable[[Path], tuple[TextfileWriter, list[str]]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[TextfileWriter] = []

    def start(path: Path) -> tuple[TextfileWriter, list[str]]:
        said: list[str] = []
        writer = TextfileWriter(str(path), said.append)
        writer.start()
        made.append(writer)
        return writer, said

    yield start
    for writer in made:
        writer.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_file_is_replaced_as_a_whole(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "garrison.prom"
    writer, said = make(path)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            if path.exists():
                seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    texts = {b"x %d\n" % number * 5000 for number in range(10, 60)}
    for text in sorted(texts):
        writer.write(text)
        until(lambda text=text: path.exists() and path.read_bytes() == text)
    stop.set()
    reader.join(30)
    assert seen <= texts
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["garrison.prom"]
    assert said == []


def test_it_is_gone_after_an_orderly_end(tmp_path: Path, make: Make) -> None:
    writer, _ = make(tmp_path / "g.prom")
    writer.write(b"x 1\n")
    until((tmp_path / "g.prom").exists)
    writer.close()
    until(lambda: writer.ended)
    assert os.listdir(tmp_path) == []


def test_links_are_replaced_and_not_followed(tmp_path: Path, make: Make) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "g.prom").symlink_to(tmp_path / "precious")
    (tmp_path / ".g.prom.tmp").symlink_to(tmp_path / "precious")
    writer, _ = make(tmp_path / "g.prom")
    writer.write(b"x 1\n")
    until(lambda: (tmp_path / "g.prom").read_bytes() == b"x 1\n")
    assert (tmp_path / "precious").read_text() == "keep"
    assert not (tmp_path / "g.prom").is_symlink()


def test_a_missing_folder_is_said_once_and_so_is_its_return(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "gone" / "g.prom"
    writer, said = make(path)
    for text in (b"x 1\n", b"x 2\n"):
        writer.write(text)
        until(lambda: writer._text is None and said)
    path.parent.mkdir()

    def written() -> bool:
        writer.write(b"x 3\n")
        return path.exists()

    until(written)
    until(lambda: len(said) == 2)
    assert "g.prom" in said[0]
    assert said[1] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, make: Make) -> None:
    try:
        with tmpfs(tmp_path / "disk", 256 * 1024) as disk:
            writer, said = make(disk / "g.prom")
            writer.write(b"x 1\n")
            until((disk / "g.prom").exists)
            writer.write(b"x" * 512 * 1024)
            until(lambda: said)
            assert "disk is full" in said[0]
            assert (disk / "g.prom").read_bytes() == b"x 1\n"
            assert os.listdir(disk) == ["g.prom"]
            writer.write(b"x 2\n")
            until(lambda: said[1:] == [""])
            assert (disk / "g.prom").read_bytes() == b"x 2\n"
            writer.close()
            until(lambda: writer.ended)
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")
