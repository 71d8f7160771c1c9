"""What Supervisor runs: a Python program like a worker, idle or (with ``spin``) busy. Says hello when it runs."""

import os
import signal
import socket
import sys

hello = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
hello.sendto(b"%d" % os.getpid(), os.environ["BENCH_HELLO"])
hello.close()
while True:
    if "spin" in sys.argv:
        continue
    signal.pause()
