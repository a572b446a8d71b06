"""What a report is made of: headings, texts, tables and pictures, and their form in Markdown.

Owns escaping. Must not know of sweeps or numbers. Texts are a small Markdown: `code`, **bold** and
backslashes before what is not meant so.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

NONE = "–"


class Heading(NamedTuple):
    """A title; level 1 is the document's."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph, in Markdown's `code`, **bold** and backslashes before what isn't meant so."""

    text: str


class Items(NamedTuple):
    """A bullet list of texts."""

    texts: tuple[str, ...]


class Code(NamedTuple):
    """Lines to be typed, as they are."""

    text: str


class Cell(NamedTuple):
    """A table's cell: its text, and the number to sort by if it is one."""

    text: str
    value: float | None = None


class Table(NamedTuple):
    """A table: column titles, which columns hold numbers, and rows of cells."""

    head: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Picture(NamedTuple):
    """A picture's file and description; `figure` is the same, interactive, as Plotly's JSON."""

    file: str
    alt: str
    figure: dict[str, Any] | None = None


Block = Heading | Text | Items | Code | Table | Picture


# Within a word, as in mobilenet_v2, an underscore says nothing.
_UNDERSCORE = r"(?<![^\W_])_|_(?![^\W_])"


def plain(text: Any) -> str:
    """Returns data such that Markdown, and the page, show it as it is, in one line."""
    special = rf"([\\`*\[\]<>|&~]|{_UNDERSCORE})"
    return re.sub(special, r"\\\1", " ".join(str(text).split()))


def prose(text: str) -> str:
    """Returns words of an experiment's file, whose `code` and asterisks are meant."""
    special = rf"([`\[\]<>|&]|{_UNDERSCORE})"
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    # In code a backslash would be shown.
    parts[::2] = [re.sub(special, r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def markdown(blocks: Sequence[Block]) -> str:
    """Returns blocks as GitHub's Markdown."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {text}")
            case Text(text):
                parts.append(text)
            case Items(texts):
                parts.append("\n".join(f"- {text}" for text in texts))
            case Code(text):
                parts.append(f"```\n{text}\n```")
            case Picture(file, alt, _):
                parts.append(f"![{plain(alt)}]({file.replace(' ', '%20')})")
            case Table(head, numeric, rows):
                lines = [head, ["---:" if right else "---" for right in numeric]]
                # Even in code a | would end the cell.
                lines += [[re.sub(r"(?<!\\)\|", r"\|", cell.text) for cell in row] for row in rows]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
