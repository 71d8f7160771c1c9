"""Hybrid hosts: the controllers sit on v1, and a v2 tree without them is mounted beside.

Caps and counters come from v1; killing, freezing and its notification go through the v2 tree, which does them
in one write. A process is placed in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from garrison.supervisor.cgroups.legacy import LegacyResources
from garrison.supervisor.cgroups.nodes import KernelCgroups
from garrison.supervisor.cgroups.tree import Tree
from garrison.supervisor.cgroups.unified import UnifiedStopper


class HybridCgroups(KernelCgroups):
    """Caps on v1, killing on v2.

    Args:
        trees: Our nodes by v1 controller; co-mounted controllers share one.
        unified: Our nodes in the v2 hierarchy. None of its controllers is enabled, so that any node may hold
            processes.
        others: Hierarchies in which an agent of another mode may have left nodes.

    Raises:
        UnsupportedError: A controller is not among them.
    """

    def __init__(self, trees: Mapping[str, Tree], unified: Tree, *, others: Sequence[Tree] = ()) -> None:
        super().__init__("hybrid", LegacyResources(trees), UnifiedStopper(unified), others)
