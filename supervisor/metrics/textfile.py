"""The metrics as a file for node_exporter's textfile collector, replaced as a whole, from a thread of its own.

The thread is there only while a file is asked for: a disk that hangs then holds up this thread and nothing else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from garrison.supervisor.settings.places import remedy

MODE = 0o644
"""node_exporter runs as another user."""


class TextfileWriter:
    """Writes the newest text that it was given.

    Args:
        path: The file, ``….prom``; its folder must exist.
        on_trouble: Called from the thread with the text of a failure, and with "" when it is over.
    """

    def __init__(self, path: str, on_trouble: Callable[[str], None]) -> None:
        self.path = path
        self._on_trouble = on_trouble
        self._text: bytes | None = None
        self._error = ""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="garrison-metrics", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: No thread can be started now.
        """
        self._thread.start()

    def write(self, text: bytes) -> None:
        """Have a text written soon; one that is still waiting is left out."""
        with self._changed:
            self._text = text
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread and have it remove the file: numbers of an agent that is gone are none. Does not wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended, and the file is gone."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._text is not None or self._closing)
                text, self._text = self._text, None
                if self._closing:
                    break
            assert text is not None
            self._say(self._replace(text))
        try:
            os.unlink(self.path)
        except OSError:
            return  # gone, or on a disk that takes nothing: its age tells that it is an old one

    def _replace(self, text: bytes) -> str:
        """Put a text in the place of the file. Returns what is wrong, or "".

        Nothing is synced: after a crash of the host the numbers in it are worth nothing anyway.
        """
        folder, name = os.path.split(self.path)
        # The collector reads what ends with .prom, and nothing else.
        temporary = os.path.join(folder, f".{name}.tmp")
        try:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            try:
                try:
                    os.fchmod(fd, MODE)
                    rest = memoryview(text)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                finally:
                    os.close(fd)
                os.rename(temporary, self.path)
            except OSError:
                os.unlink(temporary)
                raise
        except OSError as error:
            return f"the metrics cannot be written to {self.path}: {error.strerror}; {remedy(error)}"
        return ""

    def _say(self, error: str) -> None:
        if error != self._error:
            self._error = error
            self._on_trouble(error)
