"""Keeps the metrics' two ways out as the settings want them: the endpoint and the textfile.

Metrics are never worth more than the agent: what cannot be opened or written is shown and tried again with backoff.
"""

from __future__ import annotations

import asyncio
import grp
import time
from collections import Counter
from collections.abc import Callable

from garrison.ipc.pacing import backoff
from garrison.supervisor import logs
from garrison.supervisor.metrics.address import parse_address
from garrison.supervisor.metrics.collect import Collector, Sources
from garrison.supervisor.metrics.endpoint import RESULTS, EndpointError, MetricsEndpoint
from garrison.supervisor.metrics.textfile import TextfileWriter
from garrison.supervisor.problems import Problems
from garrison.supervisor.settings.schema import Metrics

FRESH_SECONDS = 1.0
"""Numbers this young are given out again: however often somebody asks, they are taken once a second at most."""
RETRY_BASE_SECONDS = 1.0
RETRY_CAP_SECONDS = 60.0
STEP_SECONDS = 0.02

_log = logs.get("metrics")


class MetricsService:
    """See the module. All methods are called from the master's loop.

    Args:
        sources: Where the numbers are.
        problems: Where it is said what does not work.
        call_in_loop: Has something called from the loop, from any thread.
    """

    def __init__(
        self, sources: Sources, problems: Problems, call_in_loop: Callable[[Callable[[], None]], None]
    ) -> None:
        self.requests: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self._host = sources.host
        self._collector = Collector(sources, self.requests)
        self._problems = problems
        self._call_in_loop = call_in_loop
        self._settings = Metrics()
        self._endpoint: MetricsEndpoint | None = None
        self._textfile: TextfileWriter | None = None
        self._text: tuple[float, bytes] = (float("-inf"), b"")
        self._collecting: asyncio.Task[bytes] | None = None
        self._changed = (asyncio.Event(), asyncio.Event())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep them."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="metrics")

    async def close(self, seconds: float) -> None:
        """Close both; waits up to `seconds` for the textfile to be removed. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        await self._close_endpoint()
        textfile = self._textfile
        self._close_textfile()
        for _ in range(int(seconds / STEP_SECONDS)):
            if textfile is None or textfile.ended:
                return
            await asyncio.sleep(STEP_SECONDS)
        if textfile is not None:
            _log.warning("%s was not removed within %g s: the disk hangs", textfile.path, seconds)

    def apply(self, settings: Metrics) -> None:
        """Take new settings; what follows from them happens in the service's own task."""
        self._settings = settings
        for changed in self._changed:
            changed.set()

    async def text(self) -> bytes:
        """Return the metrics, at most `FRESH_SECONDS` old. Whoever asks meanwhile shares one collection."""
        at, text = self._text
        if time.monotonic() - at < FRESH_SECONDS:
            return text
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.get_running_loop().create_task(self._collect(), name="metrics")
        return await asyncio.shield(self._collecting)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._keep_endpoint(self._changed[0]))
                    group.create_task(self._keep_textfile(self._changed[1]))
            except* Exception:  # noqa: BLE001  a mistake here costs metrics for a while, and nothing else
                _log.exception("the metrics failed, trying again in %g s", RETRY_CAP_SECONDS)
                await self._close_endpoint()
                self._close_textfile()
            await asyncio.sleep(RETRY_CAP_SECONDS)

    async def _collect(self) -> bytes:
        text = await self._collector.collect()
        self._text = time.monotonic(), text
        return text

    # The endpoint

    async def _keep_endpoint(self, changed: asyncio.Event) -> None:
        failures = 0
        now = ("", "")
        while True:
            changed.clear()
            wanted = (self._settings.listen, self._settings.socket_group)
            if wanted != now:
                await self._close_endpoint()
                now, failures = wanted, 0
            error = self._open_endpoint() if wanted[0] and self._endpoint is None else ""
            self._problems.set("metrics endpoint", error)
            if error and not failures:
                _log.error("%s", error)
            wait = None
            if error:
                identity = (self._host, "metrics")
                wait = backoff(failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=identity)
                failures += 1
            await _wait(changed, wait)

    def _open_endpoint(self) -> str:
        settings = self._settings
        try:
            group = grp.getgrnam(settings.socket_group).gr_gid if settings.socket_group else None
        except KeyError:
            return f"there is no group {settings.socket_group!r}: set [metrics] socket_group to one of this host"
        endpoint = MetricsEndpoint(parse_address(settings.listen), self.text, self.requests, group=group)
        try:
            endpoint.open()
        except EndpointError as error:
            return str(error)
        self._endpoint = endpoint
        _log.info("metrics are served at %s", endpoint.address)
        return ""

    async def _close_endpoint(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            await endpoint.close()

    # The textfile

    async def _keep_textfile(self, changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            settings = self._settings
            if self._textfile is not None and self._textfile.path != settings.textfile:
                self._close_textfile()
            if settings.textfile and self._textfile is None:
                self._open_textfile(settings.textfile)
            if self._textfile is not None:
                try:
                    self._textfile.write(await self.text())
                except Exception:  # noqa: BLE001  as for the endpoint: the next round may do better
                    _log.exception("the metrics cannot be collected")
            await _wait(changed, settings.textfile_seconds if settings.textfile else None)

    def _open_textfile(self, path: str) -> None:
        textfile = TextfileWriter(path, self._textfile_trouble)
        try:
            textfile.start()
        except RuntimeError as error:
            self._problems.set("metrics textfile", f"the metrics are not written to {path}: {error}")
            return
        self._textfile = textfile

    def _close_textfile(self) -> None:
        if self._textfile is not None:
            self._textfile.close()
            self._textfile = None
            self._problems.set("metrics textfile", "")

    def _textfile_trouble(self, error: str) -> None:
        self._call_in_loop(lambda: self._note_textfile(error))

    def _note_textfile(self, error: str) -> None:
        self._problems.set("metrics textfile", error)
        if error:
            _log.error("%s", error)
        else:
            _log.notice("metrics textfile: well again")


async def _wait(changed: asyncio.Event, seconds: float | None) -> None:
    try:
        await asyncio.wait_for(changed.wait(), seconds)
    except TimeoutError:
        return
