"""A network with its weights, ready for images: of a workdir, of a library's file or of our own.

Owns which fields of a config become what belongs to the weights. Knows nothing of images, nor of
how answers are written.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mobilenets_jax import (
    builders,
    checkpoint,
    evaluation,
    finetune,
    imagenet,
    steps,
    weights,
    weights_networks,
)
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError
from mobilenets_jax.fold import fold_batch_norm
from mobilenets_jax.model import MobileNet
from mobilenets_jax.published import Preprocessing
from mobilenets_jax.state import replica

# What a prediction reads of a config, as fields or whole sections.
_READ = (
    *("resolution", "beta", "eval_batch_size", "init_from", "init_source"),
    *("model", "preprocess", "dataset.num_classes"),
)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights, ready for images.

    Attributes:
        config: how images are prepared and how many are predicted at a time.
        model: the network, with BatchNorm folded.
        variables: its arrays.
        class_names: name of each class.
        origin: what the weights are, in words.
        facts: the same as JSON's fields.
    """

    config: ConfigDict
    model: MobileNet
    variables: Mapping[str, Any]
    class_names: tuple[str, ...]
    origin: str
    facts: Mapping[str, Any]

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return config_lib.effective_resolution(self.config.resolution, self.config.beta)


def trained(
    config: ConfigDict, overrides: Sequence[str], workdir: Path, best: bool = False
) -> Predictor:
    """Returns the network of a workdir, with the averaged weights of a checkpoint.

    Args:
        config: how to predict: resolution, preprocessing and batch size may differ from training.
        overrides: dotted names of its fields that were set on the command line.
        workdir: with checkpoints/ and config.json.
        best: the checkpoint whose averaged weights had the highest test accuracy, not the latest.

    Raises:
        InputError: if there is no such checkpoint, or the config is of another network.
    """
    stored = config_lib.read(workdir)
    had, have = (dict(config_lib.flatten(c)) for c in (stored, config_lib.plain(config)))
    _check_read(name for name in overrides if have[name] != had[name])
    config = config_lib.for_evaluation(stored, config, overrides)
    difference = config_lib.difference(stored["model"], config_lib.plain(config)["model"])
    if difference:
        raise InputError(
            f"The workdir {workdir} is of another network (model.{difference}): give its config."
        )
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        step = evaluation.chosen_step(manager, best)
        state, meta = checkpoint.restore_arrays(manager, step)
    names = imagenet.readable(meta["class_names"])
    step = int(state["step"])
    variables, first = {"params": state["ema_params"], "batch_stats": state["ema_batch_stats"]}, ""
    if config.replicas > 1:
        variables, first = replica(variables, 0), f", the first of {config.replicas} replicas"
    return _predictor(
        config,
        steps.build_model(config, len(names)),
        variables,
        names,
        f"{config.model.name} of {workdir}, step {step:,}{first}",
        {"workdir": str(workdir), "step": step},
    )


def published(config: ConfigDict, overrides: Sequence[str]) -> Predictor:
    """Returns the network of a config with the weights of its `init_from`.

    Fields that were not set on the command line become what belongs to the weights: those of
    `model` that the source settles, strides too, and resolution and `preprocess` of the first
    weights that it publishes of the network. A file of our own may say all of these itself.

    Args:
        config: with `init_from` and `init_source`.
        overrides: dotted names of the fields that were set on the command line.

    Raises:
        InputError: as of `weights.load`; if the source has no such network, a field was set to
            something else than the source has, or a field was set that is not read.
    """
    _check_read(overrides)
    config = config_lib.restore(config_lib.plain(config))
    source, path = config.init_source, Path(config.init_from).expanduser()
    if os.path.isdir(path):
        raise InputError(f"init_from is a directory: give the training by --workdir={path}.")
    settle = _settle_by_file if source == "native" else _settle_by_source
    whose, how = settle(config, overrides, path)
    classes = config.dataset.num_classes
    if classes is None:
        raise InputError(
            "How many classes the weights are of is not known: give --config.dataset.num_classes."
        )
    if how is not None:
        pixels = how._asdict()
        _set_unset(config, overrides, "", {"resolution": pixels.pop("resolution"), "beta": 1.0})
        _set_unset(config, overrides, "preprocess", pixels)
    model = steps.build_model(config, classes)
    variables = weights.load(path, model, source, fresh_classifier=False)
    facts = {"weights": str(path), "source": source}
    names = _class_names(config.dataset.name, classes)
    return _predictor(config, model, variables, names, f"{whose} of {path}", facts)


def _settle_by_source(
    config: ConfigDict, overrides: Sequence[str], path: Path
) -> tuple[str, Preprocessing | None]:
    """Makes `model` a library's network; returns whose it is, and the preprocessing for it."""
    source = config.init_source
    asked = [name.removeprefix("model.") for name in overrides if name.startswith("model.")]
    fields = weights_networks.closest_fields(config.model.to_dict(), source, asked)
    _set_unset(config, overrides, "model", fields)
    network = finetune.check_network(config.model.to_dict(), source)
    for twin, fields in weights_networks.twins(config.model.to_dict(), network):
        flags = " ".join(f"--config.model.{name}={value}" for name, value in fields.items())
        print(f"If the file is of {twin.name} instead, which it does not say, give {flags}.")
    how = network.weights[0].preprocessing if network.weights else None
    return f"{source}'s {network.name}", how


def _settle_by_file(
    config: ConfigDict, overrides: Sequence[str], path: Path
) -> tuple[str, Preprocessing | None]:
    """Makes `model` the network that a file of our own says it is of, if it does; the same."""
    whose, described = f"our {config.model.name}", weights.describe(path)
    if described is None:
        return whose, None
    network = described.network
    fields = finetune.described_fields(config.model.to_dict(), path, network)
    _set_unset(config, overrides, "model", fields)
    finetune.check_described(config.model.to_dict(), path, network)
    if config.dataset.num_classes is None:
        config.dataset.num_classes = network.num_classes
    return whose, described.preprocessing


def _check_read(names: Iterable[str]) -> None:
    """Raises InputError for a field that a prediction does not read."""
    for name in names:
        if name not in _READ and name.partition(".")[0] not in _READ:
            raise InputError(f"{name} is set but not used: a prediction does not read it.")


def _set_unset(
    config: ConfigDict, overrides: Sequence[str], section: str, fields: Mapping[str, Any]
) -> None:
    """Sets fields of a section, but for those that were set on the command line."""
    for name, value in fields.items():
        dotted = f"{section}.{name}" if section else name
        if dotted not in overrides:
            config.update_from_flattened_dict({dotted: value})


def _class_names(dataset: str, classes: int) -> tuple[str, ...]:
    """Names of a data set's classes where they are known without it, else numbers."""
    known: dict[str, Sequence[str]] = {
        "imagenet2012": tuple(imagenet.classes().values()),
        "digits": builders.Digits.classes,
        "fashion_mnist": builders.FashionMnist32.classes,
    }
    names = tuple(known.get(dataset, ()))
    return names if len(names) == classes else tuple(f"class {i}" for i in range(classes))


def _predictor(
    config: ConfigDict,
    model: MobileNet,
    variables: Mapping[str, Any],
    names: tuple[str, ...],
    origin: str,
    facts: Mapping[str, Any],
) -> Predictor:
    folded, folded_variables = fold_batch_norm(model, variables)
    facts = {"network": config.model.name, **facts}
    return Predictor(config, folded, folded_variables, names, origin, facts)
