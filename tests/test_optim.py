import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenets_jax import optim
from mobilenets_jax.errors import InputError

RATE = 0.1


def schedule_config(**changes):
    values = {
        "name": "exponential",
        "learning_rate": 0.045,
        "warmup_epochs": 0.0,
        "decay_rate": 0.98,
        "decay_epochs": 1.0,
    }
    return ml_collections.ConfigDict(values | changes)


def optimizer_config(**changes):
    values = {
        "name": "rmsprop",
        "momentum": 0.9,
        "decay": 0.9,
        "epsilon": 1.0,
        "nesterov": False,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.0,
        "weight_decay_depthwise": True,
        "clip_norm": 0.0,
        "backbone_scale": 1.0,
    }
    return ml_collections.ConfigDict(values | changes)


def network():
    """A tree with every kind of leaf that a MobileNet has, and numbers that differ."""
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "stem": {"conv": {"kernel": leaf(3, 3, 3, 4)}, "bn": {"scale": leaf(4), "bias": leaf(4)}},
        "blocks_0": {
            "depthwise": {"kernel": leaf(3, 3, 4)},
            "bn": {"scale": leaf(4), "bias": leaf(4)},
            "project": {"kernel": leaf(1, 1, 4, 2)},
        },
        "classifier": {"kernel": leaf(2, 5), "bias": leaf(5)},
    }


DECAYED = {"stem/conv/kernel", "blocks_0/project/kernel", "classifier/kernel"}
DEPTHWISE = {"blocks_0/depthwise/kernel"}


def flat(tree):
    """Returns the leaves as float64 numpy by their path, as in 'stem/conv/kernel'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def gradients(params, steps):
    """Fixed gradients, larger on some steps so that clipping and epsilon matter."""
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda p, scale=scale: jnp.asarray(scale * rng.normal(size=p.shape), jnp.float32),
            params,
        )
        for scale in np.exp(rng.normal(size=steps))
    ]


def run(config, steps, schedule=lambda count: RATE):
    """Applies the optimizer for `steps` steps and returns the final leaves by path."""
    params = network()
    tx = optim.make_optimizer(config, schedule, params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for grads in gradients(params, steps):
        params, state = step(params, state, grads)
    return flat(params)


def reference(rule, steps, weight_decay=0.0, decayed=DECAYED, clip_norm=0.0):
    """Applies `rule(weights, gradient, slots, step) -> weights` in float64, leaf by leaf."""
    params = network()
    weights = {k: v.astype(np.float64) for k, v in flat(params).items()}
    slots = {k: {} for k in weights}
    for i, grads in enumerate(gradients(params, steps)):
        g = {
            k: v.astype(np.float64) + (weight_decay * weights[k] if k in decayed else 0.0)
            for k, v in flat(grads).items()
        }
        norm = math.sqrt(sum((v**2).sum() for v in g.values()))
        factor = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        weights = {k: rule(w, factor * g[k], slots[k], i) for k, w in weights.items()}
    return weights


def assert_same(actual, expected, rtol=2e-5, atol=1e-5):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


def tf_rmsprop(decay, momentum, epsilon, rate=lambda step: RATE):
    """TensorFlow's ApplyRMSProp kernel with the slots' TF1 initial values."""

    def rule(w, g, slots, step):
        ms = slots.get("ms", np.ones_like(w))
        mom = slots.get("mom", np.zeros_like(w))
        slots["ms"] = ms + (g * g - ms) * (1 - decay)
        slots["mom"] = mom * momentum + rate(step) * g / np.sqrt(slots["ms"] + epsilon)
        return w - slots["mom"]

    return rule


def sgd(momentum, nesterov):
    """TensorFlow's ApplyMomentum kernel."""

    def rule(w, g, slots, step):
        slots["accum"] = slots.get("accum", 0.0) * momentum + g
        return w - RATE * (g + momentum * slots["accum"] if nesterov else slots["accum"])

    return rule


# Learning rate


def test_exponential_is_a_staircase_in_epochs():
    schedule = optim.learning_rate_schedule(
        schedule_config(decay_epochs=2.0), steps_per_epoch=10, total_steps=1000
    )
    steps = np.arange(1000)
    expected = 0.045 * 0.98 ** (steps // 20)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(steps)), expected, rtol=5e-6)
    assert schedule(19) == schedule(0)
    assert schedule(20) < schedule(19)


@pytest.mark.parametrize(
    ("decay_epochs", "steps_per_epoch"), [(2.4, 312), (2.5, 313), (3.0, 1251), (0.3, 7)]
)
def test_exponential_steps_down_at_the_exact_step_of_a_fractional_epoch(
    decay_epochs, steps_per_epoch
):
    schedule = optim.learning_rate_schedule(
        schedule_config(decay_epochs=decay_epochs, decay_rate=0.5, learning_rate=1.0),
        steps_per_epoch,
        10**7,
    )
    tenths = round(10 * decay_epochs) * steps_per_epoch
    first_of_fall = [-(-n * tenths // 10) for n in (1, 2, 7, 100)]
    for n, step in zip((1, 2, 7, 100), first_of_fall, strict=True):
        assert float(schedule(step)) == 0.5**n
        assert float(schedule(step - 1)) == 0.5 ** (n - 1)


def test_exponential_counts_its_epochs_from_the_first_step_of_the_warmup():
    schedule = optim.learning_rate_schedule(
        schedule_config(warmup_epochs=3.0, decay_epochs=2.0, decay_rate=0.5, learning_rate=0.8),
        steps_per_epoch=10,
        total_steps=1000,
    )
    np.testing.assert_allclose(schedule(0), 0.0, atol=0)
    np.testing.assert_allclose(schedule(15), 0.4, rtol=1e-6)
    np.testing.assert_allclose(schedule(29), 0.8 * 29 / 30, rtol=1e-6)
    np.testing.assert_allclose(schedule(30), 0.4, rtol=1e-6)  # two epochs have decayed already
    np.testing.assert_allclose(schedule(40), 0.2, rtol=1e-6)


def test_cosine_starts_at_the_end_of_the_warmup_and_ends_at_zero():
    schedule = optim.learning_rate_schedule(
        schedule_config(name="cosine", warmup_epochs=2.0, learning_rate=0.4), 5, 60
    )
    steps = np.arange(60)
    expected = np.where(steps < 10, 0.4 * steps / 10, 0.2 * (1 + np.cos(np.pi * (steps - 10) / 50)))
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule(10), 0.4, rtol=1e-6)
    np.testing.assert_allclose(schedule(60), 0.0, atol=1e-7)
    np.testing.assert_allclose(schedule(90), 0.0, atol=1e-7)


def test_constant_without_warmup_is_the_rate_at_every_step():
    schedule = optim.learning_rate_schedule(schedule_config(name="constant"), 5, 60)
    np.testing.assert_array_equal(
        np.asarray(jax.vmap(schedule)(np.arange(60))), np.full(60, 0.045, np.float32)
    )


@given(
    name=st.sampled_from(sorted(optim.SCHEDULE_KEYS)),
    rate=st.floats(1e-4, 10),
    warmup=st.integers(0, 9),
    step=st.integers(0, 99),
)
def test_rate_stays_between_zero_and_its_peak(name, rate, warmup, step):
    config = schedule_config(name=name, learning_rate=rate, warmup_epochs=float(warmup))
    value = float(optim.learning_rate_schedule(config, 10, 100)(step))
    assert 0.0 <= value <= rate * (1 + 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cosin"}, "schedule.name 'cosin'.*'cosine'"),
        ({"learning_rate": 0.0}, "schedule.learning_rate is 0.0 .*above 0"),
        ({"learning_rate": float("inf")}, "schedule.learning_rate"),
        ({"learning_rate": float("nan")}, "schedule.learning_rate"),
        ({"learning_rate": "fast"}, "schedule.learning_rate is 'fast'"),
        ({"warmup_epochs": -1.0}, "schedule.warmup_epochs is -1.0 .*at least 0"),
        ({"decay_rate": 0.0}, "schedule.decay_rate"),
        ({"decay_rate": 1.5}, "schedule.decay_rate is 1.5 .*at most 1"),
        ({"decay_epochs": 0.0}, "schedule.decay_epochs"),
        ({"decay_epochs": 0.001}, "schedule.decay_epochs .*one step"),
        ({"warmup_epochs": 10.0}, "schedule.warmup_epochs .*shorter than the training"),
    ],
)
def test_bad_schedule_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        optim.learning_rate_schedule(schedule_config(**changes), 10, 100)


def test_missing_key_is_named():
    config = ml_collections.ConfigDict({"name": "constant", "warmup_epochs": 0.0})
    with pytest.raises(InputError, match=r"schedule\.learning_rate is missing"):
        optim.learning_rate_schedule(config, 10, 100)


def test_keys_that_a_choice_does_not_read_are_not_checked():
    config = schedule_config(name="constant", decay_rate=-1.0)
    assert optim.learning_rate_schedule(config, 10, 100)(50) == np.float32(0.045)
    optim.make_optimizer(optimizer_config(name="sgd", epsilon=-1.0), lambda s: 0.1, network())


# Optimizers


@pytest.mark.parametrize("epsilon", [1.0, 1e-3, 1e-10])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_tensorflows(momentum, epsilon):
    expected = reference(tf_rmsprop(0.9, momentum, epsilon), steps=50)
    actual = run(optimizer_config(momentum=momentum, epsilon=epsilon), steps=50)
    assert_same(actual, expected)


def test_rmsprop_keeps_the_learning_rate_of_each_step_in_its_momentum():
    def rate(step):
        return 0.1 * 0.5 ** (step // 5)

    expected = reference(tf_rmsprop(0.9, 0.9, 1e-3, rate), steps=20)
    actual = run(optimizer_config(epsilon=1e-3), 20, schedule=rate)
    assert_same(actual, expected)


def test_rmsprop_first_step_by_hand():
    tx = optim.make_optimizer(
        optimizer_config(epsilon=0.5), lambda count: 0.2, {"kernel": jnp.ones([1, 1])}
    )
    params = {"kernel": jnp.full([1, 1], 3.0)}
    updates, _ = tx.update({"kernel": jnp.full([1, 1], 2.0)}, tx.init(params), params)
    # ms = 0.9 * 1 + 0.1 * 4 = 1.3
    np.testing.assert_allclose(updates["kernel"], -0.2 * 2 / math.sqrt(1.3 + 0.5), rtol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov):
    config = optimizer_config(name="sgd", momentum=momentum, nesterov=nesterov)
    assert_same(run(config, 30), reference(sgd(momentum, nesterov), 30))


@pytest.mark.parametrize("depthwise", [True, False])
def test_adamw_decays_beside_the_gradient(depthwise):
    decayed = DECAYED | DEPTHWISE if depthwise else DECAYED
    config = optimizer_config(
        name="adamw", epsilon=1e-8, weight_decay=0.05, weight_decay_depthwise=depthwise
    )
    mask = {name: name in decayed for name in flat(network())}
    params = network()
    weights = {k: v.astype(np.float64) for k, v in flat(params).items()}
    m = dict.fromkeys(weights, 0.0)
    v = dict.fromkeys(weights, 0.0)
    for i, grads in enumerate(gradients(params, 30), start=1):
        for k, g in flat(grads).items():
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * np.square(g, dtype=np.float64)
            step = m[k] / (1 - 0.9**i) / (np.sqrt(v[k] / (1 - 0.999**i)) + 1e-8)
            weights[k] -= RATE * (step + 0.05 * weights[k] * mask[k])
    assert_same(run(config, 30), weights, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "rule"), [("rmsprop", tf_rmsprop(0.9, 0.9, 1.0)), ("sgd", sgd(0.9, False))]
)
@pytest.mark.parametrize("depthwise", [True, False])
def test_weight_decay_is_part_of_the_gradient(name, rule, depthwise):
    decayed = DECAYED | DEPTHWISE if depthwise else DECAYED
    config = optimizer_config(name=name, weight_decay=0.1, weight_decay_depthwise=depthwise)
    assert_same(run(config, 20), reference(rule, 20, 0.1, decayed))


def test_weight_decay_is_the_gradient_of_tensorflows_l2_loss():
    params = network()
    tx = optim.make_optimizer(
        optimizer_config(name="sgd", momentum=0.0, weight_decay=0.01), lambda s: 1.0, params
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)

    def l2(params):
        kernels = [v for path, v in _paths(params) if path.endswith("kernel")]
        return 0.01 * sum(jnp.sum(v**2) / 2 for v in kernels)

    assert_same(flat(updates), {k: -v for k, v in flat(jax.grad(l2)(params)).items()})


def _paths(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(key.key for key in path), leaf


@pytest.mark.parametrize(
    ("name", "rule"), [("rmsprop", tf_rmsprop(0.9, 0.9, 1.0)), ("sgd", sgd(0.9, False))]
)
def test_clipping_bounds_the_norm_of_gradient_and_weight_decay_together(name, rule):
    config = optimizer_config(name=name, weight_decay=0.1, clip_norm=2.0)
    expected = reference(rule, 20, 0.1, DECAYED | DEPTHWISE, clip_norm=2.0)
    assert_same(run(config, 20), expected)
    assert not np.allclose(
        expected["classifier/kernel"], reference(rule, 20, 0.1)["classifier/kernel"]
    )


def test_clipping_of_adamw_leaves_its_weight_decay_alone():
    params = network()
    config = optimizer_config(name="adamw", epsilon=1.0, weight_decay=0.5, clip_norm=1e-6)
    tx = optim.make_optimizer(config, lambda s: 1.0, params)
    updates, _ = tx.update(gradients(params, 1)[0], tx.init(params), params)
    np.testing.assert_allclose(
        updates["classifier"]["kernel"], -0.5 * params["classifier"]["kernel"], atol=1e-5
    )
    np.testing.assert_allclose(updates["classifier"]["bias"], np.zeros(5), atol=1e-5)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZER_KEYS))
def test_the_backbones_updates_are_scaled_and_the_classifiers_are_not(name):
    def updates(scale):
        config = optimizer_config(name=name, weight_decay=0.1, clip_norm=0.5, backbone_scale=scale)
        params, found = network(), []
        tx = optim.make_optimizer(config, lambda step: 0.1, params)
        state = tx.init(params)
        for gradient in gradients(params, 2):
            update, state = tx.update(gradient, state, params)
            found.append(flat(update))
        return found

    for full, scaled in zip(updates(1.0), updates(0.25), strict=True):
        for path, update in full.items():
            share = 1.0 if path.startswith("classifier") else 0.25
            np.testing.assert_array_equal(scaled[path], share * update)
            assert np.abs(update).max() > 0


def test_a_backbone_scale_of_1_adds_nothing_to_the_state():
    params = network()
    plain, scaled = (
        optim.make_optimizer(optimizer_config(backbone_scale=s), lambda step: 0.1, params)
        for s in (1.0, 0.5)
    )
    parts = scaled.init(params)[:-1]
    assert jax.tree.structure(parts) == jax.tree.structure(plain.init(params))


def test_what_is_trained():
    params = network()
    assert optim.trained(params, None) is params
    assert optim.trained(params, "backbone") == {"classifier": params["classifier"]}


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZER_KEYS))
def test_optimizer_accepts_shapes_in_place_of_arrays(name):
    params = network()
    shapes = jax.eval_shape(lambda: params)
    tx = optim.make_optimizer(optimizer_config(name=name, weight_decay=0.1), lambda s: 0.1, shapes)
    state = tx.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "rmsporp"}, "optimizer.name 'rmsporp'.*'rmsprop'"),
        ({"momentum": 1.0}, "optimizer.momentum is 1.0 .*below 1"),
        ({"momentum": -0.1}, "optimizer.momentum is -0.1 .*at least 0"),
        ({"decay": 1.0}, "optimizer.decay"),
        ({"epsilon": 0.0}, "optimizer.epsilon"),
        ({"epsilon": True}, "optimizer.epsilon is True"),
        ({"weight_decay": -1e-5}, "optimizer.weight_decay is -1e-05"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm"),
        ({"clip_norm": float("nan")}, "optimizer.clip_norm"),
        ({"backbone_scale": 0.0}, "optimizer.backbone_scale is 0.0 .*above 0"),
        ({"weight_decay_depthwise": 1}, "optimizer.weight_decay_depthwise is 1 .*True or False"),
        ({"name": "sgd", "momentum": 1.2}, "optimizer.momentum"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "optimizer.nesterov .*momentum"),
        ({"name": "adamw", "b1": 1.0}, "optimizer.b1"),
        ({"name": "adamw", "b2": -0.5}, "optimizer.b2"),
    ],
)
def test_bad_optimizer_is_named(changes, message):
    with pytest.raises(InputError, match=message) as error:
        optim.make_optimizer(optimizer_config(**changes), lambda s: 0.1, network())
    assert "\n" not in str(error.value)


class Recorder:
    """Stands for a config and notes the fields that are read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getitem__(self, key):
        self.read.add(key)
        return self.config[key]

    def __getattr__(self, key):
        return self[key]

    def __contains__(self, key):
        return key in self.config


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZER_KEYS))
def test_optimizer_keys_are_the_fields_read(name):
    recorder = Recorder(optimizer_config(name=name, weight_decay=0.1, clip_norm=1.0))
    optim.make_optimizer(recorder, lambda s: 0.1, network())
    assert recorder.read == {"name", *optim.OPTIMIZER_KEYS[name]}


@pytest.mark.parametrize("name", sorted(optim.SCHEDULE_KEYS))
def test_schedule_keys_are_the_fields_read(name):
    recorder = Recorder(schedule_config(name=name))
    optim.learning_rate_schedule(recorder, 10, 100)
    assert recorder.read == {"name", *optim.SCHEDULE_KEYS[name]}


# Weight-decay mask


@pytest.mark.parametrize("depthwise", [True, False])
def test_mask_is_kernels_only(depthwise):
    mask = optim.weight_decay_mask(network(), depthwise=depthwise)
    expected = DECAYED | DEPTHWISE if depthwise else DECAYED
    assert {name for name, on in flat(mask).items() if on} == expected
    assert jax.tree.structure(mask) == jax.tree.structure(network())


def test_mask_takes_a_full_convolution_in_the_depthwise_place_for_what_it_is():
    params = {
        "blocks_0": {"depthwise": {"kernel": jnp.ones([3, 3, 4, 4])}},
        "blocks_1": {"depthwise": {"kernel": jnp.ones([3, 3, 4])}},
        "depthwise": {"project": {"kernel": jnp.ones([1, 1, 4, 4])}},
    }
    assert flat(optim.weight_decay_mask(params, depthwise=False)) == {
        "blocks_0/depthwise/kernel": True,
        "blocks_1/depthwise/kernel": False,
        "depthwise/project/kernel": True,
    }


# EMA


def test_ema_warms_up_as_tensorflows_and_covers_the_whole_tree():
    ema = {"params": {"kernel": jnp.zeros([2])}, "batch_stats": {"mean": jnp.ones([])}}
    kernel, mean = np.zeros(2), 1.0
    update = jax.jit(optim.ema_update, static_argnames="decay")
    for step in range(200):
        new = {
            "params": {"kernel": jnp.array([step, -1.0])},
            "batch_stats": {"mean": jnp.asarray(step % 7, jnp.float32)},
        }
        ema = update(ema, new, decay=0.9, step=jnp.int32(step))
        d = min(0.9, (1 + step) / (10 + step))
        kernel = d * kernel + (1 - d) * np.array([step, -1.0])
        mean = d * mean + (1 - d) * (step % 7)
    np.testing.assert_allclose(ema["params"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(ema["batch_stats"]["mean"], mean, rtol=1e-5)


def test_ema_of_a_long_decay_moves_by_exactly_its_share():
    # 1 - float32(0.9999) is 0.017 % off; the share must not be.
    moved = optim.ema_update(jnp.zeros([]), jnp.ones([]), 0.9999, 10**9)
    assert float(moved) == np.float32(1 - 0.9999)


def test_ema_of_an_unchanged_value_is_that_value_bit_for_bit():
    tree = network()
    for step in (0, 3, 10**6):
        same = optim.ema_update(tree, tree, 0.9999, step)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), same, tree)))


def test_ema_keeps_the_dtype_of_the_average():
    moved = optim.ema_update(jnp.zeros([], jnp.float32), jnp.ones([], jnp.bfloat16), 0.5, 100)
    assert moved.dtype == jnp.float32
    assert float(moved) == 0.5


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_bad_ema_decay_is_named(decay):
    with pytest.raises(InputError, match="ema_decay is"):
        optim.ema_update(jnp.zeros([]), jnp.ones([]), decay, 0)


# Loss


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_of_integers_smooths(smoothing):
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, size=6)
    target = np.full((6, 5), smoothing / 5)
    target[np.arange(6), labels] += 1 - smoothing
    expected = -(target * np.log(softmax(logits))).sum(-1)
    actual = optim.cross_entropy(jnp.asarray(logits, jnp.float32), labels, smoothing)
    assert actual.shape == (6,)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_soft_labels_smooths(smoothing):
    rng = np.random.default_rng(3)
    logits, soft = rng.normal(size=(4, 7)), rng.dirichlet(np.ones(7), size=4)
    target = (1 - smoothing) * soft + smoothing / 7
    expected = -(target * np.log(softmax(logits))).sum(-1)
    actual = optim.cross_entropy(logits.astype(np.float32), soft.astype(np.float32), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_integer_and_one_hot_labels_cost_the_same():
    logits = np.random.default_rng(4).normal(size=(8, 3)).astype(np.float32)
    labels = np.arange(8) % 3
    np.testing.assert_array_equal(
        optim.cross_entropy(logits, labels, 0.1),
        optim.cross_entropy(logits, np.eye(3, dtype=np.float32)[labels], 0.1),
    )


def test_cross_entropy_is_float32_and_finite_for_large_bfloat16_logits():
    logits = jnp.array([[300.0, 0.0], [0.0, 300.0]], jnp.bfloat16)
    loss = optim.cross_entropy(logits, jnp.array([0, 0]), 0.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, [0.0, 300.0])


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(4, 9)), jnp.bfloat16)
    np.testing.assert_array_equal(
        optim.cross_entropy(logits, jnp.arange(4), 0.1),
        optim.cross_entropy(logits.astype(jnp.float32), jnp.arange(4), 0.1),
    )


def test_gradient_of_cross_entropy_is_softmax_minus_target():
    logits = np.random.default_rng(6).normal(size=(3, 4))
    labels = np.array([1, 0, 3])
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    gradient = jax.grad(lambda x: optim.cross_entropy(x, labels, 0.1).sum())(
        jnp.asarray(logits, jnp.float32)
    )
    np.testing.assert_allclose(gradient, softmax(logits) - target, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [1.0, -0.1])
def test_bad_label_smoothing_is_named(smoothing):
    with pytest.raises(InputError, match="label_smoothing is"):
        optim.cross_entropy(jnp.zeros([1, 2]), jnp.zeros([1], jnp.int32), smoothing)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 4\)"):
        optim.cross_entropy(jnp.zeros([2, 4]), jnp.zeros([3], jnp.int32), 0.0)
