"""An external worker that hands over numbered events as fast as it may, and writes down what was acknowledged.

python acknowledged.py LOG        each line of LOG: pid, priority, number through which everything is acknowledged
"""

import json
import os
import select
import struct
import sys
import time

import msgpack

WINDOW = 2000  # events that are not acknowledged
STEP = 50


def send(kind: str, payload: dict) -> None:
    body = msgpack.packb([kind, payload])
    frame = struct.pack(">I", len(body)) + body
    while frame:
        frame = frame[os.write(4, frame) :]


def receive() -> list:
    head = b""
    while len(head) < 4:
        head += os.read(3, 4 - len(head)) or sys.exit(0)
    (length,) = struct.unpack(">I", head)
    body = b""
    while len(body) < length:
        body += os.read(3, length - len(body))
    return msgpack.unpackb(body)


log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
sent = {"event": 0, "alert": 0}
acknowledged = {"event": 0, "alert": 0}
kind, config = receive()
send("applied", {"revision": config["revision"], "ok": True})
send("ready", {"pid": os.getpid(), "modules": ["acknowledged"]})
beat_at = 0.0
while True:
    if time.monotonic() >= beat_at:
        beat_at = time.monotonic() + 0.5
        send("beat", {"emitted": sent})
    waits = sent["event"] - acknowledged["event"] >= WINDOW
    while select.select([3], [], [], 0.02 if waits else 0.005)[0]:
        kind, payload = receive()
        if kind == "stop":
            sys.exit(0)
        if kind == "config":
            send("applied", {"revision": payload["revision"], "ok": True})
        if kind == "ack":
            acknowledged[payload["priority"]] = payload["through"]
            os.write(log, f"{os.getpid()} {payload['priority']} {payload['through']}\n".encode())
            waits = False
    if waits:
        continue
    for priority, count in (("event", STEP), ("alert", 1)):
        first = sent[priority] + 1
        sent[priority] += count
        lines = [
            json.dumps({"event": {"kind": priority, "action": "numbered", "sequence": number}, "pid": os.getpid()})
            for number in range(first, first + count)
        ]
        data = "".join(line + "\n" for line in lines).encode()
        send("events", {"priority": priority, "first": first, "count": count, "data": data})
