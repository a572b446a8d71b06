"""What a file of our own says of its weights: the network, and the preprocessing that goes with it.

Owns the document that travels in such a file: to JSON, and back, where nothing in it is trusted.
Knows nothing of arrays, or of where in a file it lies.
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilenets_jax import specs
from mobilenets_jax.augment import INTERPOLATIONS
from mobilenets_jax.config import FIELDS, Field
from mobilenets_jax.errors import InputError, shown
from mobilenets_jax.published import Preprocessing
from mobilenets_jax.specs import Block, Conv, Spec

_CHANNELS = Field(int, least=1, most=1_000_000)
# What a field may be, by its name; a bool needs no more than its type.
_NUMBERS = {
    "kernel": Field(int, least=1, most=31),
    "strides": Field(int, least=1, most=2),
    **dict.fromkeys(("out", "expansion", "num_classes", "se_divisor"), _CHANNELS),
    **dict.fromkeys(("dropout", "bn_epsilon", "bn_momentum"), Field(float, least=0, below=1)),
    "stages": Field(int, least=1, most=1000),
    "alpha": FIELDS["model.alpha"],
    "se_ratio": Field(float, above=0, most=100),
    "mean": Field(tuple, least=-1e6, most=1e6),
    "std": Field(tuple, least=1e-3, most=1e6),
    "crop_fraction": FIELDS["preprocess.crop_fraction"],
    "resolution": Field(int, least=1, most=4096),
}
_CHOICES = {
    **dict.fromkeys(("activation", "projection_activation"), specs.ACTIVATIONS),
    "se_activation": (*specs.ACTIVATIONS, "block"),
    "convolution": ("depthwise", "standard"),
    "shortcut": ("bottleneck", "expansion", "none"),
    "family": ("v1", "v2", "v3"),
    "rule": specs.RULES,
    "padding": specs.PADDINGS,
    "se_gate": specs.SE_GATES,
    "interpolation": tuple(INTERPOLATIONS),
}


class Document(NamedTuple):
    """What is said of weights.

    Attributes:
        network: every number of it: `MobileNet(network)` is the network.
        preprocessing: what an image goes through before it, or None where that is not known.
    """

    network: Spec
    preprocessing: Preprocessing | None = None


def to_json(document: Document) -> str:
    """Returns the document as JSON, from which `from_json` makes the same.

    Raises:
        ValueError: says what of the preprocessing cannot be.
    """
    network, how = document
    if not isinstance(how, Preprocessing | None):
        raise ValueError(f"preprocessing is a {type(how).__name__} and no Preprocessing")
    found = {
        "network": dataclasses.asdict(network),
        "preprocessing": None if how is None else how._asdict(),
    }
    text = json.dumps(found, default=_plain)
    _document(json.loads(text))
    return text


def _plain(value: Any) -> Any:
    """Returns NumPy's numbers as Python's; raises TypeError for what JSON does not hold."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written")


def from_json(text: str, path: str | Path) -> Document:
    """Returns the document that JSON is, every field checked.

    Args:
        text: the JSON.
        path: where it was found.

    Raises:
        InputError: it is no JSON, a field is missing, unknown, of another type or out of range.
    """
    try:
        return _document(json.loads(text, object_pairs_hook=_object))
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")[:160]
    raise InputError(
        f"{path}: what it says of its weights cannot be right ({reason}): take another file, or "
        "save it again."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsed JSON's object; raises ValueError if it has a key twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{shown(key)} is there twice")
        found[key] = value
    return found


def _document(found: Any) -> Document:
    """Builds the document from parsed JSON; raises ValueError."""
    _check_keys("", found, needed=("network",), optional=("preprocessing",))
    network, how = _value(Spec, found["network"], "network"), found.get("preprocessing")
    blocks = len(network.blocks)
    if network.stages and sum(network.stages) < blocks:  # a shortened network has its whole's
        raise ValueError(f"network.stages must be {blocks} blocks together, or more")
    return Document(network, None if how is None else _value(Preprocessing, how, "preprocessing"))


def _check_keys(
    where: str, found: Any, needed: Sequence[str], optional: Sequence[str] = ()
) -> None:
    """Raises ValueError if parsed JSON is no object of these keys."""
    if not isinstance(found, dict):
        raise ValueError(f"{where or 'it'} is no object")
    dot = f"{where}." * bool(where)
    for key in found:
        if key not in needed and key not in optional:
            raise ValueError(f"{dot}{shown(key)} is unknown")
    for key in needed:
        if key not in found:
            raise ValueError(f"{dot}{key} is missing")


def _value(kind: Any, found: Any, where: str) -> Any:
    """Returns parsed JSON as what a field of that type holds; raises ValueError."""
    if typing.get_origin(kind) is types.UnionType:
        kind = typing.get_args(kind)[0]
        if found is None:
            return None
    if kind in (Spec, Conv, Block, Preprocessing):
        return _row(kind, found, where)
    if typing.get_args(kind)[1:] == (...,):
        return _rows(typing.get_args(kind)[0], found, where)
    name = where.rpartition(".")[2].partition("[")[0]
    if kind is str:
        fits = _is_name(found) if name == "name" else found in _CHOICES[name]
        if not fits:
            raise ValueError(f"{where} is {reprlib.repr(found)}")
        return found
    field = Field(bool) if kind is bool else _NUMBERS[name]
    if not field.fits(found):
        raise ValueError(f"{where} must be {field}, not {reprlib.repr(found)}")
    if isinstance(found, list):
        return tuple(map(float, found))
    return kind(found)


def _is_name(found: Any) -> bool:
    return isinstance(found, str) and 0 < len(found) <= 100 and found.isprintable()


def _rows(kind: Any, found: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(found, list):
        raise ValueError(f"{where} is no list")
    if kind is Block and not found:
        raise ValueError(f"{where} is empty")
    return tuple(_value(kind, each, f"{where}[{i}]") for i, each in enumerate(found))


def _row(kind: Any, found: Any, where: str) -> Any:
    """Builds a row of a table, or the whole; fields with a default may be missing."""
    types_of = typing.get_type_hints(kind)
    needed, optional = _names(kind)
    _check_keys(where, found, needed, optional)
    return kind(
        **{name: _value(types_of[name], value, f"{where}.{name}") for name, value in found.items()}
    )


def _names(kind: Any) -> tuple[list[str], list[str]]:
    """Names of the fields without a default, and with one."""
    if kind is Preprocessing:  # All that `save` is given is written.
        return list(kind._fields), []
    by_default: dict[bool, list[str]] = {False: [], True: []}
    for field in dataclasses.fields(kind):
        has_one = field.default is not dataclasses.MISSING
        by_default[has_one].append(field.name)
    return by_default[False], by_default[True]
