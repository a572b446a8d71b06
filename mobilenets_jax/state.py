"""The training state: everything that a resumed training needs besides its config.

Owns the state's fields and its first value. Knows nothing of how it is updated or stored.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mobilenets_jax.model import MobileNet
from mobilenets_jax.optim import trained


@flax.struct.dataclass
class TrainState:
    """A training's state, a pytree.

    Attributes:
        step: updates made, int32 scalar.
        params: trainable parameters.
        batch_stats: BatchNorm's running statistics.
        opt_state: the optimizer's, of the parameters that are trained.
        ema_params: moving average of params.
        ema_batch_stats: moving average of batch_stats.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    ema_batch_stats: Any


# Of several trainings in one program, all but the step has an axis of replicas in front.
REPLICA_AXES = TrainState(
    step=None,  # type: ignore[arg-type]
    params=0,
    batch_stats=0,
    opt_state=0,
    ema_params=0,
    ema_batch_stats=0,
)


def replica(tree: Any, index: int) -> Any:
    """Returns one replica's arrays of a tree, such as params, that has those of several."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


# Traced once for each network and resolution, whoever asks for values or for shapes alone.
@functools.partial(jax.jit, static_argnames=("model", "resolution"), inline=True)
def initial_variables(model: MobileNet, resolution: int, key: jax.Array) -> dict[str, Any]:
    """Returns the network's params and batch_stats before training.

    Args:
        model: the network.
        resolution: side of the images in pixels.
        key: for the initial weights.
    """
    variables: Any = model.init(key, jnp.zeros((1, resolution, resolution, 3), jnp.float32))
    return variables


def init_state(
    model: MobileNet,
    optimizer: optax.GradientTransformation,
    resolution: int,
    key: jax.Array,
    freeze: str | None = None,
) -> TrainState:
    """Returns the state before the first step; the averages start at the initial values.

    Args:
        model: the network.
        optimizer: whose state is made for the parameters that are trained.
        resolution: side of the images in pixels.
        key: for the initial weights.
        freeze: see `optim.trained`.
    """
    variables = initial_variables(model, resolution, key)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained(params, freeze)),
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
    )
