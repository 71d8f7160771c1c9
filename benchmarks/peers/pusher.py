"""An external worker that pushes batches encoded beforehand: what the way from pipe to file can carry.

Uses only the standard library. A configuration with a new ``turn`` asks for ``count`` frames; the batch stands
in ``file``. Each frame is the same but for the number of its first event, which is put in its place.
"""

import json
import os
import select
import struct
import sys
import time

CONFIG_FD, EVENTS_FD = 3, 4
BEAT_SECONDS = 5.0
NUMBER = struct.Struct(">Q")


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">BB", 0xD9, len(raw)) + raw


def uint(value: int) -> bytes:
    return b"\xcf" + NUMBER.pack(value)


def send(kind: str, payload: bytes) -> None:
    body = b"\x92" + text(kind) + payload
    write(memoryview(struct.pack(">I", len(body)) + body))


def write(rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(EVENTS_FD, rest) :]


def beat(emitted: int) -> None:
    send("beat", b"\x81" + text("emitted") + b"\x81" + text("event") + uint(emitted))


def receive() -> tuple[bytes, bytes]:
    """Return kind and payload of the next frame, still msgpack."""
    head = read(4)
    body = read(struct.unpack(">I", head)[0])
    return body[2 : 2 + (body[1] & 0x1F)], body[2 + (body[1] & 0x1F) :]


def read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(CONFIG_FD, size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def order(payload: bytes) -> tuple[int, dict]:
    """Return revision and the order: JSON in a text of its own, so that no msgpack decoder is needed."""
    at = payload.index(b"revision") + len(b"revision")
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(payload[at], 0)
    revision = int.from_bytes(payload[at + 1 : at + 1 + width], "big") if width else payload[at]
    begin = payload.find(b'{"turn"')
    return revision, json.loads(payload[begin : payload.index(b"}", begin) + 1]) if begin >= 0 else {}


def push(path: str, count: int, emitted: int) -> int:
    with open(path, "rb") as file:
        data = file.read()
    events = data.count(b"\n")
    head = b"\x92" + text("events") + b"\x84" + text("priority") + text("event") + text("first") + b"\xcf"
    tail = text("count") + uint(events) + text("data") + struct.pack(">BI", 0xC6, len(data)) + data
    body = head + NUMBER.pack(0) + tail
    frame = bytearray(struct.pack(">I", len(body)) + body)
    for _ in range(count):
        NUMBER.pack_into(frame, 4 + len(head), emitted + 1)
        write(memoryview(frame))
        emitted += events
    return emitted


def main() -> None:
    emitted, done, said_ready = 0, 0, False
    while True:
        if not select.select([CONFIG_FD], [], [], BEAT_SECONDS)[0]:
            beat(emitted)
            continue
        kind, payload = receive()
        if kind == b"stop":
            return
        if kind != b"config":
            continue
        revision, wanted = order(payload)
        if not said_ready:
            send("ready", b"\x80")
            said_ready = True
        send("applied", b"\x82" + text("revision") + uint(revision) + text("ok") + b"\xc3")
        if wanted.get("turn", 0) != done:
            done = wanted["turn"]
            begin, used = time.monotonic(), time.process_time()
            emitted = push(wanted["file"], wanted["count"], emitted)
            wall, cpu = time.monotonic() - begin, time.process_time() - used
            print(f"turn {done} began at {begin:.6f}, {wall:.3f} s, {cpu:.3f} s of CPU", flush=True)
            beat(emitted)


main()
