"""Each layer against numpy; initialisation, shortcuts and linearity as the papers define them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from mobilenets_jax import layers, specs
from mobilenets_jax.layers import ConvBN, MobileBlock, SqueezeExcite
from mobilenets_jax.specs import Block, Conv, Spec

SPEC = Spec("tiny", "v3", Conv(3, 8, "relu"), ())
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def fill(variables, seed=0):
    """Random values for every variable: BatchNorm's scale and variance positive."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, variables)


def shapes(module, *inputs):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))


def block(row, x):
    """A module of `row`, and random variables for it."""
    module = MobileBlock(SPEC, row)
    return module, fill(shapes(module, x, False))


def with_project(variables, **values):
    """Sets the projection's BatchNorm parameters."""
    params = variables["params"]
    bn = {k: np.full_like(v, values.get(k, v)) for k, v in params["project"]["bn"].items()}
    project = {**params["project"], "bn": bn}
    return {**variables, "params": {**params, "project": project}}


# Activations


def test_names_are_the_specs():
    assert tuple(layers.ACTIVATIONS) == specs.ACTIVATIONS
    assert tuple(layers.SE_GATES) == specs.SE_GATES


@pytest.mark.parametrize("name", specs.ACTIVATIONS)
def test_activation_values(name):
    x = np.linspace(-8, 8, 161)
    got = layers.ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, reference.ACTIVATIONS[name](x), rtol=1e-5, atol=1e-5)


def test_activation_values_by_hand():
    def at(name, *values):
        return [round(float(y), 4) for y in layers.ACTIVATIONS[name](jnp.array(values))]

    assert at("relu", -1.0, 0.0, 7.0) == [0, 0, 7]
    assert at("relu6", -1.0, 3.0, 6.0, 7.0) == [0, 3, 6, 6]
    assert at("hswish", -4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0) == [0, 0, -0.3333, 0, 0.6667, 3, 4]
    assert at("silu", 1.0, -1.0) == [0.7311, -0.2689]
    assert at("leaky_relu", -1.0, 1.0) == [-0.01, 1]
    assert at("elu", -1.0, 1.0) == [-0.6321, 1]
    assert at("mish", 1.0) == [0.8651]
    assert at("gelu", 1.0) == [0.8412]
    assert at("linear", -2.0) == [-2]
    gate = layers.SE_GATES["hard_sigmoid"](jnp.array([-3.0, 0.0, 1.5, 3.0, 9.0]))
    np.testing.assert_allclose(gate, [0, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_slopes_by_hand():
    """Of the outer side at kinks, as jax.nn.relu's."""

    def at(name, *values):
        first = jax.grad(layers.ACTIVATIONS[name])
        slopes = jax.vmap(jax.value_and_grad(first))(jnp.array(values))
        return [[round(float(y), 4) for y in column] for column in slopes]

    assert at("relu", -1.0, 0.0, 7.0) == [[0, 0, 1], [0, 0, 0]]
    assert at("relu6", -1.0, 0.0, 3.0, 6.0, 7.0) == [[0, 0, 1, 0, 0], [0] * 5]
    assert at("hswish", -4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0) == [
        [0, 0, 0.1667, 0.5, 0.8333, 1, 1],
        [0, 0, 0.3333, 0.3333, 0.3333, 0, 0],
    ]


@pytest.mark.parametrize("name", ["relu6", "hswish"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_slopes_are_those_of_differentiated_values(name, dtype):
    """Between the kinks, those that JAX derives from the definition; to the dtype's rounding."""
    definition = {"relu6": jax.nn.relu6, "hswish": jax.nn.hard_swish}[name]
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.linspace(-7.93, 7.93, 162), dtype)
        x = x[jnp.abs(x) != 3]  # to which bfloat16 rounds two of them
        got, expected = (
            jax.vmap(jax.grad(function))(x) for function in (layers.ACTIVATIONS[name], definition)
        )
        assert got.dtype == x.dtype
        got, expected = (np.asarray(y, np.float64) for y in (got, expected))
        tolerance = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["relu6", "hswish"])
def test_slopes_divide_nothing(name):
    """As JAX's do: of a minimum for ties, of hard_swish by its 6."""
    function = layers.ACTIVATIONS[name]
    both = jax.make_jaxpr(lambda x: jax.vjp(function, x)[1](x))(1.0)
    assert str(both).count(" div ") == str(jax.make_jaxpr(function)(1.0)).count(" div ")


# Convolutions


@pytest.mark.parametrize("padding", specs.PADDINGS)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("depthwise", [True, False])
def test_conv_bn_padding(depthwise, strides, padding):
    """Odd and even sides; Keras V1's fixed padding is that of its depthwise layers alone."""
    spec = dataclasses.replace(SPEC, padding=padding, bn_epsilon=0.1)
    for kernel in (3, 5):
        x = normal(2, 7, 10, 4)
        out = 4 if depthwise else 6
        module = ConvBN(spec, out, kernel, strides, "hswish", depthwise)
        variables = fill(shapes(module, x, False))
        got = module.apply(variables, x, False)
        conv = reference.depthwise if depthwise else reference.convolution
        used = "same" if padding == "bottom_right" and not depthwise else padding
        y = conv(x, variables["params"]["kernel"], strides, used)
        y = reference.batch_norm(y, variables["params"]["bn"], variables["batch_stats"]["bn"], 0.1)
        expected = reference.ACTIVATIONS["hswish"](y)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        sizes = [specs.output_size(size, kernel, strides, used) for size in (7, 10)]
        assert got.shape == (2, *sizes, out)


def test_conv_bn_parameters():
    x = np.zeros((1, 8, 8, 6), np.float32)

    def found(**arguments):
        return jax.tree.map(np.shape, shapes(ConvBN(SPEC, **arguments), x, False))

    def expected(kernel, out):
        bn, stats = {"scale": (out,), "bias": (out,)}, {"mean": (out,), "var": (out,)}
        return {"params": {"kernel": kernel, "bn": bn}, "batch_stats": {"bn": stats}}

    # No bias in front of a BatchNorm.
    assert found(out=4) == expected((6, 4), 4)
    assert found(out=4, kernel=3) == expected((3, 3, 6, 4), 4)
    assert found(out=4, strides=2) == expected((1, 1, 6, 4), 4)
    assert found(out=6, kernel=5, depthwise=True) == expected((5, 5, 6), 6)


def test_batch_statistics_move_by_the_specs_momentum():
    spec = dataclasses.replace(SPEC, bn_momentum=0.75, bn_epsilon=0.01)
    module = ConvBN(spec, 5)
    x = normal(8, 4, 4, 3)
    variables = fill(shapes(module, x, False))
    got, updates = module.apply(variables, x, True, mutable=["batch_stats"])
    y = x.astype(np.float64) @ variables["params"]["kernel"]
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    old, new = variables["batch_stats"]["bn"], updates["batch_stats"]["bn"]
    np.testing.assert_allclose(new["mean"], 0.75 * old["mean"] + 0.25 * mean, rtol=1e-4)
    np.testing.assert_allclose(new["var"], 0.75 * old["var"] + 0.25 * var, rtol=1e-4)
    stats = {"mean": mean, "var": var}
    expected = reference.batch_norm(y, variables["params"]["bn"], stats, 0.01)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


# Initialisation


def truncated_std(kernel, std):
    """Checks mean, standard deviation and the cut at two sigma of the untruncated normal."""
    kernel = np.asarray(kernel).ravel()
    assert kernel.size > 9000
    assert abs(kernel.mean()) < 4 * std / math.sqrt(kernel.size)
    assert kernel.std() == pytest.approx(std, rel=0.03)
    # A normal cut at two sigma keeps 0.8796 of its standard deviation.
    assert np.abs(kernel).max() == pytest.approx(2 * std / 0.87962566, rel=0.02)


@pytest.mark.parametrize(("k", "channels"), [(3, 1024), (5, 512), (7, 256)])
def test_depthwise_init_has_the_fan_of_k_squared(k, channels):
    module = ConvBN(SPEC, channels, k, depthwise=True)
    x = jnp.zeros((1, 1, 1, channels))
    kernel = module.init(jax.random.key(1), x, False)["params"]["kernel"]
    assert kernel.shape == (k, k, channels)
    truncated_std(kernel, math.sqrt(2) / k)


def test_depthwise_init_does_not_depend_on_the_channels():
    def std(channels, key):
        kernel = layers._depthwise_init(jax.random.key(key), (3, 3, channels), jnp.float32)
        return np.asarray(kernel).std()

    assert np.mean([std(16, i) for i in range(64)]) == pytest.approx(std(4096, 0), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "inputs", "fan_out"),
    [
        ({"out": 64}, 320, 64),
        ({"out": 320}, 64, 320),
        ({"out": 128, "kernel": 3}, 16, 9 * 128),
    ],
)
def test_convolution_init_has_the_fan_of_the_outputs(arguments, inputs, fan_out):
    variables = ConvBN(SPEC, **arguments).init(
        jax.random.key(2), jnp.zeros((1, 1, 1, inputs)), False
    )
    truncated_std(variables["params"]["kernel"], math.sqrt(2 / fan_out))
    bn = variables["params"]["bn"]
    stats = variables["batch_stats"]["bn"]
    assert set(np.asarray(bn["scale"])) == set(np.asarray(stats["var"])) == {1.0}
    assert set(np.asarray(bn["bias"])) == set(np.asarray(stats["mean"])) == {0.0}


# Squeeze-and-excite


@pytest.mark.parametrize("gate", specs.SE_GATES)
def test_squeeze_excite_is_numpys(gate):
    x = 2 * normal(3, 5, 4, 16) + 3 * normal(16)
    module = SqueezeExcite(8, gate)
    params = fill(shapes(module, x))["params"]
    assert jax.tree.map(np.shape, params) == {
        "reduce": {"kernel": (16, 8), "bias": (8,)},
        "expand": {"kernel": (8, 16), "bias": (16,)},
    }
    got = module.apply({"params": params}, x)
    expected = reference.squeeze_excite(x.astype(np.float64), params, gate)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # One gate per image and channel; some are shut, some are open.
    gates = np.asarray(got) / x
    assert np.ptp(gates, axis=(1, 2)).max() < 1e-5
    assert gates.min() < 0.3
    assert gates.max() > 0.7


def test_squeeze_excite_is_after_the_depthwise_activation():
    """With the gate's bias at a shut gate, the projection sees zeros."""
    x = normal(2, 4, 4, 8)
    row = Block(3, 16, 8, True, "relu", 2)
    module, variables = block(row, x)
    expand = variables["params"]["se"]["expand"]
    expand["kernel"][:], expand["bias"][:] = 0, -3
    y, _ = module.apply(variables, x, False)
    stats, bn = (variables[k]["project"]["bn"] for k in ("batch_stats", "params"))
    constant = reference.batch_norm(np.zeros(8), bn, stats, SPEC.bn_epsilon)
    np.testing.assert_allclose(y, np.broadcast_to(constant, y.shape), rtol=1e-5, atol=1e-5)
    # Open, it is the block without SE.
    expand["bias"][:] = 3
    y, _ = module.apply(variables, x, False)
    without, _ = MobileBlock(SPEC, dataclasses.replace(row, se=False)).apply(variables, x, False)
    np.testing.assert_allclose(y, without, rtol=1e-5, atol=1e-5)


# The block


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        (Block(3, 48, 8, False, "relu6", 1), True),
        (Block(5, 32, 8, True, "hswish", 1), True),
        (Block(3, 8, 8, False, "relu", 1), True),
        (Block(3, 48, 8, False, "relu6", 2), False),
        (Block(3, 48, 16, False, "relu6", 1), False),
        (Block(3, 48, 8, False, "relu6", 1, shortcut="none"), False),
        (Block(3, 48, 8, False, "relu6", 1, shortcut="expansion"), False),
        (Block(3, 48, 8, False, "relu6", 1, "relu6"), True),
        (Block(3, 4, 8, False, "relu", 1, "relu"), True),
    ],
)
@pytest.mark.parametrize("size", [4, 1])
def test_shortcut_only_where_stride_is_1_and_shapes_are_equal(row, taken, size):
    """With the projection's scale and bias at zero, the block is the identity, or zero."""
    x = normal(2, size, size, 8)
    module, variables = block(row, x)
    y, _ = module.apply(with_project(variables, scale=0.0, bias=0.0), x, False)
    if taken:
        np.testing.assert_array_equal(y, x)
    else:
        assert not np.any(y)
    # Otherwise the input is added to what the block without shortcut gives.
    y, _ = module.apply(variables, x, False)
    plain, _ = MobileBlock(SPEC, dataclasses.replace(row, shortcut="none")).apply(
        variables, x, False
    )
    # Expansions that a shortcut reads, too, are matrix products: other rounding.
    np.testing.assert_allclose(y, plain + x if taken else plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "channels", "train", "implementation", "expected"),
    [
        (Block(3, 48, 8, False, "relu6", 1), 8, False, None, 1),
        (Block(3, 48, 8, False, "relu6", 1), 8, False, "shift", 1),
        (Block(3, 96, 8, False, "relu6", 1), 24, False, None, 2),
        (Block(3, 48, 8, False, "relu6", 1), 8, False, "lax", 2),
        (Block(3, 48, 8, False, "relu6", 1, shortcut="expansion"), 8, False, None, 2),
        (Block(3, 48, 8, False, "relu6", 1, convolution="standard"), 8, False, None, 1),
        (Block(3, 4, 8, False, "relu6", 1), 8, False, None, 2),
        (Block(3, 48, 8, False, "relu6", 1), 8, True, None, 2),
    ],
)
def test_matrix_products_of_a_block(row, channels, train, implementation, expected):
    """The projection's; and the expansion's, but in inference of few channels, by one reader."""
    x = jnp.zeros((2, 4, 4, channels))
    module = MobileBlock(SPEC, row, depthwise_implementation=implementation)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))

    def run(variables, x):
        return module.apply(variables, x, train, mutable=["batch_stats"] if train else [])

    text = jax.jit(run).lower(variables, x).as_text()
    assert text.count("stablehlo.dot_general") == expected


def test_no_expand_layer_where_t_is_1():
    x = normal(1, 4, 4, 8)
    _, variables = block(Block(3, 8, 16, False, "relu", 1), x)
    assert sorted(variables["params"]) == ["depthwise", "project"]
    _, variables = block(Block(3, 16, 16, True, "relu", 1), x)
    assert sorted(variables["params"]) == ["depthwise", "expand", "project", "se"]
    _, variables = block(Block(3, 16, 16, True, "relu", 1, convolution="standard"), x)
    assert sorted(variables["params"]) == ["expand", "full", "se"]


def test_expansion_shortcut_adds_the_expansion_before():
    x, before = normal(2, 4, 4, 8), normal(2, 4, 4, 24)
    row = Block(3, 24, 8, False, "relu6", 1, shortcut="expansion")
    module, variables = block(row, x)
    expand = ConvBN(SPEC, 24, activation="relu6")
    own = expand.apply({k: v["expand"] for k, v in variables.items()}, x, False)
    _, expanded = module.apply(variables, x, False)
    np.testing.assert_array_equal(expanded, own)
    y, expanded = module.apply(variables, x, False, before)
    np.testing.assert_array_equal(expanded, own + before)
    # The rest of the block runs on the sum: the same as a block whose input it is.
    rest = MobileBlock(SPEC, dataclasses.replace(row, shortcut="none"))
    rest_variables = {
        k: {name: v[name] for name in ("depthwise", "project")} for k, v in variables.items()
    }
    again, _ = rest.apply(rest_variables, expanded, False)
    np.testing.assert_allclose(y, again, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 4, 16), (2, 2, 2, 24), (2, 8, 8, 24)])
def test_expansion_shortcut_needs_equal_shapes(shape):
    x = normal(2, 4, 4, 8)
    module, variables = block(Block(3, 24, 8, False, "relu6", 1, shortcut="expansion"), x)
    np.testing.assert_array_equal(
        module.apply(variables, x, False, normal(*shape))[0], module.apply(variables, x, False)[0]
    )


@pytest.mark.parametrize("shortcut", ["bottleneck", "none"])
def test_other_shortcuts_ignore_the_expansion_before(shortcut):
    x = normal(2, 4, 4, 8)
    module, variables = block(Block(3, 24, 8, False, "relu6", 1, shortcut=shortcut), x)
    np.testing.assert_array_equal(
        module.apply(variables, x, False, normal(2, 4, 4, 24))[0],
        module.apply(variables, x, False)[0],
    )


def test_linear_bottleneck_is_linear():
    """Outputs have both signs; doubling the projection's scale and bias doubles them exactly."""
    x = normal(2, 6, 6, 8)
    row = Block(3, 24, 12, False, "relu6", 1)
    module, variables = block(row, x)
    y, _ = module.apply(variables, x, False)
    assert np.mean(np.asarray(y) < 0) > 0.2
    assert np.mean(np.asarray(y) > 0) > 0.2
    bn = variables["params"]["project"]["bn"]
    doubled = with_project(variables, scale=2 * bn["scale"], bias=2 * bn["bias"])
    np.testing.assert_allclose(module.apply(doubled, x, False)[0], 2 * y, rtol=1e-5, atol=1e-5)
    rectified = MobileBlock(SPEC, dataclasses.replace(row, projection_activation="relu6"))
    np.testing.assert_array_equal(
        rectified.apply(variables, x, False)[0], np.clip(np.asarray(y), 0, 6)
    )


def test_block_computes_in_its_dtype_with_float32_parameters():
    x = normal(2, 4, 4, 8)
    row = Block(3, 16, 8, True, "hswish", 1)
    module = MobileBlock(SPEC, row, jnp.bfloat16)
    found = shapes(module, x.astype(jnp.bfloat16), False)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float32"}
    variables = fill(found)
    y, _ = module.apply(variables, x.astype(jnp.bfloat16), False)
    assert y.dtype == jnp.bfloat16
    exact, _ = MobileBlock(SPEC, row).apply(variables, x, False)
    error = np.abs(np.asarray(y, np.float32) - exact).max()
    assert 0 < error < 0.03 * np.abs(exact).max()
