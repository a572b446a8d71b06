"""BatchNorm and activation as one operation: flax's values, its gradients, and what is kept."""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mobilenets_jax.layers import ACTIVATIONS
from mobilenets_jax.norm import BatchNorm, batch_norm, product_batch_norm
from mobilenets_jax.pointwise import pointwise_conv

# The arithmetic is the same; compiling takes half the time.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

MOMENTUM, EPSILON = 0.9, 1e-3
# Where each activation, or its slope, has a corner.
KINKS = {"relu": (0,), "relu6": (0, 6), "hswish": (-3, 3), "leaky_relu": (0,), "elu": (0,)}


class FlaxBatchNorm(nn.Module):
    """What `BatchNorm` replaces: flax's, without rounding before the activation."""

    activation: Callable

    @nn.compact
    def __call__(self, x, train):
        y = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, name="bn")(x)
        return self.activation(y).astype(x.dtype)


def ours(activation):
    return BatchNorm(MOMENTUM, EPSILON, ACTIVATIONS[activation])


def normalise(x, scale, bias, activation):
    """Output of ours alone."""
    return batch_norm(x, scale, bias, EPSILON, ACTIVATIONS[activation])[0]


def flax_normalise(x, scale, bias, activation):
    """Output of flax's alone, differentiated automatically."""
    params = {"params": {"bn": {"scale": scale, "bias": bias}}}
    model = FlaxBatchNorm(ACTIVATIONS[activation])
    return model.apply(params, x, True, mutable=["batch_stats"])[0]


def arrays(shape, activation="linear", seed=0, mean=0.0):
    """x, scale, bias and the gradient of the output, float64 of float32 values.

    The gradient is zero where rounding could take the activation's input across a kink.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(mean, 0.5, shape[-1:]), rng.uniform(0.7, 1.5, shape[-1:]), shape)
    scale = rng.uniform(1, 3, shape[-1:]) * rng.choice([-1, 1], shape[-1:])
    bias = rng.normal(0.5, 1, shape[-1:])
    g = rng.normal(size=shape)
    x, scale, bias, g = (np.float64(np.float32(a)) for a in (x, scale, bias, g))
    axes = tuple(range(len(shape) - 1))
    z = (x - x.mean(axes)) / np.sqrt(x.var(axes) + EPSILON) * scale + bias
    for kink in KINKS.get(activation, ()):
        g = np.where(np.abs(z - kink) < 1e-3, 0, g)
    return x, scale, bias, g


def gradients(function, activation, x, scale, bias, g):
    y, vjp = jax.vjp(functools.partial(function, activation=activation), x, scale, bias)
    return y, *vjp(g.astype(y.dtype))


def assert_close(got, expected, tolerance):
    """Relative to the largest element, and to 1 where everything cancels."""
    for name, a, b in zip(("output", "dx", "dscale", "dbias"), got, expected, strict=True):
        assert a.shape == b.shape, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1), name


def both_gradients(activation):
    def both(*arguments):
        return (
            gradients(normalise, activation, *arguments),
            gradients(flax_normalise, activation, *arguments),
        )

    return fast_jit(both)


# Values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("activation", ["linear", "hswish"])
def test_module_is_flaxs(activation, dtype):
    """Variables, output and new statistics in training, output in evaluation."""
    x, scale, bias, _ = arrays((3, 4, 5, 6), mean=1.0)
    rng = np.random.default_rng(1)
    wide = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(True):
        x = jnp.asarray(x, dtype)
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": rng.normal(size=6), "var": rng.uniform(0.5, 2, 6)},
        }
        flax = FlaxBatchNorm(ACTIVATIONS[activation])

        @fast_jit
        def run(variables, x):
            model = ours(activation)
            trained = model.apply(variables, x, True, mutable=["batch_stats"])
            return *trained, model.apply(variables, x, False)

        @fast_jit
        def flax_run(variables, x):
            variables = {name: {"bn": tree} for name, tree in variables.items()}
            y, updates = flax.apply(variables, x, True, mutable=["batch_stats"])
            return y, {"batch_stats": updates["batch_stats"]["bn"]}, flax.apply(variables, x, False)

        got = run(jax.tree.map(lambda a: jnp.asarray(a, wide), variables), x)
        # Exact, so that the difference is the error of ours.
        expected = flax_run(variables, x.astype(jnp.float64))

    def check(path, a, b):
        statistic = "batch_stats" in jax.tree_util.keystr(path)
        assert a.dtype == (wide if statistic else dtype)
        assert a.shape == b.shape
        # bfloat16 is rounded once, at the end: half a unit in the last place.
        rounded = dtype == "bfloat16" and not statistic
        a, b = np.asarray(a, np.float64), np.asarray(b)
        error = np.abs(a - b)
        limit = {"float64": 1e-14}.get(dtype, 1e-6) * max(np.abs(b).max(), 1)
        assert np.all(error <= limit + rounded * 2**-8 * np.abs(b)), path

    jax.tree_util.tree_map_with_path(check, got, expected)
    for name, before in variables["batch_stats"].items():
        assert np.all(np.abs(np.asarray(expected[1]["batch_stats"][name]) - before) > 1e-3), name


def test_variables_are_flaxs_and_init_moves_no_statistic():
    x = jnp.asarray(arrays((4, 3, 3, 5), mean=7.0)[0], jnp.float32)
    expected = nn.BatchNorm(False).init(jax.random.key(0), x)
    for train in (False, True):
        got = ours("relu6").init(jax.random.key(0), x, train)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_array_equal(got["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(got["batch_stats"]["var"], np.ones(5))


def test_evaluation_neither_reads_the_batch_nor_moves_statistics():
    """Whole numbers, by hand: (x - 3)·2/√(4 - ε + ε) + 1, one image at a time or all at once."""
    x = jnp.arange(8.0).reshape(8, 1)
    variables = {
        "params": {"scale": jnp.full(1, 2.0), "bias": jnp.ones(1)},
        "batch_stats": {"mean": jnp.full(1, 3.0), "var": jnp.full(1, 4 - EPSILON)},
    }
    y, updates = ours("relu").apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, np.maximum(np.arange(8.0) - 2, 0)[:, None], rtol=1e-6)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, updates["batch_stats"], variables["batch_stats"])
    )
    alone = jnp.concatenate([ours("relu").apply(variables, row[None], False) for row in x])
    np.testing.assert_array_equal(y, alone)


def test_mean_far_from_zero():
    """Mean 30 standard deviations away: E[x²] - E[x]² loses 900 units of float32's last place.

    That is 900·2⁻²⁴ ≈ 5e-5 of the variance, times the error of the sums: 5e-4 is allowed.
    """
    x, scale, bias, g = arrays((8, 12, 12, 4), "silu", mean=0.0)
    axes = (0, 1, 2)
    x = (x - x.mean(axes)) / x.std(axes) + 30
    x = np.float64(np.float32(x))
    with jax.enable_x64(True):
        _, expected = both_gradients("silu")(x, scale, bias, g)
    got, _ = both_gradients("silu")(*(jnp.asarray(a, jnp.float32) for a in (x, scale, bias, g)))
    assert_close(got, expected, 5e-4)
    _, mean, var = batch_norm(
        *(jnp.asarray(a, jnp.float32) for a in (x, scale, bias)), EPSILON, jax.nn.silu
    )
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(axes), rtol=5e-4)


def test_constant_channel():
    """No variance, and none below zero by rounding: output β, and only β's gradient is left."""
    x = jnp.full((7, 3, 3, 2), 1234.567)
    scale, bias = jnp.full(2, 3.0), jnp.asarray([1.0, -2.0])
    y, mean, var = batch_norm(x, scale, bias, EPSILON, ACTIVATIONS["linear"])
    assert np.all(var >= 0)
    np.testing.assert_allclose(mean, 1234.567, rtol=1e-6)
    # A few units in the mean's last place, 1.2e-4, times γ/√ε.
    np.testing.assert_allclose(y, np.broadcast_to(bias, x.shape), atol=0.05)
    small = jnp.full((4, 2), 0.5)
    step = fast_jit(functools.partial(gradients, normalise, "linear"))
    y, dx, dscale, dbias = step(small, scale, bias, jnp.ones((4, 2)))
    np.testing.assert_array_equal(y, np.broadcast_to(bias, small.shape))
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_array_equal(dscale, 0)
    np.testing.assert_array_equal(dbias, 4)


def test_statistics_are_the_global_batchs():
    """Eight images on eight devices give what one device gives, gradients included."""
    x, scale, bias, g = (jnp.asarray(a, jnp.float32) for a in arrays((8, 3, 3, 4), mean=1.0))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    step = fast_jit(functools.partial(gradients, normalise, "hswish"))
    got = step(jax.device_put(x, spread), scale, bias, jax.device_put(g, spread))
    assert len(got[1].sharding.device_set) == 8
    assert_close(got, step(x, scale, bias, g), 1e-5)


# Gradients


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradients_of_every_activation(activation):
    arguments = arrays((4, 5, 3, 6), activation, seed=3, mean=0.3)
    both = both_gradients(activation)
    with jax.enable_x64(True):
        got, expected = both(*arguments)
    assert {a.dtype for a in got} == {np.dtype("float64")}
    assert_close(got, expected, 1e-10)
    assert all(np.abs(b).max() > 0.1 for b in expected)
    single, _ = both(*(jnp.asarray(a, jnp.float32) for a in arguments))
    assert {a.dtype for a in single} == {np.dtype("float32")}
    assert_close(single, expected, 1e-5)


@settings(max_examples=14, deadline=None, derandomize=True, database=None)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    shape=st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 6)),
        st.tuples(*[st.integers(1, 5)] * 4),
        st.tuples(*[st.integers(1, 4)] * 3),
    ),
    mean=st.sampled_from([0.0, -2.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_gradients_of_any_shape(activation, shape, mean, seed):
    """Few elements too: of one, the output is β and the input's gradient zero."""
    arguments = arrays(shape, activation, seed, mean)
    with jax.enable_x64(True):
        got, expected = both_gradients(activation)(*arguments)
    assert_close(got, expected, 1e-10)


def test_gradients_in_bfloat16():
    """Computed in float32 and rounded at the end; those of the parameters stay float32."""
    x, scale, bias, g = arrays((4, 6, 6, 5), "relu6", mean=1.0)
    x, g = jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)
    affine = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    step = fast_jit(functools.partial(gradients, normalise, "relu6"))
    got = step(x, *affine, g)
    assert [str(a.dtype) for a in got] == ["bfloat16", "bfloat16", "float32", "float32"]
    exact = step(x.astype(jnp.float32), *affine, g.astype(jnp.float32))
    for a, b in zip(got[:2], exact[:2], strict=True):
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
    assert_close(got, exact, 2**-8)
    assert_close((*exact[:2], *got[2:]), exact, 1e-6)


def test_statistics_carry_no_gradient():
    x, scale, bias, _ = (jnp.asarray(a, jnp.float32) for a in arrays((6, 3)))

    def loss(x, scale, bias):
        y, mean, var = batch_norm(x, scale, bias, EPSILON, jax.nn.silu)
        return jnp.sum(y * y), jnp.sum(mean) + jnp.sum(var)

    def gradient(weight):
        def total(*arguments):
            value, statistics = loss(*arguments)
            return value + weight * statistics

        return fast_jit(jax.grad(total, (0, 1, 2)))(x, scale, bias)

    for a, b in zip(gradient(0.0), gradient(1.0), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("activation", ["linear", "hswish", "mish"])
def test_second_derivatives(activation):
    """Hessian-vector products, reverse over reverse and forward over reverse."""
    x, scale, bias, _ = arrays((3, 4, 2, 3), mean=0.4)
    tangents = tuple(np.random.default_rng(5).normal(size=a.shape) for a in (x, scale, bias))

    def products(function, primals, tangents):
        def loss(*primals):
            return jnp.sum(function(*primals, activation=activation) ** 3)

        gradient = jax.grad(loss, (0, 1, 2))
        value, reverse = jax.vjp(gradient, *primals)
        return value, reverse(tangents), jax.jvp(gradient, primals, tangents)[1]

    with jax.enable_x64(True):
        got, expected = (
            fast_jit(functools.partial(products, function))((x, scale, bias), tangents)
            for function in (normalise, flax_normalise)
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


# Transformations


def test_vmap():
    """Over inputs, over parameters, over both: what a loop gives, gradients included."""
    x, scale, bias, g = arrays((3, 6, 2, 4), "hswish")
    scales, biases = np.stack([scale, -scale, 2 * scale]), np.stack([bias, bias + 1, -bias])
    one = functools.partial(gradients, normalise, "hswish")
    for axes in ((0, None, None, 0), (None, 0, 0, None), (0, 0, 0, 0)):
        given = [
            batch if axis == 0 else batch[0]
            for batch, axis in zip((x, scales, biases, g), axes, strict=True)
        ]
        with jax.enable_x64(True):
            got = fast_jit(jax.vmap(one, axes))(*given)
            for i in range(3):
                alone = [a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)]
                assert_close([a[i] for a in got], fast_jit(one)(*alone), 1e-12)


def test_remat():
    """Computing the forward pass anew changes no gradient, by function and by module."""
    x, scale, bias, _ = arrays((4, 3, 3, 5), "relu")

    def loss(normalise, *arguments):
        return jnp.sum(normalise(*arguments, activation="relu") ** 2)

    def remat(x, scale, bias, activation):
        return jax.checkpoint(functools.partial(normalise, activation=activation))(x, scale, bias)

    def module(x, scale, bias, activation):
        model = nn.remat(BatchNorm, static_argnums=(2,))(MOMENTUM, EPSILON, ACTIVATIONS[activation])
        variables = {"params": {"scale": scale, "bias": bias}}
        y, updates = model.apply(variables, x, True, mutable=["batch_stats"])
        assert sorted(updates["batch_stats"]) == ["mean", "var"]
        return y

    with jax.enable_x64(True):
        expected, *others = (
            fast_jit(jax.grad(functools.partial(loss, function), (0, 1, 2)))(x, scale, bias)
            for function in (normalise, remat, module)
        )
    for got in others:
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


# Memory


def large_residuals(function, x, scale, bias):
    _, vjp = jax.vjp(functools.partial(function, activation="hswish"), x, scale, bias)
    return [leaf for leaf in jax.tree.leaves(vjp) if np.size(leaf) == x.size]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_input_is_kept(dtype):
    x, scale, bias, _ = (jnp.asarray(a, jnp.float32) for a in arrays((4, 5, 6, 3)))
    x = x.astype(dtype)
    (kept,) = large_residuals(normalise, x, scale, bias)
    np.testing.assert_array_equal(kept, x, strict=True)
    # What this looks for is there in flax's.
    assert len(large_residuals(flax_normalise, x, scale, bias)) > 1


def test_compiled_gradient_writes_no_intermediate_of_the_inputs_size():
    """Its temporary memory is below one input; that of automatic differentiation is above."""
    x, scale, bias, g = (jnp.asarray(a, jnp.float32) for a in arrays((16, 32, 32, 8)))

    def temporary(function):
        step = jax.jit(functools.partial(gradients, function, "hswish"))
        return step.lower(x, scale, bias, g).compile().memory_analysis().temp_size_in_bytes

    assert temporary(normalise) < x.nbytes / 4
    assert temporary(flax_normalise) >= x.nbytes


# With a product before


def of_product(x, kernel, scale, bias, activation):
    return product_batch_norm(x, kernel, scale, bias, EPSILON, ACTIVATIONS[activation])[0]


def after_product(x, kernel, scale, bias, activation):
    return batch_norm(x @ kernel, scale, bias, EPSILON, ACTIVATIONS[activation])[0]


def product_arrays(shape, outputs, activation="linear", seed=0):
    """x, kernel, scale, bias and the gradient of the output, as `arrays`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(0.5, 0.5, shape[-1:]), rng.uniform(0.7, 1.5, shape[-1:]), shape)
    kernel = rng.normal(size=(shape[-1], outputs))
    x, kernel = (np.float64(np.float32(a)) for a in (x, kernel))
    _, scale, bias, g = arrays((*shape[:-1], outputs), seed=seed)
    product = x @ kernel
    axes = tuple(range(len(shape) - 1))
    z = (product - product.mean(axes)) / np.sqrt(product.var(axes) + EPSILON) * scale + bias
    for kink in KINKS.get(activation, ()):
        g = np.where(np.abs(z - kink) < 1e-3, 0, g)
    return x, kernel, scale, bias, g


def product_gradients(function, activation, *arguments):
    *arguments, g = arguments
    y, vjp = jax.vjp(functools.partial(function, activation=activation), *arguments)
    return y, *vjp(g.astype(y.dtype))


def assert_each_close(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1)


@settings(max_examples=15, deadline=None)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    shape=st.tuples(*map(st.integers, (1, 2, 1, 1), (4, 5, 6, 5))),
    outputs=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_product_and_its_gradients_in_float64(activation, shape, outputs, seed):
    given = product_arrays(shape, outputs, activation, seed)
    with jax.enable_x64(True):
        got, expected = (
            fast_jit(functools.partial(product_gradients, function, activation))(*given)
            for function in (of_product, after_product)
        )
    assert_each_close(got, expected, 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_rounds_as_much_as_the_two_operations(dtype):
    """Distance from float64, norm over norm, at most twice theirs."""
    x, kernel, scale, bias, g = product_arrays((6, 16, 16, 8), 24, "hswish")
    with jax.enable_x64(True):
        x, kernel, g = (jnp.asarray(a, dtype) for a in (x, kernel, g))
        affine = (jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32))
        ours, theirs = (
            fast_jit(functools.partial(product_gradients, function, "hswish"))
            for function in (of_product, after_product)
        )
        got, plain = (step(x, kernel, *affine, g) for step in (ours, theirs))
        exact = theirs(*(a.astype(jnp.float64) for a in (x, kernel, *affine, g)))

        def distance(a, b):
            return jnp.linalg.norm((a.astype(jnp.float64) - b).ravel()) / jnp.linalg.norm(b.ravel())

        assert [a.dtype for a in got] == [dtype, dtype, dtype, "float32", "float32"]
        for ours, theirs, expected in zip(got, plain, exact, strict=True):
            assert distance(ours, expected) <= 2 * distance(theirs, expected)


def test_product_statistics():
    """Mean and variance are those of the product, and carry no gradient."""
    x, kernel, scale, bias, _ = product_arrays((5, 4, 3, 6), 12)
    with jax.enable_x64(True):
        _, mean, var = product_batch_norm(x, kernel, scale, bias, EPSILON, jax.nn.relu)
        np.testing.assert_allclose(mean, (x @ kernel).mean((0, 1, 2)), rtol=0, atol=1e-12)
        np.testing.assert_allclose(var, (x @ kernel).var((0, 1, 2)), rtol=1e-12)

        def statistics(*arguments):
            _, mean, var = product_batch_norm(*arguments, EPSILON, jax.nn.relu)
            return mean.sum() + var.sum()

        for gradient in jax.grad(statistics, (0, 1, 2, 3))(x, kernel, scale, bias):
            np.testing.assert_array_equal(gradient, 0)


def test_product_statistics_are_the_global_batchs():
    given = [jnp.asarray(a, jnp.float32) for a in product_arrays((8, 3, 3, 4), 8)]
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    step = fast_jit(functools.partial(product_gradients, of_product, "hswish"))
    x, *parameters, g = given
    got = step(jax.device_put(x, spread), *parameters, jax.device_put(g, spread))
    assert len(got[1].sharding.device_set) == 8
    assert_each_close(got, step(*given), 1e-5)


def test_product_second_derivatives():
    *primals, _ = product_arrays((3, 4, 2, 3), 5)
    tangents = tuple(np.random.default_rng(5).normal(size=a.shape) for a in primals)

    def products(function, primals, tangents):
        def loss(*primals):
            return jnp.sum(function(*primals, activation="mish") ** 3)

        gradient = jax.grad(loss, (0, 1, 2, 3))
        value, reverse = jax.vjp(gradient, *primals)
        return value, reverse(tangents), jax.jvp(gradient, primals, tangents)[1]

    with jax.enable_x64(True):
        got, expected = (
            fast_jit(functools.partial(products, function))(tuple(primals), tangents)
            for function in (of_product, after_product)
        )
    assert_each_close(got, expected, 1e-10)


def test_product_vmap():
    x, kernel, scale, bias, g = product_arrays((3, 6, 2, 4), 8, "hswish")
    kernels = np.stack([kernel, -kernel, 2 * kernel])
    one = functools.partial(product_gradients, of_product, "hswish")
    with jax.enable_x64(True):
        got = fast_jit(jax.vmap(one, (0, 0, None, None, 0)))(x, kernels, scale, bias, g)
        for i in range(3):
            alone = fast_jit(one)(x[i], kernels[i], scale, bias, g[i])
            assert_each_close([a[i] for a in got], alone, 1e-12)


@pytest.mark.parametrize("side", [32, 31])  # 1,024 rows for 8 inputs, and fewer
def test_module_takes_the_statistics_of_a_long_product_from_its_inputs(side):
    x, kernel, scale, bias, _ = product_arrays((1, side, side, 8), 24, "relu6")
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    variables = {"params": {"scale": scale, "bias": bias}}
    variables["batch_stats"] = {"mean": np.zeros(24), "var": np.ones(24)}
    model = ours("relu6")
    y, updated = model.apply(variables, x, True, kernel, mutable=["batch_stats"])
    plain, expected = model.apply(
        variables, pointwise_conv(x, kernel), True, mutable=["batch_stats"]
    )
    assert_each_close((y, updated), (plain, expected), 1e-5)
    assert bool(jnp.all(y == plain)) == (side == 31)
    evaluated = model.apply(variables, x, False, kernel)
    np.testing.assert_array_equal(evaluated, model.apply(variables, x @ kernel, False))


def test_product_gradient_reads_no_wide_array_for_a_statistic():
    """Of the O-wide arrays, the sums over rows are one: the bias's gradient."""
    given = [jnp.asarray(a, jnp.float32) for a in product_arrays((4, 16, 16, 8), 24)]

    def wide_sums(function):
        step = functools.partial(product_gradients, function, "hswish")
        reduced = r"stablehlo.reduce\(.*tensor<(?:4x16x16|1024)x24xf32>"
        return len(re.findall(reduced, jax.jit(step).lower(*given).as_text()))

    assert wide_sums(of_product) == 1
    assert wide_sums(after_product) == 4
