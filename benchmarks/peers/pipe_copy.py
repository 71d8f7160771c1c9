"""A bare copy through ``os.pipe`` of 1 MiB into a file: ``pipe_copy.py COUNT FILE``, the batch on stdin.

Prints the time of the first write (CLOCK_MONOTONIC) and the CPU seconds of writer and reader.
"""

import fcntl
import os
import resource
import sys
import time

PIPE_BYTES = 1024 * 1024


def main() -> None:
    count, path = int(sys.argv[1]), sys.argv[2]
    batch = sys.stdin.buffer.read()
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        for _ in range(count):
            rest = memoryview(batch)
            while rest:
                rest = rest[os.write(write, rest) :]
        os._exit(0)
    os.close(write)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    while data := os.read(read, PIPE_BYTES):
        os.write(file, data)
    os.waitpid(pid, 0)
    reader, writer = os.times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(begin, writer.ru_utime + writer.ru_stime, reader.user + reader.system)


main()
