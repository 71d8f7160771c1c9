"""The queue of a stream: bounded whatever the reader does, and honest about what it dropped."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.control.outbox import Outbox
from garrison.supervisor.control.protocol import decode_reply


def _count(lines: list[bytes]) -> tuple[int, int]:
    """Return how many lines came through and how many were reported as dropped."""
    dropped = 0
    through = 0
    for line in lines:
        if line.startswith(b'{"ok":true,"dropped"'):
            count = decode_reply(line).dropped
            assert isinstance(count, int)
            dropped += count
        else:
            through += 1
    return through, dropped


@given(
    steps=st.lists(st.one_of(st.integers(1, 60), st.none()), max_size=80),
    items=st.integers(1, 8),
    size=st.integers(20, 200),
)
def test_every_line_comes_out_or_is_counted_where_it_was_lost(steps: list[int | None], items: int, size: int) -> None:
    async def run() -> None:
        box = Outbox(items, size)
        got: list[bytes] = []
        offered = waiting = 0
        for step in steps:
            if step is not None:
                offered += 1
                waiting += box.offer(b"%d " % offered + b"x" * step)
            elif waiting:
                line = await box.get()
                assert line is not None
                got.append(line)
                waiting -= not line.startswith(b"{")
        box.end(b"end")
        while (line := await box.get()) is not None:
            got.append(line)
        assert got.pop() == b"end"
        through, dropped = _count(got)
        assert through + dropped == offered
        assert dropped == box.dropped
        position = 0
        for line in got:
            if line.startswith(b"{"):
                count = decode_reply(line).dropped
                assert isinstance(count, int)
                position += count
            else:
                position += 1
                assert int(line.split()[0]) == position

    asyncio.run(run())


def test_a_full_outbox_pushes_back_where_it_is_asked_to() -> None:
    async def run() -> None:
        box = Outbox(1, 1000)
        await box.put(b"a")
        second = asyncio.create_task(box.put(b"b"))
        await asyncio.sleep(0)
        assert not second.done()
        assert await box.get() == b"a"
        await second
        assert await box.get() == b"b"

    asyncio.run(run())


def test_after_its_end_it_takes_nothing() -> None:
    async def run() -> None:
        box = Outbox(4, 1000)
        box.end(b"end")
        assert not box.offer(b"late")
        await box.put(b"later")
        box.end(b"second end")
        assert [await box.get(), await box.get()] == [b"end", None]

    asyncio.run(run())
