"""An external worker that breaks the contract of its pipes on purpose; which way is its first argument.

Speaks msgpack by hand, so that nothing stands between the attack and the master.
"""

import os
import struct
import sys
import time

LINE = b'{"event":{"kind":"event","action":"hostile"}}\n'


def text(value: str) -> bytes:
    raw = value.encode()
    return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw


def number(value: int) -> bytes:
    return b"\xcf" + struct.pack(">Q", value)


def frame(kind: str, payload: bytes) -> bytes:
    body = b"\x92" + text(kind) + payload
    return struct.pack(">I", len(body)) + body


def events(first: int, count: int, data: bytes) -> bytes:
    return frame(
        "events",
        b"\x84" + text("priority") + text("event") + text("first") + number(first) + text("count") + number(count)
        + text("data") + b"\xc6" + struct.pack(">I", len(data)) + data,
    )  # fmt: skip


def beat(emitted: int) -> bytes:
    return frame("beat", b"\x81" + text("emitted") + b"\x81" + text("event") + number(emitted))


READY = frame("ready", b"\x80")
BEAT = frame("beat", b"\x80")


def send(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(4, rest) :]


def stay() -> None:
    while True:
        time.sleep(60)


def garbage() -> None:
    send(READY + os.urandom(65536))


def announce() -> None:
    send(READY + b"\xff\xff\xff\xff")


def unknown() -> None:
    send(READY + frame("exec", b"\x80"))


def half() -> None:
    send(READY + events(1, 1, LINE)[:20])


def drip() -> None:
    send(READY)
    for byte in events(1, 1, LINE):
        send(bytes([byte]))
        time.sleep(0.005)
    send(b"\xc1" * 8)


def count_lie() -> None:
    send(READY + events(1, 2, LINE))


def first_lie() -> None:
    send(READY + events(1, 1, LINE) + events(3, 1, LINE))


def repeat() -> None:
    send(READY + events(1, 2, LINE * 2) + events(2, 1, LINE))


def beat_lie() -> None:
    send(READY + events(1, 1, LINE) + beat(0))


def twice_ready() -> None:
    send(READY + READY)


def close_pipes() -> None:
    send(READY)
    for fd in range(5):
        os.close(fd)


def flood_beats() -> None:
    send(READY)
    many = BEAT * (60000 // len(BEAT))
    while True:
        send(many)


def flood_events() -> None:
    send(READY)
    first, lines = 1, 9000
    while True:
        send(events(first, lines, b'{"":1}\n' * lines))
        first += lines


def flood_logs() -> None:
    send(READY)
    serial = 0
    while True:
        # A module of another name each time: every one of them would like a log source of its own.
        send(b"".join(log(f"m{serial + n}") for n in range(500)))
        serial += 500


def log(module: str) -> bytes:
    return frame(
        "log", b"\x83" + text("level") + text("err") + text("message") + text("x" * 100) + text("module") + text(module)
    )


def flood_stdout() -> None:
    send(READY)
    while True:
        os.write(1, b"x\n" * 2048)


def deaf() -> None:
    send(READY)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    stay()
