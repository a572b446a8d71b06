"""The convolution of the image: few input channels, so neither a matrix product nor a library wins.

Owns how the stem's convolution is computed on each platform. Knows nothing of layers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mobilenets_jax.pointwise import add_products

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def stem_conv(x: Array, kernel: Array, strides: int, pads: Pads) -> Array:
    """A full convolution, best where the input has about three channels.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[k, k, I, O]`, of x's dtype.
        strides: along both axes.
        pads: pixels before and after, for rows and columns.

    Returns:
        `[N, H', W', O]` of x's dtype.
    """
    return _forward(x, kernel, strides, pads)[0]


def _forward(x: Array, kernel: Array, strides: int, pads: Pads) -> Any:
    y = lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_sum_of_products, strides=strides, pads=pads),
        default=functools.partial(_conv, strides=strides, pads=pads),
    )
    return y, (x, kernel)


def _conv(x: Array, kernel: Array, strides: int, pads: Pads) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _windows(x: Array, k: int, strides: int, pads: Pads) -> list[Array]:
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    n, height, width, channels = x.shape
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (n, height - k + 1 + i, width - k + 1 + j, channels),
            (1, strides, strides, 1),
        )
        for i in range(k)
        for j in range(k)
    ]


def _sum_of_products(x: Array, kernel: Array, strides: int, pads: Pads) -> Array:
    """k²·I multiply-adds, which fuse with BatchNorm and activation."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    k, channels = kernel.shape[0], kernel.shape[2]
    taps = kernel.astype(dtype).reshape(k * k, channels, -1)
    total = jnp.zeros((), dtype)
    for window, tap in zip(_windows(x, k, strides, pads), taps, strict=True):
        total = add_products(total, window, tap)
    return total.astype(x.dtype)


def _backward(strides: int, pads: Pads, residuals: Any, g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # The image's own gradient is rarely asked for; XLA drops it then.
    _, vjp = jax.vjp(lambda x: _conv(x, kernel, strides, pads), x)
    dkernel = lax.platform_dependent(
        x,
        kernel,
        g,
        cpu=functools.partial(_patches_product, strides=strides, pads=pads),
        default=functools.partial(_conv_kernel_gradient, strides=strides, pads=pads),
    )
    return vjp(g)[0], dkernel


def _conv_kernel_gradient(x: Array, kernel: Array, g: Array, strides: int, pads: Pads) -> Array:
    _, vjp = jax.vjp(lambda kernel: _conv(x, kernel, strides, pads), kernel)
    return vjp(g)[0]


def _patches_product(x: Array, kernel: Array, g: Array, strides: int, pads: Pads) -> Array:
    patches = jnp.concatenate(_windows(x, kernel.shape[0], strides, pads), -1)
    patches = patches.reshape(-1, patches.shape[-1])
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    product = jnp.matmul(patches.T, g.reshape(-1, g.shape[-1]), preferred_element_type=dtype)
    return product.reshape(kernel.shape).astype(kernel.dtype)


stem_conv.defvjp(_forward, _backward)
