"""The training loop: read top to bottom.

Owns what happens in which order, and what a workdir holds. Knows nothing of flags, of how a step
is computed, or of how files are written.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mobilenets_jax import checkpoint, costs, data, finetune, logs, plots, signals
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError
from mobilenets_jax.evaluation import Pictured, evaluate, replicas_of
from mobilenets_jax.state import TrainState
from mobilenets_jax.steps import (
    Experiment,
    begin,
    build,
    compile_steps,
    initial_state,
    placement,
    schedule_of,
    to_devices,
)
from mobilenets_jax.workdir import claimed, finished


class Diverged(ArithmeticError):
    """The loss or the state is not finite. The message names the step and what stays."""


@contextlib.contextmanager
def stop_signal(manager: Any) -> Iterator[Callable[[int], bool]]:
    """Yields a function of the completed step: whether a SIGTERM asks to stop after it.

    Several processes agree on the step by means of JAX, whose handler a second one would replace.
    """
    if jax.process_count() > 1:
        yield manager.reached_preemption
        return
    with signals.preemption() as requested:
        yield lambda step: requested()


class Meter:
    """Means over the steps since the last line, and the speed.

    A step's loss is looked at one step later, so that the device never waits for the host. A step
    after a pause (the first, and those after an evaluation or a save) counts for the means and not
    for the speed. Losses and accuracies are lists if there are several replicas.
    """

    def __init__(
        self, saved: dict[str, Any] | None = None, replicas: tuple[config_lib.Replica, ...] = ()
    ):
        self.sums = saved or {"loss": 0.0, "accuracy": 0.0, "steps": 0, "timed": 0, "seconds": 0.0}
        self._replicas = replicas
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._last: float | None = None
        self._line = (self.sums["timed"], self.sums["seconds"])

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, and looks at those of the step before.

        Raises:
            Diverged: if that step's loss is not finite.
        """
        self._pending.append((step, metrics))
        # After a pause, the clock starts when the device is idle.
        self.settle(keep=0 if self._last is None else 1)

    def settle(self, keep: int = 0) -> None:
        """Looks at the metrics of all steps but the newest `keep`."""
        while len(self._pending) > keep:
            step, metrics = self._pending.pop(0)
            loss = np.asarray(metrics["loss"], np.float64)
            if not np.isfinite(loss).all():
                whose = _whose(~np.isfinite(loss), self._replicas)
                wrong = loss[~np.isfinite(loss)][0]
                raise Diverged(f"the loss is {wrong} at step {step}{whose}")
            accuracy = np.asarray(metrics["accuracy"], np.float64)
            # As lists, so that they can be saved.
            self.sums["loss"] = (self.sums["loss"] + loss).tolist()
            self.sums["accuracy"] = (self.sums["accuracy"] + accuracy).tolist()
            self.sums["steps"] += 1
            now = time.perf_counter()
            if self._last is not None:
                self.sums["timed"] += 1
                self.sums["seconds"] += now - self._last
            self._last = now

    def pause(self) -> None:
        """Stops the clock until the next step."""
        self._last = None

    def rate(self, since: tuple[float, float] = (0, 0.0)) -> float | None:
        """Steps per second, of the whole training or since a (timed, seconds)."""
        timed, seconds = self.sums["timed"] - since[0], self.sums["seconds"] - since[1]
        return timed / seconds if timed else None

    def line(self) -> dict[str, Any]:
        """Returns the means since the last call, and the steps per second."""
        steps = self.sums["steps"]
        result = {
            "loss": (np.asarray(self.sums["loss"]) / steps).tolist(),
            "accuracy": (np.asarray(self.sums["accuracy"]) / steps).tolist(),
            "rate": self.rate(self._line),
        }
        self.sums.update(loss=0.0, accuracy=0.0, steps=0)
        self._line = (self.sums["timed"], self.sums["seconds"])
        return result


def _whose(wrong: Any, replicas: tuple[config_lib.Replica, ...]) -> str:
    """Names the replicas, if there are several, of which something is wrong."""
    if len(replicas) <= 1:
        return ""
    named = [str(replica) for replica, is_wrong in zip(replicas, wrong, strict=True) if is_wrong]
    return f" of {' and '.join(named)}"


def check_finite(
    state: TrainState, step: int, replicas: tuple[config_lib.Replica, ...] = ()
) -> None:
    """Raises Diverged if a number of the state is not finite, which a finite loss may hide."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        # Without a view of the whole, which would get in the way of its donation.
        shards = leaf.addressable_shards[: 1 if leaf.is_fully_replicated else None]
        finite = [np.isfinite(shard.data) for shard in shards]
        if all(each.all() for each in finite):
            continue
        whose = ""
        if len(replicas) > 1:
            rows = np.concatenate(finite).reshape(len(replicas), -1)
            whose = _whose(~rows.all(1), replicas)
        name = jax.tree_util.keystr(keys)
        raise Diverged(f"state{name}{whose} is not finite after step {step}")


def train(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Trains, or goes on where an earlier run of the same config in the same workdir stopped.

    Args:
        config: the experiment.
        workdir: gets config.json, metrics.jsonl, result.json, checkpoints/, tensorboard/,
            curves.png and predictions.png.

    Returns:
        The contents of result.json, or None if a SIGTERM asked to stop: the state is saved then.

    Raises:
        InputError: if the config, the data or the workdir is wrong.
        Diverged: if the loss is not finite; the checkpoints before it stay.
    """
    config_lib.check(config)
    result = finished(config, workdir)
    if result is not None:
        return result
    experiment = build(config)
    data.steps_per_epoch(experiment.dataset, config.batch_size)
    devices = experiment.sharded.mesh.size
    if config.batch_size % devices and not placement(experiment).spread:
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {devices} devices: choose a "
            f"multiple of {devices}."
        )
    # Before anything is written: a wrong path leaves no workdir behind.
    weights = None if checkpoint.exists(workdir) else finetune.load(experiment)
    with (
        claimed(workdir, config),
        checkpoint.open_manager(workdir) as manager,
        stop_signal(manager) as stop_requested,
    ):
        return _loop(experiment, workdir, manager, stop_requested, weights)


def _loop(
    experiment: Experiment,
    workdir: Path,
    manager: Any,
    stop_requested: Callable[[int], bool],
    weights: dict[str, Any] | None,
) -> dict[str, Any] | None:
    config, total, replicas = experiment.config, experiment.total_steps, experiment.replicas
    several, where = len(replicas) > 1, placement(experiment)
    first = jax.process_index() == 0
    spec = experiment.model.spec
    logs.say(
        f"{spec.name}: alpha {spec.alpha:g}, resolution {experiment.resolution} (beta "
        f"{config.beta:g} of {config.resolution}), {costs.params(spec):,} parameters, "
        f"{costs.macs(spec, experiment.resolution):,} MACs; {config.dataset.name}: "
        f"{len(experiment.dataset.train):,} training and {len(experiment.dataset.test):,} test "
        f"images; {f'{len(replicas)} replicas, ' if several else ''}{total:,} steps of "
        f"{config.batch_size} on {experiment.sharded.mesh.size} "
        f"{jax.devices()[0].platform} device(s). Workdir: {workdir}"
    )
    began = time.perf_counter()
    step_fn, eval_fn = compile_steps(experiment)
    latest = checkpoint.latest_step(manager)
    if latest == total:  # an evaluation at most is missing
        state = initial_state(experiment)
    else:
        state, step_fn = begin(experiment, step_fn)
    start = 0
    meta: dict[str, Any] = {"train_seconds": 0.0, "meter": None, "evaluated": True}
    if latest is not None:
        state, meta = checkpoint.restore(manager, state)
        start = int(state.step)
        logs.say(f"Resuming from step {start:,}.")
    elif weights is not None:
        state = finetune.replace(experiment, state, weights)
    metrics_path = workdir / "metrics.jsonl"
    written = set()  # lines of the step that was saved
    if first:
        logs.truncate_metrics(metrics_path, start)
        if metrics_path.exists():
            lines = logs.read_metrics(metrics_path)
            written = {line["split"] for line in lines if line["step"] == start}
    eval_steps = max(1, round(config.eval_every * experiment.steps_per_epoch))
    save_steps = max(1, round(config.checkpoint_every * experiment.steps_per_epoch))
    meter = Meter(meta["meter"], replicas)
    images = config.batch_size * len(replicas)  # a step

    def seconds() -> float:
        return meta["train_seconds"] + time.perf_counter() - began

    def save(step: int, accuracy: float | None, force: bool = False) -> None:
        saved = {
            "config": config_lib.plain(config),
            "class_names": list(experiment.dataset.class_names),
            "train_seconds": seconds(),
            "meter": meter.sums,
            "evaluated": accuracy is not None,
        }
        metrics = None if accuracy is None else {"accuracy": accuracy}
        checkpoint.save(manager, step, state, saved, metrics, force=force)

    def write_line(step: int, split: str, **values: Any) -> None:
        epoch = step / experiment.steps_per_epoch
        values = {key: value for key, value in values.items() if key != "examples"}
        if first and not (step == start and split in written):
            logs.append_metrics(
                metrics_path, step=step, epoch=epoch, split=split, seconds=seconds(), **values
            )
        for key, value in values.items():
            if value is not None:
                board.scalars(step, curves(f"{split}/{key}", value))

    def curves(tag: str, value: Any) -> dict[str, float]:
        """Names TensorBoard's curves: one, or one for each replica."""
        if not isinstance(value, list):
            return {tag: value}
        return {f"{tag}/{each}": number for each, number in zip(replicas, value, strict=True)}

    def learning_rates(step: int) -> dict[str, Any]:
        if not config.replica.learning_rate:
            return {"learning_rate": experiment.schedule(step - 1)}
        rates = [schedule_of(experiment, replica)(step - 1) for replica in replicas]
        return curves("learning_rate", rates)

    def evaluate_and_log(step: int) -> tuple[dict[str, dict[str, Any]], Pictured]:
        results, pictured = evaluate(experiment, eval_fn, state)
        for split, values in results.items():
            write_line(step, split, **values)
        report.write(
            f"step {step}: test accuracy {np.mean(results['test']['accuracy']):.4f}, averaged "
            f"weights {np.mean(results['test_ema']['accuracy']):.4f}"
            f"{logs.means(len(replicas))}"
        )
        return results, pictured

    with (
        logs.tensorboard(workdir, start, enabled=first) as board,
        logs.progress(total, start, config.log_every, enabled=first) as report,
    ):
        evaluation = None
        if not meta["evaluated"] and (start % eval_steps == 0 or start == total):
            # A signal came before the evaluation of this step: make up for it.
            evaluation = evaluate_and_log(start)
            manager.delete(start)
            save(start, float(np.mean(evaluation[0]["test_ema"]["accuracy"])))
        batches = data.train_batches(
            experiment.dataset,
            batch_size=config.batch_size,
            seed=[replica.seed for replica in replicas] if several else config.seed,
            resolution=experiment.resolution,
            augment=config.augment.to_dict(),
            interpolation=config.preprocess.interpolation,
            start_step=start,
            workers=config.dataset.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        try:
            for step in range(start + 1, total + 1):
                batch = next(batches)
                if step == 1:
                    shown = batch["image"][0] if several else batch["image"]
                    board.image(1, "inputs", plots.image_grid(shown[:64], 8))
                state, metrics = step_fn(state, to_devices(batch, where.batch))
                meter.add(step, metrics)
                stopping = stop_requested(step)
                evaluating = step % eval_steps == 0 or step == total
                saving = evaluating or step % save_steps == 0 or stopping
                if step % config.log_every == 0 or step == total:
                    meter.settle()
                    line = meter.line()
                    rate = line.pop("rate")
                    speed = None if rate is None else rate * images
                    write_line(step, "train", images_per_second=speed, **line)
                    board.scalars(step, learning_rates(step))
                    facts = line if speed is None else {**line, "images_per_second": speed}
                    report(step, **facts)
                else:
                    report(step)
                if saving:
                    meter.settle()
                    check_finite(state, step, replicas)
                    evaluation = None
                    if evaluating and not stopping:
                        evaluation = evaluate_and_log(step)
                    accuracy = None
                    if evaluation:
                        accuracy = float(np.mean(evaluation[0]["test_ema"]["accuracy"]))
                    save(step, accuracy, force=stopping)
                    meter.pause()
                if stopping:
                    report.write(
                        f"Stopped by a signal; saved step {step:,}: the same command resumes."
                    )
                    return None
        except Diverged as error:
            manager.wait_until_finished()
            last = checkpoint.latest_step(manager)
            kept = (
                f"step {last} is the last good checkpoint" if last else "no checkpoint was due yet"
            )
            raise Diverged(
                f"Training stopped: {error} ({kept} in {workdir}); lower schedule.learning_rate or "
                "look at the data, and start in another --workdir."
            ) from None
        finally:
            batches.close()
        train_seconds = seconds()
        results, pictured = evaluation or evaluate(experiment, eval_fn, state)
    manager.wait_until_finished()
    rate = meter.rate()
    result = {
        "test_accuracy": results["test"]["accuracy"],
        "test_accuracy_ema": results["test_ema"]["accuracy"],
        "test_loss": results["test"]["loss"],
        "test_examples": int(results["test"]["examples"]),
        "params": costs.params(spec),
        "macs": costs.macs(spec, experiment.resolution),
        "steps": total,
        "train_seconds": train_seconds,
        "images_per_second": None if rate is None else rate * images,
        "resolution": experiment.resolution,
        "seed": config.seed,
        **replicas_of(experiment),
        "config": config_lib.plain(config),
        **logs.environment(),
    }
    if first:
        title = f"{spec.name}, α = {spec.alpha:g}, {config.dataset.name}"
        title += logs.means(len(replicas))
        plots.curves(metrics_path, workdir / "curves.png", title)
        plots.predictions(
            pictured.images,
            pictured.labels,
            pictured.predicted,
            experiment.dataset.class_names,
            workdir / "predictions.png",
        )
        logs.write_json(workdir / "result.json", result)
    logs.say(
        f"Finished: test accuracy {np.mean(results['test']['accuracy']):.4f} (averaged weights "
        f"{np.mean(results['test_ema']['accuracy']):.4f}{logs.means(len(replicas))}) on "
        f"{result['test_examples']:,} images after {train_seconds:.0f} s of training. See "
        f"{workdir}/result.json, curves.png and predictions.png."
    )
    return result
