"""Folding BatchNorm changes the variables and no output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mobilenets_jax.errors import InputError
from mobilenets_jax.fold import fold_batch_norm
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.specs import Block, Conv, Spec

# The arithmetic is the same; compiling takes half the time.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

# Every kind of layer, and a block without expansion.
TINY = Spec(
    name="tiny",
    family="v3",
    num_classes=3,
    stem=Conv(3, 8, "hswish", 2),
    blocks=(
        Block(3, 8, 8, True, "relu", 1),
        Block(5, 24, 16, False, "relu6", 2),
    ),
    last=Conv(1, 24, "hswish"),
    head=Conv(1, 16, "hswish"),
)


def images(resolution=32, seed=0):
    return np.random.default_rng(seed).normal(size=(2, resolution, resolution, 3))


def single(tree):
    return jax.tree.map(np.float32, tree)


def by_path(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in flat}


def assert_same(got, expected, tolerance):
    assert np.abs(expected).max() > 0.1
    assert np.ptp(expected, axis=0).max() > 0.01
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def assert_variables(model, variables):
    """Those that the folded network initialises, one bias for each BatchNorm, nothing else."""
    folded, folded_variables = fold_batch_norm(model, variables)
    assert list(folded_variables) == ["params"]
    initial = jax.eval_shape(folded.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    got, initial = by_path(folded_variables), by_path(initial)
    assert {path: leaf.shape for path, leaf in got.items()} == {
        path: leaf.shape for path, leaf in initial.items()
    }
    before = by_path({"params": variables["params"]})
    expected = {path.replace("/bn/bias", "/bias") for path in before if "/bn/scale" not in path}
    assert set(got) == expected
    assert any("/bn/" in path for path in before)
    assert {leaf.dtype for leaf in got.values()} == {leaf.dtype for leaf in before.values()}


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("mobilenet_v1", 0.25),
        ("mobilenet_v2", 0.35),
        ("mobilenet_v3_large", 0.35),
        ("mobilenet_v3_small_minimalistic", 0.5),
    ],
)
def test_logits_are_numpys(name, alpha):
    """Those of the network with BatchNorm: to float32's rounding, and in float64 to its own."""
    model = create_model(name, 3, alpha)
    # Seed 0 happens to make logits of 300 in V3-Large, whose own float32 error is 1e-5.
    variables, x = reference.random_variables(model, seed=1), images()
    assert_variables(model, variables)
    expected, _ = reference.network(model.spec, variables, x)
    folded, folded_variables = fold_batch_norm(model, single(variables))
    got = fast_jit(folded.apply)(folded_variables, np.float32(x))
    assert got.dtype == np.float32
    assert_same(np.asarray(got, np.float64), expected, 1e-5)
    with jax.enable_x64(True):
        model = create_model(name, 3, alpha, dtype="float64")
        folded, folded_variables = fold_batch_norm(model, variables)
        got = fast_jit(folded.apply)(folded_variables, x)
    assert got.dtype == np.float64
    assert_same(np.asarray(got), expected, 1e-10)


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("mobilenet_v2", {"shortcut": "expansion"}),
        ("mobilenet_v3_small", {"standard_conv": True}),
        ("mobilenet_v3_large", {"timm_variant": "rw"}),
        ("mobilenet_v1", {"padding": "bottom_right", "bn_epsilon": 0.02}),
    ],
)
def test_logits_are_the_unfolded_networks(name, switches):
    with jax.enable_x64(True):
        model = create_model(name, 3, 0.25, dtype="float64", **switches)
        variables = reference.random_variables(model)
        assert_variables(model, variables)
        folded, folded_variables = fold_batch_norm(model, variables)
        assert folded == model.clone(folded=True)

        @fast_jit
        def both(variables, folded_variables, x):
            return model.apply(variables, x), folded.apply(folded_variables, x)

        expected, got = both(variables, folded_variables, images(33))
    assert got.dtype == expected.dtype == np.float64
    assert_same(np.asarray(got), np.asarray(expected), 1e-10)


def test_formula_by_hand():
    """w·γ/√(σ² + ε) and β - μ·γ/√(σ² + ε), of whole numbers: √(σ² + ε) is 2 and 4."""
    model = MobileNet(TINY)
    variables = single(reference.random_variables(model))
    kernel = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    epsilon = TINY.bn_epsilon
    params = {
        "kernel": kernel,
        "bn": {"scale": np.float32([6, -8, 0]), "bias": np.float32([1, 2, 3])},
    }
    stats = {"mean": np.float32([5, -7, 9]), "var": np.float64([4, 16, 16]) - epsilon}
    _, folded = fold_batch_norm(
        model, {"params": {"layer": params}, "batch_stats": {"layer": {"bn": stats}}}
    )
    layer = folded["params"]["layer"]
    assert sorted(layer) == ["bias", "kernel"]
    np.testing.assert_array_equal(layer["kernel"], kernel * np.float32([3, -2, 0]), strict=True)
    np.testing.assert_array_equal(layer["bias"], np.float32([-14, -12, 3]), strict=True)
    # In the network's own tree: a depthwise kernel's channels are its last axis too.
    _, folded = fold_batch_norm(model, variables)
    for layer in ("stem", "depthwise"):
        p, s = variables["params"], variables["batch_stats"]
        got = folded["params"]
        if layer == "depthwise":
            p, s, got = p["blocks_1"], s["blocks_1"], got["blocks_1"]
        p, s, got = p[layer], s[layer]["bn"], got[layer]
        for channel in range(p["kernel"].shape[-1]):
            by = p["bn"]["scale"][channel] / np.sqrt(np.float64(s["var"][channel]) + epsilon)
            np.testing.assert_allclose(
                got["kernel"][..., channel], p["kernel"][..., channel] * by, rtol=1e-6
            )
            bias = p["bn"]["bias"][channel] - s["mean"][channel] * by
            np.testing.assert_allclose(got["bias"][channel], bias, rtol=1e-6, atol=1e-7)


def test_what_has_no_batch_norm_is_untouched():
    """Squeeze-and-excite, head and classifier are the given arrays; the given tree is as before."""
    model = MobileNet(TINY)
    variables = single(reference.random_variables(model))
    before = jax.tree.map(np.copy, variables)
    _, folded = fold_batch_norm(model, variables)
    kept = [path for path in by_path(folded["params"]) if path in by_path(variables["params"])]
    kept = [path for path in kept if {"se", "head", "classifier"} & set(path.split("/"))]
    assert len(kept) == 8
    for path in kept:
        np.testing.assert_array_equal(
            by_path(folded["params"])[path], by_path(variables["params"])[path], strict=True
        )
    assert jax.tree.structure(variables) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_features_and_bfloat16():
    """Every stage's map in float32; in bfloat16 BatchNorm's own rounding is what is saved."""
    model = MobileNet(TINY)
    variables = single(reference.random_variables(model))
    x = np.float32(images())
    folded, folded_variables = fold_batch_norm(model, variables)
    half = folded.clone(dtype=jnp.bfloat16)

    @fast_jit
    def run(variables, folded_variables, x):
        return (
            model.apply(variables, x, features=True),
            folded.apply(folded_variables, x, features=True),
            half.apply(folded_variables, x, features=True),
        )

    expected, got, rounded = run(variables, folded_variables, x)
    assert sorted(got) == sorted(expected) == [2, 4]
    for stride, y in expected.items():
        assert np.abs(got[stride] - y).max() <= 1e-5 * np.abs(y).max()
        assert rounded[stride].dtype == jnp.bfloat16
        error = np.linalg.norm(np.float32(rounded[stride]) - y)
        assert 0 < error < 0.02 * np.linalg.norm(y)


def test_arrays_of_jax_stay_on_the_device_and_numpys_off_it():
    variables = single(reference.random_variables(MobileNet(TINY)))
    for put, kind in ((jax.device_put, jax.Array), (lambda tree: tree, np.ndarray)):
        _, folded = fold_batch_norm(MobileNet(TINY), put(variables))
        assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(folded))


def test_arrays_are_placed_as_the_given_ones():
    """Replicated on a mesh, as after training; split over the channels; on one device; anywhere."""
    model = MobileNet(TINY)
    variables = single(reference.random_variables(model))
    mesh = Mesh(jax.devices()[:2], ("devices",))
    replicated = NamedSharding(mesh, PartitionSpec())

    def split(leaf):
        axes = [None] * (leaf.ndim - 1) + [None if leaf.shape[-1] % 2 else "devices"]
        return NamedSharding(mesh, PartitionSpec(*axes))

    _, expected = fold_batch_norm(model, variables)
    for sharding in (
        lambda leaf: replicated,
        split,
        lambda leaf: SingleDeviceSharding(jax.devices()[1]),
        lambda leaf: None,
    ):
        given = jax.tree.map(lambda leaf, of=sharding: jax.device_put(leaf, of(leaf)), variables)
        folded_model, folded = fold_batch_norm(model, given)
        jax.tree.map(np.testing.assert_array_equal, folded, expected)
        before = by_path({"params": given["params"]})
        for path, leaf in by_path(folded).items():
            its = before.get(path, before.get(path.replace("/bias", "/bn/bias")))
            assert leaf.sharding == its.sharding
            assert leaf.committed == its.committed
    # On a mesh it runs without moving a weight, each device with its images.
    x = jax.device_put(np.float32(images()), NamedSharding(mesh, PartitionSpec("devices")))
    _, got = fold_batch_norm(model, jax.device_put(variables, replicated))
    with jax.transfer_guard("disallow"):
        logits = jax.jit(folded_model.apply)(got, x)
    assert logits.sharding.is_equivalent_to(x.sharding, 2)


def test_folding_twice_is_an_error():
    model = MobileNet(TINY)
    folded = fold_batch_norm(model, reference.random_variables(model))
    with pytest.raises(InputError, match="BatchNorm is folded already: fold one that has it"):
        fold_batch_norm(*folded)
