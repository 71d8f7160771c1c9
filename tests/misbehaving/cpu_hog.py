"""Spins, and looks up only now and then."""

from garrison.workers.runtime.module import Module, Sandbox


class CpuHog(Module):
    def run(self, box: Sandbox) -> None:
        while not box.stopping:
            for _ in range(200_000):
                pass
            box.wait(timeout=0)
