"""Ends its whole process at once, as a crash in native code does."""

import os

from garrison.workers.runtime.module import Module, Sandbox


class Crasher(Module):
    def run(self, box: Sandbox) -> None:
        os.abort()
