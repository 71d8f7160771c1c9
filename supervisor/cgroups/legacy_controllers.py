"""The v1 controllers as cgroupspy describes them, with this package's reading and writing underneath.

What is used of cgroupspy 0.2.3: the controller classes (which file holds what, and how its value is to be
parsed) and the interface classes they are made of, for one node at a time. What is not, and why:

- its trees (`Tree`, `GroupedTree`) walk every group of every hierarchy when they are made, which takes
  seconds on a host with thousands of containers, and nest sibling ``sub_groups`` into each other;
- its `Node` takes an existing group for a new one (EEXIST is ignored) and imports logging for nothing;
- its writes are buffered and not read back; `_KernelFiles` below writes with one system call instead, and
  `files.apply` reads back and compares;
- it knows neither pids nor freezer: both are added here in its own terms.

Importing it costs 1 ms and 0.2 MB, and only a host on v1 pays.
"""

from __future__ import annotations

import os
from typing import Any

from cgroupspy.controllers import Controller, CpuAcctController, CpuController, MemoryController
from cgroupspy.interfaces import BaseFileInterface, DictFile, IntegerFile

from garrison.supervisor.cgroups.files import Change, amount, read, write


class _Directory:
    """All that a controller of cgroupspy asks of its node."""

    __slots__ = ("full_path",)

    def __init__(self, directory: str) -> None:
        self.full_path = os.fsencode(directory)


class _KernelFiles:
    """Replaces the buffered file access of `cgroupspy.controllers.Controller`."""

    def __init__(self, directory: str) -> None:
        super().__init__(_Directory(directory))  # type: ignore[call-arg]

    def file(self, filename: str | bytes) -> str:
        """Return the path of one of the node's files."""
        return os.fsdecode(self.filepath(os.fsencode(filename)))  # type: ignore[attr-defined]

    def interface_file(self, attribute: str) -> str:
        """Return the path behind an attribute.

        `Controller.get_interface` does not look at base classes, so it finds nothing in a subclass.
        """
        interface = next(vars(kind)[attribute] for kind in type(self).__mro__ if attribute in vars(kind))
        return self.file(interface.filename)

    def get_property(self, filename: bytes) -> str:
        """Read a file whole."""
        return read(self.file(filename)).strip()

    def set_property(self, filename: bytes, value: object) -> None:
        """Write a file in one call."""
        write(self.file(filename), str(value))

    def has(self, attribute: str) -> bool:
        """Tell whether the kernel has the file behind an attribute."""
        return os.path.exists(self.interface_file(attribute))

    def number(self, attribute: str) -> int | None:
        """Return a limit: None where there is none, also for the huge number that v1 shows then."""
        value = getattr(self, attribute)
        return amount(value)

    def change(self, attribute: str, wanted: int | None) -> Change:
        """Return the change of one attribute."""

        def put(value: Any) -> None:
            setattr(self, attribute, value)

        return Change(self.interface_file(attribute), wanted, lambda: self.number(attribute), put)


class MaxFile(IntegerFile):  # type: ignore[misc]
    """A number, or ``max`` for none (None)."""

    def sanitize_get(self, value: str) -> int | None:
        """Parse what was read."""
        return amount(value)

    def sanitize_set(self, value: int | None) -> str:
        """Return what is to be written."""
        return "max" if value is None else str(int(value))


class Cpu(_KernelFiles, CpuController):  # type: ignore[misc]
    """``cpu.*``: quota, period, shares, statistics."""


class CpuAccounting(_KernelFiles, CpuAcctController):  # type: ignore[misc]
    """``cpuacct.*``."""


class Memory(_KernelFiles, MemoryController):  # type: ignore[misc]
    """``memory.*``."""


class Pids(_KernelFiles, Controller):  # type: ignore[misc]
    """``pids.*``, which cgroupspy lacks."""

    max = MaxFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)
    events = DictFile("pids.events", readonly=True)


class Freezer(_KernelFiles, Controller):  # type: ignore[misc]
    """``freezer.*``, which cgroupspy lacks. The state is FROZEN, FREEZING or THAWED."""

    state = BaseFileInterface("freezer.state")
