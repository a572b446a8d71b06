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
from ml_collections.config_dict import placeholder

from mobilenets_jax.augment import CROPS, INTERPOLATIONS
from mobilenets_jax.errors import InputError, choose, nearest
from mobilenets_jax.optim import FROZEN, OPTIMIZER_KEYS, SCHEDULE_KEYS
from mobilenets_jax.published import SOURCES
from mobilenets_jax.switches import build_spec


class Field(NamedTuple):
    """What a field may be.

    Attributes:
        kind: bool, int, float, str, or tuple of numbers.
        least: smallest number.
        most: largest number.
        above: every number is larger.
        below: every number is smaller.
        optional: may be None, which is the paper's or the data set's own.
        each: int or float, of the numbers of a tuple.
        size: how many numbers a tuple has: three, of R, G and B; None: any.
    """

    kind: type
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    optional: bool = False
    each: type = float
    size: int | None = 3

    def __str__(self) -> str:
        """Says it, e.g. "a number above 0"."""
        kinds = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            str: "a string",
            tuple: "three numbers such as (127.5, 127.5, 127.5)",
        }
        if self.size is None:
            some = "integers such as (0, 1)" if self.each is int else "numbers such as (0.01, 0.03)"
            kinds[tuple] = f"{some}, each"

        bounds = {
            " from": self.least,
            " above": self.above,
            " to" if self.least > -math.inf else " and at most": self.most,
            " and below": self.below,
        }
        words = [f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound)]
        return kinds[self.kind] + "".join(words) + (", or None" if self.optional else "")

    def fits(self, value: Any) -> bool:
        """Says whether it may be `value`."""
        if value is None:
            return self.optional
        if self.kind is tuple:
            number = self._replace(kind=self.each)
            is_tuple = isinstance(value, list | tuple) and self.size in (None, len(value))
            return is_tuple and all(map(number.fits, value))
        if isinstance(value, bool) or self.kind in (bool, str):
            return type(value) is self.kind
        return (
            isinstance(value, int if self.kind is int else int | float)
            and self.least <= value <= self.most
            and self.above < value < self.below
        )


# What each field may be. `optim` and `specs` bound the numbers that they alone read.
_FIELDS = {
    Field(bool): "distributed model.activation_everywhere augment.flip optimizer.nesterov "
    "optimizer.weight_decay_depthwise",
    Field(bool, optional=True): "model.standard_conv model.linear_bottleneck model.se "
    "model.shallow",
    Field(str): "init_source model.name model.rule model.dtype dataset.name dataset.train_split "
    "dataset.eval_split augment.crop preprocess.interpolation optimizer.name schedule.name",
    Field(
        str, optional=True
    ): "init_from freeze model.activation model.residual model.shortcut model.last_stage "
    "model.padding model.se_gate model.depthwise_implementation model.timm_variant "
    "dataset.data_dir dataset.manual_dir",
    Field(int, least=0, most=2**31 - 1): "seed",
    Field(int, least=0, most=1024): "dataset.workers",
    Field(int, least=0): "model.drop_strides augment.padding augment.randaugment",
    Field(int, least=1, most=1024): "replicas",
    Field(int, least=1): "resolution batch_size eval_batch_size log_every",
    Field(int, least=1, optional=True): "dataset.num_classes",
    Field(int, optional=True): "model.hswish_from model.stem model.expansion",
    Field(float): "optimizer.momentum optimizer.decay optimizer.epsilon optimizer.b1 optimizer.b2 "
    "schedule.learning_rate schedule.warmup_epochs schedule.decay_rate schedule.decay_epochs",
    Field(float, above=0): "optimizer.backbone_scale",
    Field(float, optional=True): "model.depth model.bn_momentum model.bn_epsilon model.dropout",
    Field(float, above=0, most=16): "beta",
    Field(float, above=0, most=100): "model.alpha",
    Field(float, above=0, most=1_000_000): "epochs eval_every checkpoint_every",
    Field(float, above=0, most=1): "augment.min_area",
    Field(float, above=0, most=1, optional=True): "preprocess.crop_fraction",
    Field(float, least=0, most=180): "augment.rotate",
    Field(float, least=0, most=10): "augment.magnitude",
    Field(float, least=0, most=1): "augment.brightness augment.saturation augment.erasing",
    Field(float, least=0, below=1): "label_smoothing ema_decay",
    Field(float, least=0): "augment.mixup augment.cutmix optimizer.weight_decay "
    "optimizer.clip_norm",
    Field(tuple): "preprocess.mean",
    Field(tuple, above=0): "preprocess.std",
    Field(tuple, least=0, most=2**31 - 1, each=int, size=None): "replica.seeds",
    Field(tuple, above=0, size=None): "replica.learning_rate",
    Field(tuple, least=0, size=None): "replica.weight_decay",
}
FIELDS = {name: field for field, names in _FIELDS.items() for name in names.split()}
# Fields that came later, at what every config had before.
_LATER: dict[str, Any] = {
    "replicas": 1,
    "replica.seeds": [],
    "replica.learning_rate": [],
    "replica.weight_decay": [],
    "model.expansion": None,
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


class Replica(NamedTuple):
    """What one of several trainings in one program has of its own.

    Attributes:
        seed: an integer, or an array of several replicas'.
        learning_rate: None: the config's.
        weight_decay: None: the config's.
    """

    seed: Any
    learning_rate: Any = None
    weight_decay: Any = None

    def __str__(self) -> str:
        """Names it, e.g. "seed_3" or "seed_3,learning_rate_0.01"."""
        given = [(key, value) for key, value in self._asdict().items() if value is not None]
        return ",".join(f"{key}_{value}" for key, value in given)


def replicas(config: ConfigDict) -> tuple[Replica, ...]:
    """Returns the trainings that a config describes: one, or as many as `replicas` says."""
    count, own = config.replicas, config.replica
    seeds = own.seeds or range(config.seed, config.seed + count)
    rates, decays = own.learning_rate or [None] * count, own.weight_decay or [None] * count
    return tuple(map(Replica, seeds, rates, decays))


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
    without_effect = {
        *("log_every", "distributed", "dataset.workers"),
        *("eval_batch_size", "checkpoint_every"),
    }
    # Where a prepared data set lies changes nothing; which folder of photos is read does.
    if config.get("dataset", {}).get("name") != "image_folder":
        without_effect |= {"dataset.data_dir", "dataset.manual_dir"}
    return {
        key: value
        for key, value in flatten(config)
        # A training is the same with a field that came later, at what it was before.
        if key not in without_effect and not (key in _LATER and value == _LATER[key])
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says how two plain configs differ, e.g. "batch_size is 64 there and 32 here", or ""."""
    there, here = identity(old), identity(new)
    for key in sorted(there.keys() | here.keys()):
        one, other = (fields.get(key, _LATER.get(key)) for fields in (there, here))
        if one != other:
            return f"{key} is {one!r} there and {other!r} here"
    return ""


# Fields and their values ------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Checks that there is a field of that dotted name.

    Raises:
        InputError: names the nearest field, or where all are if none is near.
    """
    if name in FIELDS:
        return
    leaves = {key: key.rpartition(".")[2] for key in FIELDS if not key.startswith("replica.")}
    same = [key for key, leaf in leaves.items() if leaf == name.rpartition(".")[2]]
    hint = f" Did you mean '{same[0]}'?" if len(same) == 1 else nearest(name, FIELDS)
    raise InputError(
        f"Unknown config field '{name}'.{hint or ' Choose one of those in configs/default.py.'}"
    )


def check_names(config: ConfigDict) -> None:
    """Checks that a config has every field, and no other.

    Raises:
        InputError: names the first that is missing or too much.
    """
    names = dict(flatten(config))
    for name in names:
        check_name(name)
    for name in sorted(FIELDS.keys() - names.keys()):
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
        if not FIELDS[name].fits(value):
            raise InputError(f"{name} must be {FIELDS[name]}, not {value!r}.")
    effective_resolution(config.resolution, config.beta)
    _check_replicas(config)
    choose("init_source", config.init_source, SOURCES)
    if config.freeze is not None:
        choose("freeze", config.freeze, FROZEN)
        if config.init_from is None:
            raise InputError(
                f"freeze={config.freeze} without init_from would keep random weights: give "
                "init_from, or leave freeze out."
            )
    choose("augment.crop", config.augment.crop, CROPS)
    choose("preprocess.interpolation", config.preprocess.interpolation, INTERPOLATIONS)
    choose("optimizer.name", config.optimizer.name, OPTIMIZER_KEYS)
    choose("schedule.name", config.schedule.name, SCHEDULE_KEYS)
    for key in overrides:
        _check_used(config, key)


def _check_replicas(config: ConfigDict) -> None:
    """Raises InputError if the replicas are not as many as they shall be, or not different."""
    count = config.replicas
    for key, values in config.replica.items():
        if values and count == 1:
            raise InputError(f"replica.{key} is set but not used: it needs replicas above 1.")
        if values and len(values) != count:
            raise InputError(
                f"replica.{key} has {len(values)} value{'s'[: len(values) - 1]}, but there are "
                f"{count} replicas: give {count} values, or none."
            )
    if not config.replica.seeds and not FIELDS["seed"].fits(config.seed + count - 1):
        raise InputError(
            f"seed is {config.seed}, but the seeds of {count} replicas follow it and must be "
            f"{FIELDS['seed']}: choose a smaller one."
        )
    found = replicas(config)
    for i, replica in enumerate(found):
        if replica in found[:i]:
            raise InputError(
                f"Replicas {found.index(replica)} and {i} are the same training, {replica}: choose "
                "other values of replica.seeds."
            )


def _check_used(config: ConfigDict, key: str) -> None:
    """Raises InputError if the config's other choices make `key` one that nothing reads."""
    section, _, field = key.partition(".")
    if key == "dataset.name":
        raise InputError(
            "dataset.name chooses the recipe: give it after the config's colon, as in "
            f"--config=configs/v2.py:dataset={config.dataset.name}."
        )
    for name, keys in (("optimizer", OPTIMIZER_KEYS), ("schedule", SCHEDULE_KEYS)):
        chosen = config[name].name
        if section == name and field not in ("name", *keys[chosen]):
            raise InputError(
                f"{key} is not used by {name}.name={chosen}.{nearest(field, keys[chosen])} "
                f"It reads: {', '.join(keys[chosen])}."
            )
    augment, dataset, model = config.augment, config.dataset, config.model
    own = config.replica
    computed = ("dtype", "depthwise_implementation")  # how, not what
    switches = {name: value for name, value in model.items() if name not in computed}
    spec = build_spec(**switches)
    before = build_spec(**{**switches, "activation": None, "activation_everywhere": False})
    linear = any(block.projection_activation == "linear" for block in before.blocks)
    everywhere, replaced = model.activation_everywhere, model.activation is not None
    folder = dataset.name == "image_folder"
    manual = ("fashion_mnist", "imagenet2012", "image_folder")
    # What a field needs in order to be read, and whether that is so.
    needs = {
        "init_source": ("init_from", config.init_from is not None),
        "optimizer.backbone_scale": ("freeze=None", config.freeze is None),
        "augment.padding": ("augment.crop=pad", augment.crop == "pad"),
        "augment.min_area": ("augment.crop=random_resized", augment.crop == "random_resized"),
        "augment.magnitude": ("augment.randaugment above 0", augment.randaugment > 0),
        "augment.saturation": ("images in colour", dataset.name not in ("digits", "fashion_mnist")),
        "dataset.manual_dir": (f"dataset.name={' or '.join(manual)}", dataset.name in manual),
        "dataset.data_dir": ("dataset.manual_dir=None", not (folder and dataset.manual_dir)),
        "model.depthwise_implementation": ("depthwise convolutions", not model.standard_conv),
        "seed": ("replica.seeds=()", not own.seeds),
        "schedule.learning_rate": ("replica.learning_rate=()", not own.learning_rate),
        "optimizer.weight_decay": ("replica.weight_decay=()", not own.weight_decay),
        "optimizer.weight_decay_depthwise": (
            "optimizer.weight_decay above 0 and depthwise convolutions",
            max(own.weight_decay or [config.optimizer.weight_decay]) > 0
            and not model.standard_conv,
        ),
        "model.activation_everywhere": (
            "model.activation and linear bottlenecks",
            linear and replaced,
        ),
        "model.linear_bottleneck": ("model.activation_everywhere=False", not everywhere),
        "model.hswish_from": ("model.activation=None", not replaced),
        "model.se_gate": ("squeeze-and-excite, model.se=True", any(b.se for b in spec.blocks)),
        "model.residual": ("bottlenecks, V2's or V3's", spec.family != "v1"),
        "model.shallow": ("model.name=mobilenet_v1", spec.family == "v1"),
    }
    condition, used = needs.get(key, ("", True))
    if not used:
        raise InputError(f"{key} is set but not used: it needs {condition}.")


# Stored configs ------------------------------------------------------------------------


def read(workdir: str | Path) -> dict[str, Any]:
    """Reads a workdir's config.json, as `plain` gives it, with the fields that came later.

    Raises:
        InputError: if there is none, or it is not a whole config.
    """
    path = Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for name, value in _LATER.items() if isinstance(config, dict) else ():
            section, _, leaf = name.rpartition(".")
            (config.setdefault(section, {}) if section else config).setdefault(leaf, value)
        check_names(ConfigDict(config))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"There is no {path}: give the --workdir of a training that was started."
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a config of this version ({str(error).rstrip('.')}): choose another "
            "--workdir."
        ) from error
    return config


def restore(config: Mapping[str, Any], section: str = "") -> ConfigDict:
    """Returns a plain config, or a section of it, with the types that flags set fields by."""

    def typed(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return restore(value, f"{name}.")
        if value is None:
            return placeholder(FIELDS[name].kind)
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict({key: typed(section + key, value) for key, value in config.items()})


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
