"""What each library calls our layers, and how it lays out their arrays.

Owns one table per library and family, read in both directions. Knows nothing of files, nor of how
a network is computed.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mobilenets_jax import costs
from mobilenets_jax.errors import InputError
from mobilenets_jax.specs import Spec

Shape = tuple[int, ...]


class Theirs(NamedTuple):
    """A layer's name in a library.

    Attributes:
        layer: of the convolution or linear layer.
        bn: of the BatchNorm behind it, or "".
        linear: a linear layer, `[O, I]` in PyTorch and `[I, O]` in Keras; else a convolution.
    """

    layer: str
    bn: str = ""
    linear: bool = False


class Names(NamedTuple):
    """The table of one library and family.

    In names, {i} is the block's number from 0, {next} the one after, {stage} and {place} count
    stages and blocks in them from 0, {stages} is their number, {blocks} that of blocks, {n} the
    layer's place in its block, SE being one layer, and {after} the one behind it.

    Attributes:
        roles: our layer, without its block, to theirs.
        plain: what is different in blocks without an expand layer.
    """

    roles: dict[str, Theirs]
    plain: dict[str, Theirs] = {}  # noqa: RUF012


_T = "blocks.{stage}.{place}."
_TIMM = {
    "stem": Theirs("conv_stem", "bn1"),
    "expand": Theirs(_T + "conv_pw", _T + "bn1"),
    "depthwise": Theirs(_T + "conv_dw", _T + "bn2"),
    "se/reduce": Theirs(_T + "se.conv_reduce"),
    "se/expand": Theirs(_T + "se.conv_expand"),
    "project": Theirs(_T + "conv_pwl", _T + "bn3"),
    "classifier": Theirs("classifier", linear=True),
}
_TIMM_PLAIN = {
    "depthwise": Theirs(_T + "conv_dw", _T + "bn1"),
    "project": Theirs(_T + "conv_pw", _T + "bn2"),
}
_TIMM_V2 = Names({**_TIMM, "last": Theirs("conv_head", "bn2")}, _TIMM_PLAIN)
_TIMM_V3 = Names(
    {
        **_TIMM,
        "last": Theirs("blocks.{stages}.0.conv", "blocks.{stages}.0.bn1"),
        "head": Theirs("conv_head"),
    },
    _TIMM_PLAIN,
)

_V2 = "features.{next}.conv.{n}"
_TORCHVISION_V2 = Names(
    {
        "stem": Theirs("features.0.0", "features.0.1"),
        "expand": Theirs(_V2 + ".0", _V2 + ".1"),
        "depthwise": Theirs(_V2 + ".0", _V2 + ".1"),
        "project": Theirs(_V2, "features.{next}.conv.{after}"),
        "last": Theirs("features.{last}.0", "features.{last}.1"),
        "classifier": Theirs("classifier.1", linear=True),
    }
)
_V3 = "features.{next}.block.{n}"
_TORCHVISION_V3 = Names(
    {
        "stem": Theirs("features.0.0", "features.0.1"),
        "expand": Theirs(_V3 + ".0", _V3 + ".1"),
        "depthwise": Theirs(_V3 + ".0", _V3 + ".1"),
        "se/reduce": Theirs(_V3 + ".fc1"),
        "se/expand": Theirs(_V3 + ".fc2"),
        "project": Theirs(_V3 + ".0", _V3 + ".1"),
        "last": Theirs("features.{last}.0", "features.{last}.1"),
        "head": Theirs("classifier.0", linear=True),
        "classifier": Theirs("classifier.3", linear=True),
    }
)

_KERAS_V1 = Names(
    {
        "stem": Theirs("conv1", "conv1_bn"),
        "depthwise": Theirs("conv_dw_{next}", "conv_dw_{next}_bn"),
        "project": Theirs("conv_pw_{next}", "conv_pw_{next}_bn"),
        "classifier": Theirs("conv_preds"),
    }
)
_KERAS_V2 = Names(
    {
        "stem": Theirs("Conv1", "bn_Conv1"),
        "expand": Theirs("block_{i}_expand", "block_{i}_expand_BN"),
        "depthwise": Theirs("block_{i}_depthwise", "block_{i}_depthwise_BN"),
        "project": Theirs("block_{i}_project", "block_{i}_project_BN"),
        "last": Theirs("Conv_1", "Conv_1_bn"),
        "classifier": Theirs("predictions", linear=True),
    },
    plain={
        "depthwise": Theirs("expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
        "project": Theirs("expanded_conv_project", "expanded_conv_project_BN"),
    },
)
_K = "expanded_conv_{i}_"
_P = "expanded_conv_"
_KERAS_V3 = Names(
    {
        "stem": Theirs("conv", "conv_bn"),
        "expand": Theirs(_K + "expand", _K + "expand_bn"),
        "depthwise": Theirs(_K + "depthwise", _K + "depthwise_bn"),
        "se/reduce": Theirs(_K + "squeeze_excite_conv"),
        "se/expand": Theirs(_K + "squeeze_excite_conv_1"),
        "project": Theirs(_K + "project", _K + "project_bn"),
        "last": Theirs("conv_1", "conv_1_bn"),
        "head": Theirs("conv_2"),
        "classifier": Theirs("logits"),
    },
    plain={
        "depthwise": Theirs(_P + "depthwise", _P + "depthwise_bn"),
        "se/reduce": Theirs(_P + "squeeze_excite_conv"),
        "se/expand": Theirs(_P + "squeeze_excite_conv_1"),
        "project": Theirs(_P + "project", _P + "project_bn"),
    },
)

NAMES: dict[tuple[str, str], Names] = {
    ("timm", "v1"): _TIMM_V2,
    ("timm", "v2"): _TIMM_V2,
    ("timm", "v3"): _TIMM_V3,
    ("torchvision", "v2"): _TORCHVISION_V2,
    ("torchvision", "v3"): _TORCHVISION_V3,
    ("keras", "v1"): _KERAS_V1,
    ("keras", "v2"): _KERAS_V2,
    ("keras", "v3"): _KERAS_V3,
}
_TORCH_ARRAYS = {
    "kernel": "weight",
    "bias": "bias",
    "bn/scale": "weight",
    "bn/bias": "bias",
    "bn/mean": "running_mean",
    "bn/var": "running_var",
}
_KERAS_ARRAYS = {
    "kernel": "kernel",
    "bias": "bias",
    "bn/scale": "gamma",
    "bn/bias": "beta",
    "bn/mean": "moving_mean",
    "bn/var": "moving_variance",
}


class Slot(NamedTuple):
    """One array in two worlds.

    Attributes:
        ours: path in the variables, e.g. "params/blocks_3/expand/kernel".
        shape: ours.
        theirs: the library's name, e.g. "features.4.conv.0.0.weight".
        their_shape: the library's.
    """

    ours: str
    shape: Shape
    theirs: str
    their_shape: Shape


def slots(spec: Spec, shapes: dict[str, Shape], source: str) -> list[Slot]:
    """Pairs every array of a network with a library's.

    Args:
        spec: the network.
        shapes: of its variables, by path.
        source: "timm", "torchvision", "keras" or "native", whose names are our paths.

    Returns:
        One slot for each array, in the network's order.

    Raises:
        InputError: if the network has a layer that the library's has no counterpart for.
    """
    if source == "native":
        return [Slot(path, shape, path, shape) for path, shape in shapes.items()]
    arrays = _KERAS_ARRAYS if source == "keras" else _TORCH_ARRAYS
    separator = "/" if source == "keras" else "."
    found = []
    for path, theirs in _layers(spec, source):
        for array, name in arrays.items():
            collection = "batch_stats" if array in ("bn/mean", "bn/var") else "params"
            ours = f"{collection}/{path}/{array}"
            if ours not in shapes:
                continue
            layer = theirs.bn if array.startswith("bn/") else theirs.layer
            shape = shapes[ours]
            if array == "kernel":
                depthwise = path.endswith("/depthwise")
                shape = _kernel_shape(shape, depthwise, theirs.linear, source == "keras")
            found.append(Slot(ours, shapes[ours], f"{layer}{separator}{name}", shape))
    return found


def _layers(spec: Spec, source: str) -> Iterator[tuple[str, Theirs]]:
    """Yields our path and their names of every layer with arrays, in the network's order."""
    names = NAMES.get((source, spec.family))
    if names is None:
        raise InputError(f"{source} has no counterpart of {spec.name}.")
    every = ((stage, k) for stage, size in enumerate(spec.stages) for k in range(size))
    places = list(itertools.islice(every, len(spec.blocks)))
    if len(places) < len(spec.blocks):
        raise InputError(
            f"This {spec.name} has {len(spec.blocks)} blocks and its stages {len(places)}, so they "
            f"have no names in {source}: create it by create_model, or take naming='native'."
        )
    counts = {"stages": len(spec.stages), "last": len(spec.blocks) + 1}
    rows = costs.layers(spec)
    for row in rows:
        if row.kind == "pool":
            continue
        block, _, _ = row.name.rpartition("/")
        fields, plain = dict(counts), False
        if block:
            i = int(block.removeprefix("blocks_"))
            inside = [other.kind for other in rows if other.name.startswith(f"{block}/")]
            n, plain = inside.index(row.kind), "expand" not in inside
            stage, place = places[i]
            fields |= {"i": i, "next": i + 1, "n": n, "after": n + 1}
            fields |= {"stage": stage, "place": place}
        for role in ("se/reduce", "se/expand") if row.kind == "se" else (row.kind,):
            theirs = (names.plain if plain and role in names.plain else names.roles).get(role)
            path = f"{block}/{role}" if block else role
            if theirs is None:
                raise InputError(
                    f"{source} has no counterpart of the layer {path} of this {spec.name}."
                )
            layer, bn = theirs.layer.format(**fields), theirs.bn.format(**fields)
            yield path, Theirs(layer, bn, theirs.linear)


def _kernel_shape(shape: Shape, depthwise: bool, linear: bool, keras: bool) -> Shape:
    """A kernel's shape in a library; ours is `[k, k, C]`, `[I, O]` or `[k, k, I, O]`."""
    if linear:
        return shape if keras else shape[::-1]
    if depthwise:
        k, _, channels = shape
        return (k, k, channels, 1) if keras else (channels, 1, k, k)
    height, width, inputs, outputs = shape if len(shape) == 4 else (1, 1, *shape)
    return (height, width, inputs, outputs) if keras else (outputs, inputs, height, width)


def to_ours(array: np.ndarray, slot: Slot, source: str) -> np.ndarray:
    """Lays out a library's array as ours: PyTorch's `[O, I, k, k]` and `[O, I]` are turned."""
    if source in ("timm", "torchvision") and array.ndim > 1:
        array = array.transpose(*range(2, array.ndim), 1, 0)
    return array.reshape(slot.shape)


def to_theirs(array: Any, slot: Slot, source: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    array, shape = np.asarray(array), slot.their_shape
    if source in ("timm", "torchvision") and len(shape) > 1:
        array = array.reshape(*shape[2:], shape[1], shape[0])
        return array.transpose(-1, -2, *range(len(shape) - 2))
    return array.reshape(shape)
