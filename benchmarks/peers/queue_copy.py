"""``multiprocessing.Queue`` carrying ready-encoded events into a file: ``queue_copy.py COUNT FILE``, lines on stdin.

Prints the time of the first put (CLOCK_MONOTONIC) and the CPU seconds of producer and consumer.
"""

import multiprocessing
import os
import resource
import sys
import time


def produce(
    queue: "multiprocessing.Queue[bytes]", lines: list[bytes], count: int, times: "multiprocessing.Queue[float]"
) -> None:
    times.put(time.monotonic())
    size = len(lines)
    for number in range(count):
        queue.put(lines[number % size])
    queue.put(b"")
    queue.close()
    queue.join_thread()


def main() -> None:
    count, path = int(sys.argv[1]), sys.argv[2]
    lines = sys.stdin.buffer.read().splitlines(keepends=True)
    context = multiprocessing.get_context("fork")
    queue, times = context.Queue(), context.Queue()
    with open(path, "wb") as file:
        producer = context.Process(target=produce, args=(queue, lines, count, times), daemon=True)
        producer.start()
        begin = times.get()
        while line := queue.get():
            file.write(line)
    producer.join()
    consumer, produced = os.times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(begin, produced.ru_utime + produced.ru_stime, consumer.user + consumer.system)


main()
