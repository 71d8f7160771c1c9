"""What is wrong with the agent right now, for the status: by source, so that it goes when it is over."""

from __future__ import annotations

from collections.abc import Container

MAX_TEXT = 1000


class Problems:
    """A set of texts by what they are about. Used from the loop only."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}

    def set(self, source: str, text: str) -> None:
        """Replace what is wrong with a source; "" for nothing."""
        self.replace(source, [text] if text else [])

    def replace(self, source: str, texts: list[str]) -> None:
        """Replace everything that is wrong with a source."""
        if texts:
            self._texts[source] = [text[:MAX_TEXT] for text in texts]
        else:
            self._texts.pop(source, None)

    def texts(self, *, without: Container[str] = ()) -> list[str]:
        """Return every problem, by source, but for some sources."""
        return [text for source in sorted(self._texts) if source not in without for text in self._texts[source]]
