"""BatchNorm and the activation behind it, computed as one operation with its own gradient.

Owns how the two are computed, and the statistics' bookkeeping. Knows nothing of convolutions.

What automatic differentiation would keep of them is the centred input, the normalised one and the
activation's input, each written to memory and read again. Here the input alone is kept, and what
the gradient needs is computed from it anew, fused with its use.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Activation = Callable[[Array], Array]


class BatchNorm(nn.Module):
    """BatchNorm → activation, with `flax.linen.BatchNorm`'s parameters and statistics.

    Attributes:
        momentum: of the running statistics.
        epsilon: added to the variance.
        activation: elementwise.

    Parameters and running statistics are initialised in float32, whatever the input; float64 ones
    may be given. The batch's statistics are float32, of a float64 input float64, and then so are
    the running ones that come of them. The output has the input's dtype. In a `jit` over a mesh the
    statistics are those of the global batch.
    """

    momentum: float
    epsilon: float
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[..., C]` to `[..., C]`; with `train`, by the batch's statistics."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            multiplier = scale * lax.rsqrt(var.value + self.epsilon)
            y = self.activation((x - mean.value) * multiplier + bias)
            return y.astype(x.dtype)
        y, batch_mean, batch_var = batch_norm(x, scale, bias, self.epsilon, self.activation)
        if not self.is_initializing():
            for running, value in ((mean, batch_mean), (var, batch_var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, activation: Activation
) -> tuple[Array, Array, Array]:
    """Normalises by the batch's statistics, then scales, shifts and activates.

    Args:
        x: `[..., C]`.
        scale: `[C]`.
        bias: `[C]`.
        epsilon: added to the variance.
        activation: elementwise.

    Returns:
        The output, of x's shape and dtype, and mean and biased variance `[C]`, which carry no
        gradient. The variance is E[x²] - E[x]², as in `flax.linen.BatchNorm`.
    """
    return _forward(x, scale, bias, epsilon, activation)[0]


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _forward(x: Array, scale: Array, bias: Array, epsilon: float, activation: Activation) -> Any:
    axes = tuple(range(x.ndim - 1))
    wide = _wide(x)
    mean = jnp.mean(wide, axes)
    var = jnp.maximum(jnp.mean(wide * wide, axes) - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    y = activation((wide - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, activation: Activation, residuals: Any, cotangents: Any
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = residuals
    g = cotangents[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    x_wide, multiplier = _wide(x), inverse * scale
    _, vjp = jax.vjp(activation, (x_wide - mean) * multiplier + bias)
    (dz,) = vjp(_wide(g))
    dbias = jnp.sum(dz, axes)
    # Not of the centred input: XLA:CPU would write the broadcast mean to memory for this sum.
    projection = inverse * inverse * (jnp.sum(dz * x_wide, axes) - mean * dbias)
    dx = multiplier * (dz - dbias / count - (x_wide - mean) * (projection / count))
    dscale = projection / inverse
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


batch_norm.defvjp(_forward, _backward)
