"""Inference by chunks of the batch gives what the whole batch gives, where it is meant to."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mobilenets_jax import chunks, costs
from mobilenets_jax.fold import fold_batch_norm
from mobilenets_jax.model import MobileNet
from mobilenets_jax.specs import Block, Conv, Spec, list_models, table

pytestmark = pytest.mark.usefixtures("unoptimized")
DEVICES = 8


# The plan


def test_plan_of_v2():
    # 112 × 112 × 96 float32 are 4.8 MB, so two images; from 28 × 28 × 192 (0.6 MB) on, eight.
    spec = table("mobilenet_v2")
    assert chunks.plan(spec, 16, 224, 224, 4) == [(8, 2), (18, 8)]
    # Of half the bytes, the whole batch fits from there on.
    assert chunks.plan(spec, 16, 224, 224, 2) == [(8, 2)]
    assert chunks.plan(spec, 16, 32, 32, 4) == []
    assert chunks.plan(spec, 1, 224, 224, 4) == []
    assert chunks.plan(spec, 2, 224, 224, 4) == []


@given(
    st.sampled_from(list_models()), st.integers(1, 300), st.integers(32, 300), st.integers(32, 300)
)
@settings(max_examples=200, deadline=None)
def test_loops_follow_each_other_and_waste_little(name, batch, height, width):
    spec = table(name)
    loops = chunks.plan(spec, batch, height, width, 4)
    stops = [stop for stop, _ in loops]
    assert stops == sorted(set(stops))
    assert all(1 <= stop <= len(spec.blocks) + 1 for stop in stops)
    for _, images in loops:
        assert 1 < images < batch
        assert -batch % images <= batch / 16


@pytest.mark.parametrize("name", list_models())
def test_widest_feature_maps_are_those_of_the_costs(name):
    widest = {}
    for layer in costs.layers(table(name), 224):
        block = layer.name.split("/")[0]
        shapes = [layer.output] if block == "stem" else [layer.input, layer.output]
        widest[block] = max([widest.get(block, 0), *map(math.prod, shapes)])
    found = list(chunks._widest(table(name), 224, 224))
    names = ["stem", *(f"blocks_{i}" for i in range(len(found) - 1))]
    assert found == [widest[block] for block in names]


# Splitting and joining


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_images_come_back_in_their_order(devices, each, images):
    x = np.arange(devices * each * 2).reshape(devices * each, 2)
    parts = np.asarray(chunks.split(jnp.asarray(x), images, devices))
    assert parts.shape == (-(-each // images), devices * images, 2)
    # A chunk has as many images of each device's part, and zeros where there are no more.
    filled = np.zeros((devices, parts.shape[0] * images, 2), int)
    filled[:, :each] = x.reshape(devices, each, 2)
    for loop, part in enumerate(parts):
        expected = filled[:, loop * images : (loop + 1) * images].reshape(-1, 2)
        np.testing.assert_array_equal(part, expected)
    joined = chunks.join(jnp.asarray(parts), devices * each, devices)
    np.testing.assert_array_equal(joined, x)


# Networks


SPEC = Spec(
    name="tiny",
    family="v3",
    num_classes=5,
    stem=Conv(3, 16, "hswish", 2),
    blocks=(
        #     k  exp out  SE     NL        s
        Block(3, 16, 16, True, "relu", 1),
        Block(3, 32, 24, False, "relu6", 2),
        Block(5, 48, 24, True, "hswish", 1),
        Block(3, 48, 24, False, "relu6", 1),
    ),
    last=Conv(1, 48, "hswish"),
    head=Conv(1, 32, "hswish"),
)
BETWEEN_EXPANSIONS = dataclasses.replace(
    SPEC, blocks=tuple(dataclasses.replace(row, shortcut="expansion") for row in SPEC.blocks)
)
PLANS = {
    "stem": [(1, 2)],
    "all": [(5, 2)],
    "two": [(2, 2), (4, 4)],
    # Between blocks whose expansions meet; 3 images do not divide a device's 8.
    "padded": [(4, 3)],
}


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    monkeypatch.setattr(chunks, "plan", lambda *_: PLANS[request.param])
    return PLANS[request.param]


def setting(spec, batch=8 * DEVICES, **arguments):
    model = MobileNet(spec, **arguments)
    x = np.random.default_rng(0).normal(size=(batch, 16, 16, 3)).astype(np.float32)
    return model, jax.tree.map(np.float32, reference.random_variables(model)), x


def loops(function, *arguments):
    """How many loops over chunks a function's program has."""
    return len(re.findall(r"\bscan\[", str(jax.make_jaxpr(function)(*arguments))))


def whole_batch(function, *arguments):
    """A compiled function's results without chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "plan", lambda *_: [])
        return jax.jit(function)(*arguments)


def assert_equal(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("spec", [SPEC, BETWEEN_EXPANSIONS], ids=["own", "between expansions"])
@pytest.mark.parametrize("folded", [False, True])
def test_logits_are_those_of_the_whole_batch(plan, spec, folded):
    model, variables, x = setting(spec)
    if folded:
        model, variables = fold_batch_norm(model, variables)
    assert loops(model.apply, variables, x) == len(plan)
    logits = jax.jit(model.apply)(variables, x)
    assert np.ptp(logits, axis=0).min() > 1e-2
    assert_equal(logits, whole_batch(model.apply, variables, x))


def test_gradients_are_those_of_the_whole_batch(plan):
    model, variables, x = setting(SPEC)

    def loss(params, x):
        return jnp.sum(model.apply({**variables, "params": params}, x) ** 2)

    gradients = jax.grad(loss, (0, 1))
    found = jax.jit(gradients)(variables["params"], x)
    assert_equal(found, whole_batch(gradients, variables["params"], x))


def test_several_networks_at_once(plan):
    model, variables, x = setting(SPEC)
    scaled = jax.tree.map(lambda leaf: np.stack([leaf, 0.9 * leaf]), variables)
    apply = jax.vmap(model.apply, (0, None))
    assert_equal(jax.jit(apply)(scaled, x), whole_batch(apply, scaled, x))


def test_devices_keep_their_images(plan):
    model, variables, x = setting(SPEC)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.device_put(x, NamedSharding(mesh, P("data")))
    compiled = jax.jit(model.apply).lower(variables, shared).compile()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", compiled.as_text())
    assert " while(" in compiled.as_text()
    logits = compiled(jax.device_put(variables, NamedSharding(mesh, P())), shared)
    assert_equal(logits, whole_batch(model.apply, variables, x))


def test_the_whole_batch_where_chunks_would_be_slower_or_in_the_way(plan, monkeypatch):
    model, variables, x = setting(SPEC)
    assert loops(model.apply, variables, x) == len(plan)

    def found(model=model, x=x, **arguments):
        return loops(functools.partial(model.apply, **arguments), variables, x)

    train = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
    assert found(**train) == 0
    assert found(train=True, frozen=True, rngs=train["rngs"]) == 0
    assert found(features=True) == 0
    assert found(capture_intermediates=True, mutable=["intermediates"]) == 0
    assert found(model.clone(depthwise_implementation="lax")) == 0
    assert found(x=x[: DEVICES + 1]) == 0  # devices have no equal parts
    assert loops(model.init, jax.random.key(0), x) == 0
    seen = []
    monkeypatch.setattr(chunks, "plan", lambda *_: seen.append(1) or [])
    model.apply(variables, x[:8])  # operation by operation, each would compile the loop anew
    assert not seen
    jax.jit(model.apply)(variables, x[:8])
    assert seen
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    seen.clear()
    jax.make_jaxpr(model.apply)(variables, x)
    assert not seen


def test_a_batch_of_unknown_size_is_exported_whole():
    model, variables, x = setting(SPEC)
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    exported = export.export(jax.jit(functools.partial(model.apply, variables)))(images)
    assert "stablehlo.while" not in exported.mlir_module()
    assert_equal(exported.call(x[:3]), jax.jit(model.apply)(variables, x[:3]))
