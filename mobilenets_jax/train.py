"""Training and evaluation: an experiment from its config, one step, one loop. Read top to bottom.

Owns what happens in which order, on how many devices, and what a workdir holds. Knows nothing of
flags, of how a layer is computed, or of how files are written.

The same code runs on one CPU, several GPUs and several hosts: the batch is sharded over a mesh of
all devices, the state is replicated, and `jit` adds the communication. BatchNorm's statistics are
therefore those of the global batch.
"""

import contextlib
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mobilenets_jax import checkpoint, costs, data, logs, plots
from mobilenets_jax import config as config_lib
from mobilenets_jax.augment import mix
from mobilenets_jax.datasets import Dataset, open_dataset
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.optim import (
    cross_entropy,
    ema_update,
    learning_rate_schedule,
    make_optimizer,
)
from mobilenets_jax.state import TrainState, init_state

Batch = dict[str, Any]
PICTURED = 32  # test images in predictions.png


class Diverged(ArithmeticError):
    """The loss or the state is not finite. The message names the step and what stays."""


class Experiment(NamedTuple):
    """What a config describes, built.

    Attributes:
        config: the experiment's config.
        dataset: opened.
        model: the network.
        schedule: step -> learning rate.
        optimizer: with the schedule in it.
        resolution: side of the images in pixels, beta applied.
        steps_per_epoch: whole batches in the training split.
        total_steps: of the whole training.
        sharded: places a batch over all devices.
        replicated: places a state on every device.
    """

    config: ConfigDict
    dataset: Dataset
    model: MobileNet
    schedule: Callable[[Any], jax.Array]
    optimizer: optax.GradientTransformation
    resolution: int
    steps_per_epoch: int
    total_steps: int
    sharded: NamedSharding
    replicated: NamedSharding


def build_model(config: ConfigDict, num_classes: int) -> MobileNet:
    """Creates the network of a config.

    Raises:
        InputError: for an unknown model, switch or value.
    """
    return create_model(num_classes=num_classes, **config.model)


def build(config: ConfigDict) -> Experiment:
    """Builds an experiment: opens the data, creates the network, the optimizer and the mesh.

    Raises:
        InputError: if anything in the config is wrong or does not fit.
    """
    config_lib.check(config)
    dataset = open_dataset(
        config.dataset.name,
        data_dir=config.dataset.data_dir,
        manual_dir=config.dataset.manual_dir,
        train_split=config.dataset.train_split,
        eval_split=config.dataset.eval_split,
    )
    if config.dataset.num_classes not in (None, dataset.num_classes):
        raise InputError(
            f"dataset.num_classes is {config.dataset.num_classes}, but {dataset.name} has "
            f"{dataset.num_classes} classes: set it to None or {dataset.num_classes}."
        )
    mesh = Mesh(np.array(jax.devices()), ("data",))
    model = build_model(config, dataset.num_classes)
    resolution = config_lib.effective_resolution(config.resolution, config.beta)
    steps_per_epoch = data.steps_per_epoch(dataset, config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    schedule = learning_rate_schedule(config.schedule, steps_per_epoch, total_steps)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, resolution, resolution, 3)))
    )
    return Experiment(
        config=config,
        dataset=dataset,
        model=model,
        schedule=schedule,
        optimizer=make_optimizer(config.optimizer, schedule, shapes["params"]),
        resolution=resolution,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        sharded=NamedSharding(mesh, PartitionSpec("data")),
        replicated=NamedSharding(mesh, PartitionSpec()),
    )


# --- state and steps ---


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step, a function of the seed, on every device."""
    key = jax.random.fold_in(jax.random.key(experiment.config.seed), 0)
    init = functools.partial(
        init_state, experiment.model, experiment.optimizer, experiment.resolution
    )
    return jax.jit(init, out_shardings=experiment.replicated)(key)


def normalize(image: jax.Array, config: ConfigDict) -> jax.Array:
    """Maps uint8 pixels to float32, by the config's mean and standard deviation."""
    mean = jnp.asarray(config.preprocess.mean, jnp.float32)
    std = jnp.asarray(config.preprocess.std, jnp.float32)
    return (image.astype(jnp.float32) - mean) / std


def train_step(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. All its chance is a function of (seed, step).

    Args:
        experiment: static.
        state: before the update.
        batch: image uint8 `[B, R, R, 3]`, label int32 `[B]`.

    Returns:
        The state after the update, and the batch's mean `loss` and `accuracy` before it.
    """
    config, model = experiment.config, experiment.model
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    mix_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    image = normalize(batch["image"], config)
    target: jax.Array = batch["label"]
    if config.augment.mixup or config.augment.cutmix:
        image, target = mix(
            image,
            target,
            model.spec.num_classes,
            mix_key,
            config.augment.mixup,
            config.augment.cutmix,
        )

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            image,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        loss = cross_entropy(logits, target, config.label_smoothing).mean()
        return loss, (logits, updated["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = functools.partial(ema_update, decay=config.ema_decay, step=state.step)
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema(state.ema_params, params),
        ema_batch_stats=ema(state.ema_batch_stats, batch_stats),
    )
    # With mixed labels, a prediction is right if it names the larger share.
    wanted = target if target.ndim == 1 else jnp.argmax(target, -1)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == wanted)
    return state, {"loss": loss, "accuracy": accuracy}


def eval_step(
    experiment: Experiment, params: Any, batch_stats: Any, batch: Batch
) -> dict[str, jax.Array]:
    """Evaluates one batch; examples with mask 0 do not count.

    Returns:
        Sums over the batch, `loss`, `correct` and `examples`, and `predicted` int32 `[B]`.
    """
    logits: Any = experiment.model.apply(
        {"params": params, "batch_stats": batch_stats},
        normalize(batch["image"], experiment.config),
        train=False,
    )
    predicted = jnp.argmax(logits, -1).astype(jnp.int32)
    mask = batch["mask"]
    return {
        "loss": jnp.sum(mask * cross_entropy(logits, batch["label"], 0.0)),
        "correct": jnp.sum(mask * (predicted == batch["label"])),
        "examples": jnp.sum(mask),
        "predicted": predicted,
    }


def compile_steps(experiment: Experiment) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns jitted `train_step(state, batch)` and `eval_step(params, batch_stats, batch)`.

    The train step donates its state.
    """
    replicated, sharded = experiment.replicated, experiment.sharded
    train = jax.jit(
        functools.partial(train_step, experiment),
        in_shardings=(replicated, sharded),
        out_shardings=replicated,
        donate_argnums=0,
    )
    sums = {"loss": replicated, "correct": replicated, "examples": replicated}
    evaluate = jax.jit(
        functools.partial(eval_step, experiment),
        in_shardings=(replicated, replicated, sharded),
        out_shardings={**sums, "predicted": sharded},
    )
    return train, evaluate


def to_devices(batch: Batch, sharding: NamedSharding) -> Batch:
    """Makes global arrays of this process's share of a batch."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


# --- evaluation ---


class Pictured(NamedTuple):
    """Some test images, spread evenly over the test split, with the averaged weights' answers."""

    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


def evaluate(
    experiment: Experiment, step_fn: Callable[..., Any], state: TrainState
) -> tuple[dict[str, dict[str, float]], Pictured]:
    """Evaluates the weights and their moving average; every test example counts once.

    Args:
        experiment: what to evaluate.
        step_fn: the jitted `eval_step`.
        state: whose weights.

    Returns:
        `loss`, `accuracy` and `examples` under "test" and "test_ema", and images to show.
    """
    config = experiment.config
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
    sums = {split: dict.fromkeys(names, 0.0) for split in weights}
    every = max(1, len(experiment.dataset.test) // jax.process_count() // PICTURED)
    seen, shown = 0, 0
    pictured: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    try:
        for batch in batches:
            placed = to_devices(batch, experiment.sharded)
            results = {split: step_fn(*pair, placed) for split, pair in weights.items()}
            for split, result in results.items():
                for name in names:
                    sums[split][name] += float(result[name])
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
            "loss": total["loss"] / total["examples"],
            "accuracy": total["correct"] / total["examples"],
            "examples": total["examples"],
        }
        for split, total in sums.items()
    }
    return results, Pictured(*map(np.concatenate, zip(*pictured, strict=True)))


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded over its first axis, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


# --- workdir ---


def finished(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Returns a finished workdir's result.json, and says so; None if there is something to do.

    Raises:
        InputError: if the workdir is of another config, or unreadable.
    """
    path = workdir / "result.json"
    if (workdir / "config.json").exists():
        check_workdir(config_lib.plain(config), workdir)
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        say(
            f"{workdir} is finished: test accuracy {result['test_accuracy']:.4f} (averaged weights "
            f"{result['test_accuracy_ema']:.4f}). Give another --workdir to train again."
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it, and the same command "
            "writes it again."
        ) from error
    return result


def check_workdir(config: dict[str, Any], workdir: Path) -> None:
    """Raises InputError if the workdir was started with another config."""
    difference = config_lib.difference(config_lib.read(workdir), config)
    if difference:
        raise InputError(
            f"The workdir {workdir} is of another config ({difference}): choose another --workdir "
            "or the same config."
        )


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Writes config.json into a new workdir, and keeps a second training out of it meanwhile.

    The lock is the system's, so it ends with the process however that ends.

    Raises:
        InputError: if the workdir is not writable, or another training runs in it.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        directory = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise _unusable(workdir, error) from error
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another training is running in {workdir}: wait for it, stop it, or choose "
                "another --workdir."
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            if not (workdir / "config.json").exists():
                logs.write_json(workdir / "config.json", config_lib.plain(config))
        except OSError as error:
            raise _unusable(workdir, error) from error
        yield
    finally:
        os.close(directory)


def _unusable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"The workdir {workdir} cannot be used ({error.strerror}): choose another --workdir."
    )


@contextlib.contextmanager
def stop_signal(manager: Any) -> Iterator[Callable[[int], bool]]:
    """Yields a function of the completed step: whether a SIGTERM asks to stop after it.

    Several processes agree on the step by means of JAX, whose handler a second one would replace.
    """
    if jax.process_count() > 1:
        yield manager.reached_preemption
        return
    with checkpoint.preemption() as requested:
        yield lambda step: requested()


# --- the loop ---


class Meter:
    """Means over the steps since the last line, and the speed.

    A step's loss is looked at one step later, so that the device never waits for the host. A step
    after a pause (the first, which compiles, and those after an evaluation or a save) counts for
    the means and not for the speed.
    """

    def __init__(self, saved: dict[str, float] | None = None):
        self.sums = saved or {"loss": 0.0, "accuracy": 0.0, "steps": 0, "timed": 0, "seconds": 0.0}
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
            loss = float(metrics["loss"])
            if not np.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step}")
            self.sums["loss"] += loss
            self.sums["accuracy"] += float(metrics["accuracy"])
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

    def line(self) -> dict[str, float | None]:
        """Returns the means since the last call, and the steps per second."""
        steps = self.sums["steps"]
        result = {
            "loss": self.sums["loss"] / steps,
            "accuracy": self.sums["accuracy"] / steps,
            "rate": self.rate(self._line),
        }
        self.sums.update(loss=0.0, accuracy=0.0, steps=0)
        self._line = (self.sums["timed"], self.sums["seconds"])
        return result


def check_finite(state: TrainState, step: int) -> None:
    """Raises Diverged if a number of the state is not finite, which a finite loss may hide."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.isfinite(leaf.addressable_data(0)).all():
            raise Diverged(f"state{jax.tree_util.keystr(keys)} is not finite after step {step}")


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
    devices = experiment.sharded.mesh.size
    if config.batch_size % devices:
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {devices} devices: choose a "
            f"multiple of {devices}."
        )
    with (
        claimed(workdir, config),
        checkpoint.open_manager(workdir) as manager,
        stop_signal(manager) as stop_requested,
    ):
        return _loop(experiment, workdir, manager, stop_requested)


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _loop(
    experiment: Experiment, workdir: Path, manager: Any, stop_requested: Callable[[int], bool]
) -> dict[str, Any] | None:
    config, total = experiment.config, experiment.total_steps
    first = jax.process_index() == 0
    spec = experiment.model.spec
    say(
        f"{spec.name}: alpha {spec.alpha:g}, resolution {experiment.resolution} (beta "
        f"{config.beta:g} of {config.resolution}), {costs.params(spec):,} parameters, "
        f"{costs.macs(spec, experiment.resolution):,} MACs; {config.dataset.name}: "
        f"{len(experiment.dataset.train):,} training and {len(experiment.dataset.test):,} test "
        f"images; {total:,} steps of {config.batch_size} on {experiment.sharded.mesh.size} "
        f"{jax.devices()[0].platform} device(s). Workdir: {workdir}"
    )
    step_fn, eval_fn = compile_steps(experiment)
    state = initial_state(experiment)
    start = 0
    meta: dict[str, Any] = {"train_seconds": 0.0, "meter": None, "evaluated": True}
    if checkpoint.latest_step(manager) is not None:
        state, meta = checkpoint.restore(manager, state)
        start = int(state.step)
        say(f"Resuming from step {start:,}.")
    metrics_path = workdir / "metrics.jsonl"
    written = set()  # lines of the step that was saved
    if first:
        logs.truncate_metrics(metrics_path, start)
        if metrics_path.exists():
            lines = logs.read_metrics(metrics_path)
            written = {line["split"] for line in lines if line["step"] == start}
    eval_steps = max(1, round(config.eval_every * experiment.steps_per_epoch))
    save_steps = max(1, round(config.checkpoint_every * experiment.steps_per_epoch))
    meter = Meter(meta["meter"])
    began = time.perf_counter()

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
            logs.append_metrics(metrics_path, step=step, epoch=epoch, split=split, **values)
        tags = {f"{split}/{key}": value for key, value in values.items() if value is not None}
        board.scalars(step, tags)

    def evaluate_and_log(step: int) -> tuple[dict[str, dict[str, float]], Pictured]:
        results, pictured = evaluate(experiment, eval_fn, state)
        for split, values in results.items():
            write_line(step, split, **values)
        report.write(
            f"step {step}: test accuracy {results['test']['accuracy']:.4f}, averaged weights "
            f"{results['test_ema']['accuracy']:.4f}"
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
            save(start, evaluation[0]["test_ema"]["accuracy"])
        batches = data.train_batches(
            experiment.dataset,
            batch_size=config.batch_size,
            seed=config.seed,
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
                    board.image(1, "inputs", plots.image_grid(batch["image"][:64], 8))
                state, metrics = step_fn(state, to_devices(batch, experiment.sharded))
                meter.add(step, metrics)
                stopping = stop_requested(step)
                evaluating = step % eval_steps == 0 or step == total
                saving = evaluating or step % save_steps == 0 or stopping
                if step % config.log_every == 0 or step == total:
                    meter.settle()
                    line = meter.line()
                    rate = line.pop("rate")
                    speed = None if rate is None else rate * config.batch_size
                    write_line(step, "train", images_per_second=speed, **line)
                    board.scalars(step, {"learning_rate": experiment.schedule(step - 1)})
                    facts = line if speed is None else {**line, "images_per_second": speed}
                    report(step, **facts)
                else:
                    report(step)
                if saving:
                    meter.settle()
                    check_finite(state, step)
                    evaluation = None
                    if evaluating and not stopping:
                        evaluation = evaluate_and_log(step)
                    accuracy = evaluation and evaluation[0]["test_ema"]["accuracy"]
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
        "images_per_second": None if rate is None else rate * config.batch_size,
        "resolution": experiment.resolution,
        "seed": config.seed,
        "config": config_lib.plain(config),
        **logs.environment(),
    }
    if first:
        title = f"{spec.name}, α = {spec.alpha:g}, {config.dataset.name}"
        plots.curves(metrics_path, workdir / "curves.png", title)
        plots.predictions(
            pictured.images,
            pictured.labels,
            pictured.predicted,
            experiment.dataset.class_names,
            workdir / "predictions.png",
        )
        logs.write_json(workdir / "result.json", result)
    say(
        f"Finished: test accuracy {result['test_accuracy']:.4f} (averaged weights "
        f"{result['test_accuracy_ema']:.4f}) on {result['test_examples']:,} images after "
        f"{train_seconds:.0f} s of training. See {workdir}/result.json, curves.png and "
        "predictions.png."
    )
    return result


def evaluate_workdir(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates a workdir's latest checkpoint, under the config's evaluation settings.

    Args:
        config: of the same network; resolution, crop and interpolation may differ from training.
        workdir: with checkpoints/ and config.json.

    Returns:
        The results, also written to the workdir's eval.json.

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
        state, meta = checkpoint.restore(manager, state)
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
        "config": config_lib.plain(config),
        **logs.environment(),
    }
    if jax.process_index() == 0:
        logs.write_json(workdir / "eval.json", result)
    return result
