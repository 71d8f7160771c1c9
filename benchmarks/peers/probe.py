"""What a neighbour feels: ``probe.py latency`` sleeps for 2 ms again and again, ``probe.py work`` does fixed work.

For each line on standard input, seconds, it measures for so long and answers with one line of JSON: ``count`` of
sleeps or pieces of work, ``seconds`` it really took, and for sleeps how late they ended: ``p50``, ``p99``, ``max``, ms.
A line ``begin`` measures until the next line comes. It ends with its standard input.
"""

import json
import math
import select
import sys
import time

# Unbuffered, so that select(2) tells of every line that is there.
INPUT = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  it stays open

SLEEP_SECONDS = 0.002
WORK = range(20_000)
LOOK_SECONDS = 0.2


def measure(work: bool, seconds: float) -> dict[str, float]:
    """Do one thing again and again; until there is something to read, where `seconds` is infinite."""
    late: list[float] = []
    count = 0
    begin = now = time.perf_counter()
    look = begin + LOOK_SECONDS
    while now - begin < seconds:
        if work:
            for _ in WORK:
                pass
        else:
            time.sleep(SLEEP_SECONDS)
            late.append((time.perf_counter() - now - SLEEP_SECONDS) * 1000)
        count += 1
        now = time.perf_counter()
        if seconds == math.inf and now >= look:
            look = now + LOOK_SECONDS
            if select.select([INPUT], [], [], 0)[0]:
                break
    late.sort()
    found = {"count": count, "seconds": now - begin}
    if late:
        found |= {"p50": late[len(late) // 2], "p99": late[math.ceil(len(late) * 0.99) - 1], "max": late[-1]}
    return found


def main() -> None:
    """Answer until the input ends."""
    for line in iter(INPUT.readline, b""):
        seconds = math.inf if line.strip() == b"begin" else float(line)
        print(json.dumps(measure(sys.argv[1] == "work", seconds)), flush=True)
        if seconds == math.inf:
            INPUT.readline()


main()
