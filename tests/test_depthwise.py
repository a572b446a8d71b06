"""The depthwise convolution is the grouped one, forward and in both gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mobilenets_jax import depthwise
from mobilenets_jax.depthwise import depthwise_conv
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet
from mobilenets_jax.specs import PADDINGS
from mobilenets_jax.switches import build_spec

# The arithmetic is the same; compiling takes a third of the time.
FAST_COMPILATION = {"xla_backend_optimization_level": "0"}
# Largest error relative to the largest element of the exact result.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10, "bfloat16": 2**-7}


def grouped_conv(x, kernel, strides, padding):
    """XLA's grouped convolution with the frameworks' own padding formulas."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (strides, strides),
        [reference.pads(size, kernel.shape[0], strides, padding) for size in x.shape[1:3]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def with_gradients(function, x, kernel, g):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(g.astype(y.dtype))


def arrays(n, height, width, channels, k, strides, padding, seed=0):
    """x, kernel and the gradient of the output, float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, height, width, channels))
    kernel = rng.normal(size=(k, k, channels))
    g = rng.normal(size=reference.depthwise(x, kernel, strides, padding).shape)
    return x, kernel, g


def assert_close(got, expected, dtype):
    for name, a, b in zip(("output", "dx", "dkernel"), got, expected, strict=True):
        assert a.dtype == dtype, name
        assert a.shape == b.shape, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        limit = TOLERANCE[dtype] * max(np.abs(b).max(), 1e-3)
        assert np.abs(a - b).max() <= limit, name


def check(dtype, shape, k, strides, padding, seed=0, implementation=None):
    """Against the grouped convolution in float64, and numpy's contraction of windows."""
    exact = arrays(*shape, k, strides, padding, seed)
    with jax.enable_x64(True):
        rounded = [jnp.asarray(a, dtype) for a in exact]

        @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
        def both(x, kernel, g):
            ours = functools.partial(
                depthwise_conv, strides=strides, padding=padding, implementation=implementation
            )
            lax_s = functools.partial(grouped_conv, strides=strides, padding=padding)
            got = with_gradients(ours, x, kernel, g)
            return got, with_gradients(lax_s, *(a.astype(jnp.float64) for a in (x, kernel, g)))

        got, expected = both(*rounded)
    assert_close(got, expected, dtype)
    x, kernel, _ = (np.asarray(a, np.float64) for a in rounded)
    windows = reference.depthwise(x, kernel, strides, padding)
    np.testing.assert_allclose(expected[0], windows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_every_kernel_stride_and_padding(k, strides, padding):
    dtype = "float64" if padding == "same" else "float32"
    check(dtype, (2, 7, 10, 3), k, strides, padding)


ANY_SHAPE = given(
    dtype=st.sampled_from(["float64", "float64", "float32", "bfloat16"]),
    n=st.sampled_from([1, 2, 3, 4, 8, 10, 12, 16]),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    channels=st.sampled_from([1, 2, 5, 8]),
    k=st.sampled_from([3, 5, 7]),
    strides=st.sampled_from([1, 2]),
    padding=st.sampled_from(PADDINGS),
    implementation=st.sampled_from([None, *depthwise.IMPLEMENTATIONS]),
    seed=st.integers(0, 2**16),
)
ALWAYS_THE_SAME = {"deadline": None, "derandomize": True, "database": None}


def check_any(dtype, n, height, width, channels, k, strides, padding, implementation, seed):
    if padding == "bottom_right" and strides == 2:
        height, width = max(height, 2), max(width, 2)
    check(dtype, (n, height, width, channels), k, strides, padding, seed, implementation)


@settings(max_examples=15, **ALWAYS_THE_SAME)
@ANY_SHAPE
def test_any_shape(**arguments):
    check_any(**arguments)


@pytest.mark.slow
@settings(max_examples=200, **ALWAYS_THE_SAME)
@ANY_SHAPE
def test_many_shapes(**arguments):
    check_any(**arguments)


def test_an_implementation_is_chosen_by_name():
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays(1, 4, 4, 2, 3, 1, "same"))

    def convolutions(implementation):
        convolve = functools.partial(
            depthwise_conv, strides=1, padding="same", implementation=implementation
        )
        return jax.jit(convolve).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert [convolutions(name) for name in (None, "shift", "lax")] == [0, 0, 1]
    assert set(depthwise.PLATFORMS.values()) <= set(depthwise.IMPLEMENTATIONS)
    with pytest.raises(InputError, match=r"Unknown depthwise implementation 'shfit'.*'shift'"):
        depthwise_conv(x, kernel, 1, "same", "shfit")


def test_kernel_gradient_is_the_same_however_many_images_are_added_first():
    """One device takes groups of 4 or 8 where the mesh of these tests takes 1 or 2."""
    assert [depthwise._unroll(n, 1) for n in (1, 4, 8, 12, 16, 24, 30, 32, 128)] == [
        *(1, 1, 2, 3, 4, 6, 6, 8, 8)
    ]
    assert [depthwise._unroll(n, 8) for n in (8, 16, 24, 32, 64)] == [1, 2, 3, 4, 8]
    for strides in (1, 2):
        random = np.random.default_rng(strides)
        sides = (4 * strides + 3, 5)  # of the padded input, and of the output
        x, g = (random.normal(size=(16, side, side, 3)) for side in sides)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        windows = windows[:, ::strides, ::strides]
        expected = np.einsum("nhwcij,nhwc->ijc", windows, g)
        with jax.enable_x64(True):
            for unroll in (1, 2, 4, 8, 16):
                got = depthwise._kernel_gradient(jnp.asarray(x), jnp.asarray(g), 3, strides, unroll)
                assert got.dtype == np.float64
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "message"),
    [
        ((3, 3, 4), 1, "SAME", "Unknown padding 'SAME'"),
        ((3, 3, 1), 1, "same", r"shape \(3, 3, 1\) with strides 1 does not fit 4 channels"),
        ((2, 2, 4), 1, "same", "with k odd"),
        ((3, 5, 4), 1, "same", r"give \[k, k, 4\]"),
        ((3, 3, 4), 3, "same", "strides 1 or 2"),
    ],
)
def test_what_does_not_fit_is_an_error(kernel, strides, padding, message):
    with pytest.raises(InputError, match=message):
        depthwise_conv(jnp.ones((1, 8, 8, 4)), jnp.ones(kernel), strides, padding)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("strides", [1, 2])
def test_one_pixel(strides, padding):
    for dtype in TOLERANCE:
        check(dtype, (4, 1, 1, 3), 5, strides, padding)
    x = jnp.arange(6.0).reshape(2, 1, 1, 3)
    kernel = jnp.arange(27.0).reshape(3, 3, 3)
    np.testing.assert_array_equal(
        depthwise_conv(x, kernel, strides, padding), x * kernel[1, 1], strict=True
    )


def test_one_pixel_without_output():
    with pytest.raises(InputError, match="leaves nothing of a feature map of 1 pixel"):
        depthwise_conv(jnp.ones((1, 1, 8, 3)), jnp.ones((3, 3, 3)), 2, "bottom_right")


def test_impulse_gives_the_kernel_turned():
    """One bright pixel spreads the kernel turned by 180°: a correlation, as everywhere."""
    x = jnp.zeros((1, 5, 5, 2)).at[0, 2, 2].set(1.0)
    kernel = jnp.arange(18.0).reshape(3, 3, 2)
    y = depthwise_conv(x, kernel, 1, "same")
    np.testing.assert_array_equal(y[0, 1:4, 1:4], kernel[::-1, ::-1])
    assert jnp.sum(y) == jnp.sum(kernel)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("k", "strides", "padding"), [(3, 2, "same"), (5, 1, "symmetric")])
def test_platform_branches_agree(k, strides, padding, dtype):
    """What CPU computes and what every other platform computes, both run here."""
    x, kernel, g = (jnp.asarray(a, dtype) for a in arrays(2, 9, 8, 4, k, strides, padding))
    pads = tuple(reference.pads(size, k, strides, padding) for size in x.shape[1:3])
    shift = jax.jit(functools.partial(depthwise._shift, strides=strides, pads=pads))
    grouped = jax.jit(functools.partial(depthwise._lax, strides=strides, pads=pads))
    shift_vjp = functools.partial(depthwise._shift_gradients, strides=strides, pads=pads)
    grouped_vjp = functools.partial(depthwise._lax_gradients, strides=strides, pads=pads)
    got = shift(x, kernel), *jax.jit(shift_vjp)(x, kernel, g)
    expected = grouped(x, kernel), *jax.jit(grouped_vjp)(x, kernel, g)
    limit = {"float32": 1e-5, "bfloat16": 2**-5}[dtype]
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= limit * np.abs(b).max()


def test_other_platforms_lower_to_the_grouped_convolution():
    x, kernel, g = (jnp.asarray(a, jnp.float32) for a in arrays(2, 8, 8, 4, 3, 2, "same"))

    def step(x, kernel, g):
        return with_gradients(lambda x, k: depthwise_conv(x, k, 2, "same"), x, kernel, g)

    def text(platform):
        traced = jax.jit(step).trace(x, kernel, g)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in text("cpu")
    for platform in ("cuda", "tpu"):
        # Forward, input gradient, weight gradient.
        assert text(platform).count("stablehlo.convolution") == 3


def test_bfloat16_accumulates_in_float32():
    """25 terms of 1 + 2^-7, and 4096 of 1: a bfloat16 sum would lose the last bits, or stop."""
    x = jnp.full((1, 5, 5, 1), 1 + 2**-7, jnp.bfloat16)
    kernel = jnp.ones((5, 5, 1), jnp.bfloat16)
    y = jax.jit(lambda x, k: depthwise_conv(x, k, 1, "same"))(x, kernel)
    assert y[0, 2, 2, 0] == jnp.asarray(25 * (1 + 2**-7), jnp.bfloat16)
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: depthwise_conv(ones, k, 1, "same").astype(jnp.float32).sum())
    assert jax.jit(gradient)(kernel)[2, 2, 0] == 4096


def test_second_derivatives():
    """Hessian-vector products, reverse over reverse and forward over reverse."""
    with jax.enable_x64(True):
        x, kernel, _ = (jnp.asarray(a) for a in arrays(2, 6, 5, 2, 3, 2, "same"))
        dx, dk, _ = (jnp.asarray(a) for a in arrays(2, 6, 5, 2, 3, 2, "same", seed=1))

        def products(convolve):
            def loss(x, kernel):
                return jnp.sum(convolve(x, kernel, 2, "same") ** 3)

            gradient = jax.grad(loss, (0, 1))
            _, reverse = jax.vjp(gradient, x, kernel)
            _, forward = jax.jvp(gradient, (x, kernel), (dx, dk))
            return reverse((dx, dk)), forward

        ours, lax_s = (
            jax.jit(functools.partial(products, c))()
            for c in (
                depthwise_conv,
                grouped_conv,
            )
        )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(lax_s), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        assert np.abs(b).max() > 1


def test_vmap():
    """Over images, over kernels, over both: what a loop gives, gradients included."""
    x, kernel, g = (jnp.asarray(a, jnp.float32) for a in arrays(6, 7, 6, 3, 3, 2, "same"))
    x, g = x.reshape(3, 2, *x.shape[1:]), g.reshape(3, 2, *g.shape[1:])
    kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])

    def one(x, kernel, g):
        return with_gradients(lambda x, k: depthwise_conv(x, k, 2, "same"), x, kernel, g)

    for axes in ((0, None, 0), (None, 0, None), (0, 0, 0)):
        given = [
            batch if axis == 0 else batch[0]
            for batch, axis in zip((x, kernels, g), axes, strict=True)
        ]
        got = jax.jit(jax.vmap(one, axes))(*given)
        for i in range(3):
            loop = one(*(a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)))
            for a, b in zip(got, loop, strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


def test_remat_and_scan():
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays(2, 5, 5, 3, 3, 1, "same"))
    kernels = jnp.stack([kernel, kernel[::-1], -kernel]) / 3

    def scanned(kernels):
        def body(x, kernel):
            return jax.checkpoint(lambda x, k: depthwise_conv(x, k, 1, "same"))(x, kernel), None

        return jnp.sum(lax.scan(body, x, kernels)[0] ** 2)

    def unrolled(kernels):
        y = x
        for kernel in kernels:
            y = grouped_conv(y, kernel, 1, "same")
        return jnp.sum(y**2)

    got, expected = jax.jit(jax.grad(scanned))(kernels), jax.jit(jax.grad(unrolled))(kernels)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def dense_gradients(hlo, channels):
    """Shapes of convolutions whose output has some number of `channels` twice: C×C."""
    outputs = re.findall(r"= \w+\[([\d,]*)\]\S* convolution\(", hlo)
    sizes = [[int(size) for size in shape.split(",")] for shape in outputs]
    return [shape for shape in sizes if any(shape.count(c) > 1 for c in channels)]


def test_grouped_convolution_on_cpu_would_be_seen():
    """What the next test looks for is there when XLA's grouped convolution is used."""
    x, kernel, g = (jnp.asarray(a, jnp.float32) for a in arrays(2, 10, 10, 24, 3, 1, "same"))
    convolve = functools.partial(grouped_conv, strides=1, padding="same")
    step = jax.jit(functools.partial(with_gradients, convolve))
    hlo = step.lower(x, kernel, g).compile().as_text()
    assert dense_gradients(hlo, {24})


@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]
)
def test_training_step_has_no_convolution_on_cpu(name):
    """In the compiled step none is grouped, none is C×C masked to its diagonal: there is none."""
    spec = build_spec(name, num_classes=10, alpha=0.5)
    model = MobileNet(spec)
    x = jnp.zeros((2, 40, 40, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def step(variables, x, key):
        def loss(params):
            y, updates = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return jnp.sum(y**2), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    lowered = jax.jit(step).lower(variables, x, jax.random.key(0))
    hlo = lowered.compile(FAST_COMPILATION).as_text()
    assert "group_count" not in hlo
    assert not dense_gradients(hlo, {block.expansion for block in spec.blocks})
    assert not re.search(r" convolution\(", hlo)
