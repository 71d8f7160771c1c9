"""Behaves, and gives a numbered sign of life at a fixed pace: what neighbours feel can be told from it."""

from typing import Annotated

import msgspec

from garrison.workers.runtime.module import Module, Sandbox


class HealthyConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How often, and how large it is."""

    every_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    ballast_mib: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0


class Healthy(Module):
    Config = HealthyConfig

    def init(self, box: Sandbox) -> None:
        self.ballast = bytearray(b"x") * (box.config.ballast_mib * 2**20)
        self.number = 0
        box.every(box.config.every_seconds, lambda: self.tick(box), immediately=True)

    def tick(self, box: Sandbox) -> None:
        self.number += 1
        details = {"number": self.number, "monotonic": box.clock.monotonic()}
        box.emit({"event": {"kind": "event", "action": "tick"}, "garrison": details})
