"""Behaves: runs, beats, and says hello once."""

from typing import Annotated

import msgspec

from garrison.workers.runtime.module import Module, Sandbox


class QuietConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Settings to change in tests."""

    greeting: Annotated[str, msgspec.Meta(max_length=20)] = "hello"
    ballast_mib: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    every_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 60.0


class Quiet(Module):
    Config = QuietConfig

    def init(self, box: Sandbox) -> None:
        self.ballast = bytearray(b"x") * (box.config.ballast_mib * 2**20)
        box.every(box.config.every_seconds, lambda: self.greet(box), immediately=True)

    def greet(self, box: Sandbox) -> None:
        box.emit({"event": {"kind": "event", "action": "greeting"}, "message": box.config.greeting})
