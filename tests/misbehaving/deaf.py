"""Burns CPU time while a file exists, and does not hear that it should stop."""

import os
import time

import msgspec

from garrison.workers.runtime.module import Module, Sandbox

FUSE_SECONDS = 300.0


class DeafConfig(msgspec.Struct, forbid_unknown_fields=True):
    switch: str


class Deaf(Module):
    Config = DeafConfig

    def run(self, box: Sandbox) -> None:
        fuse = time.monotonic() + FUSE_SECONDS
        while not box.stopping:
            while os.path.exists(box.config.switch) and time.monotonic() < fuse:
                sum(range(1000))
            box.wait(timeout=0.05)
