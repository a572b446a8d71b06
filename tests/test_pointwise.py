"""1×1 convolutions are XLA's, forward and in both gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax import lax

from mobilenets_jax.pointwise import expand_conv, pointwise_conv

# Largest error relative to the largest element of the exact result.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2**-7}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("convolve", [pointwise_conv, expand_conv])
@pytest.mark.parametrize("channels", [1, 16, 17])
def test_is_a_1x1_convolution(convolve, channels):
    x, kernel = normal(2, 5, 3, channels), normal(channels, 4, seed=1)
    expected = reference.convolution(x, kernel[None, None], 1, "same")
    got = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def full_conv(x, kernel):
    return lax.conv_general_dilated(
        x, kernel[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def results(convolve, x, kernel, g):
    y, vjp = jax.vjp(convolve, x, kernel)
    return y, *vjp(g)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [8, 24])
def test_expansion_and_its_gradients_are_the_convolutions(dtype, channels):
    with jax.enable_x64(True):
        x = jnp.asarray(normal(2, 5, 3, channels), dtype)
        kernel = jnp.asarray(normal(channels, 12, seed=1), dtype)
        g = jnp.asarray(normal(2, 5, 3, 12, seed=2), dtype)
        exact = results(full_conv, *(a.astype(jnp.float64) for a in (x, kernel, g)))
        got = jax.jit(functools.partial(results, expand_conv))(x, kernel, g)
        for ours, expected in zip(got, exact, strict=True):
            assert ours.dtype == x.dtype
            error = jnp.abs(ours.astype(jnp.float64) - expected).max() / jnp.abs(expected).max()
            assert error < TOLERANCE[dtype]


def test_expansion_under_vmap():
    """Over inputs, over kernels, over both: what a loop gives, gradients included."""
    x, kernels, g = normal(3, 2, 4, 4, 8), normal(3, 8, 12, seed=1), normal(3, 2, 4, 4, 12, seed=2)
    one = functools.partial(results, expand_conv)
    for axes in ((0, None, 0), (None, 0, None), (0, 0, 0)):
        given = [a if axis == 0 else a[0] for a, axis in zip((x, kernels, g), axes, strict=True)]
        with jax.enable_x64(True):
            got = jax.jit(jax.vmap(one, axes))(*given)
            for i in range(3):
                alone = [a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)]
                for a, b in zip(got, one(*map(jnp.asarray, alone)), strict=True):
                    np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("convolve", "channels", "on_cpu"),
    [(expand_conv, 16, 0), (expand_conv, 17, 1), (pointwise_conv, 16, 1)],
)
def test_few_channels_need_no_matrix_product_on_cpu(convolve, channels, on_cpu):
    x, kernel = jnp.ones((2, 4, 4, channels)), jnp.ones((channels, 8))
    traced = jax.jit(convolve).trace(x, kernel)
    for platform, expected in (("cpu", on_cpu), ("cuda", 1), ("tpu", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == expected


def test_a_gradient_has_no_four_dimensional_product():
    x, kernel = jnp.ones((2, 4, 4, 16)), jnp.ones((16, 32))
    gradient = jax.grad(lambda x, kernel: (expand_conv(x, kernel) ** 2).sum(), (0, 1))
    text = jax.jit(gradient).lower(x, kernel).as_text()
    shapes = [line for line in text.splitlines() if "dot_general" in line]
    assert len(shapes) == 2
    assert not any("2x4x4x" in line for line in shapes)


def test_second_derivatives_are_the_products():
    x, kernel = jnp.asarray(normal(1, 2, 2, 3)), jnp.asarray(normal(3, 2, seed=1))

    def hessian(convolve):
        return jax.jacfwd(jax.grad(lambda kernel: (convolve(x, kernel) ** 3).sum()))(kernel)

    np.testing.assert_allclose(hessian(expand_conv), hessian(pointwise_conv), rtol=1e-5, atol=1e-5)
