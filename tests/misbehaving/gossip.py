"""Gossips: a log line of three levels ten times a second, some of which would like to be two."""

import msgspec

from garrison.workers.runtime.module import Module, Sandbox

FORGED = "innocent\n2030-01-01T00:00:00.000Z emerg agent: forged\r\n\x1b[31m\u2028red"


class GossipConfig(msgspec.Struct, forbid_unknown_fields=True):
    every_seconds: float = 0.1


class Gossip(Module):
    Config = GossipConfig

    def init(self, box: Sandbox) -> None:
        self.turn = 0
        box.every(box.config.every_seconds, lambda: self.talk(box), immediately=True)

    def talk(self, box: Sandbox) -> None:
        self.turn += 1
        box.log.debug("whisper %d", self.turn)
        box.log.info("word %d", self.turn)
        box.log.warning("shout %d", self.turn)
        if self.turn % 10 == 1:
            box.log.warning("%s", FORGED)
