"""Whole networks: the spec's variables, numpy's outputs, gradients everywhere, every switch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

import mobilenets_jax
from mobilenets_jax import costs
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.specs import RULES, Block, Conv, Spec, list_models, scale
from mobilenets_jax.switches import SWITCHES, build_spec, set_activation

MODELS = list_models()
ALPHAS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
# The arithmetic is the same; compiling takes half the time.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

# A network with everything in it, small enough to compile in a second.
TINY = reference.TINY


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def single(variables):
    return jax.tree.map(np.float32, variables)


def by_path(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in flat}


def evaluate(model, variables, x):
    return np.asarray(fast_jit(model.apply)(variables, x), np.float64)


def training_step(model):
    """(params, batch_stats, x, dropout key) -> logits, new batch_stats, gradients."""

    def step(params, batch_stats, x, key):
        def loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            weights = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
            return jnp.sum(logits * weights), (logits, updates["batch_stats"])

        gradients, (logits, new) = jax.grad(loss, has_aux=True)(params)
        return logits, new, gradients

    return fast_jit(step)


@pytest.fixture(scope="module")
def tiny():
    """A small network, its variables, its training step and its compiled evaluation."""
    model = MobileNet(TINY)
    variables = single(reference.random_variables(model))
    return model, variables, training_step(model), fast_jit(model.apply)


# Variables


def expected_variables(spec):
    """Path -> shape of every parameter and statistic, from the layers that are counted."""
    params, stats = {}, {}
    for layer in costs.layers(spec):
        inputs, outputs = layer.input[2], layer.output[2]
        if layer.kind == "pool":
            continue
        if layer.kind == "se":
            squeeze = layer.macs // (2 * inputs)
            params[f"{layer.name}/reduce/kernel"] = (inputs, squeeze)
            params[f"{layer.name}/reduce/bias"] = (squeeze,)
            params[f"{layer.name}/expand/kernel"] = (squeeze, inputs)
            params[f"{layer.name}/expand/bias"] = (inputs,)
            continue
        if layer.kind == "depthwise":
            k = math.isqrt(layer.weights // inputs)
            kernel = (k, k, inputs)
        else:
            k = math.isqrt(layer.weights // (inputs * outputs))
            kernel = (inputs, outputs) if k == 1 else (k, k, inputs, outputs)
        params[f"{layer.name}/kernel"] = kernel
        if layer.bn_channels:
            params |= {f"{layer.name}/bn/{leaf}": (outputs,) for leaf in ("scale", "bias")}
            stats |= {f"{layer.name}/bn/{leaf}": (outputs,) for leaf in ("mean", "var")}
        elif layer.biases:
            params[f"{layer.name}/bias"] = (outputs,)
    return params, stats


def assert_variables(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sorted(variables) == ["batch_stats", "params"]
    leaves = jax.tree.leaves(variables)
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}
    params, stats = expected_variables(model.spec)
    assert {k: v.shape for k, v in by_path(variables["params"]).items()} == params
    assert {k: v.shape for k, v in by_path(variables["batch_stats"]).items()} == stats
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == costs.params(model.spec)


@pytest.mark.parametrize("name", MODELS)
def test_initialised_variables_are_the_counted_ones(name):
    """At every second alpha, neighbours in the list at the others; each with another rule."""
    rules = [rule for rule in RULES if name != "mobilenet_v1" or rule != "torchvision"]
    for i, alpha in enumerate(ALPHAS[MODELS.index(name) % 2 :: 2]):
        rule = rules[i % len(rules)]
        assert_variables(create_model(name, 10 * i + 1, alpha, rule=rule))


@pytest.mark.parametrize("name", MODELS)
def test_switched_variables_are_the_counted_ones(name):
    """Every second combination, neighbours in the list the others."""
    combinations = (
        (0.5, {"standard_conv": True, "se": True}),
        (0.75, {"se": False, "drop_strides": 2, "shortcut": "none"}),
        (1.4, {"se": True, "stem": 16}),
        (0.35, {"stem": 32, "shortcut": "expansion"}),
        (0.75, {"last_stage": "original", "residual": "classical"}),
        (0.5, {"residual": "classical", "shortcut": "expansion"}),
        (1.0, {"last_stage": "shortened", "standard_conv": True}),
        (0.5, {"last_stage": "shortened", "linear_bottleneck": False}),
        (0.25, {"shallow": True, "se": True}),
        (1.3, {"shallow": True}),
    )
    variants = {
        "mobilenet_v1": (0.5, {"timm_variant": "h"}),
        "mobilenet_v2": (1.2, {"depth": 1.4}),
        "mobilenet_v3_large": (0.75, {"timm_variant": "rw"}),
    }
    if name in variants:
        alpha, switches = variants[name]
        assert_variables(create_model(name, 10, alpha, **switches))
    for alpha, switches in combinations[MODELS.index(name) % 2 :: 2]:
        v1_only, not_v1 = "shallow" in switches, {"last_stage", "residual"} & set(switches)
        if not (not_v1 if name == "mobilenet_v1" else v1_only):
            assert_variables(create_model(name, 10, alpha, **switches))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_variables_are_the_counted_ones_at_every_alpha_and_rule(name):
    for alpha in ALPHAS:
        for rule in RULES:
            if name != "mobilenet_v1" or rule != "torchvision":
                assert_variables(create_model(name, 2, alpha, rule=rule))


def test_initial_values():
    init = fast_jit(MobileNet(TINY).init)
    variables = init(jax.random.key(0), images(1, 16, 16))
    flat = by_path(variables["params"])
    for path, leaf in flat.items():
        if path.endswith("bias"):
            assert not np.any(leaf), path
        if path.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
    for path, leaf in by_path(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, 1 if path.endswith("var") else 0)
    assert np.std(flat["classifier/kernel"]) == pytest.approx(0.01, rel=0.3)
    assert np.std(flat["head/kernel"]) == pytest.approx(math.sqrt(2 / 32), rel=0.1)
    # Another key gives other kernels; the same key the same.
    other = init(jax.random.key(1), images(1, 16, 16))
    for path, leaf in by_path(other["params"]).items():
        assert np.any(leaf != flat[path]) == path.endswith("kernel"), path


# Against numpy


@pytest.mark.parametrize(
    ("name", "alpha", "switches"),
    [
        ("mobilenet_v1", 0.25, {"padding": "bottom_right"}),
        ("mobilenet_v2", 0.35, {"padding": "same"}),
        ("mobilenet_v3_small", 0.35, {"padding": "symmetric", "bn_epsilon": 0.02}),
        ("mobilenet_v3_small", 0.35, {"drop_strides": 2, "se_gate": "sigmoid"}),
    ],
)
def test_network_is_numpys(name, alpha, switches):
    """Logits and features of the whole network in evaluation, in float64 and float32."""
    spec = build_spec(name, 7, alpha, **switches)
    x = images(2, 33, 48).astype(np.float64)
    variables = reference.random_variables(MobileNet(spec))
    logits, features = reference.network(spec, variables, x)
    assert np.abs(logits).max() > 0.1
    assert np.ptp(logits, axis=0).max() > 0.01

    def both(model):
        def apply(variables, x):
            return model.apply(variables, x), model.apply(variables, x, features=True)

        compiled = fast_jit(apply)
        return lambda *arguments: jax.tree.map(np.asarray, compiled(*arguments))

    with jax.enable_x64(True):
        got = both(create_model(name, 7, alpha, dtype="float64", **switches))(variables, x)
    results = [(got, 1e-9, np.float64)]
    got = both(create_model(name, 7, alpha, **switches))(single(variables), np.float32(x))
    results.append((got, 1e-4, np.float32))
    for (got_logits, got_features), tolerance, dtype in results:
        assert sorted(got_features) == sorted(features)
        pairs = [(got_logits, logits), *((got_features[s], features[s]) for s in features)]
        for a, b in pairs:
            assert a.dtype == dtype
            assert a.shape == b.shape
            assert np.abs(a - b).max() < tolerance * np.abs(b).max()


# Every model


@pytest.mark.parametrize(
    "name",
    # The others are made of the same blocks.
    [
        name
        if name in ("mobilenet_v2", "mobilenet_v3_large")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_gradient_reaches_every_parameter(name):
    """And every statistic moves.

    One kind of parameter has a zero gradient by the papers' definition: a linear bottleneck's
    BatchNorm bias shifts only what passes through 1×1 convolutions and shortcuts to the next
    BatchNorm, which subtracts the batch's mean. In evaluation it counts (next test).
    """
    model = create_model(name, 3, alpha=0.25)
    variables = single(reference.random_variables(model))
    old = by_path(variables["batch_stats"])
    logits, new, gradients = training_step(model)(
        variables["params"], variables["batch_stats"], images(4, 64, 64), jax.random.key(0)
    )
    assert logits.shape == (4, 3)
    assert np.all(np.isfinite(logits))
    gradients = by_path(gradients)
    assert list(gradients) == list(by_path(variables["params"]))
    shifts = {
        f"blocks_{i}/project/bn/bias"
        for i, row in enumerate(model.spec.blocks)
        if row.projection_activation == "linear"
    }
    for path, gradient in gradients.items():
        assert gradient.dtype == np.float32, path
        assert np.all(np.isfinite(gradient)), path
        size = np.abs(gradient).max()
        if path in shifts:
            assert size < 1e-5 * np.abs(gradients[path.replace("bias", "scale")]).max(), path
        else:
            assert size > 1e-3, path
    new = by_path(new)
    assert list(new) == list(old)
    for path, statistic in new.items():
        assert statistic.dtype == np.float32, path
        assert np.all(np.isfinite(statistic)), path
        assert np.mean(statistic != old[path]) > 0.9, path


def test_gradient_of_evaluation_reaches_every_parameter(tiny):
    """Those of the linear bottlenecks' BatchNorm included."""
    model, variables, _, _ = tiny
    stats, x = variables["batch_stats"], images(2, 32, 32)

    def loss(params):
        logits = model.apply({"params": params, "batch_stats": stats}, x)
        return jnp.sum(logits * jnp.cos(jnp.arange(10.0)).reshape(2, 5))

    for path, gradient in by_path(fast_jit(jax.grad(loss))(variables["params"])).items():
        assert np.abs(gradient).max() > 1e-3, path


def assert_finite(name, alpha, resolution):
    model = create_model(name, 1, alpha)
    variables = single(reference.random_variables(model))
    logits = evaluate(model, variables, images(2, resolution, resolution))
    assert logits.shape == (2, 1)
    assert np.all(np.isfinite(logits))
    assert logits[0] != logits[1]


@pytest.mark.parametrize(
    ("name", "alpha", "resolution"),
    [
        ("mobilenet_v1", 0.25, 33),
        ("mobilenet_v2", 1.4, 97),
        ("mobilenet_v3_large", 0.35, 97),
        ("mobilenet_v3_small", 0.5, 33),
        ("mobilenet_v3_large_minimalistic", 0.75, 33),
        ("mobilenet_v3_small_minimalistic", 1.3, 97),
    ],
)
def test_finite_at_odd_resolutions_with_one_class(name, alpha, resolution):
    assert_finite(name, alpha, resolution)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", MODELS)
def test_finite_at_every_alpha(name, alpha):
    for resolution in (33, 97):
        assert_finite(name, alpha, resolution)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_bfloat16_is_near_float32(name):
    """An error of rounding that grows with depth: a random network amplifies any change."""
    model, half = create_model(name, alpha=0.25), create_model(name, alpha=0.25, dtype="bfloat16")
    assert_variables(half)
    variables = single(reference.random_variables(model))
    x = images(4, 64, 64)
    exact, got = (
        fast_jit(functools.partial(m.apply, features=True))(variables, x) for m in (model, half)
    )
    for stride, limit in ((2, 0.01), (4, 0.02), (8, 0.04), (16, 0.15), (32, 0.25)):
        assert got[stride].dtype == jnp.bfloat16
        error = np.linalg.norm(np.float32(got[stride]) - exact[stride])
        assert 0 < error < limit * np.linalg.norm(exact[stride]), stride
    logits = jax.eval_shape(half.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((4, 1000), jnp.float32)


def test_training_in_bfloat16_keeps_float32_state(tiny):
    _, variables, step, _ = tiny
    arguments = variables["params"], variables["batch_stats"], images(8, 32, 32), jax.random.key(0)
    logits, new, gradients = training_step(MobileNet(TINY, jnp.bfloat16))(*arguments)
    exact_logits, exact_new, exact_gradients = step(*arguments)
    for leaf in jax.tree.leaves((logits, new, gradients)):
        assert leaf.dtype == np.float32
    pairs = [(logits, exact_logits)]
    pairs += zip(jax.tree.leaves(new), jax.tree.leaves(exact_new), strict=True)
    for a, b in pairs:
        assert np.abs(a - b).max() < 0.05 * np.abs(b).max()
    a, b = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)])
        for t in (gradients, exact_gradients)
    )
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


# Features


@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_last_map_at_each_stride(name):
    for alpha, dropped in ((1.0, 0), (0.5, 1), (1.0, 3)):
        model = create_model(name, alpha=alpha, drop_strides=dropped)
        x = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        apply = functools.partial(model.apply, features=True)
        found = jax.eval_shape(apply, variables, x)
        # The width behind the last row of each total stride.
        stride = model.spec.stem.strides
        widths = {stride: model.spec.stem.out}
        for row in model.spec.blocks:
            stride *= row.strides
            widths[stride] = row.out
        start = 1 if dropped else 2
        assert (
            list(found)
            == list(widths)
            == [s for s in (1, 2, 4, 8, 16, 32)[start - 1 :] if s <= 32 >> dropped]
        )
        for stride, feature in found.items():
            assert feature.shape == (2, 96 // stride, 64 // stride, widths[stride])


def test_features_need_no_head():
    """A backbone's variables alone, which `init` gives with features=True."""
    model = MobileNet(TINY)
    init = functools.partial(model.init, features=True)
    backbone = jax.eval_shape(init, jax.random.key(0), images(1, 32, 32))
    missing = {"last", "head", "classifier"}
    whole = jax.eval_shape(model.init, jax.random.key(0), images(1, 32, 32))
    assert set(whole["params"]) - set(backbone["params"]) == missing


# Training and evaluation


def test_statistics_of_training_are_used_in_evaluation(tiny):
    _, variables, step, apply = tiny
    params, stats, x = variables["params"], variables["batch_stats"], images(8, 32, 32)
    before = apply(variables, x)
    logits, new, _ = step(params, stats, x, jax.random.key(0))
    assert np.any(apply({"params": params, "batch_stats": new}, x) != before)
    # In training the batch's own statistics normalise, whatever the running ones are.
    others = jax.tree.map(lambda s: 2 * s + 1, stats)
    again, new_others, _ = step(params, others, x, jax.random.key(0))
    np.testing.assert_array_equal(logits, again)
    # Steps on one batch lead to statistics with which evaluation is training without dropout.
    m = TINY.bn_momentum
    batch = jax.tree.map(lambda new, old: (new - m * old) / (1 - m), new, stats)
    for path, value in by_path(batch).items():
        other = (by_path(new_others)[path] - m * by_path(others)[path]) / (1 - m)
        np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-3)
    plain = training_step(MobileNet(dataclasses.replace(TINY, dropout=0.0)))
    trained, _, _ = plain(params, stats, x, jax.random.key(0))
    evaluated = apply({"params": params, "batch_stats": batch}, x)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-3)


def test_evaluation_of_an_image_does_not_depend_on_the_batch(tiny):
    _, variables, step, apply = tiny
    x = images(8, 32, 32)
    y = apply(variables, x)
    mixed = apply(variables, np.concatenate([x[:1], 5 * x[1:]]))
    np.testing.assert_array_equal(y[0], mixed[0])
    np.testing.assert_array_equal(y, apply(variables, x))
    # In training it does.
    params, stats = variables["params"], variables["batch_stats"]
    key = jax.random.key(0)
    a, _, _ = step(params, stats, x, key)
    b, _, _ = step(params, stats, np.concatenate([x[:1], 5 * x[1:]]), key)
    assert np.any(a[0] != b[0])


def test_dropout_in_training_only(tiny):
    model, variables, step, _ = tiny
    params, stats, x = variables["params"], variables["batch_stats"], images(8, 32, 32)
    a, new_a, _ = step(params, stats, x, jax.random.key(0))
    b, new_b, _ = step(params, stats, x, jax.random.key(1))
    assert np.any(a != b)
    for one, other in zip(jax.tree.leaves(new_a), jax.tree.leaves(new_b), strict=True):
        np.testing.assert_array_equal(one, other)
    # Without dropout, training needs no key; evaluation never does.
    keyless = MobileNet(dataclasses.replace(TINY, dropout=0.0))
    apply = functools.partial(keyless.apply, train=True, mutable=["batch_stats"])
    jax.eval_shape(apply, variables, x)
    jax.eval_shape(model.apply, variables, x)


# Switches


# Applied to TINY, whose rows are unlike enough for every one to show.
CHANGES = {
    "last_stage": "original",
    "stem": 32,
    "expansion": 3,
    "residual": "classical",
    "se": False,
    "shortcut": "none",
    "hswish_from": 56,
    "linear_bottleneck": False,
    "standard_conv": True,
    "drop_strides": 1,
}
SAME_VARIABLES = ("shortcut", "hswish_from", "linear_bottleneck", "drop_strides")


def test_every_switch_changes_the_result_or_the_variables(tiny):
    _, variables, _, apply = tiny
    x = images(2, 32, 32)
    base, shapes = np.asarray(apply(variables, x)), jax.tree.map(np.shape, variables)
    results = {"paper": base}
    for key, value in CHANGES.items():
        model = MobileNet(SWITCHES[key](TINY, value))
        own = single(reference.random_variables(model))
        same = jax.tree.map(np.shape, own) == shapes
        assert same == (key in SAME_VARIABLES), key
        assert same == (costs.params(model.spec) == costs.params(TINY)), key
        results[key] = evaluate(model, variables if same else own, x)
    changes = {
        "expansion": SWITCHES["shortcut"](TINY, "expansion"),
        "activation": set_activation(TINY, "silu"),
        "everywhere": set_activation(TINY, "silu", everywhere=True),
        "padding": dataclasses.replace(TINY, padding="symmetric"),
        "bn_epsilon": dataclasses.replace(TINY, bn_epsilon=0.1),
        "se_gate": dataclasses.replace(TINY, se_gate="sigmoid"),
        "se_activation": dataclasses.replace(TINY, se_activation="block"),
    }
    for key, spec in changes.items():
        results[key] = evaluate(MobileNet(spec), variables, x)
    for key, value in results.items():
        assert np.all(np.isfinite(value)), key
        for other in results:
            assert other == key or np.abs(value - results[other]).max() > 1e-4, (key, other)
    # Of V1, V2 and V3 Large only.
    assert set(CHANGES) | {"shallow", "depth", "timm_variant"} == set(SWITCHES)


def test_shallow_and_alpha_change_the_network():
    for switches in ({"shallow": True}, {"alpha": 0.5}):
        spec = build_spec("mobilenet_v1", **switches)
        assert costs.params(spec) < costs.params(build_spec("mobilenet_v1"))


def test_standard_convolutions_are_numpys():
    """Each block: expand, then SE, then one full convolution, then the shortcut."""
    spec = SWITCHES["standard_conv"](TINY, True)
    model = MobileNet(spec)
    variables = reference.random_variables(model)
    x = images(2, 12, 10).astype(np.float64)
    params, stats = variables["params"], variables["batch_stats"]

    def conv_bn(x, path, strides, activation):
        p, s = params, stats
        for name in path.split("/"):
            p, s = p[name], s[name]
        kernel = p["kernel"] if p["kernel"].ndim == 4 else p["kernel"][None, None]
        x = reference.convolution(x, kernel, strides, "same")
        x = reference.batch_norm(x, p["bn"], s["bn"], spec.bn_epsilon)
        return reference.ACTIVATIONS[activation](x)

    y = conv_bn(x, "stem", 2, "hswish")
    for i, row in enumerate(TINY.blocks):
        before = y
        if row.expansion != y.shape[-1]:
            y = conv_bn(y, f"blocks_{i}/expand", 1, row.activation)
        if row.se:
            y = reference.squeeze_excite(y, params[f"blocks_{i}"]["se"], spec.se_gate)
        y = conv_bn(y, f"blocks_{i}/full", row.strides, "linear")
        if y.shape == before.shape:
            y = y + before
    got = fast_jit(functools.partial(model.apply, features=True))(single(variables), np.float32(x))
    assert np.abs(got[4] - y).max() < 1e-4 * np.abs(y).max()


def test_shortcuts_between_expansions_are_numpys():
    """V2, Fig. 6b: the expanded tensor is added to the next one where nothing strides between."""
    rows = (
        Block(3, 24, 8, False, "relu6", 1),
        Block(3, 24, 16, False, "relu6", 1),
        Block(3, 24, 16, False, "relu6", 2),
        Block(3, 24, 16, False, "relu6", 1),
        Block(3, 32, 16, False, "relu6", 1),
    )
    spec = Spec("expansions", "v2", Conv(3, 8, "relu6", 2), rows, Conv(1, 16, "relu6"))
    spec = SWITCHES["shortcut"](spec, "expansion")
    model = MobileNet(spec)
    variables = reference.random_variables(model)
    params, stats = variables["params"], variables["batch_stats"]

    def bn(x, *path):
        p, s = params, stats
        for name in path:
            p, s = p[name], s[name]
        return reference.batch_norm(x, p["bn"], s["bn"], spec.bn_epsilon)

    # Even one pixel, where a stride changes no shape.
    for size in (12, 1):
        x = images(2, size, size).astype(np.float64)
        y = reference.convolution(x, params["stem"]["kernel"], 2, "same")
        y = np.clip(bn(y, "stem"), 0, 6)
        expanded = []
        for i, row in enumerate(rows):
            name = f"blocks_{i}"
            y = np.clip(bn(y @ params[name]["expand"]["kernel"], name, "expand"), 0, 6)
            if i in (1, 2):
                y = y + expanded[-1]
            expanded.append(y)
            kernel = params[name]["depthwise"]["kernel"]
            y = reference.depthwise(y, kernel, row.strides, "same")
            y = np.clip(bn(y, name, "depthwise"), 0, 6)
            y = bn(y @ params[name]["project"]["kernel"], name, "project")
        apply = fast_jit(functools.partial(model.apply, features=True))
        got = apply(single(variables), np.float32(x))
        assert np.abs(got[4] - y).max() < 1e-4 * np.abs(y).max()


# create_model


def test_create_model_is_build_spec():
    arguments = {"rule": "slim", "padding": "symmetric", "se": False, "drop_strides": 1}
    model = mobilenets_jax.create_model("mobilenet_v3_large", 7, 0.75, "silu", **arguments)
    assert model == MobileNet(build_spec("mobilenet_v3_large", 7, 0.75, "silu", **arguments))
    assert model.dtype == jnp.float32
    assert hash(model) == hash(create_model("mobilenet_v3_large", 7, 0.75, "silu", **arguments))
    assert create_model("mobilenet_v1").spec.num_classes == 1000
    assert create_model("mobilenet_v2", alpha=0.5).spec == scale(build_spec("mobilenet_v2"), 0.5)
    assert mobilenets_jax.create_model is create_model
    assert mobilenets_jax.list_models() == MODELS
    with pytest.raises(AttributeError, match="has no attribute 'create_models'"):
        mobilenets_jax.create_models  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mobilenet_v7"}, "Unknown model 'mobilenet_v7'. Did you mean 'mobilenet_v"),
        ({"dtype": "bf16"}, "Unknown dtype 'bf16'."),
        ({"dtype": "float16"}, "Unknown dtype 'float16'. Did you mean 'bfloat16'?"),
        ({"dtype": "float64"}, "dtype 'float64' needs jax.config.update('jax_enable_x64', True)."),
        ({"alpha": 0}, "alpha must be a positive number up to 100, not 0."),
        ({"num_classes": -1}, "num_classes must be a positive integer, not -1."),
        ({"aplha": 0.5}, "Unknown model switch 'aplha'. Did you mean 'alpha'?"),
        ({"se": "on"}, "se must be True, False or None, not 'on'."),
        ({"activation": "relu8"}, "Unknown activation 'relu8'. Did you mean 'relu"),
    ],
)
def test_create_model_rejects(arguments, message):
    with pytest.raises(InputError) as caught:
        create_model(**{"name": "mobilenet_v2", **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
