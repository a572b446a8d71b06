"""Evaluation: of a state during training, and of a workdir's checkpoint afterwards.

Owns that every test example counts once, and what is reported of it. Knows nothing of training.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from mobilenets_jax import checkpoint, data, logs
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError
from mobilenets_jax.state import TrainState
from mobilenets_jax.steps import (
    Experiment,
    build,
    compile_steps,
    initial_state,
    placement,
    to_devices,
)

PICTURED = 32  # test images in predictions.png


class Pictured(NamedTuple):
    """Some test images, spread evenly over the test split, with the averaged weights' answers.

    Of several replicas, the first one's.
    """

    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


def evaluate(
    experiment: Experiment, step_fn: Callable[..., Any], state: TrainState
) -> tuple[dict[str, dict[str, Any]], Pictured]:
    """Evaluates the weights and their moving average; every test example counts once.

    Args:
        experiment: what to evaluate.
        step_fn: the jitted `eval_step`.
        state: whose weights.

    Returns:
        `loss`, `accuracy` and `examples` under "test" and "test_ema", and images to show. With
        several replicas, loss and accuracy are lists.
    """
    config, where = experiment.config, placement(experiment)
    devices = experiment.sharded.mesh.size
    batches = data.eval_batches(
        experiment.dataset,
        batch_size=-(-config.eval_batch_size // devices) * devices,
        resolution=experiment.resolution,
        crop_fraction=config.preprocess.crop_fraction,
        interpolation=config.preprocess.interpolation,
        workers=config.dataset.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    weights = {
        "test": (state.params, state.batch_stats),
        "test_ema": (state.ema_params, state.ema_batch_stats),
    }
    names = ("loss", "correct", "examples")
    sums: dict[str, dict[str, Any]] = {split: dict.fromkeys(names, 0.0) for split in weights}
    every = max(1, len(experiment.dataset.test) // jax.process_count() // PICTURED)
    seen, shown = 0, 0
    pictured: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    try:
        for batch in batches:
            placed = to_devices(batch, where.test)
            results = {split: step_fn(*pair, placed) for split, pair in weights.items()}
            for split, result in results.items():
                for name in names:
                    sums[split][name] += np.asarray(result[name], np.float64)
            predicted = _local_rows(results["test_ema"]["predicted"])
            rows = np.arange(-seen % every, len(predicted), every)
            rows = rows[batch["mask"][rows] > 0][: PICTURED - shown]
            pictured.append((batch["image"][rows], batch["label"][rows], predicted[rows]))
            seen += len(predicted)
            shown += len(rows)
    finally:
        batches.close()
    results = {
        split: {
            "loss": (total["loss"] / total["examples"]).tolist(),
            "accuracy": (total["correct"] / total["examples"]).tolist(),
            "examples": float(np.max(total["examples"])),  # the same for all
        }
        for split, total in sums.items()
    }
    return results, Pictured(*map(np.concatenate, zip(*pictured, strict=True)))


def replicas_of(experiment: Experiment) -> dict[str, Any]:
    """Returns what says whose the lists in a result are; nothing of a single training."""
    replicas = experiment.replicas
    if len(replicas) == 1:
        return {}
    return {"replicas": len(replicas), "seed": [replica.seed for replica in replicas]}


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array, in order, whether or not its first axis is sharded."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def chosen_step(manager: ocp.CheckpointManager, best: bool) -> int | None:
    """Returns the step of the best checkpoint, or None for the latest.

    Raises:
        InputError: if the best is asked for and no checkpoint has an accuracy.
    """
    if not best or checkpoint.latest_step(manager) is None:
        return None
    step = checkpoint.best_step(manager)
    if step is None:
        raise InputError(
            f"No checkpoint in {manager.directory} has an accuracy: use --checkpoint=latest."
        )
    return step


def evaluate_workdir(config: ConfigDict, workdir: Path, best: bool = False) -> dict[str, Any]:
    """Evaluates a workdir's latest or best checkpoint, under the config's evaluation settings.

    Args:
        config: of the same network; resolution, crop and interpolation may differ from training.
        workdir: with checkpoints/ and config.json.
        best: the one whose averaged weights had the highest test accuracy; it was chosen on the
            test images, so its accuracy is an optimistic one.

    Returns:
        The results, also written to the workdir's eval.json; accuracies and losses are lists if
        there are several replicas.

    Raises:
        InputError: if there is no such checkpoint, or it is of another network.
    """
    stored = config_lib.read(workdir)
    difference = config_lib.difference(stored["model"], config_lib.plain(config)["model"])
    if difference:
        raise InputError(
            f"The workdir {workdir} is of another network (model.{difference}): give its config."
        )
    experiment = build(config)
    state = initial_state(experiment)
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        state, meta = checkpoint.restore(manager, state, chosen_step(manager, best))
    if tuple(meta["class_names"]) != experiment.dataset.class_names:
        raise InputError(
            f"The workdir {workdir} was trained on other classes than {experiment.dataset.name}'s: "
            "give the data set it was trained on."
        )
    results, _ = evaluate(experiment, compile_steps(experiment)[1], state)
    result = {
        "step": int(state.step),
        "test_accuracy": results["test"]["accuracy"],
        "test_accuracy_ema": results["test_ema"]["accuracy"],
        "test_loss": results["test"]["loss"],
        "test_examples": int(results["test"]["examples"]),
        "resolution": experiment.resolution,
        **replicas_of(experiment),
        "config": config_lib.plain(config),
        **logs.environment(),
    }
    if jax.process_index() == 0:
        logs.write_json(workdir / "eval.json", result)
    return result
