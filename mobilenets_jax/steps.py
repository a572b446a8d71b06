"""What a config describes, built, and the two steps that it consists of.

Owns the experiment (data, network, optimizer, mesh), its first state, one update and one evaluated
batch. Knows nothing of loops, workdirs or files.

The same code runs on one CPU, several GPUs and several hosts: the batch is sharded over a mesh of
all devices, the state is replicated, and `jit` adds the communication. BatchNorm's statistics are
therefore those of the global batch.

Several trainings (`config.replicas`) are the same step under `vmap`. Where the devices can share
them out evenly, each has whole trainings and they exchange nothing.
"""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mobilenets_jax import config as config_lib
from mobilenets_jax import runtime
from mobilenets_jax.augment import mix
from mobilenets_jax.config import Replica
from mobilenets_jax.datasets import Dataset, open_dataset
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.optim import (
    cross_entropy,
    ema_update,
    learning_rate_schedule,
    make_optimizer,
    trained,
)
from mobilenets_jax.state import REPLICA_AXES, TrainState, init_state, initial_variables

Batch = dict[str, Any]


class Experiment(NamedTuple):
    """What a config describes, built.

    Attributes:
        config: the experiment's config.
        dataset: opened.
        model: the network.
        replicas: the trainings, mostly one.
        schedule: step -> learning rate, of the first replica.
        optimizer: with the schedule in it.
        resolution: side of the images in pixels, beta applied.
        steps_per_epoch: whole batches in the training split.
        total_steps: of the whole training.
        sharded: places an array's first axis over all devices.
        replicated: places an array on every device.
    """

    config: ConfigDict
    dataset: Dataset
    model: MobileNet
    replicas: tuple[Replica, ...]
    schedule: Callable[[Any], jax.Array]
    optimizer: optax.GradientTransformation
    resolution: int
    steps_per_epoch: int
    total_steps: int
    sharded: NamedSharding
    replicated: NamedSharding


class Placement(NamedTuple):
    """Where the arrays of the two steps are.

    Attributes:
        state: of a TrainState, or for a part of it each.
        weights: of params, batch_stats, and what there is one of for each replica.
        batch: to train on.
        test: to evaluate.
        predicted: classes.
        spread: whether the devices share out whole replicas.
    """

    state: Any
    weights: NamedSharding
    batch: NamedSharding
    test: NamedSharding
    predicted: NamedSharding
    spread: bool = False


def placement(experiment: Experiment) -> Placement:
    """Returns where the arrays are: each device has whole replicas, or a share of each batch."""
    sharded, replicated = experiment.sharded, experiment.replicated
    count = len(experiment.replicas)
    if count == 1:
        return Placement(replicated, replicated, sharded, sharded, sharded)
    # Each process prepares its share of each batch, not whole batches of some replicas.
    if jax.process_count() > 1 or count % sharded.mesh.size:
        batch = NamedSharding(sharded.mesh, PartitionSpec(None, *sharded.spec))
        return Placement(replicated, replicated, batch, sharded, sharded)
    state = _prefix(replicated, sharded)
    return Placement(state, sharded, sharded, replicated, replicated, spread=True)


def _prefix(step: Any, others: Any) -> TrainState:
    names = [field.name for field in dataclasses.fields(TrainState)]
    return TrainState(**{name: step if name == "step" else others for name in names})


def _stacked(replicas: tuple[Replica, ...]) -> Replica:
    """Returns what the replicas have of their own, as arrays."""
    return jax.tree.map(lambda *values: np.array(values), *replicas)


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
    # 0 is refused by who trains; an evaluation needs no training split of any size.
    steps_per_epoch = max(1, len(dataset.train) // config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    replicas = config_lib.replicas(config)
    schedule = learning_rate_schedule(
        config.schedule, steps_per_epoch, total_steps, replicas[0].learning_rate
    )
    init = functools.partial(initial_variables, model, resolution)
    shapes = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
    return Experiment(
        config=config,
        dataset=dataset,
        model=model,
        replicas=replicas,
        schedule=schedule,
        optimizer=make_optimizer(
            config.optimizer,
            schedule,
            trained(shapes["params"], config.freeze),
            replicas[0].weight_decay,
        ),
        resolution=resolution,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        sharded=NamedSharding(mesh, PartitionSpec("data")),
        replicated=NamedSharding(mesh, PartitionSpec()),
    )


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step, a function of the seed, placed on the devices."""
    make, key = _initial_state(experiment)
    return make(key)


def _initial_state(experiment: Experiment) -> tuple[Any, jax.Array]:
    """Returns the jitted function that makes the state before the first step, and its key."""
    init = functools.partial(
        init_state,
        experiment.model,
        experiment.optimizer,
        experiment.resolution,
        freeze=experiment.config.freeze,
    )
    keys = [jax.random.fold_in(jax.random.key(r.seed), 0) for r in experiment.replicas]
    make: Callable[..., TrainState] = init
    key, place = keys[0], experiment.replicated
    if len(keys) > 1:
        make = jax.vmap(init, out_axes=REPLICA_AXES)
        key, place = jnp.stack(keys), placement(experiment).state
    # It runs once: half of LLVM's time for the same bits. Only a program of its own has options.
    whole = jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer)
    options = {"xla_backend_optimization_level": 1} if whole else None
    return jax.jit(make, out_shardings=place, compiler_options=options), key


def begin(experiment: Experiment, train: Any) -> tuple[TrainState, Callable[..., Any]]:
    """Returns the state before the first step, and `train` of `compile_steps`, compiled.

    The program that makes the state is compiled, or read from the cache, while the step is traced.
    Where JAX is told not to compile or to look for NaN, which compiled programs do not heed, the
    step is `train` as it is.
    """
    make, key = _initial_state(experiment)
    if any(getattr(jax.config, name) for name in ("jax_disable_jit", "jax_debug_nans")):
        return make(key), train
    front = (len(experiment.replicas),) if len(experiment.replicas) > 1 else ()
    shape = (*front, experiment.config.batch_size)
    side = experiment.resolution
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    with ThreadPoolExecutor(1) as beside:
        state = beside.submit(make.lower(key).compile)
        compiled = train.lower(make.eval_shape(key), batch).compile()
        return state.result()(key), compiled


def normalize(image: jax.Array, config: ConfigDict) -> jax.Array:
    """Maps uint8 pixels to float32, by the config's mean and standard deviation."""
    mean = jnp.asarray(config.preprocess.mean, jnp.float32)
    std = jnp.asarray(config.preprocess.std, jnp.float32)
    return (image.astype(jnp.float32) - mean) / std


def optimizer_of(
    experiment: Experiment, replica: Replica, params: Any
) -> optax.GradientTransformation:
    """Returns the optimizer with a replica's own learning rate and weight decay, maybe traced."""
    if replica.learning_rate is None and replica.weight_decay is None:
        return experiment.optimizer
    schedule = schedule_of(experiment, replica)
    return make_optimizer(experiment.config.optimizer, schedule, params, replica.weight_decay)


def schedule_of(experiment: Experiment, replica: Replica) -> Callable[[Any], jax.Array]:
    """Returns step -> learning rate of a replica."""
    return learning_rate_schedule(
        experiment.config.schedule,
        experiment.steps_per_epoch,
        experiment.total_steps,
        replica.learning_rate,
    )


def train_step(
    experiment: Experiment, state: TrainState, batch: Batch, replica: Replica | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of one training. All its chance is a function of (seed, step).

    What `config.freeze` names stays bit for bit as it is, its averages and statistics included.

    Args:
        experiment: static.
        state: before the update.
        batch: image uint8 `[B, R, R, 3]`, label int32 `[B]`.
        replica: which training, traced or not; the first by default.

    Returns:
        The state after the update, and the batch's mean `loss` and `accuracy` before it.
    """
    config, model = experiment.config, experiment.model
    replica = replica or experiment.replicas[0]
    key = jax.random.fold_in(jax.random.key(replica.seed), 1)
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

    freeze = config.freeze
    old = trained(state.params, freeze)

    def loss_fn(new: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": {**state.params, **new}, "batch_stats": state.batch_stats},
            image,
            train=True,
            frozen=freeze is not None,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        loss = cross_entropy(logits, target, config.label_smoothing).mean()
        return loss, (logits, updated["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(old)
    optimizer = optimizer_of(experiment, replica, old)
    updates, opt_state = optimizer.update(grads, state.opt_state, old)
    new = optax.apply_updates(old, updates)
    ema = functools.partial(ema_update, decay=config.ema_decay, step=state.step)
    ema_params = ema(trained(state.ema_params, freeze), new)
    state = TrainState(
        step=state.step + 1,
        params={**state.params, **new},
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params={**state.ema_params, **ema_params},
        ema_batch_stats=ema(state.ema_batch_stats, batch_stats) if freeze is None else batch_stats,
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

    The train step donates its state. Of several replicas, the results have an axis of them in
    front, but `predicted` is the first replica's.
    """
    where = placement(experiment)
    train: Callable[..., Any] = functools.partial(train_step, experiment)
    evaluate: Callable[..., Any] = functools.partial(eval_step, experiment)
    if len(experiment.replicas) > 1:
        train, evaluate = _several(experiment, train, evaluate)
    train = jax.jit(
        train,
        in_shardings=(where.state, where.batch),
        out_shardings=(where.state, where.weights),
        donate_argnums=0,
        compiler_options=runtime.training_options(),
    )
    sums = {"loss": where.weights, "correct": where.weights, "examples": where.weights}
    evaluate = jax.jit(
        evaluate,
        in_shardings=(where.weights, where.weights, where.test),
        out_shardings={**sums, "predicted": where.predicted},
        compiler_options=runtime.training_options(),
    )
    return train, evaluate


def _several(
    experiment: Experiment, train: Callable[..., Any], evaluate: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Maps the steps of one training over the replicas."""
    own = _stacked(experiment.replicas)
    train = jax.vmap(train, in_axes=(REPLICA_AXES, 0, 0), out_axes=(REPLICA_AXES, 0))
    evaluate = jax.vmap(evaluate, in_axes=(0, 0, None))
    if placement(experiment).spread:
        mesh, rows, all_of_it = experiment.sharded.mesh, experiment.sharded.spec, PartitionSpec()
        state = _prefix(all_of_it, rows)
        share = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        train = share(train, in_specs=(state, rows, rows), out_specs=(state, rows))
        evaluate = share(evaluate, in_specs=(rows, rows, all_of_it), out_specs=rows)

    def train_all(state: TrainState, batch: Batch) -> Any:
        return train(state, batch, own)

    def evaluate_all(params: Any, batch_stats: Any, batch: Batch) -> Any:
        results = evaluate(params, batch_stats, batch)
        return {**results, "predicted": results["predicted"][0]}

    return train_all, evaluate_all


def to_devices(batch: Batch, sharding: NamedSharding) -> Batch:
    """Makes global arrays of this process's share of a batch."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }
