"""The idle worker of the benchmarks, in a file of its own: it compiles at each start what is in its file."""

from __future__ import annotations

from garrison.workers.runtime.module import Module


class Idle(Module):
    """Waits for nothing: what is left is the cost of a worker itself."""
