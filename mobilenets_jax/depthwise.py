"""Depthwise convolution in forms that XLA can fuse, forward and both gradients.

Owns how a depthwise convolution is computed, and which form each platform gets. Knows nothing of
layers or specs beyond the padding arithmetic.

XLA:CPU lowers a grouped convolution to one contraction per channel, and its weight gradient to a
dense C×C convolution masked to its diagonal. A sum of k² shifted multiply-adds is elementwise work
that fuses with what surrounds it; elsewhere the grouped convolution stays.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mobilenets_jax.errors import InputError, choose
from mobilenets_jax.specs import PADDINGS, pad_amounts

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]

# Of the weight gradient on CPU: more images added before they meet an accumulator take longer to
# compile and save little, and with fewer rows a loop over them costs more than it saves.
_MAX_UNROLL = 8
_MIN_ROWS = 3


def depthwise_conv(
    x: Array, kernel: Array, strides: int, padding: str, implementation: str | None = None
) -> Array:
    """Convolves each channel with its own k×k kernel.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[k, k, C]`, of x's dtype, k odd.
        strides: 1 or 2, along both axes.
        padding: one of `specs.PADDINGS`.
        implementation: one of `IMPLEMENTATIONS`; None takes the platform's, from `PLATFORMS`, when
            the computation is lowered for it.

    Returns:
        `[N, H', W', C]` of x's dtype, accumulated in float32 (float64 for float64).

    Raises:
        InputError: for an unknown implementation or padding, and for another kernel or strides.
    """
    if implementation is not None:
        choose("depthwise implementation", implementation, IMPLEMENTATIONS)
    choose("padding", padding, PADDINGS)
    k = kernel.shape[0]
    if kernel.shape != (k, k, x.shape[-1]) or k % 2 == 0 or strides not in (1, 2):
        raise InputError(
            f"A depthwise kernel of shape {kernel.shape} with strides {strides} does not fit "
            f"{x.shape[-1]} channels: give [k, k, {x.shape[-1]}] with k odd, and strides 1 or 2."
        )
    pads = tuple(pad_amounts(size, k, strides, padding) for size in x.shape[1:3])
    return _convolve(x, kernel, strides, pads, implementation)


def _lax(x: Array, kernel: Array, *, strides: int, pads: Pads) -> Array:
    """XLA's grouped convolution: the reference, and what exporters understand."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(strides, strides),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _lax_gradients(
    x: Array, kernel: Array, g: Array, *, strides: int, pads: Pads
) -> tuple[Array, Array]:
    _, vjp = jax.vjp(functools.partial(_lax, strides=strides, pads=pads), x, kernel)
    return vjp(g)


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _pad(x: Array, height: tuple[int, int], width: tuple[int, int]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*height, 0), (*width, 0), (0, 0, 0)))


def _windows(x: Array, k: int, strides: int) -> Iterator[tuple[int, int, Array]]:
    """The k² strided windows of the padded input, `[N, H', W', C]` each."""
    n, height, width, channels = x.shape
    for i in range(k):
        for j in range(k):
            stop = (n, height - k + 1 + i, width - k + 1 + j, channels)
            yield i, j, lax.slice(x, (0, i, j, 0), stop, (1, strides, strides, 1))


def _shift(x: Array, kernel: Array, *, strides: int, pads: Pads) -> Array:
    """Sum of k² shifted multiply-adds."""
    dtype = _accumulator(x.dtype)
    kernel = kernel.astype(dtype)
    total = jnp.zeros((), dtype)
    # One array to read: XLA:CPU would take the windows that meet no padding from x itself, and
    # compute anew what makes x.
    padded = lax.optimization_barrier(_pad(x, *pads))
    for i, j, window in _windows(padded, kernel.shape[0], strides):
        total = total + window.astype(dtype) * kernel[i, j]
    return total.astype(x.dtype)


def _shift_gradients(
    x: Array, kernel: Array, g: Array, *, strides: int, pads: Pads
) -> tuple[Array, Array]:
    # Padded again as in the forward pass: XLA keeps that one array, and none without its padding.
    padded = _pad(x, *pads)
    # One array of g, instead of what makes it fused into each of its readers.
    g = lax.optimization_barrier(g)
    dx = _input_gradient(kernel, g, padded.shape, strides)
    (top, _), (left, _) = pads
    dx = lax.slice(
        dx, (0, top, left, 0), (x.shape[0], top + x.shape[1], left + x.shape[2], x.shape[3])
    )
    if g.shape[1] < _MIN_ROWS:
        dkernel = _small_kernel_gradient(x, g, kernel.shape[0], strides, pads)
    else:
        unroll = _unroll(x.shape[0], jax.device_count())
        dkernel = _kernel_gradient(padded, g, kernel.shape[0], strides, unroll)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


def _input_gradient(kernel: Array, g: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Gradient of the padded input, `shape` or a little larger.

    Row strides·a + p of the input met the kernel's rows p, p + strides, … alone: each such phase is
    a convolution of g with stride 1, so no zero between g's elements is multiplied.
    """
    dtype, k = _accumulator(g.dtype), kernel.shape[0]
    kernel = kernel.astype(dtype)
    margin = (k - 1) // strides
    rows, columns = (-(-size // strides) for size in shape[1:3])
    g = _pad(g, (margin, rows - g.shape[1]), (margin, columns - g.shape[2]))

    def phase(p: int, q: int) -> Array:
        total = jnp.zeros((), dtype)
        for a, i in enumerate(range(p, k, strides)):
            for b, j in enumerate(range(q, k, strides)):
                top, left = margin - a, margin - b
                window = g[:, top : top + rows, left : left + columns]
                total = total + window.astype(dtype) * kernel[i, j]
        return jnp.broadcast_to(total, (g.shape[0], rows, columns, g.shape[3]))

    if strides == 1:
        return phase(0, 0)
    phases = [jnp.stack([phase(p, q) for q in range(strides)], 3) for p in range(strides)]
    return jnp.stack(phases, 2).reshape(shape[0], rows * strides, columns * strides, shape[3])


def _small_kernel_gradient(x: Array, g: Array, k: int, strides: int, pads: Pads) -> Array:
    """Gradient of the kernel where feature maps have a few rows: `[k, k, C]`.

    A column reduction for each tap, over the outputs that it gave something other than padding.
    """
    dtype = _accumulator(x.dtype)

    def met(tap: int, axis: int) -> tuple[slice, slice]:
        size, outputs, before = x.shape[axis], g.shape[axis], pads[axis - 1][0]
        first = max(0, -((tap - before) // strides))
        last = min(outputs - 1, (size - 1 + before - tap) // strides)
        start = first * strides + tap - before
        count = max(0, last - first + 1)
        return (
            slice(start, start + (count - 1) * strides + 1 if count else start, strides),
            slice(first, first + count),
        )

    sums = []
    for i in range(k):
        for j in range(k):
            (x_rows, g_rows), (x_columns, g_columns) = met(i, 1), met(j, 2)
            window, gradient = x[:, x_rows, x_columns], g[:, g_rows, g_columns]
            sums.append(jnp.sum(window.astype(dtype) * gradient.astype(dtype), (0, 1, 2)))
    return jnp.stack(sums).reshape(k, k, x.shape[3])


def _unroll(n: int, devices: int) -> int:
    """Of n images, how many are added before they meet an accumulator.

    The groups of so many are shared out over a mesh, or devices would exchange activations.
    """
    fits = (u for u in range(2, _MAX_UNROLL + 1) if n % u == 0)
    return max((u for u in fits if n // u >= 4 and n // u % devices == 0), default=1)


def _kernel_gradient(x: Array, g: Array, k: int, strides: int, unroll: int) -> Array:
    """Gradient of the kernel from the padded input: `[k, k, C]`.

    A sum over images, rows and columns. As k² column reductions it reads both arrays from memory k²
    times; a loop over rows, with an accumulator for each tap, finds them in the cache. The
    innermost sums over a few images are unrolled: they cost no access to an accumulator.
    """
    dtype = _accumulator(x.dtype)
    n, rows, columns, channels = g.shape
    groups = n // unroll
    width = (columns - 1) * strides + 1

    def add_row(row: Any, sums: list[Array]) -> list[Array]:
        # Not outside of the loop: XLA would fuse the padding with that, and pad twice.
        xs = x.reshape(groups, unroll, *x.shape[1:])
        gs = g.reshape(groups, unroll, *g.shape[1:])
        sums = list(sums)
        # Tracing a gradient is thousands of slices: their indices are made once.
        index = [jnp.asarray(i, row.dtype) for i in range(max(unroll, k))]
        met = [row * strides + i for i in range(k)]

        def cut(array: Array, image: int, row: Any, column: int, width: int) -> Array:
            start = (index[0], index[image], row, index[column], index[0])
            size = (groups, 1, 1, width, channels)
            return lax.dynamic_slice(array, start, size, allow_negative_indices=False)

        for image in range(unroll):
            gradient = cut(gs, image, row, 0, columns)[:, 0, 0].astype(dtype)
            for tap in range(k * k):
                i, j = divmod(tap, k)
                window = cut(xs, image, met[i], j, width)[:, 0, 0, ::strides].astype(dtype)
                sums[tap] = lax.add(sums[tap], lax.mul(window, gradient))
        return sums

    zeros = [jnp.zeros((groups, columns, channels), dtype)] * (k * k)
    sums = lax.fori_loop(0, rows, add_row, zeros)
    return jnp.stack([jnp.sum(total, (0, 1)) for total in sums]).reshape(k, k, channels)


# name -> (forward, both gradients)
IMPLEMENTATIONS: dict[str, tuple[Callable[..., Array], Callable[..., tuple[Array, Array]]]] = {
    "lax": (_lax, _lax_gradients),
    "shift": (_shift, _shift_gradients),
}
# On CPU "shift" is the faster one for every layer and direction of docs/benchmarks.md, from
# experiments/results/benchmark/*_layers.json. Not measured on any other platform, which "default"
# is.
PLATFORMS = {"cpu": "shift", "default": "lax"}


def _branches(which: int, implementation: str | None) -> tuple[tuple[str, Any], ...]:
    """Returns pairs of a platform and its forward pass (0) or gradients (1)."""
    names = PLATFORMS if implementation is None else {"default": implementation}
    return tuple((platform, IMPLEMENTATIONS[name][which]) for platform, name in names.items())


# Blocks of the same shape are traced once.
@functools.partial(jax.jit, static_argnames=("branches", "strides", "pads"), inline=True)
def _dispatch(branches: tuple[tuple[str, Any], ...], arrays: Any, **numbers: Any) -> Any:
    forms = {platform: functools.partial(form, **numbers) for platform, form in branches}
    if len(forms) == 1:
        return forms["default"](*arrays)
    return lax.platform_dependent(*arrays, **forms)


def _forward(x: Array, kernel: Array, strides: int, pads: Pads, implementation: str | None) -> Any:
    return _dispatch(_branches(0, implementation), (x, kernel), strides=strides, pads=pads)


_convolve = jax.custom_vjp(_forward, nondiff_argnums=(2, 3, 4))


def _convolve_forward(
    x: Array, kernel: Array, strides: int, pads: Pads, implementation: str | None
) -> Any:
    # Not _convolve: forward mode over this rule gives second derivatives.
    return _forward(x, kernel, strides, pads, implementation), (x, kernel)


def _convolve_backward(
    strides: int, pads: Pads, implementation: str | None, residuals: Any, g: Array
) -> tuple[Array, Array]:
    return _dispatch(_branches(1, implementation), (*residuals, g), strides=strides, pads=pads)


_convolve.defvjp(_convolve_forward, _convolve_backward)
