"""The two things that differ between the versions: how a node is capped, and how it is stopped.

`nodes.KernelCgroups` is put together from one of each: unified from both v2 parts, legacy from both v1
parts, hybrid from the caps of v1 and the stopping of v2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from garrison.supervisor.cgroups.base import Limits, OomWatch, Usage
from garrison.supervisor.cgroups.files import Change
from garrison.supervisor.cgroups.tree import Tree

V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
"""What a host must offer on v1 for caps and counters; the v1 freezer comes on top where v2 cannot kill."""

V2_CONTROLLERS = frozenset({"cpu", "memory", "pids"})
"""What a host must offer on v2."""

FREEZE_SECONDS = 1.0
"""Longest wait for a node to be frozen or thawed: part of the interface."""


class Resources(ABC):
    """Caps and counters of the nodes."""

    trees: tuple[Tree, ...]
    """The hierarchies that hold them."""

    cpu_tree: Tree
    """The one that holds the CPU cap."""

    @property
    @abstractmethod
    def enforced(self) -> frozenset[str]:
        """Which of ``cpu``, ``memory``, ``pids`` are enforced."""

    @abstractmethod
    def missing(self) -> list[str]:
        """Return what the host lacks, one clause each; empty where nothing is. Writes nothing."""

    @abstractmethod
    def set_up_own(self) -> None:
        """Ready ``<own>``, with this process already in ``supervisor``, before ``workers`` is made.

        Raises:
            UnsupportedError: The kernel refuses; the text says what to do.
        """

    @abstractmethod
    def set_up_workers(self) -> None:
        """Ready ``workers`` before any worker's node is made.

        Raises:
            UnsupportedError: The kernel refuses; the text says what to do.
        """

    @abstractmethod
    def worker_changes(self, worker: str, limits: Limits) -> list[Change]:
        """Return the writes that give a worker's node its caps, in an order that the kernel takes.

        Raises:
            LimitError: A cap that no kernel takes.
            OSError: A present value cannot be read.
        """

    @abstractmethod
    def aggregate_changes(self, limits: Limits, wanted: Mapping[str, Limits]) -> list[Change]:
        """Return the writes that give ``workers`` its caps, those that its children need included.

        Args:
            limits: The new caps.
            wanted: What each worker's node was asked to have.

        Raises:
            LimitError: A cap that no kernel takes.
            OSError: A present value cannot be read.
        """

    @abstractmethod
    def quota_file(self, worker: str | None) -> tuple[str, str]:
        """Return the CPU quota's file and the value that lifts it."""

    @abstractmethod
    def usage(self, node: Callable[[Tree], str]) -> Usage:
        """Return the counters.

        Args:
            node: Returns the node's directory in a hierarchy.

        Raises:
            OSError: ENOENT or ENODEV where the node is gone.
        """

    def made(self, worker: str) -> None:  # noqa: B027  most versions have nothing to remember
        """Note that a worker's node was made anew, so that its counters start at zero."""

    @abstractmethod
    def memory_watch(self, level: int) -> OomWatch | None:
        """Return a notifier of ``workers`` passing a level of charged bytes, or None where the kernel has none.

        Raises:
            OSError: The kernel refuses.
        """

    @abstractmethod
    def oom_watch(self, worker: str) -> OomWatch | None:
        """Return a notifier, or None where the kernel has none.

        Raises:
            OSError: The node is gone.
        """


class Stopper(ABC):
    """Freezing and killing."""

    tree: Tree
    """The hierarchy that it goes through."""

    @property
    @abstractmethod
    def enforced(self) -> frozenset[str]:
        """Which of ``freeze`` and ``kill`` are enforced."""

    @abstractmethod
    def missing(self) -> list[str]:
        """Return what the host lacks, one clause each."""

    @abstractmethod
    def freeze(self, directory: str, frozen: bool) -> None:
        """Stop or continue a node of `tree`; returns when the kernel says so.

        Raises:
            CgroupError: It does not within `FREEZE_SECONDS`, or the kernel has no freezer.
        """

    @abstractmethod
    def kill_files(self, worker: str | None) -> tuple[str, ...]:
        """Return the file that kills a node at once, if the kernel has it."""

    @abstractmethod
    def freezer(self, worker: str | None) -> str:
        """Return the node's freezer directory where it is needed for a kill, else an empty string."""


def v1_freezers(trees: Sequence[Tree]) -> list[str]:
    """Return the directories of ``<own>`` in v1 freezer hierarchies, where leftovers may stand frozen."""
    return [tree.directory for tree in trees if "freezer" in tree.mount.controllers]
