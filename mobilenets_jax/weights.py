"""Published weights in, same logits out; weights out again.

Owns what it takes for a file to be a network's weights: strict loading and saving. The names are in
`weights_names`, the formats in `weights_files`, what a file of ours says of itself in
`weights_document`, the published networks in `published`, and which of them a network is in
`weights_networks`. Knows nothing of training.

    model = weights.model_for("timm", "mobilenetv2_120d")
    variables = weights.load("mobilenetv2_120d.safetensors", model, source="timm")
    weights.save(variables, "mine.safetensors", model, naming="timm")
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mobilenets_jax import (
    checkpoint,
    published,
    weights_document,
    weights_files,
    weights_names,
    weights_networks,
)
from mobilenets_jax.config import effective_resolution
from mobilenets_jax.errors import InputError, choose, shown
from mobilenets_jax.logs import say
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.published import SOURCES, Preprocessing
from mobilenets_jax.specs import Spec
from mobilenets_jax.state import replica
from mobilenets_jax.switches import build_spec
from mobilenets_jax.weights_document import Document
from mobilenets_jax.weights_files import Arrays
from mobilenets_jax.weights_names import Slot

preprocessing = published.preprocessing
NAMINGS = ("timm", "torchvision", "native")


def arguments(source: str, name: str, alpha: float = 1.0) -> dict[str, Any]:
    """Returns the arguments of `create_model` for the network that fits a source's weights.

    Args:
        source: one of `published.SOURCES`.
        name: ours, as "mobilenet_v2"; for timm also theirs, as "mobilenetv2_120d".
        alpha: width multiplier.

    Raises:
        InputError: for a source or a name that does not exist, or a network that the source does
            not have.
    """
    choose("source", source, SOURCES)
    if source == "native":
        return {"name": name, "alpha": alpha}
    network = published.find(source, name, alpha)
    return {"name": network.model, "alpha": network.alpha, **network.arguments}


def model_for(source: str, name: str, alpha: float = 1.0, num_classes: int = 1000) -> MobileNet:
    """Creates the network that fits a source's weights: its padding, ε, rounding rule and head.

    Args:
        source: one of `published.SOURCES`; "native" is the paper's network, as by `create_model`.
        name: ours, as "mobilenet_v2"; for timm also theirs, as "mobilenetv2_120d".
        alpha: width multiplier.
        num_classes: outputs of the classifier.

    Raises:
        InputError: as of `arguments`, and for an alpha or a number of classes that cannot be.
    """
    return create_model(num_classes=num_classes, **arguments(source, name, alpha))


def load(
    path: str | Path,
    model: MobileNet,
    source: str = "native",
    *,
    seed: int = 0,
    fresh_classifier: bool = True,
) -> dict[str, Any]:
    """Reads a network's weights, strictly: every array, of its shape, and no other.

    Only the classifier may be of another number of classes. It then starts fresh, which is said.

    Args:
        path: a file (see `weights_files.read`), or for "native" also the workdir of a training,
            whose averaged weights of the latest checkpoint are taken.
        model: the network, as by `model_for`.
        source: whose names and layout the file has, one of `published.SOURCES`.
        seed: of a fresh classifier.
        fresh_classifier: whether there may be one.

    Returns:
        The variables: float32 arrays under "params" and "batch_stats".

    Raises:
        InputError: as of `weights_files.read`; for an array that is missing, too much, of another
            shape, not a number or not finite, for a workdir or a file of our own that says it is
            of another network, and for a folded network. The message names the file and the first
            such array, or the field in which the networks differ.
    """
    choose("source", source, SOURCES)
    _check_unfolded(model)
    path, spec = Path(path), model.spec
    needed = shapes(model)
    slots = weights_names.slots(spec, needed, source)
    if source != "native" and os.path.isdir(path):
        raise InputError(f"{path} is a directory: give a file of {source}'s weights.")
    if os.path.isdir(path):
        arrays, trained, _ = _read_workdir(path)
        _check_same(f"The workdir {path}", trained, spec, "trained")
    else:
        arrays = weights_files.read(path)
        described = describe(path) if source == "native" else None
        if described is not None:
            _check_same(str(path), described.network, spec, "saved")
        elif source == "native":
            say(
                f"{path} does not say of which network it is, so padding and epsilon are this "
                f"network's: {spec.padding}, {spec.bn_epsilon:g}."
            )
    if source == "keras":
        arrays = _named_by_order(path, arrays, slots)
    elif source != "native":
        arrays = _without_counters(arrays, slots)
    _check_names(path, arrays, model, source, slots)
    flat: dict[str, Any] = {}
    classes = _other_classes(arrays, slots, spec.num_classes, source)
    if classes == 0:
        raise InputError(
            f"{path}: its classifier has no classes, so the file is damaged: copy or download it "
            "again."
        )
    if classes is not None and not fresh_classifier:
        raise InputError(
            f"{path}: its classifier has {classes:,} classes and this network has "
            f"{spec.num_classes:,}: give --config.dataset.num_classes={classes}."
        )
    if classes is not None:
        say(
            f"{path}: its classifier has {classes:,} classes and this network has "
            f"{spec.num_classes:,}, so the classifier starts fresh."
        )
        fresh = _fresh_classifier(model, seed)
        flat |= {f"params/classifier/{name}": value for name, value in fresh.items()}
    for slot in slots:
        if slot.ours not in flat:
            array = arrays[slot.theirs]
            flat[slot.ours] = weights_names.to_ours(_checked(path, array, slot), slot, source)
    return unflatten_dict({name: jnp.asarray(flat[name]) for name in needed}, sep="/")


def describe(path: str | Path) -> Document | None:
    """Returns what our own weights say of themselves: their network, and their preprocessing.

    Args:
        path: a file, or the workdir of a training, whose preprocessing is that of its evaluation.

    Returns:
        Both, so that `MobileNet(described.network)` loads the weights; or None if a file says
        nothing, as one of an earlier version, or of others.

    Raises:
        InputError: as of `weights_files.read`, and if what is said cannot be right.
    """
    path = Path(path)
    if os.path.isdir(path):
        _, trained, config = _read_workdir(path)
        return Document(trained, _evaluated(config))
    text = weights_files.read_document(path)
    return None if text is None else weights_document.from_json(text, path)


def save(
    variables: Mapping[str, Any],
    path: str | Path,
    model: MobileNet,
    *,
    format: str = "safetensors",
    naming: str = "timm",
    preprocessing: Preprocessing | None = None,
) -> None:
    """Writes a network's weights so that a library loads them strictly and gives the same logits.

    A file with our own names says of which network they are, see `describe`.

    Args:
        variables: "params" and "batch_stats", as from `load` or a training.
        path: the file to write; one that exists is replaced.
        model: the network that the variables are of.
        format: one of `weights_files.FORMATS`.
        naming: one of `NAMINGS`; "native" is our own, for any network.
        preprocessing: what belongs to the weights, for "native", to travel with them.

    Raises:
        InputError: for a network that the library does not build or the format cannot hold, a
            folded one, arrays that are not the model's or not finite, preprocessing that cannot be
            or that has no place, or a path that cannot be written.
    """
    choose("naming", naming, NAMINGS)
    _check_unfolded(model)
    told, document = {}, None
    if naming != "native":
        told = weights_networks.check_library_builds(model.spec, naming)
        if preprocessing is not None:
            raise InputError(
                f"Files with {naming}'s names hold no preprocessing: leave it out, or save with "
                "naming='native'."
            )
    else:
        try:
            document = weights_document.to_json(Document(model.spec, preprocessing))
        except (TypeError, ValueError) as error:
            raise InputError(f"Cannot save {path}: {error}.") from error
    needed, flat = shapes(model), flatten_dict(variables, sep="/")
    if {name: np.shape(array) for name, array in flat.items()} != needed:
        raise InputError(f"The variables are not of this {model.spec.name}: give its own.")
    arrays = {}
    for slot in weights_names.slots(model.spec, needed, naming):
        with np.errstate(over="ignore"):
            array = np.asarray(flat[slot.ours], np.float32)
        if not _is_possible(array, slot):
            raise InputError(
                f"Cannot save {path}: {slot.ours} holds values that no weights have (not finite in "
                "float32, or a negative variance), so take those of an earlier step."
            )
        arrays[slot.theirs] = weights_names.to_theirs(array, slot, naming)
        if naming != "native" and slot.theirs.endswith(".running_mean"):
            counter = slot.theirs.replace(".running_mean", ".num_batches_tracked")
            arrays[counter] = np.zeros((), np.int64)
    weights_files.write(arrays, path, format, document)
    if told:
        named = ", ".join(f"{key}={value!r}" for key, value in told.items())
        say(f"{path}: timm.create_model needs {named} for these weights.")


# Trees and shapes -------------------------------------------------------------------------------


def _initial(model: MobileNet, key: jax.Array) -> Any:
    return model.init(key, jnp.zeros((1, 224, 224, 3)))


def shapes(model: MobileNet) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of a network's variables by path, as "params/stem/kernel"."""
    return dict(_shapes(model))


@functools.lru_cache(maxsize=8)  # Tracing takes most of a load's time, and a save's.
def _shapes(model: MobileNet) -> dict[str, tuple[int, ...]]:
    variables = jax.eval_shape(lambda key: _initial(model, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def _fresh_classifier(model: MobileNet, seed: int) -> dict[str, jax.Array]:
    # Compiled, so that nothing else of the network is initialised.
    classifier = jax.jit(lambda key: _initial(model, key)["params"]["classifier"])
    return classifier(jax.random.key(seed))


# Reading ----------------------------------------------------------------------------------------


def _read_workdir(path: Path) -> tuple[Arrays, Spec, dict[str, Any]]:
    """The averaged weights of a training's latest checkpoint, their network, and its config."""
    with checkpoint.open_manager(path, read_only=True) as manager:
        state, meta = checkpoint.restore_arrays(manager)
    averaged = {"params": state["ema_params"], "batch_stats": state["ema_batch_stats"]}
    replicas = meta["config"].get("replicas", 1)
    if replicas > 1:
        say(f"{path} is a training of {replicas} replicas: taking the first one's weights.")
        averaged = replica(averaged, 0)
    arrays = {name: np.asarray(a) for name, a in flatten_dict(averaged, sep="/").items()}
    config, classes = meta["config"], arrays["params/classifier/bias"].size
    trained = {
        key: value for key, value in config["model"].items() if key not in weights_networks.COMPUTED
    }
    return arrays, build_spec(num_classes=classes, **trained), config


def _evaluated(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a training's evaluation."""
    resolution = effective_resolution(config["resolution"], config["beta"])
    how = config["preprocess"]
    mean, std = tuple(how["mean"]), tuple(how["std"])
    return Preprocessing(mean, std, how["crop_fraction"], how["interpolation"], resolution)


def _named_by_order(path: Path, arrays: Arrays, slots: list[Slot]) -> Arrays:
    """Names the layers of a Keras file that only counts them by kind, in the network's order."""
    if "conv2d/kernel" not in arrays:
        return arrays
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for slot in slots:
        layer = slot.theirs.rpartition("/")[0]
        if layer in names.values():
            continue
        if slot.ours.endswith("depthwise/kernel"):
            kind = "depthwise_conv2d"
        elif "/bn/" in slot.ours:
            kind = "batch_normalization"
        else:
            kind = "conv2d" if len(slot.their_shape) == 4 else "dense"
        count = counts.get(kind, 0)
        names[f"{kind}_{count}" if count else kind] = layer
        counts[kind] = count + 1

    def named(name: str) -> str:
        layer, _, variable = name.rpartition("/")
        return f"{names.get(layer, layer)}/{variable}"

    return weights_files.unique(path, ((named(name), a) for name, a in arrays.items()))


def _without_counters(arrays: Arrays, slots: list[Slot]) -> Arrays:
    """Leaves out how many batches each of PyTorch's BatchNorms has seen, which nothing reads."""
    layers = {slot.theirs.rpartition(".")[0] for slot in slots}
    counters = {f"{layer}.num_batches_tracked" for layer in layers}
    return {name: array for name, array in arrays.items() if name not in counters}


# Checks -----------------------------------------------------------------------------------------


def _check_same(what: str, found: Spec, needed: Spec, made: str) -> None:
    """Raises InputError if weights say that they are of another network; names a field of it."""
    difference = weights_networks.difference(found, needed)
    if difference is None:
        return
    # Whence the rest differs.
    for key in ("name", "alpha", "rule"):
        there, here = getattr(found, key), getattr(needed, key)
        if there != here:
            difference = key, there, here
            break
    field, there, here = difference
    raise InputError(
        f"{what} is of another network ({field} is {there!r} there and {here!r} here): give the "
        f"name and switches of the one that was {made}."
    )


def _check_names(
    path: Path, arrays: Arrays, model: MobileNet, source: str, slots: list[Slot]
) -> None:
    """Raises InputError if an array is missing or too much."""
    needed = {slot.theirs for slot in slots}
    missing = [slot.theirs for slot in slots if slot.theirs not in arrays]
    extra = [name for name in arrays if name not in needed]
    if not missing and not extra:
        return
    network = model.spec.name if source == "native" else f"{source}'s {model.spec.name}"
    whose = _recognised(arrays, model, source)
    if whose:
        raise InputError(
            f"{path} is not of {network}: its arrays have {whose}'s names, so give the source "
            f"'{whose}'."
        )
    problems = " and ".join(
        f"{shown(names[0])} is {what}"
        + (f", as are {len(names) - 1} more" if len(names) > 1 else "")
        for names, what in ((missing, "missing"), (extra, "unknown"))
        if names
    )
    raise InputError(
        f"{path} is not of {network}: {problems}; give the source, network and alpha that it was "
        "made of."
    )


def _recognised(arrays: Arrays, model: MobileNet, but: str) -> str:
    """The other source that knows most of the names, or ""."""
    for source in SOURCES:
        if source == but:
            continue
        try:
            slots = weights_names.slots(model.spec, shapes(model), source)
        except InputError:  # It has no such network.
            continue
        if 2 * len({slot.theirs for slot in slots} & arrays.keys()) > len(arrays):
            return source
    return ""


def _other_classes(arrays: Arrays, slots: list[Slot], num_classes: int, source: str) -> int | None:
    """How many classes the file's classifier has, if it is whole and they are not `num_classes`."""
    own = [slot for slot in slots if slot.ours.startswith("params/classifier/")]
    found = {slot.ours: arrays[slot.theirs] for slot in own}
    classes = found["params/classifier/bias"].size
    for slot in own:
        shape = list(slot.their_shape)
        # Outputs come first in PyTorch, and last in Keras and here.
        shape[0 if source in ("timm", "torchvision") else -1] = classes
        if found[slot.ours].shape != tuple(shape):
            return None
    return classes if classes != num_classes else None


def _checked(path: Path, array: np.ndarray, slot: Slot) -> np.ndarray:
    """Returns an array in float32.

    Raises:
        InputError: it is of another shape, or of values that cannot be weights.
    """
    name, shape = slot.theirs, slot.their_shape
    if array.shape != shape:
        turned = " (its axes look transposed)" if sorted(array.shape) == sorted(shape) else ""
        raise InputError(
            f"{path}: {name} is {list(array.shape)} and must be {list(shape)}{turned}; give the "
            "network and alpha that the file was made of."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: {name} is of {array.dtype} and must be of floating point.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    # Of float64, large values only become infinite here.
    if not _is_possible(array, slot):
        raise InputError(
            f"{path}: {name} holds values that no weights have (not finite in float32, or a "
            "negative variance), so the file is damaged: copy or download it again."
        )
    return array


def _is_possible(array: np.ndarray, slot: Slot) -> bool:
    negative = slot.ours.endswith("/var") and bool((array < 0).any())
    return bool(np.isfinite(array).all()) and not negative


def _check_unfolded(model: MobileNet) -> None:
    """Raises InputError for a network whose files nobody else could read."""
    if model.folded:
        raise InputError(
            f"This {model.spec.name} is folded, so it has none of the BatchNorm that files of "
            "weights hold: load and save the network that fold.fold_batch_norm was given."
        )
