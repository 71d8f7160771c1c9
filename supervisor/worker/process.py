"""One process of a worker: from the opened gate to its last byte.

It reads what the worker sends, a bounded amount a turn, and turns it into calls of a `Listener`. Whatever
comes over the pipe is a claim: what breaks the contract ends the relation, and nothing else happens here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Protocol

from garrison.ipc.channel import ChannelClosedError, FrameReceiver
from garrison.ipc.frames import MAX_UP_BYTES, ProtocolError
from garrison.ipc.messages import Applied, Beat, Events, Log, Ready, Result, decode_up
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor.events.checking import ProcessLedger
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.nursery.child import GATE_OPEN
from garrison.supervisor.nursery.client import Child
from garrison.supervisor.nursery.protocol import Exited
from garrison.supervisor.worker.downlink import Downlink
from garrison.supervisor.worker.output import OutputReader

READ_BYTES = 128 * 1024
"""Most bytes taken from one worker in one turn of the loop."""
DRAIN_READS = 16
"""Reads of what a dead worker left: its pipe holds at most 1 MiB."""
FRAMES_PER_SECOND = 2000.0
BYTES_PER_SECOND = 4.0 * 1024 * 1024
EVENT_BYTES = 2048
"""What an event may take of the pipe on average, bytes, for a worker whose budget allows more than the above."""
BURST_SECONDS = 2.0
"""What is read from one worker on average and in a burst. A worker writes frames with less CPU time than it takes to
check them: without a bound one at its quota could keep the master busy. Far above what a well-behaved one sends; one
above it waits for its own pipe."""
PAUSE_SECONDS = 0.1
CONGESTED_SECONDS = 0.005
"""How long a worker is left unread when the sink is behind: it writes some megabytes in that time."""
CLOSED_SECONDS = 5.0
"""How long a process may live after it has closed its events pipe: it is taken to be ending."""
REPORT_SECONDS = 5.0
"""How long the nursery may take to report a death that the pidfd has shown."""


class Listener(Protocol):
    """Who hears what a worker's process says."""

    def on_ready(self, ready: Ready) -> None:
        """The modules run."""

    def on_beat(self, beat: Beat) -> None:
        """A sign of life."""

    def on_events(self, batch: Events, objects: list[bytes]) -> None:
        """A checked and booked batch, and its events as `checking.open_objects` gives them."""

    def on_log(self, log: Log) -> None:
        """A line for the log."""

    def on_applied(self, applied: Applied) -> None:
        """What became of a configuration."""

    def on_result(self, result: Result) -> None:
        """What became of a task."""

    def on_output(self, line: str) -> None:
        """A line that the process printed."""

    def on_breach(self, reason: str) -> None:
        """The pipe's contract is broken; nothing more will be read."""

    def on_gone(self) -> None:
        """The process has ended."""


class WorkerProcess:
    """The master's end of one worker process.

    Args:
        child: The process, waiting at its gate.
        epoch: Its number among the processes of this worker.
        gate: Write end of the gate.
        config: Write end of the config pipe, non-blocking.
        events: Read end of the events pipe, non-blocking.
        output: Read end of the output pipe, non-blocking.
        ledger: Where its events are booked.
        listener: Who hears it.
        on_hang: Called when the kernel shows the process dead and the nursery does not report it.
        congested: Tells whether what is read now would find the sink behind.
        killed: Tells whether the killswitch is engaged, or was since this process was asked for.
    """

    def __init__(
        self,
        *,
        child: Child,
        epoch: int,
        gate: int,
        config: int,
        events: int,
        output: int,
        ledger: WorkerLedger,
        listener: Listener,
        on_hang: Callable[[], None],
        congested: Callable[[], bool],
        killed: Callable[[], bool],
    ) -> None:
        self.child = child
        self.epoch = epoch
        self.killed = killed
        self.down = Downlink(config)
        self.ready_at: float | None = None
        self.last_beat: Beat | None = None
        self.beat_at: float | None = None
        self._gate = gate
        self._events = events
        self._receiver = FrameReceiver(events, MAX_UP_BYTES, READ_BYTES)
        self._output = OutputReader(output, listener.on_output)
        self._ledger = ProcessLedger(ledger, epoch)
        self._listener = listener
        self._on_hang = on_hang
        self._congested = congested
        self._broken = False
        self._reading = False
        self._frames = TokenBucket(FRAMES_PER_SECOND, FRAMES_PER_SECOND * BURST_SECONDS)
        self._bytes = TokenBucket(BYTES_PER_SECOND, BYTES_PER_SECOND * BURST_SECONDS)
        self._pause: asyncio.TimerHandle | None = None
        self._hang: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        child.exit.add_done_callback(self._exited)
        if child.pidfd is not None:
            asyncio.get_running_loop().add_reader(child.pidfd, self._died)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.child.pid

    @property
    def gone(self) -> bool:
        """True when the process has been reaped, or was lost with its nursery."""
        return self.child.exit.done()

    @property
    def report(self) -> Exited | None:
        """The nursery's report of the death; None while it lives and where the nursery died."""
        return self.child.exit.result() if self.child.exit.done() else None

    def limit(self, events_per_second: float) -> None:
        """Read as fast as the worker's budget of events needs, and never slower than any worker may."""
        rate = max(BYTES_PER_SECOND, events_per_second * EVENT_BYTES)
        self._bytes.limit(rate, rate * BURST_SECONDS)

    def open_gate(self) -> None:
        """Let the process run its first instruction of worker code."""
        os.write(self._gate, GATE_OPEN)
        self._close_gate()
        self._resume()

    def signal(self, signo: signal.Signals) -> None:
        """Signal exactly this process."""
        self.child.signal(signo)

    async def wait_gone(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end. True: it is gone."""
        try:
            await asyncio.wait_for(self._gone.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def drain(self) -> None:
        """Take what a dead process left in its pipe. Its node must be empty, so that nobody writes on."""
        for _ in range(DRAIN_READS):
            if self._broken:
                return
            before = self._receiver.bytes_received
            self._read()
            if self._receiver.bytes_received == before:
                return

    def close(self) -> int:
        """Close every pipe, end the bookkeeping; returns the number of events that are lost with it."""
        loop = asyncio.get_running_loop()
        for timer in (self._hang, self._silence):
            if timer is not None:
                timer.cancel()
        self._close_gate()
        self.down.close()
        self._output.close()
        self._stop_reading()
        os.close(self._events)
        if self.child.pidfd is not None:
            loop.remove_reader(self.child.pidfd)
        self.child.close()
        return self._ledger.close()

    def _close_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    def _exited(self, _future: asyncio.Future[Exited | None]) -> None:
        self._gone.set()
        self._listener.on_gone()

    def _died(self) -> None:
        # The pidfd knows before the nursery's report; only if the report stays away something is wrong.
        loop = asyncio.get_running_loop()
        if self.child.pidfd is not None:
            loop.remove_reader(self.child.pidfd)
        if not self.gone:
            self._hang = loop.call_later(REPORT_SECONDS, self._unreported)

    def _unreported(self) -> None:
        if not self.gone:
            self._on_hang()

    def _readable(self) -> None:
        before = self._receiver.bytes_received
        frames = self._read()
        now = asyncio.get_running_loop().time()
        self._frames.admit(frames, now)
        self._bytes.admit(self._receiver.bytes_received - before, now)
        if self._reading and (wait := self._wait(now)):
            self._stop_reading()
            self._pause = asyncio.get_running_loop().call_later(wait, self._resume)

    def _wait(self, now: float) -> float:
        """Return how long to leave the pipe unread, seconds; 0 to read on."""
        if not (self._frames.admit(0, now) and self._bytes.admit(0, now)):
            return PAUSE_SECONDS
        return CONGESTED_SECONDS if self._congested() else 0.0

    def _resume(self) -> None:
        loop = asyncio.get_running_loop()
        if wait := self._wait(loop.time()):
            self._pause = loop.call_later(wait, self._resume)
        else:
            self._pause = None
            loop.add_reader(self._events, self._readable)
            self._reading = True

    def _stop_reading(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._events)

    def _read(self) -> int:
        """Take what is there, a bounded amount; returns the number of good frames."""
        frames = 0
        try:
            for kind, payload in self._receiver.receive():
                self._handle(decode_up(kind, payload))
                frames += 1
        except ChannelClosedError:
            self._stop_reading()
            if not self.gone and self._silence is None:
                self._silence = asyncio.get_running_loop().call_later(CLOSED_SECONDS, self._silent)
        except ProtocolError as error:
            self._stop_reading()
            self._broken = True
            self._listener.on_breach(str(error))
        return frames

    def _silent(self) -> None:
        if not self.gone and not self._broken:
            self._broken = True
            self._listener.on_breach(f"it closed its events pipe and lived on for {CLOSED_SECONDS:g} s")

    def _handle(self, message: Ready | Beat | Events | Log | Applied | Result) -> None:
        if isinstance(message, Events):
            self._listener.on_events(message, self._ledger.book(message))
        elif isinstance(message, Beat):
            self._ledger.claim(message)
            self.last_beat, self.beat_at = message, asyncio.get_running_loop().time()
            self._listener.on_beat(message)
        elif isinstance(message, Log):
            self._listener.on_log(message)
        elif isinstance(message, Applied):
            self._listener.on_applied(message)
        elif isinstance(message, Result):
            self._listener.on_result(message)
        else:
            if self.ready_at is not None:
                raise ProtocolError("a second 'ready'")
            self.ready_at = asyncio.get_running_loop().time()
            self._listener.on_ready(message)
