"""The file sink: newline-delimited JSON in two files of fixed size, written alternately."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from garrison.supervisor.alternating import AlternatingFile, AlternatingFileError
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.base import Refused, Sink, SinkError

PIECE_BYTES = 256 * 1024
"""Most bytes for which batches are put together: each write costs the sink's thread the interpreter lock again."""


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
        # A file is left when the next piece does not fit: small pieces leave little of it unused.
        self._piece_bytes = min(PIECE_BYTES, max_bytes // 8)
        self._begun: Batch | None = None
        self._written = 0

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        """Append each batch; see `Sink.write`.

        Small batches go to the file together. A batch larger than a file is split between lines. Lines of a batch that
        made it onto a disk that is full are not written again when the batch is offered again.

        Raises:
            SinkError: The disk is full, read-only, or gone; whole batches before it are in the file.
        """
        number = 0
        while number < len(batches):
            if self._begun is not batches[number]:
                self._begun, self._written = batches[number], 0
            piece = self._piece(batches, number)
            failure: OSError | None = None
            written = len(piece)
            try:
                self._file.write(piece)
            except OSError as error:
                failure, written = error, error.written if isinstance(error, AlternatingFileError) else 0
            number = self._advance(batches, number, written)
            if failure is not None:
                raise SinkError(
                    f"events cannot be written to {self._path}: {failure.strerror or failure}; free space there or set "
                    "[sink.file] path to another disk",
                    number,
                ) from failure
        return ()

    def _piece(self, batches: Sequence[Batch], number: int) -> bytes:
        """Return the next lines, of as many batches as fit, or of the begun one as far as it fits into a file."""
        data, start, bound = batches[number].data, self._written, self._file.max_bytes
        if len(data) - start > bound:
            # A line is never that long: a frame holds 64 KiB, the stamp adds less than 1 KiB, a file is 256 KiB or
            # more.
            return data[start : data.rfind(b"\n", start, start + bound) + 1]
        parts = [data[start:] if start else data]
        size = len(parts[0])
        for batch in islice(batches, number + 1, None):
            size += len(batch.data)
            if size > self._piece_bytes:
                break
            parts.append(batch.data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _advance(self, batches: Sequence[Batch], number: int, written: int) -> int:
        """Note how far the file is; returns the number of the first batch that is not wholly in it."""
        position = self._written + written
        while number < len(batches) and position >= len(batches[number].data):
            position -= len(batches[number].data)
            number += 1
        self._begun, self._written = (batches[number], position) if number < len(batches) else (None, 0)
        return number

    def reopen(self) -> None:
        """Open the files anew."""
        self._file.reopen()

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        self._file.close()
