"""The file sink: newline-delimited JSON in two files of fixed size, written alternately."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.supervisor.alternating import AlternatingFile, AlternatingFileError
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
        self._begun: Batch | None = None
        self._written = 0

    def write(self, batches: Sequence[Batch]) -> None:
        """Append each batch; see `Sink.write`.

        A batch larger than a file is split between lines. Lines of a batch that made it onto a disk that is full are
        not written again when the batch is offered again.

        Raises:
            SinkError: The disk is full, read-only, or gone; whole batches before it are in the file.
        """
        for number, batch in enumerate(batches):
            if self._begun is not batch:
                self._begun, self._written = batch, 0
            try:
                while self._written < len(batch.data):
                    piece = self._piece(batch.data)
                    self._file.write(piece)
                    self._written += len(piece)
            except OSError as error:
                self._written += error.written if isinstance(error, AlternatingFileError) else 0
                raise SinkError(
                    f"events cannot be written to {self._path}: {error.strerror or error}; free space there or set "
                    "[sink.file] path to another disk",
                    number,
                ) from error
            self._begun = None

    def _piece(self, data: bytes) -> bytes:
        """Return the next lines of a batch that fit into one file: all that is left, nearly always."""
        start, bound = self._written, self._file.max_bytes
        if len(data) - start <= bound:
            return data[start:] if start else data
        # A line is never that long: a frame holds 64 KiB, the stamp adds less than 1 KiB, a file is 256 KiB or more.
        return data[start : data.rfind(b"\n", start, start + bound) + 1]

    def reopen(self) -> None:
        """Open the files anew."""
        self._file.reopen()

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        self._file.close()
