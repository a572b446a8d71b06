"""The stem's convolution is XLA's, forward and in both gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mobilenets_jax import stem
from mobilenets_jax.stem import stem_conv

# The arithmetic is the same; compiling takes a third of the time.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
# Largest error relative to the largest element of the exact result.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10, "bfloat16": 2**-7}
PADS = ((1, 0), (2, 1))


def full_conv(x, kernel, strides, pads):
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def with_gradients(function, x, kernel, g):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(g.astype(y.dtype))


def arrays(n, height, width, channels, out, k, strides, pads, seed=0):
    """x, kernel and the gradient of the output, float64."""
    rng = np.random.default_rng(seed)
    rows, columns = (
        (size + sum(around) - k) // strides + 1
        for size, around in zip((height, width), pads, strict=True)
    )
    x = rng.normal(size=(n, height, width, channels))
    return x, rng.normal(size=(k, k, channels, out)), rng.normal(size=(n, rows, columns, out))


def check(dtype, shape, out, k, strides, pads, seed=0):
    """Against XLA's convolution in float64 of the same rounded numbers."""
    exact = arrays(*shape, out, k, strides, pads, seed)
    with jax.enable_x64(True):
        rounded = [jnp.asarray(a, dtype) for a in exact]

        @fast_jit
        def both(x, kernel, g):
            ours = functools.partial(stem_conv, strides=strides, pads=pads)
            lax_s = functools.partial(full_conv, strides=strides, pads=pads)
            got = with_gradients(ours, x, kernel, g)
            return got, with_gradients(lax_s, *(a.astype(jnp.float64) for a in (x, kernel, g)))

        got, expected = both(*rounded)
    assert got[0].shape == exact[2].shape
    for name, a, b in zip(("output", "dx", "dkernel"), got, expected, strict=True):
        assert a.dtype == dtype, name
        assert a.shape == b.shape, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= TOLERANCE[dtype] * max(np.abs(b).max(), 1e-3), name


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_every_kernel_and_stride(k, strides):
    """In float64, or in what is trained in."""
    dtype = {1: "bfloat16", 3: ("float64", "float32")[strides - 1], 5: "float64"}[k]
    check(dtype, (2, 7, 10, 3), 8, k, strides, PADS)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    dtype=st.sampled_from(sorted(TOLERANCE)),
    n=st.integers(1, 3),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.integers(1, 4),
    out=st.sampled_from([1, 2, 7, 16]),
    k=st.sampled_from([1, 3, 5]),
    strides=st.sampled_from([1, 2]),
    pads=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    seed=st.integers(0, 2**16),
)
def test_any_shape(dtype, n, size, channels, out, k, strides, pads, seed):
    height, width = (max(side, k - sum(around)) for side, around in zip(size, pads, strict=True))
    check(dtype, (n, height, width, channels), out, k, strides, pads, seed)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_forward_is_numpys(padding):
    """The contraction of windows, at the sizes where the paddings differ."""
    for size in (8, 9):
        pads = tuple([reference.pads(size, 3, 2, padding)] * 2)
        x, kernel, _ = arrays(2, size, size, 3, 5, 3, 2, pads)
        with jax.enable_x64(True):
            y = fast_jit(functools.partial(stem_conv, strides=2, pads=pads))(x, kernel)
        expected = reference.convolution(x, kernel, 2, padding)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_impulse_gives_the_kernel_turned():
    """One bright pixel of one channel spreads that channel's kernels turned by 180°."""
    x = jnp.zeros((1, 5, 5, 3)).at[0, 2, 2, 1].set(1.0)
    kernel = jnp.arange(54.0).reshape(3, 3, 3, 2)
    y = fast_jit(lambda x, kernel: stem_conv(x, kernel, 1, ((1, 1), (1, 1))))(x, kernel)
    np.testing.assert_array_equal(y[0, 1:4, 1:4], kernel[::-1, ::-1, 1])
    assert jnp.sum(y) == jnp.sum(kernel[:, :, 1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("k", "strides"), [(3, 2), (5, 1)])
def test_platform_branches_agree(k, strides, dtype):
    """What CPU computes and what every other platform computes, both run here."""
    x, kernel, g = (jnp.asarray(a, dtype) for a in arrays(2, 9, 8, 3, 6, k, strides, PADS))
    sizes = {"strides": strides, "pads": PADS}
    pairs = (
        (stem._sum_of_products, stem._conv, (x, kernel)),
        (stem._patches_product, stem._conv_kernel_gradient, (x, kernel, g)),
    )
    limit = {"float32": 1e-5, "bfloat16": 2**-7}[dtype]
    for cpu, default, arguments in pairs:
        a, b = (fast_jit(functools.partial(f, **sizes))(*arguments) for f in (cpu, default))
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= limit * np.abs(b).max()


def lowered(step, arguments, platform):
    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.convolution")


def test_lowering_by_platform():
    """On CPU no convolution where the image needs no gradient; elsewhere XLA's own."""
    arguments = [jnp.asarray(a, jnp.float32) for a in arrays(2, 8, 8, 3, 4, 3, 2, PADS)]

    def forward(x, kernel, g):
        return stem_conv(x, kernel, 2, PADS)

    def of_kernel(x, kernel, g):
        y, vjp = jax.vjp(lambda kernel: stem_conv(x, kernel, 2, PADS), kernel)
        return y, vjp(g)

    def of_both(x, kernel, g):
        return with_gradients(lambda x, kernel: stem_conv(x, kernel, 2, PADS), x, kernel, g)

    steps = (forward, of_kernel, of_both)
    assert [lowered(step, arguments, "cpu") for step in steps] == [0, 0, 1]
    for platform in ("cuda", "tpu"):
        assert [lowered(step, arguments, platform) for step in steps] == [1, 2, 3]


def test_bfloat16_accumulates_in_float32():
    """25 terms of 1 + 2^-7, and 4096 of 1: a bfloat16 sum would lose the last bits, or stop."""
    pads = ((2, 2), (2, 2))
    x = jnp.full((1, 5, 5, 1), 1 + 2**-7, jnp.bfloat16)
    kernel = jnp.ones((5, 5, 1, 1), jnp.bfloat16)
    y = jax.jit(lambda x, kernel: stem_conv(x, kernel, 1, pads))(x, kernel)
    assert y[0, 2, 2, 0] == jnp.asarray(25 * (1 + 2**-7), jnp.bfloat16)
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: stem_conv(ones, k, 1, pads).astype(jnp.float32).sum())
    assert jax.jit(gradient)(kernel)[2, 2, 0, 0] == 4096


def test_second_derivatives():
    """Hessian-vector products, reverse over reverse and forward over reverse."""
    x, kernel, _ = arrays(2, 6, 5, 3, 2, 3, 2, PADS)
    dx, dkernel, _ = arrays(2, 6, 5, 3, 2, 3, 2, PADS, seed=1)

    def products(convolve, primals, tangents):
        gradient = jax.grad(lambda x, k: jnp.sum(convolve(x, k, 2, PADS) ** 3), (0, 1))
        _, reverse = jax.vjp(gradient, *primals)
        return reverse(tangents), jax.jvp(gradient, primals, tangents)[1]

    with jax.enable_x64(True):
        got, expected = (
            fast_jit(functools.partial(products, convolve))((x, kernel), (dx, dkernel))
            for convolve in (stem_conv, full_conv)
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_vmap():
    """Over images, over kernels, over both: what a loop gives, gradients included."""
    x, kernel, g = (jnp.asarray(a, jnp.float32) for a in arrays(6, 7, 6, 3, 4, 3, 2, PADS))
    x, g = x.reshape(3, 2, *x.shape[1:]), g.reshape(3, 2, *g.shape[1:])
    kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])

    def one(x, kernel, g):
        return with_gradients(lambda x, k: stem_conv(x, k, 2, PADS), x, kernel, g)

    for axes in ((0, None, 0), (None, 0, None), (0, 0, 0)):
        given = [
            batch if axis == 0 else batch[0]
            for batch, axis in zip((x, kernels, g), axes, strict=True)
        ]
        got = fast_jit(jax.vmap(one, axes))(*given)
        for i in range(3):
            alone = [a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)]
            for a, b in zip(got, fast_jit(one)(*alone), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
