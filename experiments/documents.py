"""Text that a script writes into a document of ours: what stands between two marks.

Owns the marks, `<!-- name: begin -->` and `<!-- name: end -->`. Knows nothing of what is written.
"""

from pathlib import Path

from mobilenets_jax.errors import InputError


def replaced(document: str, name: str, text: str) -> str:
    """Returns a document with other lines between its marks of that name.

    Raises:
        InputError: the marks are not there once each, in their order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.partition(begin)
    old, _, after = rest.partition(end)
    if f"{before}{begin}{old}{end}{after}" != document or begin in rest or end in before + after:
        raise InputError(
            f"The document must hold '{begin}' and '{end}' once each, in this order: put them in."
        )
    return f"{before}{begin}\n{text}\n{end}{after}"


def rewrite(path: Path, name: str, text: str) -> None:
    """Does that to a file."""
    document = path.read_text(encoding="utf-8")
    path.write_text(replaced(document, name, text), encoding="utf-8")
