"""An external worker that offers far more events than anybody wants, by the clock, and a few alerts.

Arguments: events a second, alerts a second. The events are encoded beforehand, so that it costs the worker little to
offer them. What the pipe does not take is numbered all the same, given up and announced, as the runtime does it;
alerts wait instead, and go first.
"""

import json
import os
import select
import struct
import sys
import time
from collections import deque
from datetime import UTC, datetime

from hostile_worker import READY, beat, frame, number, text

FRAME_EVENTS = 500
LINES = b'{"event":{"action":"said","kind":"event"}}\n' * FRAME_EVENTS
BACKLOG = 32
"""Most frames of events that wait for the pipe."""
BEAT_SECONDS = 1.0
CONFIG_FD, EVENTS_FD = 3, 4


def batch(priority: str, first: int, count: int, data: bytes, lost: int) -> bytes:
    """Return a frame of events that start at `first`; the `lost` before it were given up."""
    dropped = text("dropped") + b"\x90"
    if lost:
        dropped = text("dropped") + b"\x91\x93" + number(first - lost) + number(first - 1) + text("queue_full")
    head = text("priority") + text(priority) + text("first") + number(first) + text("count") + number(count)
    return frame("events", b"\x85" + head + dropped + text("data") + b"\xc6" + struct.pack(">I", len(data)) + data)


def shout(sequence: int) -> bytes:
    now = datetime.now(UTC).isoformat()
    event = {"@timestamp": now, "event": {"kind": "alert", "action": "shouted", "sequence": sequence}}
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


class Flood:
    """What was made, and what is still to be written."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.made = self.waiting = self.lost = self.shouted = self.beats = 0
        self.next = 1
        self.urgent: deque[bytes] = deque()
        self.rest = memoryview(b"")

    def make(self) -> None:
        """Make what is due by now."""
        due = time.monotonic() - self.begin
        while self.shouted < due * alerts:
            self.shouted += 1
            self.urgent.append(batch("alert", self.shouted, 1, shout(self.shouted), 0))
        frames = int(due * events) // FRAME_EVENTS - self.made
        self.made += frames
        taken = min(frames, BACKLOG - self.waiting)
        self.waiting += taken
        self.lost += (frames - taken) * FRAME_EVENTS
        if self.beats < due / BEAT_SECONDS:
            self.beats += 1
            self.urgent.append(beat(self.next - 1))

    def write(self) -> None:
        """Write what the pipe takes."""
        while True:
            if not self.rest:
                self.rest = memoryview(self.frame())
            if not self.rest:
                return
            try:
                self.rest = self.rest[os.write(EVENTS_FD, self.rest) :]
            except BlockingIOError:
                return

    def frame(self) -> bytes:
        """Return the next frame; nothing where none is due."""
        if self.urgent:
            return self.urgent.popleft()
        if not self.waiting:
            return b""
        first, lost, self.lost = self.next + self.lost, self.lost, 0
        self.next = first + FRAME_EVENTS
        self.waiting -= 1
        return batch("event", first, FRAME_EVENTS, LINES, lost)


def main() -> None:
    os.write(EVENTS_FD, READY)
    os.set_blocking(EVENTS_FD, False)
    flood = Flood()
    while True:
        flood.make()
        flood.write()
        pipe = [EVENTS_FD] if flood.rest else []
        readable, _, _ = select.select([CONFIG_FD], pipe, [], 0.005)
        # Nothing that the master says changes anything: it acknowledges, and at the end it asks for the end.
        if readable and text("stop") in (os.read(CONFIG_FD, 65536) or text("stop")):
            return


if __name__ == "__main__":
    events, alerts = float(sys.argv[1]), float(sys.argv[2])
    main()
