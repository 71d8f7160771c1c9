"""Detection modules for the runtime's tests; copied to a safe place and loaded by path, as a site's own would be."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from typing import Annotated, Any

import msgspec

from garrison.workers.runtime.module import ConfigError, Module


def event(action: str, kind: str = "event", **more: Any) -> dict[str, Any]:
    return {"event": {"kind": kind, "action": action}, **more}


class Quiet(Module):
    """Does nothing at all."""


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    depth: Annotated[int, msgspec.Meta(ge=1, le=9)] = 3


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    greeting: str = "hello"
    count: Annotated[int, msgspec.Meta(ge=0)] = 0
    limits: Limits = msgspec.field(default_factory=Limits)
    refuse_init: bool = False
    init_seconds: float = 0.0


class Greeter(Module):
    """Says as a state which configuration it has, at the start and after each change."""

    Config = Settings

    def init(self, box):
        time.sleep(box.config.init_seconds)
        if box.config.refuse_init:
            raise ConfigError("greeting: init does not like it")
        self.say(box, "started", box.config)

    def reconfigure(self, box, config):
        if config.greeting == "wrong":
            raise ConfigError("greeting: 'wrong' cannot be used")
        if config.greeting == "crash":
            raise ZeroDivisionError("reconfigure is broken")
        self.say(box, "reconfigured", config)

    def say(self, box, action, config):
        box.emit(event(action, "state", message=config.greeting, labels={"old": box.config.greeting}))

    def task(self, box, name, arguments):
        if name == "config":
            return {"greeting": box.config.greeting, "degraded": box.degraded}
        if name == "nap":
            return box.wait(timeout=0.5)
        if name == "run":
            # A program of a careless module: it inherits what is inheritable, and outlives the worker a little.
            return subprocess.Popen(["sleep", "2"], close_fds=False).pid
        return super().task(box, name, arguments)


class Needy(Module):
    """Has a setting without default."""

    class Config(msgspec.Struct, forbid_unknown_fields=True):
        path: str

    def init(self, box):
        box.emit(event("started", "state", message=box.config.path))


class Stubborn(Greeter):
    """Never calls wait, until it is told to by the end of a file."""

    def run(self, box):
        while not box.stopping:
            if os.path.exists(os.path.join(box.state_dir, "yield")):
                box.wait()
            time.sleep(0.01)


class Crasher(Module):
    """Fails in run, again and again."""

    def init(self, box):
        box.emit(event("up", "state"))

    def run(self, box):
        self.fail(3)

    def fail(self, depth):
        if depth:
            self.fail(depth - 1)
        raise RuntimeError("on purpose\nforged line")

    def shutdown(self, box):
        box.emit(event("down", "state"))


class Leaver(Module):
    """Calls sys.exit, which must not end anything but its own run."""

    def run(self, box):
        raise SystemExit(3)


class Returner(Module):
    """Comes back from run although nobody told it to."""

    def run(self, box):
        return


class ShutdownCrasher(Module):
    def shutdown(self, box):
        raise OSError("cannot close")


class Pulse(Module):
    """Emits an event with each tick."""

    def init(self, box):
        self.ticks = 0
        box.every(0.05, lambda: self.tick(box))

    def tick(self, box):
        self.ticks += 1
        box.emit(event("tick", message=str(self.ticks)))


class FloodConfig(msgspec.Struct, forbid_unknown_fields=True):
    total: int = 200_000
    every_alert: int = 0
    padding: int = 200


class Flood(Module):
    """Emits a burst, then says with a last state how many were taken."""

    Config = FloodConfig

    def run(self, box):
        taken = 0
        peak = 0
        padding = "x" * box.config.padding
        for number in range(box.config.total):
            kind = "alert" if box.config.every_alert and number % box.config.every_alert == 0 else "event"
            taken += box.emit(event("flood", kind, message=padding))
            if number % 1000 == 0:
                peak = max(peak, box._emitter._outbox.memory_bytes())
        self.result = {"taken": taken, "peak": peak}
        while not box.stopping:
            box.wait()

    def task(self, box, name, arguments):
        return self.result


class Oddities(Module):
    """Emits what is hard to encode, once asked."""

    def task(self, box, name, arguments):
        sent = {}
        sent["surrogate"] = box.emit(event("surrogate", file={"path": os.fsdecode(b"/tmp/\xff\xfe name")}))
        sent["oversize"] = box.emit(event("oversize", message="x" * 60_000))
        sent["object"] = box.emit(event("object", thing=object()))
        sent["not_a_dict"] = box.emit({"event": "text"})
        sent["bytes"] = box.emit(event("bytes", raw=b"\x00\xff", names={"b"}))
        same = event("same")
        box.emit(same)
        sent["untouched"] = same == event("same")
        sent["last"] = box.emit(event("last"))
        return sent


class Chatter(Module):
    """Logs as much as it is asked to."""

    def task(self, box, name, arguments):
        for number in range(arguments.get("lines", 0)):
            box.log.info("line %d of %s", number, "many")
        if name == "odd":
            box.log.warning("bad format %d", "text")
            box.log.warning("x" * 100_000)
            box.log.warning("forged\nline \x1b[31m and %s", os.fsdecode(b"\xff"))
            box.log.debug("below the level")
        return


class Worker(Module):
    """Answers tasks in many ways."""

    def task(self, box, name, arguments):
        if name == "echo":
            return arguments
        if name == "sleep":
            box.wait(timeout=arguments["seconds"])
            return "slept"
        if name == "fail":
            raise ValueError("the task is wrong")
        if name == "exit":
            raise SystemExit(1)
        if name == "object":
            return object()
        if name == "large":
            return "x" * 100_000
        if name == "surrogate":
            return os.fsdecode(b"\xff")
        return super().task(box, name, arguments)


class Listener(Module):
    """Waits for a descriptor, with a ticker and a timeout beside it."""

    def init(self, box):
        self.left, self.right = socket.socketpair()
        box.every(0.05, lambda: self.right.send(b"x"))

    def run(self, box):
        while not box.stopping:
            for fd in box.wait(self.left.fileno(), timeout=5.0):
                data = os.read(fd, 100)
                box.emit(event("read", message=data.decode()))

    def shutdown(self, box):
        self.left.close()
        self.right.close()


class Parting(Module):
    """Has something to say when it is told to stop."""

    def shutdown(self, box):
        for _ in range(100):
            box.emit(event("parting"))


class Hanger(Module):
    """Does not come back when told to stop."""

    def run(self, box):
        time.sleep(600)


class Hog(Module):
    """Burns CPU time between two looks at whether to stop, until a file says to behave."""

    def init(self, box):
        self.file = os.path.join(box.state_dir, "behave")
        box.emit(event("hog-up", "state"))

    def run(self, box):
        while not box.stopping:
            if os.path.exists(self.file):
                box.wait()
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass

    def shutdown(self, box):
        box.emit(event("hog-down", "state"))


class DeafHog(Hog):
    """Burns CPU time and never looks at whether to stop."""

    def run(self, box):
        while not os.path.exists(self.file):
            sum(range(1000))
        while not box.stopping:
            box.wait()


class Holder(Hog):
    """Holds the interpreter's lock in a C call that takes as good as for ever, until a file says to behave."""

    def run(self, box):
        if not os.path.exists(self.file):
            sum(itertools.repeat(1, 10**12))
        while not box.stopping:
            box.wait()


class Scanner(Module):
    """Long work at its pace, as a task and, once a file says so, in run."""

    def run(self, box):
        file = os.path.join(box.state_dir, "scan")
        while not box.stopping:
            if os.path.exists(file):
                self.item()
                box.pace("all of it")
            else:
                box.wait(timeout=0.02)

    def item(self):
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass

    def task(self, box, name, arguments):
        began, used = time.monotonic(), time.thread_time()
        while time.monotonic() - began < arguments["seconds"]:
            self.item()
            if not box.pace():
                return None
        elapsed = time.monotonic() - began
        return {"percent": (time.thread_time() - used) / elapsed * 100, "allowed": box.cpu_percent}


class NotAModule:
    pass
