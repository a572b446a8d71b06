"""Our networks and their naive Flax twins, with the same weights.

Owns their training and inference steps. The step is written once: the two differ in the module and
in the layout of its variables.
"""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import peers
from experiments.peers.naive import NaiveNet, to_naive
from mobilenets_jax import create_model, runtime
from mobilenets_jax.fold import fold_batch_norm


def random_variables(model: Any) -> dict[str, Any]:
    """Returns params and batch_stats for one of our models, from a seed, without compiling."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    flat = flax.traverse_util.flatten_dict(shapes)
    return flax.traverse_util.unflatten_dict(
        {
            path: peers.random_weight(
                path[-1], leaf.shape, int(np.prod(leaf.shape[: 2 if leaf.ndim == 3 else -1])), rng
            )
            for path, leaf in flat.items()
        }
    )


def network(name: str, cell: peers.Cell) -> tuple[Any, dict[str, Any]]:
    """Returns the module and its variables; "ours" has BatchNorm folded for inference.

    The variables are float32, or float64 in a cell of that.
    """
    model = create_model(peers.MODELS[cell.model], peers.CLASSES, dtype=cell.dtype)
    variables = random_variables(model)
    if cell.dtype == "float64":
        variables = jax.tree.map(np.float64, variables)
    if name == "naive":
        return NaiveNet(model.spec, model.dtype), to_naive(variables)
    if cell.task == "inference":
        return fold_batch_norm(model, variables)
    return model, variables


def build(name: str, cell: peers.Cell) -> peers.Contender:
    """Builds "ours" or "naive"."""
    runtime.configure_jax()
    model, variables = network(name, cell)
    images, labels = map(jnp.asarray, peers.inputs(cell))
    training = cell.task == "training"
    options = runtime.training_options() if training else runtime.inference_options()
    if name == "naive":
        options = None  # The twin's are JAX's own.
    if training:
        step, outputs = _training(model, variables, images, labels, options)
        settings = "jit, state donated"
    else:
        step, outputs = _inference(model, variables, images, options)
        folded = "BatchNorm folded" if name == "ours" else "BatchNorm as Flax computes it"
        settings = f"jit, {folded}"
    settings += "".join(f", {key}={value}" for key, value in (options or {}).items())
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return peers.Contender(
        step,
        device.device_kind,
        settings,
        outputs,
        # XLA's statistics cannot be set back: on an accelerator the peak includes the first step.
        None if on_cpu else lambda: None,
        None if on_cpu else lambda: device.memory_stats()["peak_bytes_in_use"],
    )


def _named(group: str, tree: Any) -> dict[str, np.ndarray]:
    """Copies a tree's leaves, by names that our networks and their twins share."""
    flat = flax.traverse_util.flatten_dict({group: flax.core.unfreeze(tree)}, sep="/")
    return {
        path.replace("conv/kernel", "kernel"): np.array(leaf).ravel() for path, leaf in flat.items()
    }


def _inference(model: Any, variables: Any, images: Any, options: Any) -> Any:
    variables = jax.tree.map(jnp.asarray, variables)
    apply = jax.jit(
        lambda variables, images: model.apply(variables, images),
        compiler_options=options,
    )

    def step() -> np.ndarray:
        return np.asarray(apply(variables, images))

    return step, lambda: {"logits": step()}


def _training(model: Any, variables: Any, images: Any, labels: Any, options: Any) -> Any:
    optimizer = optax.sgd(peers.LEARNING_RATE, peers.MOMENTUM)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def update(state: Any, images: Any, labels: Any) -> Any:
        count, params, batch_stats, momentum = state
        key = jax.random.fold_in(jax.random.key(2), count)

        def loss_fn(params: Any) -> Any:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, momentum = optimizer.update(grads, momentum, params)
        return (count + 1, optax.apply_updates(params, updates), batch_stats, momentum), loss

    params, batch_stats = (jax.tree.map(jnp.array, variables[c]) for c in ("params", "batch_stats"))
    state = (jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
    losses: list[float] = []

    def step() -> float:
        nonlocal state
        state, loss = update(state, images, labels)
        losses.append(float(loss))
        return losses[-1]

    def outputs() -> dict[str, np.ndarray]:
        # After the first step the momentum is the gradient.
        _, _, batch_stats, momentum = state
        gradient = _named("gradient", momentum[0].trace)
        return {
            "loss": np.array([losses[0]]),
            **gradient,
            **_named("batch_stats", batch_stats),
        }

    return step, outputs
