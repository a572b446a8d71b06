"""Depthwise convolution in forms that XLA can fuse, forward and both gradients.

Owns how a depthwise convolution is computed on each platform. Knows nothing of layers or specs
beyond the padding arithmetic.

XLA:CPU lowers a grouped convolution to one contraction per channel, and its weight gradient to a
dense C×C convolution masked to its diagonal. A sum of k² shifted multiply-adds is elementwise work
that fuses with what surrounds it; elsewhere the grouped convolution stays.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mobilenets_jax.specs import pad_amounts

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]


def depthwise_conv(x: Array, kernel: Array, strides: int, padding: str) -> Array:
    """Convolves each channel with its own k×k kernel.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[k, k, C]`, of x's dtype.
        strides: 1 or 2, along both axes.
        padding: one of `specs.PADDINGS`.

    Returns:
        `[N, H', W', C]` of x's dtype, accumulated in float32 (float64 for float64).
    """
    k = kernel.shape[0]
    pads = tuple(pad_amounts(size, k, strides, padding) for size in x.shape[1:3])
    return _convolve(x, kernel, strides, pads)


def _dispatch(x: Array, kernel: Array, strides: int, pads: Pads) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shift, strides=strides, pads=pads),
        default=functools.partial(_grouped, strides=strides, pads=pads),
    )


_convolve = jax.custom_vjp(_dispatch, nondiff_argnums=(2, 3))


def _convolve_forward(x: Array, kernel: Array, strides: int, pads: Pads) -> Any:
    # Not _convolve: forward mode over this rule gives second derivatives.
    return _dispatch(x, kernel, strides, pads), (x, kernel)


def _convolve_backward(strides: int, pads: Pads, residuals: Any, g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return lax.platform_dependent(
        x,
        kernel,
        g,
        cpu=functools.partial(_shift_gradients, strides=strides, pads=pads),
        default=functools.partial(_grouped_gradients, strides=strides, pads=pads),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _grouped(x: Array, kernel: Array, *, strides: int, pads: Pads) -> Array:
    """XLA's grouped convolution: the reference."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(strides, strides),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _grouped_gradients(
    x: Array, kernel: Array, g: Array, *, strides: int, pads: Pads
) -> tuple[Array, Array]:
    _, vjp = jax.vjp(functools.partial(_grouped, strides=strides, pads=pads), x, kernel)
    return vjp(g)


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _taps(x: Array, k: int, strides: int, pads: Pads) -> Iterator[tuple[int, int, Array]]:
    """The k² strided windows of the padded input, `[N, H', W', C]` each."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    n, height, width, channels = x.shape
    stop_h = height - k + 1
    stop_w = width - k + 1
    for i in range(k):
        for j in range(k):
            yield (
                i,
                j,
                lax.slice(
                    x,
                    (0, i, j, 0),
                    (n, i + stop_h, j + stop_w, channels),
                    (1, strides, strides, 1),
                ),
            )


def _shift(x: Array, kernel: Array, *, strides: int, pads: Pads) -> Array:
    """Sum of k² shifted multiply-adds."""
    dtype = _accumulator(x.dtype)
    kernel = kernel.astype(dtype)
    taps = _taps(x, kernel.shape[0], strides, pads)
    total = sum(tap.astype(dtype) * kernel[i, j] for i, j, tap in taps)
    return jnp.asarray(total).astype(x.dtype)


def _shift_gradients(
    x: Array, kernel: Array, g: Array, *, strides: int, pads: Pads
) -> tuple[Array, Array]:
    dtype = _accumulator(x.dtype)
    k = kernel.shape[0]

    # Input gradient: the same sum over the gradient spread by the strides, kernel turned by 180°.
    edges = [
        (k - 1 - before, size + before - 1 - (out - 1) * strides, strides - 1)
        for size, out, (before, _) in zip(x.shape[1:3], g.shape[1:3], pads, strict=True)
    ]
    spread = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    dx = _shift(spread, kernel[::-1, ::-1].astype(g.dtype), strides=1, pads=((0, 0), (0, 0)))

    g = g.astype(dtype)
    rows = [jnp.sum(tap.astype(dtype) * g, (0, 1, 2)) for _, _, tap in _taps(x, k, strides, pads)]
    dkernel = jnp.stack(rows).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)
