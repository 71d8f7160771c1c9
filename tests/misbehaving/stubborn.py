"""Leaves a double-forked grandchild in a session of its own that ignores TERM, and goes on."""

import os
import signal
import time

from garrison.workers.runtime.module import Module, Sandbox


class Stubborn(Module):
    def init(self, box: Sandbox) -> None:
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.write(write, b"%d" % os.getpid())
                deadline = time.monotonic() + 120
                while time.monotonic() < deadline:
                    time.sleep(1)
            os._exit(0)
        pid = int(os.read(read, 32))
        os.close(read)
        os.close(write)
        box.emit({"event": {"kind": "event", "action": "grandchild"}, "process": {"pid": pid}})
