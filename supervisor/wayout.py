"""The way out: what the agent counts, limits, sends, and says of itself; where it goes is decided by file and keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from garrison.supervisor import logs
from garrison.supervisor.desired import Desired
from garrison.supervisor.events.books import Books
from garrison.supervisor.events.globalrate import GlobalRate
from garrison.supervisor.events.own import MODULE, OwnEvents
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.logevents import LogEvents, about, document
from garrison.supervisor.logsinks import Line
from garrison.supervisor.remembering import Remembering
from garrison.supervisor.settings import Settings
from garrison.supervisor.sinks.switch import SwitchSink
from garrison.supervisor.sinks.target import choose as choose_sink
from garrison.supervisor.spool.choose import spooling_of

_log = logs.get("agent")


class WayOut:
    """Books, limits, sink, pipeline, the agent's own events, and its log as events.

    Args:
        settings: As the agent starts with.
        remembered: What the last run left.
        trouble: Returns what notes the trouble of a part; that may be called from any thread.
        call_in_loop: Has something called from the loop, from any thread.
        clock: Monotonic seconds.

    Raises:
        OSError: A part cannot be made.
    """

    def __init__(
        self,
        settings: Settings,
        remembered: Remembering,
        trouble: Callable[[str], Callable[[str], None]],
        call_in_loop: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        host = settings.agent.hostname
        self.books = Books(os.path.join(settings.agent.run_dir, "counts"), remembered.counts)
        self._rate = GlobalRate(0)
        self._sink = SwitchSink(choose_sink(settings.sink).target, host)
        self.pipeline = Pipeline(
            self._sink,
            host,
            trouble("sink"),
            spooling=spooling_of(settings, trouble("spool")),
            ledger_of=self.books.of,
            throttles=(self._rate,),
        )
        self.own = OwnEvents(host, self.pipeline.put, remembered.next_epoch(MODULE), self.books.of(MODULE))
        self.lost: Mapping[str, int] = self.books.begin(self.pipeline.open())
        """What the end of the last master lost, by worker."""
        self.log_events = LogEvents(self._emit_line, self._is_well, call_in_loop, clock)

    def direct(self, settings: Settings, desired: Desired | None) -> tuple[dict[str, Any] | None, list[str]]:
        """Have events go where file and keys want them; what is not delivered yet goes along.

        Returns:
            What changed, as facts for an event (None: nothing), and what is wrong with the keys.
        """
        choice = choose_sink(settings.sink, desired)
        # A file stays on the host.
        self._rate.limit(settings.limits.bytes_per_second if choice.target.backend == "kafka" else 0)
        if choice.target == self._sink.target:
            return None, list(choice.problems)
        self._sink.use(choice.target)
        _log.notice("events go to %s, decided by %s", choice.target.text, choice.decided_by)
        changed = {"sink": choice.target.backend, "target": choice.target.text, "key": choice.decided_by}
        return changed, list(choice.problems)

    def listen(self, settings: Settings) -> None:
        """Have lines of the log go out as events where the settings want it."""
        logs.listen(self.log_events.take if settings.log.events else None)

    def _is_well(self) -> bool:
        figures = self.pipeline.figures()
        return not (figures.error or (figures.spool is not None and figures.spool.error))

    def _emit_line(self, line: Line, left_out: int) -> None:
        self.own.put("event", [document(line, left_out)], about(line))
