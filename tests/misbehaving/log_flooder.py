"""A hostile external worker: as many log lines as the pipe takes, each of which would like to be several."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hostile_worker import READY, frame, send, text

FORGED = "line\n2030-01-01T00:00:00.000Z emerg agent: forged\r\x1b[2J"


def line(module: str) -> bytes:
    long = FORGED.encode()
    return frame(
        "log",
        b"\x83" + text("level") + text("warning") + text("message") + b"\xd9" + bytes([len(long)]) + long
        + text("module") + text(module),
    )  # fmt: skip


if __name__ == "__main__":
    send(READY)
    serial = 0
    while True:
        send(b"".join(line(f"m{serial + n}\nforged") for n in range(100)))
        os.write(1, b"printed\rforged\x1b[2J\n" * 20)
        serial += 100
        time.sleep(0.001)
