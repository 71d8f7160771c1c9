from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.alternating import AlternatingFile, AlternatingFileError


def contents(path: Path) -> list[bytes]:
    files = (path / "e.0.ndjson", path / "e.1.ndjson")
    return [file.read_bytes() if file.exists() else b"" for file in files]


def opened(path: Path, max_bytes: int = 30) -> AlternatingFile:
    return AlternatingFile(str(path / "e.ndjson"), max_bytes)


def test_the_names_carry_the_number_before_the_extension(tmp_path: Path) -> None:
    assert opened(tmp_path).paths == (str(tmp_path / "e.0.ndjson"), str(tmp_path / "e.1.ndjson"))


def test_lines_go_to_the_other_file_when_they_do_not_fit(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        for number in range(7):
            file.write(b"line %04d\n" % number)
        assert contents(tmp_path) == [b"line 0006\n", b"line 0003\nline 0004\nline 0005\n"]
        assert file.current_path == str(tmp_path / "e.0.ndjson")


@pytest.mark.parametrize("data", [b"no newline", b"x" * 30 + b"\n"])
def test_what_is_no_line_or_too_long_is_refused(tmp_path: Path, data: bytes) -> None:
    with opened(tmp_path) as file, pytest.raises(ValueError, match=r"newline|cannot be written"):
        file.write(data)
    assert contents(tmp_path) == [b"", b""]


def test_a_restart_goes_on_in_the_file_that_is_not_full(tmp_path: Path) -> None:
    (tmp_path / "e.0.ndjson").write_bytes(b"a" * 28 + b"\n")
    (tmp_path / "e.1.ndjson").write_bytes(b"b\n")
    # A clock that was set back says that the full one is the newer.
    os.utime(tmp_path / "e.1.ndjson", ns=(1, 1))
    with opened(tmp_path) as file:
        file.write(b"c\n")
    assert contents(tmp_path)[1] == b"b\nc\n"


@pytest.mark.parametrize("newer", [0, 1])
def test_a_restart_with_two_full_files_empties_the_older(tmp_path: Path, newer: int) -> None:
    for index in (0, 1):
        (tmp_path / f"e.{index}.ndjson").write_bytes(b"%d" % index + b"a" * 28 + b"\n")
    os.utime(tmp_path / f"e.{1 - newer}.ndjson", ns=(1, 1))
    with opened(tmp_path) as file:
        file.write(b"c\n")
    assert contents(tmp_path)[1 - newer] == b"c\n"
    assert contents(tmp_path)[newer].startswith(b"%d" % newer)


def test_a_torn_last_line_is_closed_before_going_on(tmp_path: Path) -> None:
    (tmp_path / "e.0.ndjson").write_bytes(b"whole\ntor")
    with opened(tmp_path) as file:
        file.write(b"next\n")
    assert contents(tmp_path)[0] == b"whole\ntor\nnext\n"


def test_a_torn_last_line_of_a_full_file_is_closed_within_the_bound(tmp_path: Path) -> None:
    (tmp_path / "e.0.ndjson").write_bytes(b"x" * 30)
    with opened(tmp_path) as file:
        file.write(b"next\n")
    assert contents(tmp_path) == [b"x" * 29 + b"\n", b"next\n"]


@pytest.mark.parametrize("trouble", ["remove", "move", "empty", "replace"])
def test_others_may_do_with_the_files_what_they_want(tmp_path: Path, trouble: str) -> None:
    path = tmp_path / "e.0.ndjson"
    with opened(tmp_path) as file:
        file.write(b"one\n")
        if trouble == "remove":
            path.unlink()
        elif trouble == "move":
            path.rename(tmp_path / "old")
        elif trouble == "empty":
            os.truncate(path, 0)
        else:
            (tmp_path / "new").write_bytes(b"theirs\n")
            (tmp_path / "new").rename(path)
        file.write(b"two\n")
    assert path.read_bytes() == (b"theirs\ntwo\n" if trouble == "replace" else b"two\n")


def test_reopen_goes_on_where_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.write(b"one\n")
        file.reopen()
        assert file.current_path is None
        file.write(b"two\n")
        file.sync()
    assert contents(tmp_path) == [b"one\ntwo\n", b""]


@pytest.mark.parametrize("index", [0, 1])
def test_a_symbolic_link_is_not_followed(tmp_path: Path, index: int) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n" * 4)
    (tmp_path / f"e.{index}.ndjson").symlink_to(victim)
    with opened(tmp_path) as file, pytest.raises(AlternatingFileError, match="symbolic link"):
        for _ in range(3):
            file.write(b"x" * 20 + b"\n")
    assert victim.read_bytes() == b"precious\n" * 4


def test_a_hard_link_keeps_its_content_and_the_name_gets_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "e.0.ndjson").write_bytes(b"old\n")
    os.link(tmp_path / "e.0.ndjson", tmp_path / "snapshot")
    with opened(tmp_path) as file:
        file.write(b"new\n")
    assert contents(tmp_path)[0] == b"new\n"
    assert (tmp_path / "snapshot").read_bytes() == b"old\n"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_without_hanging(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "e.0.ndjson")
    with opened(tmp_path) as file, pytest.raises(AlternatingFileError, match="regular file"):
        file.write(b"x\n")


def test_new_files_have_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with opened(tmp_path) as file:
            file.write(b"x\n")
    finally:
        os.umask(before)
    assert (tmp_path / "e.0.ndjson").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_is_an_error_that_goes_away_with_its_cause(tmp_path: Path) -> None:
    with opened(tmp_path / "later") as file:
        with pytest.raises(AlternatingFileError, match="later") as caught:
            file.write(b"x\n")
        assert caught.value.written == 0
        (tmp_path / "later").mkdir()
        file.write(b"x\n")
    assert contents(tmp_path / "later")[0] == b"x\n"


def test_a_lowered_bound_keeps_the_newest_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "e.0.ndjson").write_bytes(b"".join(b"line %04d\n" % number for number in range(100)))
    (tmp_path / "e.0.ndjson.cut").write_bytes(b"left by a crash")
    with opened(tmp_path, 35) as file:
        file.write(b"x\n")
    assert contents(tmp_path) == [b"line 0097\nline 0098\nline 0099\nx\n", b""]
    assert sorted(os.listdir(tmp_path)) == ["e.0.ndjson"]


_step = st.one_of(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"") + b"\n"), min_size=1, max_size=4),
    st.sampled_from(["restart", "tear", "remove0", "remove1", "empty0", "empty1", "lower"]),
)


@given(st.lists(_step, max_size=30), st.integers(16, 40))
def test_whatever_happens_the_bound_holds_and_lines_stay_whole(steps: list[list[bytes] | str], bound: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        file = opened(path, bound)
        for step in steps:
            if isinstance(step, list):
                data = b"".join(step)
                if len(data) <= bound:
                    file.write(data)
                    assert all(len(content) <= bound for content in contents(path))
                    current = Path(file.current_path or "").read_bytes()
                    assert current.endswith(data)
                    assert len(current) == len(data) or current[-len(data) - 1 : -len(data)] == b"\n"
            elif step == "restart":
                file.close()
            elif step == "lower":
                file.close()
                bound = max(16, bound - 5)
                file = opened(path, bound)
            elif step == "tear":
                at = file.current_path
                if at is not None and os.path.exists(at):
                    file.close()
                    if os.path.getsize(at) + 3 <= bound:
                        with open(at, "ab") as torn:
                            torn.write(b"tor")
            elif (path / f"e.{step[-1]}.ndjson").exists():
                target = path / f"e.{step[-1]}.ndjson"
                target.unlink() if step.startswith("remove") else os.truncate(target, 0)
        file.close()
