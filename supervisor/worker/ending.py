"""How a process is ended: asked, told, killed. What follows from its end is its supervisor's."""

from __future__ import annotations

import signal

from garrison.supervisor.worker.node import WorkerNode
from garrison.supervisor.worker.process import WorkerProcess

TERM_SHARE = 0.4
"""Share of the grace that a worker has for the polite request before SIGTERM comes too."""
KILL_SECONDS = 5.0
"""How long the killed may take to disappear before that is reported."""


async def asked(process: WorkerProcess, reason: str, grace: float) -> bool:
    """Ask a process to end, then send SIGTERM. False: it still runs after `grace` seconds."""
    process.down.stop(reason)
    if await process.wait_gone(grace * TERM_SHARE):
        return True
    process.signal(signal.SIGTERM)
    return await process.wait_gone(grace * (1 - TERM_SHARE))


async def killed(process: WorkerProcess, node: WorkerNode) -> bool:
    """Kill a process and all else in its node. False: it has not disappeared within `KILL_SECONDS`."""
    if not node.kill():
        # Without a descriptor to open the node's files, for one, this still works: the pidfd is there already.
        process.signal(signal.SIGKILL)
    return process.gone or await process.wait_gone(KILL_SECONDS)
