"""Checks of an experiment's config: its fields, their types and ranges, and what nothing reads.

Owns the list of fields and what can be said of a config before anything is built. What one module
alone reads (optimizer, schedule, network, data set) is checked there, not here.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mobilenets_jax.errors import InputError, choose, nearest
from mobilenets_jax.optim import OPTIMIZER_KEYS, SCHEDULE_KEYS
from mobilenets_jax.switches import build_spec

CROPS = ("none", "pad", "random_resized")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")


class Field(NamedTuple):
    """What a field may be.

    Attributes:
        kind: bool, int, float, str, or tuple: three numbers, of R, G and B.
        least: smallest number; None: no bound, here and below.
        most: largest number.
        above: every number is larger.
        below: every number is smaller.
        optional: may be None, which is the paper's or the data set's own.
    """

    kind: type
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    optional: bool = False

    def __str__(self) -> str:
        """Says it, e.g. "a number above 0"."""
        kinds = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            str: "a string",
            tuple: "three numbers such as (127.5, 127.5, 127.5)",
        }
        bounds = (
            ("from", self.least),
            ("above", self.above),
            ("to" if self.least is not None else "and at most", self.most),
            ("and below", self.below),
        )
        words = [
            kinds[self.kind],
            *(f"{word} {bound}" for word, bound in bounds if bound is not None),
        ]
        return " ".join(words) + (", or None" if self.optional else "")


# Every field that a config has. `optim` and `specs` bound the numbers that they alone read.
FIELDS: dict[str, Field] = {
    "seed": Field(int, least=0, most=2**31 - 1),
    "resolution": Field(int, least=1),
    "beta": Field(float, above=0, most=16),
    "batch_size": Field(int, least=1),
    "eval_batch_size": Field(int, least=1),
    "epochs": Field(float, above=0, most=1_000_000),
    "label_smoothing": Field(float, least=0, below=1),
    "ema_decay": Field(float, least=0, below=1),
    "log_every": Field(int, least=1),
    "eval_every": Field(float, above=0, most=1_000_000),
    "checkpoint_every": Field(float, above=0, most=1_000_000),
    "distributed": Field(bool),
    "model.name": Field(str),
    "model.alpha": Field(float, above=0, most=100),
    "model.activation": Field(str, optional=True),
    "model.activation_everywhere": Field(bool),
    "model.rule": Field(str),
    "model.standard_conv": Field(bool, optional=True),
    "model.linear_bottleneck": Field(bool, optional=True),
    "model.residual": Field(str, optional=True),
    "model.shortcut": Field(str, optional=True),
    "model.se": Field(bool, optional=True),
    "model.hswish_from": Field(int, optional=True),
    "model.last_stage": Field(str, optional=True),
    "model.stem": Field(int, optional=True),
    "model.shallow": Field(bool, optional=True),
    "model.drop_strides": Field(int, least=0),
    "model.padding": Field(str, optional=True),
    "model.bn_momentum": Field(float, optional=True),
    "model.bn_epsilon": Field(float, optional=True),
    "model.dropout": Field(float, optional=True),
    "model.se_gate": Field(str, optional=True),
    "model.dtype": Field(str),
    "dataset.name": Field(str),
    "dataset.num_classes": Field(int, least=1, optional=True),
    "dataset.data_dir": Field(str, optional=True),
    "dataset.manual_dir": Field(str, optional=True),
    "dataset.train_split": Field(str),
    "dataset.eval_split": Field(str),
    "dataset.workers": Field(int, least=0, most=1024),
    "augment.crop": Field(str),
    "augment.padding": Field(int, least=0),
    "augment.min_area": Field(float, above=0, most=1),
    "augment.rotate": Field(float, least=0, most=180),
    "augment.flip": Field(bool),
    "augment.brightness": Field(float, least=0, most=1),
    "augment.saturation": Field(float, least=0, most=1),
    "augment.randaugment": Field(int, least=0),
    "augment.magnitude": Field(float, least=0, most=10),
    "augment.erasing": Field(float, least=0, most=1),
    "augment.mixup": Field(float, least=0),
    "augment.cutmix": Field(float, least=0),
    "preprocess.mean": Field(tuple),
    "preprocess.std": Field(tuple, above=0),
    "preprocess.crop_fraction": Field(float, above=0, most=1),
    "preprocess.interpolation": Field(str),
    "optimizer.name": Field(str),
    "optimizer.momentum": Field(float),
    "optimizer.nesterov": Field(bool),
    "optimizer.decay": Field(float),
    "optimizer.epsilon": Field(float),
    "optimizer.b1": Field(float),
    "optimizer.b2": Field(float),
    "optimizer.weight_decay": Field(float, least=0),
    "optimizer.weight_decay_depthwise": Field(bool),
    "optimizer.clip_norm": Field(float, least=0),
    "schedule.name": Field(str),
    "schedule.learning_rate": Field(float),
    "schedule.warmup_epochs": Field(float),
    "schedule.decay_rate": Field(float),
    "schedule.decay_epochs": Field(float),
}
# What an evaluation reads, as fields or whole sections; all else made the training what it is.
_EVALUATED = (
    *("resolution", "beta", "eval_batch_size", "distributed"),
    *("model", "dataset", "preprocess"),
)


def effective_resolution(resolution: int, beta: float) -> int:
    """Returns beta · resolution as the network sees it.

    Rounded to a multiple of 32 where the base is 128 pixels or more (224 gives 224, 192, 160 and
    128 for beta = 1, 6/7, 5/7 and 4/7, V1's Table 7), of 4 below. With beta = 1 it is the base.

    Raises:
        InputError: if beta is not positive, or so small that nothing is left.
    """
    if not 0 < beta <= 16:
        raise InputError(f"beta must be {FIELDS['beta']}, not {beta!r}.")
    if beta == 1:
        return resolution
    multiple = 32 if resolution >= 128 else 4
    rounded = int(beta * resolution / multiple + 0.5) * multiple
    if rounded < 1:
        raise InputError(
            f"beta = {beta} leaves nothing of {resolution} pixels: choose at least "
            f"{multiple / resolution:.3f}."
        )
    return rounded


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.key", value) for every leaf, in order."""
    for key, value in tree.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(dict(value.items()), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON gives it back: dicts, lists, numbers, strings and None."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a plain config, by dotted name, that a run's numbers depend on."""
    without_effect = {"log_every", "distributed", "dataset.workers"}
    # Where a prepared data set lies changes nothing; which folder of photos is read does.
    if config.get("dataset", {}).get("name") != "image_folder":
        without_effect |= {"dataset.data_dir", "dataset.manual_dir"}
    return {key: value for key, value in flatten(config) if key not in without_effect}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says how two plain configs differ, e.g. "batch_size is 64 there and 32 here", or ""."""
    there, here = identity(old), identity(new)
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
    return ""


# Fields and their values ------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Checks that there is a field of that dotted name.

    Raises:
        InputError: names the nearest field, or all of the section if none is near.
    """
    if name in FIELDS:
        return
    sections = list(dict.fromkeys(key.partition(".")[0] for key in FIELDS if "." in key))
    if name in sections:
        fields = ", ".join(key for key in FIELDS if key.startswith(f"{name}."))
        raise InputError(f"'{name}' is a section of the config: set one of {fields}.")
    section, _, leaf = name.rpartition(".")
    there = [key.removeprefix(f"{section}.") for key in FIELDS if key.startswith(f"{section}.")]
    same = [key for key in FIELDS if key.rpartition(".")[2] == leaf]
    if len(same) == 1:
        hint = f" Did you mean '{same[0]}'?"
    elif there:  # compared without what they have in common, the section
        hint = nearest(leaf, there).replace("'", f"'{section}.", 1)
        hint = hint or f" {section} has the fields: {', '.join(there)}."
    else:
        names = [*(key for key in FIELDS if "." not in key), *(f"{key}.…" for key in sections)]
        hint = nearest(name, FIELDS) or f" Choose one of: {', '.join(names)}."
    raise InputError(f"Unknown config field '{name}'.{hint}")


def parse_value(name: str, text: str) -> Any:
    """Reads a field's value as a command line writes it; "none" or "None" is an optional's None.

    Raises:
        InputError: for an unknown field, or a text that is not of the field's type.
    """
    check_name(name)
    field = FIELDS[name]
    # model.shortcut=none is a network without shortcuts; model.shortcut=None is the paper's own.
    if field.optional and text in ("None", "none") and (name, text) != ("model.shortcut", "none"):
        return None
    try:
        if field.kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if field.kind is tuple:
            return tuple(float(number) for number in text.strip(" ()[]").split(","))
        return field.kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{name} must be {field}, not '{text}'.") from None


def _is_right(field: Field, value: Any) -> bool:
    """Says whether a value is what its field may be."""
    if value is None:
        return field.optional
    if field.kind is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(_is_right(field._replace(kind=float), number) for number in value)
        )
    if field.kind in (bool, str):
        return isinstance(value, field.kind)
    return (
        isinstance(value, int if field.kind is int else int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (field.least is None or value >= field.least)
        and (field.most is None or value <= field.most)
        and (field.above is None or value > field.above)
        and (field.below is None or value < field.below)
    )


def check_names(config: ConfigDict) -> None:
    """Checks that a config has every field, and no other.

    Raises:
        InputError: names the first that is missing or too much.
    """
    names = [name for name, _ in flatten(config)]
    for name in names:
        check_name(name)
    for name in FIELDS:
        if name not in names:
            raise InputError(
                f"The config has no field '{name}': build it on configs/default.py, which has all."
            )


def check(config: ConfigDict, overrides: Iterable[str] = ()) -> None:
    """Checks names, types and ranges, and that every field the user set is read by something.

    Args:
        config: the experiment.
        overrides: dotted names of the fields that were set on the command line.

    Raises:
        InputError: names the field, its value and the mend.
    """
    check_names(config)
    for name, value in flatten(config):
        if not _is_right(FIELDS[name], value):
            raise InputError(f"{name} must be {FIELDS[name]}, not {value!r}.")
    effective_resolution(config.resolution, config.beta)
    choose("augment.crop", config.augment.crop, CROPS)
    choose("preprocess.interpolation", config.preprocess.interpolation, INTERPOLATIONS)
    choose("optimizer.name", config.optimizer.name, OPTIMIZER_KEYS)
    choose("schedule.name", config.schedule.name, SCHEDULE_KEYS)
    for key in overrides:
        _check_used(config, key)


def _check_used(config: ConfigDict, key: str) -> None:
    """Raises InputError if the config's other choices make `key` one that nothing reads."""
    section, _, field = key.partition(".")
    for name, keys in (("optimizer", OPTIMIZER_KEYS), ("schedule", SCHEDULE_KEYS)):
        chosen = config[name].name
        if section == name and field not in ("name", *keys[chosen]):
            raise InputError(
                f"{key} is not used by {name}.name={chosen}.{nearest(field, keys[chosen])} "
                f"It reads: {', '.join(keys[chosen])}."
            )
    augment, dataset, model = config.augment, config.dataset, config.model
    switches = {name: value for name, value in model.items() if name != "dtype"}
    spec = build_spec(**switches)
    before = build_spec(**{**switches, "activation": None, "activation_everywhere": False})
    linear = any(block.projection_activation == "linear" for block in before.blocks)
    needs = {
        "augment.padding": (augment.crop == "pad", "augment.crop=pad"),
        "augment.min_area": (augment.crop == "random_resized", "augment.crop=random_resized"),
        "augment.magnitude": (augment.randaugment > 0, "augment.randaugment above 0"),
        "augment.saturation": (
            dataset.name not in ("digits", "fashion_mnist"),
            "images in colour",
        ),
        "dataset.manual_dir": (
            dataset.name in ("fashion_mnist", "imagenet2012", "image_folder"),
            "dataset.name=fashion_mnist, imagenet2012 or image_folder",
        ),
        "dataset.data_dir": (
            dataset.name != "image_folder" or not dataset.manual_dir,
            "dataset.manual_dir=None, which is the folder otherwise",
        ),
        "optimizer.weight_decay_depthwise": (
            config.optimizer.weight_decay > 0 and not model.standard_conv,
            "optimizer.weight_decay above 0 and depthwise convolutions",
        ),
        "model.activation_everywhere": (
            model.activation is not None and linear,
            "model.activation, e.g. relu6, and linear bottlenecks",
        ),
        "model.linear_bottleneck": (
            not model.activation_everywhere,
            "model.activation_everywhere=False",
        ),
        "model.hswish_from": (model.activation is None, "model.activation=None"),
        "model.se_gate": (any(b.se for b in spec.blocks), "squeeze-and-excite, model.se=True"),
        "model.residual": (spec.family != "v1", "bottlenecks, V2's or V3's"),
        "model.shallow": (spec.family == "v1", "model.name=mobilenet_v1"),
    }
    used, condition = needs.get(key, (True, ""))
    if not used:
        raise InputError(f"{key} is set but not used: it needs {condition}.")


# Stored configs ------------------------------------------------------------------------


def read(workdir: str | Path) -> dict[str, Any]:
    """Reads a workdir's config.json, as `plain` gives it.

    Raises:
        InputError: if there is none, or it is not a whole config.
    """
    path = Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"There is no {path}: give the --workdir of a training that was started."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): put the training's config.json back."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a config: put the training's config.json back.")
    try:
        check_names(ConfigDict(config))
    except InputError as error:
        raise InputError(
            f"{path} is not a config of this version ({str(error).rstrip('.')}): choose another "
            "--workdir."
        ) from error
    return config


def for_evaluation(
    trained: Mapping[str, Any], config: ConfigDict, overrides: Iterable[str] = ()
) -> ConfigDict:
    """Returns the config that a training had, with what an evaluation reads taken from another.

    Args:
        trained: the training's plain config.
        config: how to evaluate.
        overrides: dotted names of its fields that were set on the command line.

    Raises:
        InputError: if a field that only a training reads was set, and not to what it had.
    """
    had, have = dict(flatten(trained)), dict(flatten(plain(config)))
    for name in overrides:
        evaluated = name.partition(".")[0] in _EVALUATED
        if not evaluated and have[name] != had.get(name):
            instead = " Did you mean 'eval_batch_size'?" if name == "batch_size" else ""
            raise InputError(
                f"{name} is set to {have[name]!r}, but the training had {had.get(name)!r} and an "
                f"evaluation does not read it.{instead}"
            )
    chosen = {key: value for key, value in config.to_dict().items() if key in _EVALUATED}
    return ConfigDict({**trained, **chosen})
