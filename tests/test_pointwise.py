"""1×1 convolutions are XLA's, forward and in both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [8, 24])
def test_expansion_and_its_gradients_are_the_products(dtype, channels):
    with jax.enable_x64(True):
        x = jnp.asarray(normal(2, 5, 3, channels), dtype)
        kernel = jnp.asarray(normal(channels, 12, seed=1), dtype)
        g = jnp.asarray(normal(2, 5, 3, 12, seed=2), dtype)

        def results(convolve, *arrays):
            y, vjp = jax.vjp(convolve, *arrays[:2])
            return y, *vjp(arrays[2])

        exact = results(pointwise_conv, *(a.astype(jnp.float64) for a in (x, kernel, g)))
        got = jax.jit(lambda *arrays: results(expand_conv, *arrays))(x, kernel, g)
        for ours, expected in zip(got, exact, strict=True):
            assert ours.dtype == x.dtype
            error = jnp.abs(ours.astype(jnp.float64) - expected).max() / jnp.abs(expected).max()
            assert error < TOLERANCE[dtype]


def products(convolve, channels):
    x, kernel = jnp.ones((2, 4, 4, channels)), jnp.ones((channels, 8))
    return jax.jit(convolve).lower(x, kernel).compile().as_text().count(" dot(")


@pytest.mark.parametrize(
    ("convolve", "channels", "expected"),
    [(expand_conv, 16, 0), (expand_conv, 17, 1), (pointwise_conv, 16, 1)],
)
def test_few_channels_need_no_matrix_product(convolve, channels, expected):
    assert products(convolve, channels) == expected


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
