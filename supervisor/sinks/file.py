"""The file sink: newline-delimited JSON in two files of fixed size, written alternately."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.supervisor.alternating import AlternatingFile
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.base import Sink, SinkError


class FileSink(Sink):
    """Writes every batch whole into one of the two files; the disk never holds more than both sizes.

    Args:
        path: Path as configured; the files stand beside it with ``.0`` and ``.1`` before the suffix.
        max_bytes: Size of each file.
    """

    name = "file"

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._file = AlternatingFile(path, max_bytes)

    def write(self, batches: Sequence[Batch]) -> None:
        """Append each batch; see `Sink.write`.

        Raises:
            SinkError: The disk is full, read-only, or gone; whole batches before it are in the file.
        """
        for number, batch in enumerate(batches):
            try:
                self._file.write(batch.data)
            except OSError as error:
                raise SinkError(
                    f"events cannot be written to {self._path}: {error.strerror or error}; free space there or set "
                    "[sink.file] path to another disk",
                    number,
                ) from error

    def reopen(self) -> None:
        """Open the files anew."""
        self._file.reopen()

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        self._file.close()
