from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import statefile
from garrison.supervisor.statefile import StateFileError


class Breaker(msgspec.Struct):
    trips: int
    cause: str | None = None


def reason(path: Path, kind: type = Breaker, **options: int) -> str:
    with pytest.raises(StateFileError) as caught:
        statefile.read(str(path), kind, **options)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_a_document_comes_back_typed(tmp_path: Path) -> None:
    statefile.write(str(tmp_path / "s"), Breaker(3, "cpu"))
    assert statefile.read(str(tmp_path / "s"), Breaker) == Breaker(3, "cpu")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["s"]


def test_each_trouble_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert reason(path) == "missing"
    path.write_bytes(b"")
    assert reason(path) == "torn"
    path.write_bytes(b"\xff\x00garbage")
    assert reason(path) == "torn"
    path.write_bytes(b"[" * 100_000)
    assert reason(path) == "torn"
    path.write_bytes(statefile.encode({"trips": 1}).replace(b":1}}", b":2}}"))
    assert reason(path) == "tampered"
    path.write_bytes(statefile.encode({"trips": "many"}))
    assert reason(path) == "type"
    path.write_bytes(b'{"format":2,"signature":"x","body":{}}')
    assert reason(path) == "format"
    statefile.write(str(path), Breaker(1))
    assert reason(path, max_bytes=10) == "too large"
    path.unlink()
    path.mkdir()
    assert reason(path) == "unreadable"
    path.rmdir()
    os.mkfifo(path)
    assert reason(path) == "unreadable"
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert reason(path) == "unreadable"


def test_cut_at_any_byte_it_is_whole_or_an_error() -> None:
    data = statefile.encode({"trips": 3, "cause": "memory"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        for length in range(len(data)):
            path.write_bytes(data[:length])
            if length == len(data) - 1:  # only the final newline is missing
                assert statefile.read(str(path), Breaker) == Breaker(3, "memory")
            else:
                assert reason(path) == "torn"


def test_a_crash_at_any_byte_of_the_new_document_leaves_the_old_one() -> None:
    new = statefile.encode(Breaker(2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        statefile.write(str(path), Breaker(1))
        for length in range(len(new) + 1):
            (Path(folder) / ".s.4194303-00000000-0.tmp").write_bytes(new[:length])
            assert statefile.read(str(path), Breaker) == Breaker(1)
        statefile.write(str(path), Breaker(2))
        assert statefile.read(str(path), Breaker) == Breaker(2)


@given(st.data())
def test_a_changed_byte_never_yields_another_document(data: st.DataObject) -> None:
    whole = bytearray(statefile.encode({"trips": 3, "cause": "memory"}))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        path.write_bytes(whole)
        outcome: object
        try:
            outcome = statefile.read(str(path), Breaker)
        except StateFileError as error:
            outcome = error.reason
        assert outcome in (Breaker(3, "memory"), "torn", "tampered", "format")


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _json))
def test_any_document_survives(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        statefile.write(f"{folder}/s", document)
        assert statefile.read(f"{folder}/s", dict) == document


def test_a_document_too_large_is_not_written(tmp_path: Path) -> None:
    statefile.write(str(tmp_path / "s"), Breaker(1))
    with pytest.raises(StateFileError) as caught:
        statefile.write(str(tmp_path / "s"), {"cause": "x" * 200}, max_bytes=200)
    assert caught.value.reason == "too large"
    assert statefile.read(str(tmp_path / "s"), Breaker) == Breaker(1)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match="none/s") as caught:
        statefile.write(str(tmp_path / "none" / "s"), {})
    assert caught.value.reason == "unwritable"


def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(StateFileError):
        statefile.write(str(tmp_path / "s"), {})
    assert os.listdir(tmp_path) == ["s"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [f".s.{dead.pid}-0011aabb-3.tmp", f".s.{os.getpid()}-ffffffff-0.tmp"]  # the second: a reused pid
    stay = [f".s.{os.getppid()}-0011aabb-3.tmp", f".other.{dead.pid}-0011aabb-3.tmp", ".s.tmp"]
    for name in gone + stay:
        (tmp_path / name).write_bytes(b"half")
    statefile.write(str(tmp_path / "s"), {})
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "s"])


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "s").symlink_to(tmp_path / "victim")
    statefile.write(str(tmp_path / "s"), {})
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "s").is_symlink()
