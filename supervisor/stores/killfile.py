"""The local killswitch file: whoever can write ``/etc/garrison/killswitch`` can stop the agent on this host.

It has a thread of its own, so that it works while the loop is busy and the store's file system hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from garrison.ipc.pacing import spread
from garrison.supervisor.keys import shown
from garrison.supervisor.killswitch import FileReading
from garrison.supervisor.stores.reading import UnreadableError, read_file
from garrison.supervisor.stores.values import MAX_VALUE_BYTES, ValueRefusedError, killswitch_of
from garrison.supervisor.stores.watching import ExhaustedError, Waker, Watches

DEFAULT_PATH = "/etc/garrison/killswitch"
SETTLE_SECONDS = 0.05
POLL_SECONDS = 1.0
REREAD_SECONDS = 10.0
"""A look beside the notifications, because a missed one would matter: one stat(2) in this time."""


def read_killfile(path: str) -> tuple[FileReading, bool]:
    """Return what the file says, and whether that is certain.

    ``off`` or no file at all: not engaged. ``on``, JSON that says so, nothing, garbage, a directory, a file that
    cannot be read: engaged. What is not certain (a writer may be at work) should be read once more.
    """
    try:
        value = killswitch_of(read_file(path, MAX_VALUE_BYTES))
    except FileNotFoundError:
        return FileReading(engaged=False), False
    except ValueRefusedError as error:
        return FileReading(engaged=True, reason=f"{shown(path)} is there, and {error}"), False
    except UnreadableError as error:
        return FileReading(engaged=True, reason=f"{shown(path)} is there, and {error}"), False
    except OSError as error:
        reason = f"whether {shown(path)} is there cannot be told: {error.strerror}"
        return FileReading(engaged=True, reason=reason), False
    if value.engaged:
        text = value.reason or f"{shown(path)} says on"
        return FileReading(engaged=True, reason=text, by=value.by, at=value.at), True
    return FileReading(engaged=False), True


class KillFileWatch:
    """Watches the file and reports what it says.

    Args:
        path: The file. Neither it nor its directory need be there.
        on_reading: Called with the first reading by `start` itself, in the caller's thread, then from the watching
            thread after each change. `KillSwitch.update_file` is what belongs here.
        host: For the jitter of the slow re-read.
        watches: The watches to use; others only in tests.
    """

    def __init__(
        self,
        path: str,
        on_reading: Callable[[FileReading], None],
        *,
        host: str = "",
        watches: Watches | None = None,
    ) -> None:
        self._path = os.path.abspath(path)
        self._on_reading = on_reading
        self._host = host
        self._watches = watches or Watches()
        self._waker = Waker()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._told: FileReading | None = None
        self._doubted_at: float | None = None
        self._looks = 0
        self.error = ""
        """Why the file is polled instead of watched, or what the receiver raised last; empty where all is well."""

    def start(self) -> None:
        """Read the file now, report it, then watch it: no worker can start before the first report.

        Raises:
            RuntimeError: It was started before.
        """
        if self._thread is not None:
            raise RuntimeError("the killswitch file is watched already")
        reading, certain = read_killfile(self._path)
        if not certain:
            if reading.engaged:
                time.sleep(SETTLE_SECONDS)  # once, at the start; a writer may be at work
            reading, _ = read_killfile(self._path)
        self._tell(reading)
        self._thread = threading.Thread(target=self._run, name="garrison-killfile", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread. False: it was not over within `timeout` seconds."""
        self._stopping = True
        self._waker.wake()
        if self._thread is None:
            self._waker.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        look_at = time.monotonic()
        try:
            while not self._stopping:
                self._waker.sleep(self._watches, look_at - time.monotonic())
                seen = self._watches.read()
                if seen.relevant or time.monotonic() >= look_at:
                    try:
                        look_at = time.monotonic() + self._turn()
                    except Exception as error:  # noqa: BLE001 - whatever the receiver raises, the file must be read on
                        self.error = f"the killswitch file {shown(self._path)} could not be acted on: {error!r}"
                        look_at = time.monotonic() + POLL_SECONDS
        finally:
            self._watches.close()
            self._waker.close()

    def _turn(self) -> float:
        """Watch, then read, then report. Returns the seconds until the next look that nothing asks for."""
        self.error = self._watch()
        reading, certain = read_killfile(self._path)
        now = time.monotonic()
        if reading != self._told and not certain:
            if self._doubted_at is None:
                self._doubted_at = now
            left = self._doubted_at + SETTLE_SECONDS - now
            if left > 0:
                return left
        self._doubted_at = None
        if reading != self._told:
            self._tell(reading)
        self._looks += 1
        period = REREAD_SECONDS * (0.75 + 0.5 * spread(self._host, "killfile", str(self._looks)))
        return POLL_SECONDS if self.error else period

    def _tell(self, reading: FileReading) -> None:
        self._on_reading(reading)
        self._told = reading

    def _watch(self) -> str:
        """Watch the file's directory, or the nearest one above it that is there. Returns why that failed, or ''."""
        try:
            self._watches.begin()
            directory, name = os.path.split(self._path)
            while not self._watches.add(directory, frozenset({name})) and directory != "/":
                directory, name = os.path.split(directory)
            if directory != "/":  # the directory itself may be a link that is turned over
                above, name = os.path.split(directory)
                self._watches.add(above, frozenset({name}))
            if os.path.islink(self._path):
                directory, name = os.path.split(os.path.realpath(self._path))
                self._watches.add(directory, frozenset({name}))
        except (ExhaustedError, OSError) as error:
            self._watches.close()
            return f"{error}. Until then {shown(self._path)} is read every {POLL_SECONDS:.0f} s"
        self._watches.commit()
        return ""
