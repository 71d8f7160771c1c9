"""Process creation through the proc connector with facts from /proc, and alerts on what is suspicious about it."""

from garrison.workers.process.module import ProcessModule

MODULE = ProcessModule

__all__ = ["MODULE", "ProcessModule"]
