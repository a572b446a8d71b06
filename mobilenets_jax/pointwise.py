"""1×1 convolutions: matrix products, or few multiply-adds that fuse with what reads them.

Owns how a 1×1 convolution is computed. Knows nothing of layers.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# With more, the multiply-adds take longer than writing and reading the output saves.
FEW_CHANNELS = 16


def pointwise_conv(x: Array, kernel: Array) -> Array:
    """A 1×1 convolution as one matrix product.

    In 2-D, because XLA:CPU takes several times as long for the 4-D array's backward pass.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[I, O]`.

    Returns:
        `[N, H, W, O]`.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def expand_conv(x: Array, kernel: Array) -> Array:
    """A 1×1 convolution whose output has one reader, an elementwise one.

    Up to 16 channels it is on CPU a sum of I multiply-adds, computed where it is read: the output,
    a block's widest tensor, is neither written nor read. Otherwise as `pointwise_conv`.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[I, O]`, of x's dtype.

    Returns:
        `[N, H, W, O]` of x's dtype.
    """
    return _few_channels(x, kernel) if x.shape[-1] <= FEW_CHANNELS else pointwise_conv(x, kernel)


# Blocks of the same shape are traced once, and a call outside of `jit` is one program.
@functools.partial(jax.jit, inline=True)
def _forward(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=_sum_of_products, default=pointwise_conv)


def _sum_of_products(x: Array, kernel: Array) -> Array:
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    return add_products(total, x, kernel).astype(x.dtype)


def add_products(total: Array, x: Array, kernel: Array) -> Array:
    """Returns total + `x @ kernel` as I multiply-adds in total's dtype.

    Args:
        total: broadcasts to `[..., O]`.
        x: `[..., I]`.
        kernel: `[I, O]`.
    """
    for channel in range(x.shape[-1]):
        product = x[..., channel, None].astype(total.dtype) * kernel[channel].astype(total.dtype)
        total = total + product
    return total


def _few_channels_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not _few_channels: forward mode over this rule gives second derivatives.
    return _forward(x, kernel), (x, kernel)


def _few_channels_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    _, vjp = jax.vjp(pointwise_conv, *residuals)
    return vjp(g)


_few_channels = jax.custom_vjp(_forward)
_few_channels.defvjp(_few_channels_forward, _few_channels_backward)
