"""Inference by chunks of the batch gives what the whole batch gives, where it is meant to."""

import dataclasses
import functools
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

from mobilenets_jax import chunks, runtime
from mobilenets_jax.fold import fold_batch_norm
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.specs import PADDINGS, list_models, table

pytestmark = pytest.mark.usefixtures("unoptimized")
DEVICES = 8


# The plan


def test_plan_of_v2():
    # 112 × 112 × 96 of float32 are 4.8 MB: an image for each core. Eight of 14 × 14 × 384 fit.
    spec = table("mobilenet_v2")
    assert chunks.plan(spec, 16, 224, 224, itemsize=4, cores=2) == [(8, 2), (18, 8)]
    # Of half the bytes, the whole batch fits from there on.
    assert chunks.plan(spec, 16, 224, 224, itemsize=2, cores=2) == [(8, 2)]
    # On eight cores, 28 × 28 × 192 of all 16 images (9.6 MB).
    assert chunks.plan(spec, 16, 224, 224, itemsize=4, cores=8) == [(5, 8)]
    for few in (1, 2):
        assert chunks.plan(spec, few, 224, 224, itemsize=4, cores=2) == []
    assert chunks.plan(spec, 16, 32, 32, itemsize=4, cores=2) == []


@given(
    st.sampled_from(list_models()),
    st.sampled_from(PADDINGS),
    st.integers(1, 300),
    st.integers(33, 300),
    st.integers(33, 300),
    st.integers(1, 8),
)
@settings(max_examples=200, deadline=None)
def test_loops_follow_each_other_and_waste_little(name, padding, batch, height, width, cores):
    spec = dataclasses.replace(table(name), padding=padding)
    loops = chunks.plan(spec, batch, height, width, 4, cores)
    stops = [stop for stop, _ in loops]
    assert stops == sorted(set(stops))
    assert all(1 <= stop <= len(spec.blocks) + 1 for stop in stops)
    for _, images in loops:
        assert 1 < images < batch
        assert -batch % images <= batch / 16


def test_widest_feature_maps():
    # V2 at 64 × 32 pixels: the stem's output, what block 0 reads, block 1's expansion of that …
    found = chunks._widest(table("mobilenet_v2"), 64, 32)
    assert found[:4] == [32 * 16 * 32, 32 * 16 * 32, 32 * 16 * 96, 16 * 8 * 144]
    # … and block 16's, which nothing but the last 1×1 follows.
    assert len(found) == 18
    assert found[-1] == 2 * 1 * 960
    # V1's separable layers put out twice what they read.
    assert chunks._widest(table("mobilenet_v1"), 32, 32)[:2] == [16 * 16 * 32, 16 * 16 * 64]


# Splitting and joining


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
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


SPEC = reference.TINY
BETWEEN_EXPANSIONS = dataclasses.replace(
    SPEC, blocks=tuple(dataclasses.replace(row, shortcut="expansion") for row in SPEC.blocks)
)
STANDARD = dataclasses.replace(
    SPEC, blocks=tuple(dataclasses.replace(row, convolution="standard") for row in SPEC.blocks)
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


def setting(spec=SPEC, batch=8 * DEVICES, width=16, **arguments):
    model = MobileNet(spec, **arguments)
    x = np.random.default_rng(0).normal(size=(batch, 16, width, 3)).astype(np.float32)
    return model, jax.tree.map(np.float32, reference.random_variables(model)), x


def program(function, *arguments):
    """Traces a function; one that JAX has not seen, since it keeps what it traced."""
    return jax.make_jaxpr(lambda *given: function(*given))(*arguments)


def loops(function, *arguments):
    """How many loops a function's program has, but for those within what it calls."""
    return sum(each.primitive.name == "scan" for each in program(function, *arguments).eqns)


def compiled(function, *arguments):
    return jax.jit(lambda *given: function(*given))(*arguments)


def whole_batch(function, *arguments):
    """A compiled function's results without chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "plan", lambda *_: [])
        assert loops(function, *arguments) == 0
        return compiled(function, *arguments)


def assert_equal(found, expected, precision=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=precision, atol=precision * np.abs(other).max())


@pytest.mark.parametrize(
    ("spec", "folded", "arguments"),
    [
        (SPEC, False, {}),
        (SPEC, True, {}),
        (SPEC, True, {"width": 24}),
        (SPEC, True, {"dtype": jnp.bfloat16}),
        (BETWEEN_EXPANSIONS, False, {}),
        (STANDARD, False, {}),
    ],
    ids=["own", "folded", "not square", "bfloat16", "between expansions", "standard"],
)
def test_logits_are_those_of_the_whole_batch(plan, spec, folded, arguments):
    model, variables, x = setting(spec, **arguments)
    if folded:
        model, variables = fold_batch_norm(model, variables)
    assert loops(model.apply, variables, x) == len(plan)
    logits = compiled(model.apply, variables, x)
    assert np.ptp(logits, axis=0).min() > 1e-2
    precision = 2e-2 if model.dtype == jnp.bfloat16 else 1e-5
    assert_equal(logits, whole_batch(model.apply, variables, x), precision)


def test_gradients_are_those_of_the_whole_batch(plan):
    model, variables, x = setting()

    def gradients(params, x):
        def loss(params):
            return jnp.sum(model.apply({**variables, "params": params}, x) ** 2)

        return jax.grad(loss)(params)

    assert loops(gradients, variables["params"], x) == 2 * len(plan)  # there and back
    found = compiled(gradients, variables["params"], x)
    assert_equal(found, whole_batch(gradients, variables["params"], x))


def test_several_networks_at_once(plan):
    model, variables, x = setting()
    scaled = jax.tree.map(lambda leaf: np.stack([leaf, 0.9 * leaf]), variables)
    apply = jax.vmap(model.apply, (0, None))
    assert loops(apply, scaled, x) == len(plan)
    assert_equal(compiled(apply, scaled, x), whole_batch(apply, scaled, x))


@pytest.mark.parametrize(("cores", "each"), [(2 * DEVICES, 2), (1, 1)])
def test_the_plan_is_that_of_each_device(cores, each, monkeypatch):
    # On each device 8 images of 224 × 224 (not computed), where chunks take a few.
    monkeypatch.setattr(runtime, "cores", lambda: cores)
    x = jax.ShapeDtypeStruct((8 * DEVICES, 224, 224, 3), jnp.float32)
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        model = create_model("mobilenet_v2", dtype=dtype)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        plan = chunks.plan(model.spec, 8, 224, 224, itemsize, each)
        lengths = [
            eqn.params["length"]
            for eqn in program(model.apply, variables, x).eqns
            if eqn.primitive.name == "scan"
        ]
        assert lengths == [8 // images for _, images in plan] != []


def test_an_expansion_that_nothing_reads_is_not_carried(monkeypatch):
    # The block before has strides 2: its expansion is larger than the next one's.
    monkeypatch.setattr(chunks, "plan", lambda *_: [(3, 2)])
    model, variables, x = setting(BETWEEN_EXPANSIONS)
    (loop,) = [e for e in program(model.apply, variables, x).eqns if e.primitive.name == "scan"]
    assert [out.aval.shape for out in loop.outvars] == [(4, 2 * DEVICES, 4, 4, 24)]
    monkeypatch.setattr(chunks, "plan", lambda *_: [(4, 2)])
    (loop,) = [e for e in program(model.apply, variables, x).eqns if e.primitive.name == "scan"]
    assert [out.aval.shape[-1] for out in loop.outvars] == [24, 48]


def test_devices_keep_their_images(plan):
    model, variables, x = setting()
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.device_put(x, NamedSharding(mesh, P("data")))
    hlo = jax.jit(lambda *given: model.apply(*given)).lower(variables, shared).compile()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", hlo.as_text())
    assert " while(" in hlo.as_text()
    logits = hlo(jax.device_put(variables, NamedSharding(mesh, P())), shared)
    assert_equal(logits, whole_batch(model.apply, variables, x))


def test_the_whole_batch_where_chunks_would_be_slower_or_in_the_way(plan, monkeypatch):
    model, variables, x = setting()

    def found(model=model, x=x, **arguments):
        return loops(functools.partial(model.apply, **arguments), variables, x)

    assert found() == len(plan)
    keys = {"dropout": jax.random.key(0)}
    assert found(train=True, mutable=["batch_stats"], rngs=keys) == 0
    assert found(train=True, frozen=True, rngs=keys) == 0
    assert found(features=True) == 0
    assert found(capture_intermediates=True, mutable=["intermediates"]) == 0
    assert found(mutable=["batch_stats"]) == 0
    assert found(model.clone(depthwise_implementation="lax")) == 0
    assert found(x=x[: DEVICES + 1]) == 0  # devices have no equal parts
    assert loops(model.init, jax.random.key(0), x) == 0
    # Operation by operation, each would compile the loop anew.
    seen = []
    monkeypatch.setattr(chunks, "plan", lambda *_: seen.append(1) or [])
    few = x[:DEVICES]
    model.apply(variables, few)
    jax.grad(lambda x: jnp.sum(model.apply(variables, x)))(few)
    jax.vmap(functools.partial(model.apply, variables))(few[None])
    assert not seen
    program(model.apply, variables, few)
    assert seen.pop()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program(model.apply, variables, few)
    assert not seen


@pytest.mark.parametrize("sizes", ["n, 16, 16", "16, 32*k, 32*k"])
def test_images_of_unknown_size_or_number_are_exported_whole(sizes):
    model, variables, _ = setting()
    images = jax.ShapeDtypeStruct((*export.symbolic_shape(sizes), 3), jnp.float32)
    exported = export.export(jax.jit(functools.partial(model.apply, variables)))(images)
    assert "stablehlo.while" not in exported.mlir_module()
    x = np.random.default_rng(1).normal(size=(16, 32, 32, 3)).astype(np.float32)
    x = x if "k" in sizes else x[:3, :16, :16]
    assert_equal(exported.call(x), compiled(model.apply, variables, x))
