"""1×1 convolutions: matrix products, or few multiply-adds that fuse with what reads them.

Owns how a 1×1 convolution is computed. Knows nothing of layers.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Where `expand_conv` was measured; with more channels the products' time outweighs the memory's.
_FEW_CHANNELS = 16


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
    """`pointwise_conv`, best where an elementwise reader is all that needs the output.

    Up to 16 channels it is on CPU a sum of I multiply-adds, which fuses with the activation and the
    padding that follow; a product would write the output, a block's widest tensor, to be read
    again. What makes x should be in memory, or it is computed for each reader's element anew.
    """
    return _sum(x, kernel) if x.shape[-1] <= _FEW_CHANNELS else pointwise_conv(x, kernel)


def _forward(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=_sum_of_products, default=pointwise_conv)


def _sum_of_products(x: Array, kernel: Array) -> Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((), dtype)
    for channel in range(x.shape[-1]):
        total = total + x[..., channel, None].astype(dtype) * kernel[channel].astype(dtype)
    return total.astype(x.dtype)


def _sum_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not _sum: forward mode over this rule gives second derivatives.
    return _forward(x, kernel), (x, kernel)


def _sum_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    _, vjp = jax.vjp(pointwise_conv, *residuals)
    return vjp(g)


_sum = jax.custom_vjp(_forward)
_sum.defvjp(_sum_forward, _sum_backward)
