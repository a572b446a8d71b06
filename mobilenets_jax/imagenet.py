"""The names of ImageNet's 1000 classes.

Owns `imagenet_classes.txt`, whose first lines say where the names come from and under which
licence. Knows nothing of data sets or networks.
"""

import functools
from collections.abc import Sequence
from importlib import resources


@functools.cache
def classes() -> dict[str, str]:
    """Returns the name of each class by its WordNet identifier, in the order of the labels.

    As `{"n01440764": "tench", …}`. All names differ: the machine is "crane", the bird "crane bird".
    """
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8")
    rows = (line.partition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {identifier: name for identifier, _, name in rows}


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names, with the word for each that is a WordNet identifier of ImageNet's."""
    return tuple(classes().get(name, name) for name in names)
