"""Learning-rate schedules, optimizers, weight decay, averages of weights and the loss.

Owns the arithmetic of an update. It must not know the network, the data or the training loop:
parameters are a nested dict of arrays, and only a leaf's path and shape tell what it is.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mobilenets_jax.errors import InputError, choose

PyTree = Any
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

# The fields that each choice reads besides `name`: any other is unused with it.
SCHEDULE_KEYS: dict[str, tuple[str, ...]] = {
    "exponential": ("learning_rate", "warmup_epochs", "decay_rate", "decay_epochs"),
    "cosine": ("learning_rate", "warmup_epochs"),
    "constant": ("learning_rate", "warmup_epochs"),
}
_REGULARIZATION = ("weight_decay", "weight_decay_depthwise", "clip_norm")
_EVERY = (*_REGULARIZATION, "backbone_scale")
OPTIMIZER_KEYS: dict[str, tuple[str, ...]] = {
    "rmsprop": ("momentum", "decay", "epsilon", *_EVERY),
    "sgd": ("momentum", "nesterov", *_EVERY),
    "adamw": ("b1", "b2", "epsilon", *_EVERY),
}
FROZEN = ("backbone",)
_HEAD = "classifier"  # all else is the backbone


def learning_rate_schedule(
    config: ml_collections.ConfigDict,
    steps_per_epoch: int,
    total_steps: int,
    learning_rate: jax.Array | None = None,
) -> Schedule:
    """Builds the learning rate as a function of the step.

    With s the step (0 at the first update), W = round(warmup_epochs * steps_per_epoch) and
    T = total_steps:

    - s < W: learning_rate * s / W, so the first update is 0 and step W is the first of the
      schedule itself.
    - `constant`: learning_rate.
    - `exponential`: learning_rate * decay_rate ** floor(epoch / decay_epochs), epoch being
      s / steps_per_epoch. As in TensorFlow's recipes it counts from step 0 and not from W: what
      would have decayed during the warm-up is missing at W. The floor is taken in integers, so
      each fall comes at its exact step however long the training.
    - `cosine`: learning_rate * (1 + cos(pi * (s - W) / (T - W))) / 2, which is the full rate at W
      and 0 at T.

    Args:
        config: the `schedule` part of the config.
        steps_per_epoch: updates in one pass over the training images.
        total_steps: updates in the whole training.
        learning_rate: in the place of the config's, a scalar that may be traced.

    Returns:
        A function from step (int or integer array, traced or not) to a float32 scalar.

    Raises:
        InputError: the name is unknown, or a field that this schedule reads is out of range.
    """
    choose("schedule.name", config["name"], SCHEDULE_KEYS)
    name = config["name"]
    peak: Any = _number(config, "schedule.learning_rate", above=0)
    if learning_rate is not None:
        peak = learning_rate
    warmup_epochs = _number(config, "schedule.warmup_epochs", least=0)
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise InputError(
            f"schedule.warmup_epochs is {warmup_epochs} ({warmup} steps) but must be shorter than "
            f"the training of {total_steps} steps."
        )

    if name == "exponential":
        decay_rate = _number(config, "schedule.decay_rate", above=0, most=1)
        decay_epochs = _number(config, "schedule.decay_epochs", above=0)
        # The denominator is bounded so that step * denominator stays within int32.
        period = (Fraction(decay_epochs) * steps_per_epoch).limit_denominator(100)
        if period < 1:
            raise InputError(
                f"schedule.decay_epochs is {decay_epochs} but must be at least one step, "
                f"{1 / steps_per_epoch:.3g} epochs."
            )

        def base(step: jax.Array) -> jax.Array:
            falls = step * period.denominator // period.numerator
            return peak * jnp.float32(decay_rate) ** falls

    elif name == "cosine":

        def base(step: jax.Array) -> jax.Array:
            progress = jnp.clip((step - warmup) / (total_steps - warmup), 0.0, 1.0)
            return peak * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    else:

        def base(step: jax.Array) -> jax.Array:
            return jnp.full_like(step, peak, jnp.float32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        return jnp.where(step < warmup, peak * step / max(warmup, 1), base(step))

    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict,
    schedule: Schedule,
    params: PyTree,
    weight_decay: jax.Array | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer: gradient of the loss in, change of the parameters out.

    With g the gradient and w the parameter:

    - `rmsprop`, as TensorFlow defines it: ms = decay * ms + (1 - decay) * g^2 from ms = 1;
      m = momentum * m + rate * g / sqrt(ms + epsilon); w = w - m. Epsilon is inside the root and
      the rate inside the buffer, both unlike PyTorch.
    - `sgd`: m = momentum * m + g; w = w - rate * m, or with `nesterov`
      w = w - rate * (g + momentum * m).
    - `adamw`: Adam with bias correction, epsilon outside the root, as in the paper.

    `weight_decay` acts on the leaves of `weight_decay_mask`. For `rmsprop` and `sgd` it is coupled:
    weight_decay * w is added to g first, the gradient of TensorFlow's l2 loss
    weight_decay * sum(w^2) / 2. For `adamw` it is decoupled: w also loses
    rate * weight_decay * w.

    `clip_norm`, where not 0, scales all of g down to that global norm, coupled weight decay
    included (it is part of the loss), decoupled weight decay not.

    `backbone_scale` multiplies the rate of all parameters but the classifier's.

    Args:
        config: the `optimizer` part of the config.
        schedule: the learning rate as a function of the step.
        params: the network's parameters or their shapes; only paths and shapes are used.
        weight_decay: in the place of the config's, a scalar that may be traced.

    Returns:
        A transformation whose `update` needs the parameters too.

    Raises:
        InputError: the name is unknown, or a field that this optimizer reads is out of range.
    """
    choose("optimizer.name", config["name"], OPTIMIZER_KEYS)
    name = config["name"]
    constant = _number(config, "optimizer.weight_decay", least=0)
    # Of a traced value nothing can be asked, and the state's structure is the same for all.
    decays = constant > 0 if weight_decay is None else True
    decay: Any = constant if weight_decay is None else weight_decay
    clip_norm = _number(config, "optimizer.clip_norm", least=0)
    mask = weight_decay_mask(params, depthwise=_flag(config, "optimizer.weight_decay_depthwise"))
    scale = _number(config, "optimizer.backbone_scale", above=0)
    coupled = optax.add_decayed_weights(decay, mask) if decays else optax.identity()
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()

    def chain(*parts: optax.GradientTransformation) -> optax.GradientTransformation:
        # Each update is proportional to the rate, so that scaling the one scales the other.
        backbone = {key: key != _HEAD for key in params}
        slower = () if scale == 1 else (optax.masked(optax.scale(scale), backbone),)
        return optax.chain(*parts, *slower)

    if name == "adamw":
        adamw = optax.adamw(
            schedule,
            b1=_number(config, "optimizer.b1", least=0, below=1),
            b2=_number(config, "optimizer.b2", least=0, below=1),
            eps=_number(config, "optimizer.epsilon", above=0),
            weight_decay=decay,
            mask=mask,
        )
        return chain(clip, adamw)

    momentum = _number(config, "optimizer.momentum", least=0, below=1)
    if name == "sgd":
        nesterov = _flag(config, "optimizer.nesterov")
        if nesterov and not momentum:
            raise InputError("optimizer.nesterov needs an optimizer.momentum above 0.")
        return chain(coupled, clip, optax.sgd(schedule, momentum or None, nesterov))

    rmsprop = optax.rmsprop(
        schedule,
        decay=_number(config, "optimizer.decay", least=0, below=1),
        eps=_number(config, "optimizer.epsilon", above=0),
        initial_scale=1.0,
        eps_in_sqrt=True,
        momentum=momentum or None,
    )
    return chain(coupled, clip, rmsprop)


def trained(params: PyTree, freeze: str | None) -> PyTree:
    """Returns the part of the parameters that a training changes.

    Args:
        params: the network's parameters, or anything by their first names.
        freeze: one of `FROZEN`, which leaves the classifier, or None, which leaves all.
    """
    return params if freeze is None else {_HEAD: params[_HEAD]}


def weight_decay_mask(params: PyTree, depthwise: bool) -> PyTree:
    """Marks the leaves that weight decay acts on: the kernels of convolutions and dense layers.

    BatchNorm's scale and bias and every other bias are never marked. A depthwise kernel is one of
    shape [k, k, C] in a module whose name ends in 'depthwise'; a standard convolution that an
    ablation puts in that place has shape [k, k, I, O] and is marked like any other.

    Args:
        params: the network's parameters or their shapes, as a nested dict.
        depthwise: whether depthwise kernels are marked too. The MobileNet V1 paper advises little
            or no weight decay on them.

    Returns:
        A tree of bool with the structure of `params`.
    """

    def marked(path: tuple[Any, ...], leaf: Any) -> bool:
        *module, name = (str(key.key) for key in path)
        if name != "kernel":
            return False
        is_depthwise = len(leaf.shape) == 3 and "/".join(module).endswith("depthwise")
        return depthwise or not is_depthwise

    return jax.tree_util.tree_map_with_path(marked, params)


def ema_update(ema: PyTree, new: PyTree, decay: float, step: jax.typing.ArrayLike) -> PyTree:
    """Moves an exponential moving average towards new values, with TensorFlow's warm-up.

    ema = d * ema + (1 - d) * new with d = min(decay, (1 + step) / (10 + step)), so that an average
    that starts at the initial weights forgets them within some dozens of steps.

    Args:
        ema: the average, any tree of float arrays; each leaf keeps its dtype.
        new: the new values, a tree of the same structure and shapes.
        decay: at least 0 and below 1; 0 makes the average the newest value.
        step: the updates made before this one, 0 at the first.

    Returns:
        The moved average.

    Raises:
        InputError: `decay` is out of range.
    """
    if not 0 <= decay < 1:
        raise InputError(f"ema_decay is {decay} but must be at least 0 and below 1.")
    if decay == 0:
        return new
    # 1 - d, written so that no float32 value close to 1 is subtracted from 1.
    share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + jnp.asarray(step, jnp.float32)))
    return jax.tree.map(
        lambda old, value: (old + share * (value - old)).astype(old.dtype), ema, new
    )


def cross_entropy(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of each example, in float32, with the labels smoothed.

    The target is (1 - label_smoothing) * label + label_smoothing / classes, for integer labels
    (as one-hot) and for soft labels alike (Szegedy et al. 2016, section 7).

    Args:
        logits: [batch, classes], any float dtype.
        labels: [batch] integers in [0, classes), or [batch, classes] probabilities.
        label_smoothing: at least 0 and below 1.

    Returns:
        [batch] float32, in nats.

    Raises:
        InputError: `label_smoothing` is out of range.
        ValueError: the shapes do not belong together.
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(
            f"label_smoothing is {label_smoothing} but must be at least 0 and below 1."
        )
    logits = jnp.asarray(logits, jnp.float32)
    labels = jnp.asarray(labels)
    classes = logits.shape[-1]
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == logits.shape[:-1]:
        labels = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if labels.shape != logits.shape:
        raise ValueError(f"labels {labels.shape} do not belong to logits {logits.shape}")
    target = (1.0 - label_smoothing) * labels.astype(jnp.float32) + label_smoothing / classes
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def _number(
    config: ml_collections.ConfigDict,
    field: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Reads `field` ('section.key') as a finite number within the bounds."""
    value = _read(config, field)
    bounds = (
        (least, "at least", lambda x, y: x >= y),
        (above, "above", lambda x, y: x > y),
        (most, "at most", lambda x, y: x <= y),
        (below, "below", lambda x, y: x < y),
    )
    given = [(bound, word, holds) for bound, word, holds in bounds if bound is not None]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not all(h(value, b) for b, _, h in given):
        wanted = " and ".join(f"{word} {bound}" for bound, word, _ in given)
        raise InputError(f"{field} is {value!r} but must be a number {wanted}.")
    return float(value)


def _flag(config: ml_collections.ConfigDict, field: str) -> bool:
    """Reads `field` ('section.key') as a bool."""
    value = _read(config, field)
    if not isinstance(value, bool):
        raise InputError(f"{field} is {value!r} but must be True or False.")
    return value


def _read(config: ml_collections.ConfigDict, field: str) -> Any:
    """Reads `field` ('section.key') from that section's config."""
    key = field.partition(".")[2]
    if key not in config:
        raise InputError(f"{field} is missing from the config.")
    return config[key]
