"""The one exception for bad input, and the search for the name that was meant.

Owns how a mistake of the user is reported, and how what was found in a file is shown. Knows
nothing about what can be mistaken.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a config key or value, a dataset, an image, a checkpoint.

    The message is one sentence that names the input and the mend. `main` prints it and exits
    with a non-zero code, without a traceback.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the choice most like `name`, or "" if none is close."""
    found = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1)
    return f" Did you mean '{found[0]}'?" if found else ""


def shown(name: object) -> str:
    """Returns a name from a file as it may go to a terminal: printable, and at most 80 long."""
    text = str(name)[:81]
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= 80 else f"{text[:79]}…"


def choose(what: str, name: object, choices: Iterable[str]) -> None:
    """Checks that `name` is one of `choices`.

    Raises:
        InputError: names the value, the nearest choice and all choices.
    """
    choices = list(choices)
    if name not in choices:
        raise InputError(
            f"Unknown {what} '{name}'.{nearest(str(name), choices)} Choose one of: "
            f"{', '.join(choices)}."
        )
