"""An external worker in plain Python without a Garrison import: speaks frames on fds 3 and 4 by hand.

Just enough msgpack for what it sends; what it receives it takes apart with the `msgpack` library of the tests.
"""

import json
import os
import struct
import sys
import time

sys.path[:0] = os.environ.get("EXTRA_PATH", "").split(os.pathsep)
import msgpack  # noqa: E402


def send(kind: str, payload: dict) -> None:
    body = msgpack.packb([kind, payload])
    os.write(4, struct.pack(">I", len(body)) + body)


def receive() -> list:
    head = b""
    while len(head) < 4:
        head += os.read(3, 4 - len(head)) or sys.exit(0)
    (length,) = struct.unpack(">I", head)
    body = b""
    while len(body) < length:
        body += os.read(3, length - len(body))
    return msgpack.unpackb(body)


print("hello from outside", flush=True)
kind, config = receive()
send("applied", {"revision": config["revision"], "ok": True})
send("ready", {"pid": os.getpid(), "modules": ["external"]})
line = json.dumps({"event": {"kind": "event", "action": "external", "sequence": 1}, "message": "from outside"})
send("events", {"priority": "event", "first": 1, "count": 1, "data": line.encode() + b"\n"})
send("log", {"level": "notice", "message": "about " + str(config["settings"].get("topic"))})
send("beat", {"emitted": {"event": 1}})
while True:
    kind, payload = receive()
    if kind == "stop":
        sys.exit(0)
    if kind == "config":
        ok = payload["settings"].get("topic") != "bad"
        send("applied", {"revision": payload["revision"], "ok": ok, "error": None if ok else "topic: bad is refused"})
    time.sleep(0.01)
