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
