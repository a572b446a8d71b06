"""Command lines of scripts: a wrong one is bad input, told in one sentence.

Owns how arguments are read. Knows nothing of any script.
"""

import argparse
from typing import NoReturn

from mobilenets_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises `InputError` where argparse prints and exits."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse says, as a sentence."""
        raise InputError(f"{message[0].upper()}{message[1:]}; see --help.")


def positive(text: str) -> int:
    """Reads a positive integer, as the `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)
