"""The names of ImageNet's classes: their order, against TFDS's own list and known indices."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_wheel_holds_the_names_and_their_licence(tmp_path):
    """With setuptools older than pyproject.toml needs, pip fetches one, over the network."""
    source = tmp_path / "source"
    package = ROOT / "mobilenets_jax"
    shutil.copytree(package, source / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    if int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77:
        command.append("--no-build-isolation")
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    names = found["mobilenets_jax/imagenet_classes.txt"]
    assert names == (package / "imagenet_classes.txt").read_bytes()
    assert b"# BSD 3-Clause License" in names
    assert b"Copyright (c) Soumith Chintala 2016" in names
    assert {name for name in found if name.endswith(".py")} == {
        f"mobilenets_jax/{path.name}" for path in package.glob("*.py")
    }
    (info,) = {name.partition("/")[0] for name in found if ".dist-info/" in name}
    assert found[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = found[f"{info}/METADATA"].decode()
    assert "License-Expression: Apache-2.0 AND BSD-3-Clause" in metadata
