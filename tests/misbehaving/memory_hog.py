"""Allocates until something stops it: 4 MiB every 20 ms."""

from garrison.workers.runtime.module import Module, Sandbox


class MemoryHog(Module):
    def run(self, box: Sandbox) -> None:
        hoard = []
        while not box.stopping:
            hoard.append(bytearray(b"x") * (4 * 1024 * 1024))
            box.wait(timeout=0.02)
