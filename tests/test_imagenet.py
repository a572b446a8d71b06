"""The names of ImageNet's classes: their order, against TFDS's own list and known indices."""

import tomllib
from pathlib import Path

from mobilenets_jax import builders, imagenet

ROOT = Path(__file__).parents[1]


def test_order_is_that_of_the_labels():
    assert list(imagenet.classes()) == list(builders._imagenet_file("labels.txt"))
    names = list(imagenet.classes().values())
    known = {
        0: "tench",
        1: "goldfish",
        134: "crane bird",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        517: "crane",
        638: "maillot",
        639: "maillot tank suit",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known


def test_names_are_distinct_words():
    names = list(imagenet.classes().values())
    assert len(names) == len(set(names)) == 1000
    assert all(name and name == name.strip() and name.isprintable() for name in names)


def test_readable_replaces_identifiers_only():
    assert imagenet.readable(["n02123045", "my cat", "n99999999"]) == (
        "tabby",
        "my cat",
        "n99999999",
    )


def test_the_package_holds_the_names():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"] == {"mobilenets_jax": ["imagenet_classes.txt"]}
