"""A manual page in the man(7) language, from plain text and from the Markdown that the documentation uses. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Final

_WIDTH: Final = 78
"""Columns of the source; how wide the page is shown is the reader's terminal's affair."""

_ESCAPES: Final = {"\\": "\\e", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
# In what is typed a quote or a hyphen has to be the ASCII one, so that it can be copied.
_LITERAL_ESCAPES: Final = _ESCAPES | {"-": "\\-", "'": "\\(aq", '"': "\\(dq"}

_INLINE: Final = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>[^*]+)\*\*"
    r"|\*(?P<emphasis>[^*\s][^*]*)\*"
    r"|\[(?P<link>[^\]\[]+)\]\([^)\s]+\)"
    r"|(?<![\w-])(?P<option>--?[a-z][a-z-]*)"
    r"|\b(?P<page>[a-z][a-z.-]*)\((?P<chapter>[1-8])\)"
)
_ITEM: Final = re.compile(r"(?P<tag>-|[0-9]+\.) (?P<text>.*)")


def escape(text: str, *, literal: bool = False) -> str:
    """Return a text so that roff shows just that.

    Args:
        text: Any text without line breaks.
        literal: It is something that is typed: hyphens and quotes stay those of ASCII.
    """
    table = _LITERAL_ESCAPES if literal else _ESCAPES
    return "".join(table.get(char, char if " " <= char <= "~" else f"\\[u{ord(char):04X}]") for char in text)


def bold(text: str) -> str:
    """Return something that is typed as it stands, in bold."""
    return f"\\fB{_unbroken(text)}\\fR"


def italic(text: str) -> str:
    """Return something that stands for another text, in italics."""
    return f"\\fI{_unbroken(text)}\\fR"


def _unbroken(text: str) -> str:
    # \% keeps a word from being hyphenated: a hyphen inside of something that is typed would be taken for a part of it.
    return " ".join(
        "\\%" + escape(word, literal=True) if len(word) > 4 else escape(word, literal=True) for word in text.split(" ")
    )


def inline(text: str) -> str:
    """Return a line of Markdown with code in bold, emphasis in italics, options in bold, links as their text."""
    parts = []
    done = 0
    for match in _INLINE.finditer(text):
        parts += [escape(text[done : match.start()]), _styled(match)]
        done = match.end()
    return "".join(parts) + escape(text[done:])


def _styled(match: re.Match[str]) -> str:
    if match["emphasis"]:
        return italic(match["emphasis"])
    if match["strong"]:
        return f"\\fB{escape(match['strong'])}\\fR"
    if match["page"]:
        return f"{bold(match['page'])}({match['chapter']})"
    return escape(match["link"]) if match["link"] else bold(match["code"] or match["option"])


class Page:
    """One page that is being written; `text` is what there is so far.

    Args:
        name: Its name, such as ``garrison.toml``.
        chapter: The manual's section: 1, 5, 8.
        summary: A line for the list of pages.
        source: Program and version.
        date: The day in ISO form; empty: none.
        origin: What it is made from, for whoever wants to change it.
    """

    def __init__(self, name: str, chapter: int, summary: str, *, source: str, date: str, origin: str) -> None:
        self._lines = [
            f'.\\" Made from {origin}: change that, not this page.',
            f'.TH {name.upper()} {chapter} "{date}" "{source}" "Garrison"',
        ]
        self._begun = False
        self.section("Name")
        self._paragraph(f"{escape(name)} \\- {inline(summary)}")

    @property
    def text(self) -> str:
        """The whole page."""
        return "\n".join(self._lines) + "\n"

    def section(self, title: str) -> None:
        """Begin a section."""
        self._heading("SH", escape(title.upper().replace("`", "")))

    def subsection(self, title: str) -> None:
        """Begin a part of a section."""
        self._heading("SS", escape(title, literal=True))

    def _heading(self, macro: str, title: str) -> None:
        self._lines.append(f".{macro} {title}")
        self._begun = False

    def item(self, tag: str, *paragraphs: str) -> None:
        """Add an entry of a list: a tag in roff, and under it paragraphs in Markdown."""
        self._lines += [".TP", tag]
        for number, paragraph in enumerate(paragraphs):
            if number:
                self._lines.append(".IP")
            self._fill(inline(paragraph))
        self._begun = True

    def example(self, lines: Iterable[str]) -> None:
        """Add lines that are shown as they are."""
        if self._begun:
            self._lines.append(".PP")
        self._lines += [".RS 4", ".EX", *(_protected(escape(line, literal=True)) for line in lines), ".EE", ".RE"]
        self._begun = True

    def lines(self, lines: Sequence[str]) -> None:
        """Add lines of roff that are broken where they end."""
        for number, line in enumerate(lines):
            if number:
                self._lines.append(".br")
            self._fill(line)
        self._begun = True

    def markdown(self, text: str) -> None:
        """Add Markdown: headings of the second level, paragraphs, lists of one level, and fenced examples.

        Raises:
            ValueError: It has something else, such as a table.
        """
        pending: list[str] = []
        end: Callable[[str], None] = self._paragraph
        fence: list[str] | None = None

        def flush() -> None:
            nonlocal end
            if pending:
                end(inline(" ".join(pending)))
                pending.clear()
            end = self._paragraph

        for line in text.splitlines():
            if line.startswith("```"):
                flush()
                if fence is not None:
                    self.example(fence)
                fence = [] if fence is None else None
            elif fence is not None:
                fence.append(line)
            elif not line.strip():
                flush()
            elif line.startswith("## "):
                flush()
                self.section(line.removeprefix("## "))
            elif line.startswith(("#", "|", "<", ">")):
                raise ValueError(f"a manual page cannot have this from Markdown: {line}")
            elif match := _ITEM.match(line):
                flush()
                end = self._listed("\\(bu" if match["tag"] == "-" else match["tag"])
                pending.append(match["text"])
            else:
                pending.append(line.strip())
        flush()
        if fence is not None:
            raise ValueError("a fenced example has no end")

    def _listed(self, tag: str) -> Callable[[str], None]:
        def add(roff: str) -> None:
            self._lines.append(f".IP {tag} 4")
            self._fill(roff)
            self._begun = True

        return add

    def _paragraph(self, roff: str) -> None:
        if self._begun:
            self._lines.append(".PP")
        self._fill(roff)
        self._begun = True

    def _fill(self, roff: str) -> None:
        lines = textwrap.wrap(roff, _WIDTH, break_long_words=False, break_on_hyphens=False)
        self._lines += [_protected(line) for line in lines]


def _protected(line: str) -> str:
    """Return a line that roff does not take for a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line
