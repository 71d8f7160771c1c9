"""The thread that writes state files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from garrison.supervisor import state as state_module
from garrison.supervisor.state import CACHE_FILE, LOCAL_FILE, CachedState, LocalState, StateWriter, read


class Odd(msgspec.Struct):
    text: str


class Told:
    """What the writer said was wrong, and a way to wait for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._condition = threading.Condition()

    def __call__(self, text: str) -> None:
        with self._condition:
            self.texts.append(text)
            self._condition.notify_all()

    def wait(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.texts) >= count, 30), self.texts


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def writer(tmp_path: Path, told: Told) -> Iterator[StateWriter]:
    made = StateWriter(str(tmp_path / "state"), "host", told)
    made.start()
    yield made
    made.close(10)


def overrides(number: int) -> LocalState:
    return LocalState(overrides={f"w{number}": "stop"})


def in_the_way(tmp_path: Path) -> Path:
    """Make the state directory impossible: a file stands in its place. Root cannot write there either."""
    path = tmp_path / "state"
    path.write_text("in the way")
    return path


def test_what_is_saved_is_there_after_settling_and_the_latest_wins(writer: StateWriter, tmp_path: Path) -> None:
    for number in range(50):
        writer.save(LOCAL_FILE, overrides(number))
    assert writer.settle(LOCAL_FILE, 10) == ""
    found, error = read(str(tmp_path / "state"), LOCAL_FILE, LocalState)
    assert (found, error) == (overrides(49), "")


def test_settling_without_anything_to_write_is_done_at_once(writer: StateWriter) -> None:
    assert writer.settle(LOCAL_FILE, 0.0) == ""


def test_a_folder_that_cannot_be_written_is_told_and_tried_again_until_it_can(
    writer: StateWriter, tmp_path: Path, told: Told
) -> None:
    obstacle = in_the_way(tmp_path)
    writer.save(LOCAL_FILE, overrides(1))
    told.wait(1)
    assert str(obstacle) in told.texts[0]
    assert "would be lost in a restart" in writer.settle(LOCAL_FILE, 10)
    obstacle.unlink()
    told.wait(2)
    assert told.texts[1] == ""
    assert read(str(obstacle), LOCAL_FILE, LocalState)[0] == overrides(1)


def test_who_asks_after_a_failure_gets_the_outcome_of_a_new_try(
    writer: StateWriter, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "RETRY_BASE_SECONDS", 600.0)
    monkeypatch.setattr(state_module, "RETRY_CAP_SECONDS", 600.0)
    obstacle = in_the_way(tmp_path)
    writer.save(LOCAL_FILE, overrides(1))
    told.wait(1)
    obstacle.unlink()
    writer.save(LOCAL_FILE, overrides(2))
    assert writer.settle(LOCAL_FILE, 10) == ""
    assert read(str(obstacle), LOCAL_FILE, LocalState)[0] == overrides(2)


def test_a_cache_that_is_too_large_is_shown_for_as_long_as_it_is_and_does_not_touch_local_decisions(
    writer: StateWriter, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_BYTES", 2000)
    monkeypatch.setattr(state_module, "RETRY_BASE_SECONDS", 0.01)
    monkeypatch.setattr(state_module, "RETRY_CAP_SECONDS", 0.01)
    writer.save(CACHE_FILE, CachedState(epochs={"x" * 3000: 1}))
    told.wait(1)
    for number in range(5):
        writer.save(LOCAL_FILE, overrides(number))
        assert writer.settle(LOCAL_FILE, 10) == ""
    assert CACHE_FILE in writer.error
    assert len(told.texts) == 1  # no "well again" in between
    writer.save(CACHE_FILE, CachedState())
    told.wait(2)
    assert told.texts[1] == writer.error == ""


def test_a_document_that_cannot_be_encoded_does_not_end_the_thread(writer: StateWriter, told: Told) -> None:
    writer.save("odd.json", Odd(os.fsdecode(b"\xff")))
    told.wait(1)
    assert "odd.json" in told.texts[0]
    writer.save(LOCAL_FILE, overrides(1))
    assert writer.settle(LOCAL_FILE, 10) == ""


def test_a_close_writes_what_is_pending(tmp_path: Path, told: Told) -> None:
    writer = StateWriter(str(tmp_path), "host", told)
    writer.save(LOCAL_FILE, overrides(1))
    writer.save(CACHE_FILE, CachedState(saved_at=1.0))
    writer.start()
    writer.close(10)
    assert read(str(tmp_path), LOCAL_FILE, LocalState)[0] == overrides(1)
    assert read(str(tmp_path), CACHE_FILE, CachedState)[0] == CachedState(saved_at=1.0)


def test_a_close_does_not_wait_for_a_disk_that_stays_full(tmp_path: Path, told: Told) -> None:
    in_the_way(tmp_path)
    writer = StateWriter(str(tmp_path / "state"), "host", told)
    writer.start()
    writer.save(LOCAL_FILE, overrides(1))
    told.wait(1)
    begin = time.monotonic()
    writer.close(30)
    assert time.monotonic() - begin < 20  # one more try, not the whole backoff


def test_a_writer_that_was_never_started_can_be_closed(tmp_path: Path, told: Told) -> None:
    StateWriter(str(tmp_path), "host", told).close(1)
