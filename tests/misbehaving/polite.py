"""Uses too much CPU until it is asked to do less; then it does nothing until that is over, and for ever after."""

import time

from garrison.workers.runtime.module import Module, Sandbox


class Polite(Module):
    def run(self, box: Sandbox) -> None:
        while not box.stopping and not box.degraded:
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                pass
            box.wait(timeout=0.001)
        while not box.stopping:
            box.wait(timeout=0.1)
