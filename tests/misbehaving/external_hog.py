"""An external worker that speaks the contract of the pipes by hand and does harm while its switch file exists.

Arguments: which way, the switch file, the seconds between two beats.
"""

import os
import sys
import time

from hostile_worker import BEAT, READY, send


def hang(on: bool) -> None:
    """Goes on living without a beat."""
    if not on:
        send(BEAT)


def spin(on: bool) -> None:
    """Beats, and burns CPU in between."""
    send(BEAT)
    end = time.monotonic() + pause
    while on and time.monotonic() < end:
        pass


def brood(on: bool) -> None:
    """Has children that use more memory together than any of them may alone; they end with the switch, or in time."""
    send(BEAT)
    while on and len(children) < 4:
        child = os.fork()
        if child == 0:
            memory = bytearray(b"x") * (40 * 2**20)
            fuse = time.monotonic() + 60
            while memory and time.monotonic() < fuse and os.path.exists(switch):
                time.sleep(pause)
            os._exit(0)
        children.append(child)


children: list[int] = []
way, switch, pause = globals()[sys.argv[1]], sys.argv[2], float(sys.argv[3])
end = time.monotonic() + 300
send(READY)
while time.monotonic() < end:
    harmful = os.path.exists(switch)
    if harmful and not os.path.exists(f"{switch}.began"):
        with open(f"{switch}.began", "w") as file:
            file.write(repr(time.monotonic()))
    way(harmful)
    if way is hang or not harmful:
        time.sleep(pause)
