"""Checks of an experiment's config: ranges, keys that nothing reads, two configs compared.

Owns what can be said of a config before anything is built. What one module alone reads (optimizer,
schedule, network, data set) is checked there, not here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mobilenets_jax.errors import InputError, choose, nearest
from mobilenets_jax.optim import OPTIMIZER_KEYS, SCHEDULE_KEYS

CROPS = ("none", "pad", "random_resized")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")
# Two runs that differ only in these give the same numbers.
WITHOUT_EFFECT = (
    "log_every",
    "distributed",
    "dataset.workers",
    "dataset.data_dir",
    "dataset.manual_dir",
)
# field: least, most (None: no bound), whole number
_RANGES: dict[str, tuple[float, float | None, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "resolution": (1, None, True),
    "batch_size": (1, None, True),
    "eval_batch_size": (1, None, True),
    "epochs": (0, None, False),
    "log_every": (1, None, True),
    "eval_every": (0, None, False),
    "checkpoint_every": (0, None, False),
    "dataset.workers": (0, 1024, True),
    "augment.padding": (0, None, True),
    "augment.min_area": (0, 1, False),
    "augment.rotate": (0, 180, False),
    "augment.brightness": (0, 1, False),
    "augment.saturation": (0, 1, False),
    "augment.randaugment": (0, None, True),
    "augment.magnitude": (0, 10, False),
    "augment.erasing": (0, 1, False),
    "augment.mixup": (0, None, False),
    "augment.cutmix": (0, None, False),
    "preprocess.crop_fraction": (0, 1, False),
}
_NOT_ZERO = ("epochs", "eval_every", "checkpoint_every", "preprocess.crop_fraction")


def effective_resolution(resolution: int, beta: float) -> int:
    """Returns beta · resolution as the network sees it.

    Rounded to a multiple of 32 where the base is 128 pixels or more (224 gives 224, 192, 160 and
    128 for beta = 1, 6/7, 5/7 and 4/7, V1's Table 7), of 4 below.

    Raises:
        InputError: if beta is not positive, or so small that nothing is left.
    """
    if not 0 < beta <= 16:
        raise InputError(f"beta must be a positive number up to 16, not {beta!r}.")
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


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Iterable[str] = WITHOUT_EFFECT
) -> str:
    """Says how two plain configs differ, e.g. "batch_size is 64 there and 32 here", or ""."""
    there, here = dict(flatten(old)), dict(flatten(new))
    ignore = set(ignore)
    for key in sorted(there.keys() | here.keys()):
        if key not in ignore and there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
    return ""


def check(config: ConfigDict, overrides: Iterable[str] = ()) -> None:
    """Checks ranges, and that every key the user set is read by something.

    Args:
        config: the experiment.
        overrides: dotted names of the fields that were set on the command line.

    Raises:
        InputError: names the field, its value and the mend.
    """
    for key, value in flatten(config):
        if key in _RANGES:
            least, most, whole = _RANGES[key]
            inside = (
                isinstance(value, int if whole else int | float)
                and not isinstance(value, bool)
                and value >= least
                and (most is None or value <= most)
                and not (key in _NOT_ZERO and value == 0)
            )
            if not inside:
                kind = "an integer" if whole else "a number"
                above = "above 0" if key in _NOT_ZERO else f"from {least}"
                upto = f" to {most}" if most is not None else ""
                raise InputError(f"{key} must be {kind} {above}{upto}, not {value!r}.")
    effective_resolution(config.resolution, config.beta)
    choose("augment.crop", config.augment.crop, CROPS)
    choose("preprocess.interpolation", config.preprocess.interpolation, INTERPOLATIONS)
    for key in ("mean", "std"):
        value = config.preprocess[key]
        if len(value) != 3 or (key == "std" and min(value) <= 0):
            raise InputError(
                f"preprocess.{key} must be three numbers (R, G, B), std above 0, not {value!r}."
            )
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
    augment = config.augment
    needs = {
        "augment.padding": (augment.crop == "pad", "augment.crop=pad"),
        "augment.min_area": (augment.crop == "random_resized", "augment.crop=random_resized"),
        "augment.magnitude": (augment.randaugment > 0, "augment.randaugment above 0"),
        "optimizer.weight_decay_depthwise": (
            config.optimizer.weight_decay > 0,
            "optimizer.weight_decay above 0",
        ),
        "model.activation_everywhere": (
            config.model.activation is not None,
            "model.activation, e.g. relu6",
        ),
    }
    used, condition = needs.get(key, (True, ""))
    if not used:
        raise InputError(f"{key} is set but not used: it needs {condition}.")


def read(workdir: str | Path) -> dict[str, Any]:
    """Reads a workdir's config.json, as `plain` gives it.

    Raises:
        InputError: if there is none, or it is not a JSON object.
    """
    path = Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"There is no {path}: give the --workdir of a training that was started."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): put the training's config.json back."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a config: put the training's config.json back.")
    return config
