"""A virtual machine under qemu: it boots, runs commands, loses its power."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from tests.etcd.cluster import _BOUND_TO_PARENT as BOUND_TO_PARENT
from tests.vm.image import Image, copy

T = TypeVar("T")
BOOT_SECONDS = 240.0
"""Emulated it takes about 10 s on an idle machine."""
CPU = "qemu64,+cx16,+popcnt,+ssse3,+sse4.1,+sse4.2"
"""x86-64-v2. Emulating more of a processor (AVX, string instructions) makes everything half as fast again."""
LEGACY = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
"""Kernel arguments with which systemd uses the controllers of cgroup v1, and nothing of v2."""


class MachineError(Exception):
    """The machine did not do what it was asked to; the text ends with what its console said last."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended.

    Attributes:
        status: Its exit status; 124 where its time was up.
        output: What it wrote, errors included.
    """

    status: int
    output: str


class Machine:
    """One machine; a context manager that starts it if nobody has, and ends it as a power cut does.

    Args:
        image: What it boots from.
        folder: For its own disk and its console's log. The disk stays over starts.
        data: A disk with one ext4 file system, which it mounts at /media, read-only.
        arguments: More for the kernel's command line.
        memory: In MiB.
        cpus: How many. Emulated ones that wait for each other burn what the machines beside them need: one.
        ports: TCP ports of the machine that are reached from here on 127.0.0.1, under the same numbers.

    Attributes:
        disk: Its own one, a file; nobody else may write to it while the machine runs.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        data: Path,
        *,
        arguments: str = "",
        memory: int = 1024,
        cpus: int = 1,
        ports: Sequence[int] = (),
    ) -> None:
        self._image, self._folder, self._data = image, folder, data
        self._arguments, self._memory, self._cpus = arguments, memory, cpus
        self.ports = tuple(ports)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._received = b""
        self._number = 0
        self.boot_id = ""
        self.boot_seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.disk = folder / "disk"
        (folder / "console.log").unlink(missing_ok=True)
        copy(image.disk, self.disk)

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self.disk.unlink(missing_ok=True)

    def start(self) -> None:
        """Switch it on and wait until it runs commands.

        Raises:
            MachineError: It did not come up.
        """
        assert self._process is None
        ours, theirs = socket.socketpair()
        with theirs, (self._folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOUND_TO_PARENT, str(os.getpid()), *self._command(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._line, self._received = ours, b""
        try:
            self.wait_up()
        except BaseException:
            self.cut()
            raise

    def wait_up(self) -> None:
        """Wait until it has booted.

        Raises:
            MachineError: It did not come up.
        """
        began = time.monotonic()
        words = self._answer("HELLO", BOOT_SECONDS)
        self.boot_id = words[1]
        self.boot_seconds = time.monotonic() - began

    def reboot(self) -> None:
        """Have systemd reboot it, and wait until it is up again.

        Raises:
            MachineError: It did not come up.
        """
        self._ask("systemctl --no-block reboot", "60")  # whether it still answers is a race
        self.wait_up()

    def cut(self) -> None:
        """Cut its power: what it had not written to its disk is lost. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def try_run(self, command: str, timeout: float = 120.0) -> Result:
        """Run a command with bash, as root.

        Args:
            command: Text of a script.
            timeout: Seconds; then it is ended inside.

        Raises:
            MachineError: The machine itself does not answer.
        """
        self._ask(command, f"{timeout:g}")
        return self._result(timeout + 60)

    def talk(self, line: str) -> Result:
        """Send a line to the agent's socket and return its answer, without a program that is started for it.

        Returns:
            Status 1 and the reason as output where nobody answers.

        Raises:
            MachineError: The machine itself does not answer.
        """
        self._ask(line, "ask")
        return self._result(160)

    def run(self, command: str, timeout: float = 120.0) -> str:
        """Run a command and return what it wrote.

        Raises:
            MachineError: It ended with another status than 0.
        """
        result = self.try_run(command, timeout)
        if result.status != 0:
            raise MachineError(f"{command!r} ended with {result.status}: {result.output[-3000:]}")
        return result.output

    def until(self, what: str, look: Callable[[], T], seconds: float = 120.0, every: float = 0.5) -> T:
        """Look again and again until there is something.

        Args:
            what: For the error.
            look: Looks. What it costs in the machine is lost to what is waited for.
            seconds: For how long.
            every: Seconds between two looks.

        Raises:
            MachineError: There was not, in the time.
        """
        end = time.monotonic() + seconds
        while True:
            if found := look():
                return found
            if time.monotonic() > end:
                raise MachineError(f"not within {seconds:g} s: {what}")
            time.sleep(every)

    def console(self) -> str:
        """Return the end of what the console showed."""
        log = self._folder / "console.log"
        return log.read_bytes()[-4000:].decode(errors="replace") if log.exists() else ""

    def _command(self, line: int) -> list[str]:
        # A busy host makes the machine doubt its fastest clock and read a slow one, which is an exit to the emulator.
        kernel = f"console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable systemd.show_status=0 {self._arguments}"
        console = self._folder / "console.log"
        # Nothing leaves the machine: it can be spoken to, on these ports.
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{port}" for port in self.ports)
        return [
            "/usr/bin/env",
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-cpu", CPU),
            # Emulated: where KVM is offered inside of a virtual machine it does not always hold what it promises.
            *("-accel", "tcg,thread=multi"),
            *("-m", str(self._memory), "-smp", str(self._cpus)),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", kernel),
            # What the machine has written stands in this host's page cache, which outlives the emulator: a power cut
            # loses what the machine itself had still in memory, and no flush has to wait for a real disk.
            *("-drive", f"file={self.disk},format=raw,if=virtio,cache=unsafe"),
            *("-drive", f"file={self._data},format=raw,if=virtio,readonly=on"),
            *("-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=commands,fd={line}", "-serial", "chardev:commands"),
            *("-netdev", f"user,id=net,restrict=on{forwards}", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci"),
        ]

    def _ask(self, text: str, how: str) -> None:
        assert self._line is not None
        self._number += 1
        try:
            self._line.settimeout(60)
            self._line.sendall(f"{self._number} {how} {text.encode().hex()}\n".encode())
        except OSError as error:
            raise self._dead(str(error)) from None

    def _result(self, seconds: float) -> Result:
        while True:
            words = self._answer("DONE", seconds)
            if words[1] == str(self._number):
                output = bytes.fromhex(words[3]).decode(errors="replace") if len(words) > 3 else ""
                return Result(int(words[2]), output)

    def _answer(self, word: str, seconds: float) -> list[str]:
        assert self._line is not None
        end = time.monotonic() + seconds
        while True:
            head, found, rest = self._received.partition(b"\n")
            if found:
                self._received = rest
                words = head.decode(errors="replace").split()
                if words and words[0] == word:
                    return words
                continue
            left = end - time.monotonic()
            if left <= 0:
                raise self._dead(f"no {word} within {seconds:g} s")
            self._line.settimeout(left)
            try:
                more = self._line.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._dead(str(error)) from None
            if not more:
                raise self._dead("it has gone")
            self._received += more

    def _dead(self, why: str) -> MachineError:
        qemu = (self._folder / "qemu.log").read_bytes()[-1000:].decode(errors="replace")
        return MachineError(f"the machine does not answer: {why}\n{qemu}\n{self.console()}")
