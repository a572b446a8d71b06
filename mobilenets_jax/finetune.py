"""Where a fine-tuning starts: the weights of a file or a workdir in the place of random ones.

Owns what a config must have for the weights to be its network's, and what is said of them. Knows
nothing of formats and names, nor of what happens after the first state.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenets_jax import weights, weights_networks
from mobilenets_jax.errors import InputError
from mobilenets_jax.logs import say
from mobilenets_jax.published import Network, Preprocessing
from mobilenets_jax.specs import Spec
from mobilenets_jax.state import TrainState
from mobilenets_jax.steps import Experiment, placement

Fields = dict[str, Any]  # of a config's `preprocess`


def load(experiment: Experiment) -> dict[str, Any] | None:
    """Reads the weights that a config starts from, and says what they are.

    Args:
        experiment: whose config's `init_from` and `init_source` are read.

    Returns:
        The variables, or None if the config starts from random weights.

    Raises:
        InputError: as of `weights.load`, and if the source has the network otherwise than the
            config; names the fields to set.
    """
    config = experiment.config
    name, source = config.init_from, config.init_source
    if name is None:
        return None
    path = Path(name).expanduser()
    if source == "native":
        network = None
        check = _check_workdir if os.path.isdir(path) else _check_file
        whose, preprocessed = "our own weights", check(config.model.to_dict(), path)
    else:
        network = check_network(config.model.to_dict(), source)
        whose, preprocessed = f"{source}'s {network.name}", _published(network)
    load_for = functools.partial(weights.load, path, experiment.model, source)
    variables = load_for(seed=experiment.replicas[0].seed)
    if len(experiment.replicas) > 1:
        with contextlib.redirect_stdout(None):  # said once is enough
            others = [load_for(seed=replica.seed) for replica in experiment.replicas[1:]]
        # The same, but for classifiers that start fresh.
        variables = jax.tree.map(lambda *leaves: np.stack(leaves), variables, *others)
    frozen = "" if config.freeze is None else f"; the {config.freeze} stays as it is"
    say(f"Starting from {path}, {whose}{frozen}.")
    if network is not None:
        _say_twins(config.model.to_dict(), network)
    mine = config.preprocess.to_dict()
    different = min((_different(mine, theirs) for theirs in preprocessed), key=len, default={})
    if different:
        have = {name: mine[name] for name in different}
        say(
            f"{path}: to these weights belongs {_preprocess_flags(different)}, and this training "
            f"has {_preprocess_flags(have)}: set theirs, unless you mean it."
        )
    return variables


def replace(experiment: Experiment, state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Returns the state with other weights, its averages being those weights too.

    Args:
        experiment: says where the state is placed.
        state: before the first step.
        variables: "params" and "batch_stats", of the same shapes.
    """

    def place(tree: Any) -> Any:
        return jax.tree.map(jnp.array, tree)

    # Compiled, so that it is placed like the state; each field has buffers of its own.
    placed = jax.jit(place, out_shardings=placement(experiment).weights)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return dataclasses.replace(
        state,
        params=placed(params),
        batch_stats=placed(batch_stats),
        ema_params=placed(params),
        ema_batch_stats=placed(batch_stats),
    )


def check_network(model: Mapping[str, Any], source: str) -> Network:
    """Returns the source's network that a config's `model` is.

    Raises:
        InputError: if the source has no such network, or has it otherwise; names the fields to set.
    """
    network, fields = weights_networks.nearest(model, source)
    if fields:
        raise InputError(
            f"{source}'s {network.name} differs from this {model['name']}: set {_flags(fields)} "
            "for its weights."
        )
    return network


def described_fields(model: Mapping[str, Any], path: Path, network: Spec) -> dict[str, Any]:
    """Returns the fields of a config's `model` that the network settles which a file says it is of.

    Raises:
        InputError: if it is none of that name.
    """
    if network.name != model["name"]:
        raise InputError(
            f"{path} is of another network than {model['name']}: give the config of a "
            f"{network.name}, as by --config=configs/default.py:model={network.name}."
        )
    return weights_networks.settled_fields(network, model)


def check_described(model: Mapping[str, Any], path: Path, network: Spec) -> None:
    """Checks that a config's `model` has the numbers of the network that a file says it is of.

    Raises:
        InputError: names the fields to set.
    """
    there = {**model, **described_fields(model, path, network)}
    fields = weights_networks.different_fields(model, there)
    if fields:
        raise InputError(f"{path} is of another network: set {_flags(fields)} for its weights.")


def _flags(fields: Mapping[str, Any], section: str = "model") -> str:
    return " ".join(f"--config.{section}.{name}={value}" for name, value in fields.items())


def _say_twins(model: Mapping[str, Any], network: Network) -> None:
    """Says which networks have arrays of the same names and shapes, but compute something else."""
    twins = weights_networks.twins(model, network)
    if twins:
        others = " or ".join(f"{twin.name} ({_flags(fields)})" for twin, fields in twins)
        say(f"{network.source}'s files do not say whether they are of {others} instead.")


def _different(mine: Fields, theirs: Fields) -> Fields:
    """Returns those of their fields that differ from mine."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, str) or None in (one, other):
            return one == other
        return bool(np.allclose(one, other, 1e-3, 1e-3))

    return {name: value for name, value in theirs.items() if not same(mine[name], value)}


def _preprocess_flags(fields: Fields) -> str:
    def word(value: Any) -> str:
        if isinstance(value, tuple | list):  # quoted, as a shell needs it
            return "'(" + ",".join(f"{each:.6g}" for each in value) + ")'"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return _flags({name: word(value) for name, value in fields.items()}, "preprocess")


def _fields(how: Preprocessing) -> Fields:
    return {name: value for name, value in how._asdict().items() if name != "resolution"}


def _published(network: Network) -> list[Fields]:
    """Of each set of weights that the source publishes of a network."""
    return [_fields(each.preprocessing) for each in network.weights]


def _check_file(model: Mapping[str, Any], path: Path) -> list[Fields]:
    """Returns the preprocessing that a file of our own holds, if it does.

    Raises:
        InputError: if it says that it is of another network than `model`; names the fields to set.
    """
    described = weights.describe(path)
    if described is None:
        return []
    check_described(model, path, described.network)
    return [] if described.preprocessing is None else [_fields(described.preprocessing)]


def _check_workdir(model: Mapping[str, Any], path: Path) -> list[Fields]:
    """Returns how a workdir scaled pixels, or nothing if that is not to be read.

    Raises:
        InputError: if the workdir is of another network than `model`; names the fields to set.
    """
    try:
        # As it is, since another version's may have other fields.
        stored = json.loads((path / "config.json").read_text(encoding="utf-8"))
        trained, pixels = dict(stored["model"]), stored["preprocess"]
        preprocessed = [{name: tuple(pixels[name]) for name in ("mean", "std")}]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    fields = weights_networks.different_fields(model, trained)
    if fields:
        raise InputError(
            f"The workdir {path} is of another network: set {_flags(fields)} for its weights."
        )
    return preprocessed
