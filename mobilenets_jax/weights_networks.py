"""Which network weights are of: what libraries publish, against the fields of a config's `model`.

Owns the comparison of networks, where only what changes a trained network's answer counts, and the
choice of a published network for a config. Knows nothing of JAX, of arrays or of files.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from mobilenets_jax import published
from mobilenets_jax.errors import InputError
from mobilenets_jax.published import Network
from mobilenets_jax.specs import Spec
from mobilenets_jax.switches import build_spec

# Fields of a spec that do not change what a trained network computes.
_WITHOUT_EFFECT = (
    *("name", "num_classes", "alpha", "rule", "dropout", "bn_momentum"),
    *("fixed_ends", "stages"),
)
# Fields of a config's `model` that say how to compute, and not what.
COMPUTED = ("dtype", "depthwise_implementation")
# Those that a source does not settle: its arrays are the same with any.
_FREE = ("name", "alpha", "drop_strides", "dropout", "bn_momentum", *COMPUTED)
# Those that are numbers of the network, as the spec has them.
_SETTLED = ("alpha", "rule", "padding", "bn_epsilon", "bn_momentum", "dropout", "se_gate")
_PLAIN = {"rule": "keras", "activation_everywhere": False}  # every other field's is None


def nearest(model: Mapping[str, Any], source: str) -> tuple[Network, dict[str, Any]]:
    """Returns a source's network that is most like the one of a config.

    Args:
        model: the fields of a config's `model`. Strides, dropout and BatchNorm's momentum may be
            any.
        source: "timm", "torchvision" or "keras".

    Returns:
        The network, at the config's alpha, and the fields that the config has otherwise, with the
        network's values.

    Raises:
        InputError: if the source has no such network.
    """
    found = _candidates(model, source)
    if not found:
        published.find(source, model["name"])  # raises
    return min(
        found,
        key=lambda pair: (
            len(pair[1]),
            pair[0].alpha != model["alpha"],
            len(pair[0].arguments),
            pair[0].name.startswith("tf_"),
        ),
    )


def twins(model: Mapping[str, Any], network: Network) -> list[tuple[Network, dict[str, Any]]]:
    """Returns the networks of the same arrays as another that differ in what no array shows.

    Args:
        model: the fields of a config's `model`.
        network: what it is, by `nearest`.

    Returns:
        Each with the fields that it would need.
    """
    others = _candidates(model, network.source)
    hidden = {"padding", "bn_epsilon"}
    return [
        (other, fields)
        for other, fields in others
        if other.alpha == network.alpha and fields and fields.keys() <= hidden
    ]


def closest_fields(model: Mapping[str, Any], source: str, asked: Collection[str]) -> dict[str, Any]:
    """Returns the fields of `model` for a source's network that is most like what was asked for.

    Args:
        model: the fields of a config's `model`.
        source: "timm", "torchvision" or "keras".
        asked: which of them were set; the name and alpha always count as such.

    Returns:
        All fields; none if the source has no network of that name.
    """
    wanted = {k: v for k, v in model.items() if k in ("name", "alpha") or k in asked}
    found = []
    for network in published.NETWORKS:
        if (network.source, network.model) == (source, model["name"]):
            fields = {**model, "drop_strides": 0, **network.arguments, **wanted}
            _, wrong = nearest(fields, source)
            fields |= {key: value for key, value in wrong.items() if key not in wanted}
            plainness = len(network.arguments), network.name.startswith("tf_")
            found.append(
                (len(wrong.keys() & wanted), network.alpha != model["alpha"], plainness, fields)
            )
    return min(found, key=lambda each: each[:3])[3] if found else {}


def _candidates(model: Mapping[str, Any], source: str) -> list[tuple[Network, dict[str, Any]]]:
    """Each network of a source by a config's name, and the fields that the config has otherwise."""
    found = []
    for network in published.NETWORKS:
        if (network.source, network.model) != (source, model["name"]):
            continue
        theirs = {key: v for key, v in network.arguments.items() if key not in _FREE}
        wanted = theirs | {
            key: _PLAIN.get(key) for key in model if key not in theirs and key not in _FREE
        }
        strides = {key: model[key] for key in ("name", "alpha", "drop_strides")}
        spec = build_spec(**strides, **wanted)
        fields = {}
        for key, value in wanted.items():
            if model[key] != value and not _is_same(strides | wanted | {key: model[key]}, spec):
                fields[key] = value
        if network.alpha != model["alpha"]:
            network = network._replace(name=network.model, weights=())
        found.append((network, fields))
    return found


def settled_fields(network: Spec, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config's `model` that a network settles, whatever made its rows.

    They are its numbers, and how many strides it drops. What else made its rows, such as
    `activation`, does not follow from them.

    Args:
        network: as by `weights.describe`.
        model: the fields of a config's `model` of the same name.
    """
    fields = {key: getattr(network, key) for key in _SETTLED}
    rows = {key: value for key, value in model.items() if key not in COMPUTED} | fields
    for n in range(1 + len(network.blocks)):
        spec = build_spec(**rows | {"drop_strides": n})
        if 2 not in _strides(spec) or _halved(spec) >= _halved(network):
            break
    return {**fields, "drop_strides": n}


def _strides(spec: Spec) -> list[int]:
    return [spec.stem.strides, *(block.strides for block in spec.blocks)]


def _halved(spec: Spec) -> int:
    """At which layer a network first halves the image; how many it has if none does."""
    return [*_strides(spec), 2].index(2)


def different_fields(model: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config's `model` to set for the network of another config.

    Args:
        model: the fields of the one.
        stored: those of the other, whose values are returned.
    """
    there = {key: value for key, value in stored.items() if key not in COMPUTED}
    spec = build_spec(**there)
    return {
        key: value
        for key, value in there.items()
        if model.get(key) != value and not _is_same(there | {key: model.get(key)}, spec)
    }


def _is_same(switches: Mapping[str, Any], spec: Spec) -> bool:
    """Whether the switches make a network that computes what another does."""
    try:
        return difference(build_spec(**switches), spec) is None
    except InputError:  # Not beside the others.
        return False


def difference(found: Spec, needed: Spec) -> tuple[str, Any, Any] | None:
    """The first field in which two networks compute something else, with both values."""

    def fields(row: Any, prefix: str, but: tuple[str, ...] = ()) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            if field.name in but:
                continue
            if field.name == "blocks":
                values["blocks"] = len(value)
                for i, block in enumerate(value):
                    values |= fields(block, f"blocks_{i}.")
            elif dataclasses.is_dataclass(value):
                values |= fields(value, f"{field.name}.")
            else:
                values[prefix + field.name] = value
        return values

    one, other = (fields(spec, "", _WITHOUT_EFFECT) for spec in (found, needed))
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None


def check_library_builds(spec: Spec, source: str) -> dict[str, Any]:
    """Checks that a library can build this network.

    Returns:
        What has to be told to timm's `create_model` beyond the name of the network.

    Raises:
        InputError: names a field that the library has otherwise.
    """
    differences, fitting = [], []
    for network in published.NETWORKS:
        if (network.source, network.model) != (source, spec.name):
            continue
        theirs = build_spec(spec.name, alpha=spec.alpha, **network.arguments)
        told: dict[str, Any] = {}
        if source == "timm" and spec.padding in ("same", "symmetric"):
            if spec.padding != theirs.padding:
                told["pad_type"] = "same" if spec.padding == "same" else ""
            if spec.bn_epsilon != theirs.bn_epsilon:
                told["bn_eps"] = spec.bn_epsilon
            theirs = dataclasses.replace(theirs, padding=spec.padding, bn_epsilon=spec.bn_epsilon)
        differs = difference(spec, theirs)
        if differs is None:
            fitting.append(told)
        else:
            differences.append(differs)
    if fitting:
        return min(fitting, key=len)
    if not differences:
        raise InputError(f"{source} has no {spec.name}: save it with naming='native'.")
    field, here, there = differences[0]
    raise InputError(
        f"{source} does not build this {spec.name} ({field} is {here!r} here and {there!r} there): "
        f"create it by weights.model_for('{source}', '{spec.name}'), or save it with "
        "naming='native'."
    )
