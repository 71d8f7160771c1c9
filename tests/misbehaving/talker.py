"""Says a lot, in numbered events and now and then an alert: what becomes of them can be told from their numbers."""

from typing import Annotated

import msgspec

from garrison.workers.runtime.module import Module, Sandbox


class TalkerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How much it says."""

    every_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.05
    events: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 20
    alerts: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1


class Talker(Module):
    Config = TalkerConfig

    def run(self, box: Sandbox) -> None:
        number = 0
        while not box.stopping:
            for _ in range(box.config.events):
                number += 1
                box.emit({"event": {"kind": "event", "action": "said"}, "garrison": {"number": number}})
            for _ in range(box.config.alerts):
                box.emit({"event": {"kind": "alert", "action": "shouted"}})
            box.wait(timeout=box.config.every_seconds)
