"""BatchNorm and the activation behind it, computed as one operation with its own gradient.

Owns how the two are computed, alone or with a 1×1 convolution before them, and the statistics'
bookkeeping. Knows nothing of blocks.

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

from mobilenets_jax.pointwise import pointwise_conv

Array = jax.Array
Activation = Callable[[Array], Array]

# Rows per input from which `product_batch_norm` is the faster one on CPU; elsewhere not measured.
_MIN_ROWS = 128


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
    def __call__(self, x: Array, train: bool, kernel: Array | None = None) -> Array:
        """Maps `[..., C]` to `[..., C]`; with `train`, by the batch's statistics.

        With a kernel `[I, C]` of x's dtype, what is normalised is `x @ kernel`, of x `[..., I]`.
        """
        shape = (x.shape[-1] if kernel is None else kernel.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        by_inputs = kernel is not None and train and x.size >= _MIN_ROWS * x.shape[-1] ** 2
        if kernel is not None and not by_inputs:
            x, kernel = pointwise_conv(x, kernel), None
        if not train:
            multiplier = scale * lax.rsqrt(var.value + self.epsilon)
            y = self.activation((x - mean.value) * multiplier + bias)
            return y.astype(x.dtype)
        constants = (scale, bias, self.epsilon, self.activation)
        if kernel is None:
            y, batch_mean, batch_var = batch_norm(x, *constants)
        else:
            y, batch_mean, batch_var = product_batch_norm(x, kernel, *constants)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def product_batch_norm(
    x: Array, kernel: Array, scale: Array, bias: Array, epsilon: float, activation: Activation
) -> tuple[Array, Array, Array]:
    """`batch_norm` of a 1×1 convolution; best with far more rows than inputs, and more outputs.

    A product's statistics follow from its inputs' mean and covariance, and so do their terms in the
    gradient. The product and its gradient, wide and long arrays, are not read for them.

    Args:
        x: `[..., I]`.
        kernel: `[I, O]`, of x's dtype.
        scale: `[O]`.
        bias: `[O]`.
        epsilon: added to the variance.
        activation: elementwise.

    Returns:
        As `batch_norm` of `x @ kernel`; the variance is that of the centred inputs' product.
    """
    return _product_forward(x, kernel, scale, bias, epsilon, activation)[0]


def _product(a: Array, b: Array, precision: lax.Precision | None = None) -> Array:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)


# Of what statistics are made: elsewhere than on a CPU, float32 is multiplied with fewer bits.
_exact = functools.partial(_product, precision=lax.Precision.HIGHEST)


def _product_forward(
    x: Array, kernel: Array, scale: Array, bias: Array, epsilon: float, activation: Activation
) -> Any:
    rows, wide_kernel = x.reshape(-1, x.shape[-1]), _wide(kernel)
    mean = jnp.mean(_wide(rows), 0)
    centred = (_wide(rows) - mean).astype(x.dtype)
    covariance = _exact(centred.T, centred) / rows.shape[0]
    var = jnp.maximum(jnp.sum(wide_kernel * _exact(covariance, wide_kernel), 0), 0)
    inverse = lax.rsqrt(var + epsilon)
    product = (centred @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    y = activation(_wide(product) * (inverse * scale) + bias).astype(x.dtype)
    residuals = (centred, product, kernel, scale, bias, covariance, inverse)
    return (y, _exact(mean, wide_kernel), var), residuals


def _product_backward(
    epsilon: float, activation: Activation, residuals: Any, cotangents: Any
) -> tuple[Array, Array, Array, Array]:
    # With P = centred @ kernel, z = P·multiplier + bias and n rows, the gradient of P is
    # multiplier · (dz - dbias/n - P·inverse·dscale/n). Below it is met by centred.T and kernel.T,
    # term by term.
    centred, product, kernel, scale, bias, covariance, inverse = residuals
    (count, inputs), dtype = centred.shape, centred.dtype
    multiplier, wide_kernel = inverse * scale, _wide(kernel)
    _, vjp = jax.vjp(activation, _wide(product) * multiplier + bias)
    dz = vjp(_wide(cotangents[0]))[0].reshape(count, -1)
    dbias = jnp.sum(dz, 0)
    met = _product(centred.T, dz.astype(dtype))
    normalising, scaled = wide_kernel * inverse, wide_kernel * multiplier
    dscale = jnp.sum(normalising * met, 0)
    dkernel = multiplier * (met - _exact(covariance, normalising) * dscale)
    of_statistics = _exact(normalising * (dscale / count), scaled.T)
    dx = (
        _product(dz.astype(dtype), scaled.T.astype(dtype))
        - _product(centred, of_statistics.astype(dtype))
        - _exact(scaled, dbias / count)
    )
    return (
        dx.astype(dtype).reshape(*product.shape[:-1], inputs),
        dkernel.astype(kernel.dtype),
        dscale.astype(scale.dtype),
        dbias.astype(bias.dtype),
    )


product_batch_norm.defvjp(_product_forward, _product_backward)
