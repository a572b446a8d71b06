"""Text between two marks of a document."""

import re

import pytest

from experiments import documents
from mobilenets_jax.errors import InputError

DOCUMENT = "above\n<!-- table: begin -->\nold\nlines\n<!-- table: end -->\nbelow <!-- x: end -->\n"


def test_only_what_is_between_the_marks_is_replaced():
    new = documents.replaced(DOCUMENT, "table", "| new |")
    assert new == (
        "above\n<!-- table: begin -->\n| new |\n<!-- table: end -->\nbelow <!-- x: end -->\n"
    )
    assert documents.replaced(new, "table", "| new |") == new
    assert documents.replaced(new, "table", "old\nlines") == DOCUMENT
    # Text is taken as it is.
    assert r"\1 \n" in documents.replaced(DOCUMENT, "table", r"\1 \n")


@pytest.mark.parametrize(
    "document",
    [
        "nothing",
        DOCUMENT.replace("table: begin", "tables: begin"),
        DOCUMENT.replace("table: end", "table: ends"),
        DOCUMENT + DOCUMENT,
        "<!-- table: end -->\n<!-- table: begin -->\n",
    ],
    ids=["none", "no begin", "no end", "twice", "turned"],
)
def test_marks_that_are_not_there_once_are_named(document):
    message = "The document must hold '<!-- table: begin -->' and '<!-- table: end -->' once each"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        documents.replaced(document, "table", "new")


def test_a_file_is_rewritten(tmp_path):
    path = tmp_path / "d.md"
    path.write_text(DOCUMENT, encoding="utf-8")
    documents.rewrite(path, "table", "α")
    assert path.read_text(encoding="utf-8") == documents.replaced(DOCUMENT, "table", "α")
