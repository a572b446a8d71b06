import copy
import functools
import io
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from mobilenets_jax import augment, main, optim, specs, steps, switches, train
from mobilenets_jax import config as config_lib
from mobilenets_jax.datasets import Dataset
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import create_model


def build(model="mobilenet_v2", dataset="digits", **fields):
    """The config of a data set with fields changed; a double underscore stands for the dot."""
    config = default.build(model, dataset, "default")
    for name, value in fields.items():
        section, _, leaf = name.replace("__", ".").rpartition(".")
        (config[section] if section else config)[leaf] = value
    return config


def refusal(config, *overrides):
    """What `check` has against the config, or ""."""
    try:
        config_lib.check(config, overrides)
    except InputError as error:
        return str(error)
    return ""


# Resolution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "beta", "expected"),
    [
        # V1's Table 7, exact and as people type it.
        (224, 1.0, 224),
        (224, 6 / 7, 192),
        (224, 5 / 7, 160),
        (224, 4 / 7, 128),
        (224, 0.857, 192),
        (224, 0.714, 160),
        (224, 0.571, 128),
        (224, 0.86, 192),
        (224, 0.71, 160),
        (224, 0.57, 128),
        (224, 8 / 7, 256),
        (128, 0.5, 64),
        (127, 0.5, 64),
        (32, 1.0, 32),
        (32, 0.875, 28),
        (32, 0.857, 28),
        (32, 0.75, 24),
        (32, 0.5, 16),
        (32, 0.125, 4),
        (32, 2, 64),
        # beta = 1 is the base itself: nothing is to be rounded.
        (299, 1, 299),
        (240, 1.0, 240),
        (30, 1.0, 30),
    ],
)
def test_effective_resolution(base, beta, expected):
    assert config_lib.effective_resolution(base, beta) == expected


@pytest.mark.parametrize("base", [32, 64, 96, 224, 256])
def test_effective_resolution_is_a_multiple_within_half_a_step(base):
    multiple = 32 if base >= 128 else 4
    for beta in np.linspace(0.2, 1.5, 53):
        resolution = config_lib.effective_resolution(base, float(beta))
        assert resolution % multiple == 0
        assert abs(resolution - beta * base) <= multiple / 2


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, 17.0, float("nan"), float("inf")])
def test_beta_out_of_range(beta):
    with pytest.raises(InputError, match=r"^beta must be a number above 0 and at most 16, not "):
        config_lib.effective_resolution(224, beta)


def test_beta_that_leaves_nothing_names_the_least():
    with pytest.raises(InputError, match=r"^beta = 0\.06 leaves nothing of 32 .* least 0\.125\.$"):
        config_lib.effective_resolution(32, 0.06)
    assert config_lib.effective_resolution(32, 0.125) == 4


# Fields -------------------------------------------------------------------------------------------


def test_fields_are_those_of_the_configs_in_order():
    names = [name for name, _ in config_lib.flatten(build().to_dict())]
    assert sorted(config_lib.FIELDS) == sorted(names)


def test_fields_have_the_types_that_the_configs_enforce():
    config = default.base("mobilenet_v2", "digits")
    for name, field in config_lib.FIELDS.items():
        section, _, leaf = name.rpartition(".")
        owner = config[section] if section else config
        assert owner.get_type(leaf) is field.kind, name
        # A crop fraction may be None and never is by default.
        may_be_none = field.optional and name != "preprocess.crop_fraction"
        assert may_be_none == (owner[leaf] is None), name


@pytest.mark.parametrize("name", config_lib.FIELDS)
def test_a_value_of_another_type_is_refused(name):
    field = config_lib.FIELDS[name]
    wrong = {
        bool: [1, "true", None],
        int: [1.5, True, "1", float("nan")],
        float: ["1", True, float("nan"), float("inf"), -float("inf")],
        str: [1, True, ("a",)],
        tuple: [1.0, "abc", (1.0, 2.0, "3"), (1.0, 2.0, True)],
    }[field.kind]
    if field.size == 3:
        wrong = [*wrong, (1.0, 2.0), (1.0, 2.0, 3.0, 4.0)]
    if field.each is int:
        wrong = [*wrong, (0, 1.0)]
    for value in wrong if field.optional else [*wrong, None]:
        if value is None and field.optional:
            continue
        tree = build().to_dict()
        section, _, leaf = name.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
        message = refusal(ConfigDict(tree))
        assert message.startswith(f"{name} must be ")
        assert message.endswith(f", not {value!r}.")


@pytest.mark.parametrize(
    "name", [n for n, f in config_lib.FIELDS.items() if f.kind in (int, float, tuple)]
)
def test_bounds(name):
    field = config_lib.FIELDS[name]
    whole = int in (field.kind, field.each)
    step = 1 if whole else 1e-6
    inside, outside = [], []
    for bound, sign, included in (
        (field.least, -1, True),
        (field.above, -1, False),
        (field.most, 1, True),
        (field.below, 1, False),
    ):
        if np.isfinite(bound):
            beyond = bound + sign * (step if whole else max(step, abs(bound) * step))
            (inside if included else outside).append(bound)
            outside.append(beyond)
            inside.append(bound - (beyond - bound))
    for values, right in ((inside, True), (outside, False)):
        for number in values:
            value = number
            if field.kind is tuple:
                value = (1, 1, int(number)) if whole else (1.0, 1.0, float(number))
            assert field.fits(value) is right, (name, value)


def test_messages_say_the_range():
    expected = {
        "seed": "an integer from 0 to 2147483647",
        "batch_size": "an integer from 1",
        "epochs": "a number above 0 and at most 1000000",
        "ema_decay": "a number from 0 and below 1",
        "augment.erasing": "a number from 0 to 1",
        "augment.flip": "true or false",
        "model.stem": "an integer, or None",
        "dataset.num_classes": "an integer from 1, or None",
        "preprocess.std": "three numbers such as (127.5, 127.5, 127.5) above 0",
        "replica.seeds": "integers such as (0, 1), each from 0 to 2147483647",
        "replica.learning_rate": "numbers such as (0.01, 0.03), each above 0",
    }
    assert {name: str(config_lib.FIELDS[name]) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alpha", "Did you mean 'model.alpha'?"),
        ("modle.alpha", "Did you mean 'model.alpha'?"),
        ("model.alfa", "Did you mean 'model.alpha'?"),
        ("model.flip", "Did you mean 'augment.flip'?"),
        ("model.hswish", "Did you mean 'model.hswish_from'?"),
        ("lable_smoothing", "Did you mean 'label_smoothing'?"),
        ("learning_rate", "Did you mean 'schedule.learning_rate'?"),
        ("seed.x", "Did you mean 'seed'?"),
        ("schedule", "Did you mean 'schedule.name'?"),
        ("lr", "Choose one of those in configs/default.py."),
    ],
)  # fmt: skip
def test_an_unknown_field_names_the_nearest(name, hint):
    with pytest.raises(InputError) as caught:
        config_lib.check_name(name)
    assert str(caught.value) == f"Unknown config field '{name}'. {hint}"


def test_a_config_with_a_field_too_much_or_too_few():
    config = build()
    with config.unlocked():
        config.augment.zoom = 0.5
    assert refusal(config).startswith("Unknown config field 'augment.zoom'.")
    config = build().unlock()
    del config.preprocess["std"]
    assert refusal(config) == (
        "The config has no field 'preprocess.std': build it on configs/default.py, which has all."
    )
    config = build().unlock()
    del config["optimizer"]
    assert refusal(config).startswith("The config has no field 'optimizer.b1':")


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("augment.crop", "random", "random_resized"),
        ("preprocess.interpolation", "cubic", "bicubic"),
        ("optimizer.name", "adam", "adamw"),
        ("schedule.name", "cosin", "cosine"),
    ],
)
def test_an_unknown_choice_names_the_nearest(name, value, nearest):
    message = refusal(build(**{name.replace(".", "__"): value}))
    assert message.startswith(f"Unknown {name} '{value}'. Did you mean '{nearest}'? Choose one of:")


# Every field is read ------------------------------------------------------------------------------


class Reads:
    """Records which fields of a config the program reads, one by one.

    Not recorded: what `config.py` does, which reads all to check or to store it, and conversions of
    a whole section, after which nobody knows what is read.
    """

    def __init__(self, monkeypatch):
        self.names = set()
        self._prefixes = {}
        self._kept = []
        original = ConfigDict.__getitem__

        def getitem(config, key):
            frame = sys._getframe(1)
            whole = frame.f_code.co_name in ("to_dict", "items", "values")
            while frame is not None and frame.f_code.co_filename != config_lib.__file__:
                frame = frame.f_back
            if id(config) in self._prefixes and frame is None and not whole:
                self.names.add(self._prefixes[id(config)] + key)
            return original(config, key)

        monkeypatch.setattr(ConfigDict, "__getitem__", getitem)

    def watch(self, config):
        self._kept.append(config)  # so that no other config gets its id
        for name, value in config.items():
            if isinstance(value, ConfigDict):
                self._prefixes[id(value)] = f"{name}."
        self._prefixes[id(config)] = ""
        return config


def png(index):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(index).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return {"image": buffer.getvalue(), "label": index % 10, "name": str(index)}


def replace_what_is_slow(monkeypatch):
    """Steps are traced and not compiled, and the data set is 16 + 8 small images."""
    names = tuple("0123456789")
    data = Dataset("digits", [png(i) for i in range(16)], [png(i) for i in range(8)], names)
    monkeypatch.setattr(steps, "open_dataset", lambda name, **kwargs: data)

    def initial_state(experiment):
        key = jax.random.key(experiment.config.seed)
        init = functools.partial(
            steps.init_state, experiment.model, experiment.optimizer, experiment.resolution
        )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(init, key))

    def compile_steps(experiment):
        def train_step(state, batch):
            jax.eval_shape(functools.partial(steps.train_step, experiment), state, batch)
            metrics = {"loss": jnp.ones(()), "accuracy": jnp.ones(())}
            return state.replace(step=state.step + 1), metrics

        def eval_step(params, batch_stats, batch):
            step = functools.partial(steps.eval_step, experiment)
            shapes = jax.eval_shape(step, params, batch_stats, batch)
            return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

        return train_step, eval_step

    monkeypatch.setattr(train, "initial_state", initial_state)
    monkeypatch.setattr(train, "begin", lambda experiment, step: (initial_state(experiment), step))
    monkeypatch.setattr(train, "compile_steps", compile_steps)


def unread(monkeypatch, tmp_path, change=lambda config: None):
    """Fields that neither a training by the command line nor a choice of optimizer reads."""
    reads = Reads(monkeypatch)
    replace_what_is_slow(monkeypatch)

    def small(**fields):
        config = build("mobilenet_v3_small_minimalistic", model__alpha=0.35, **fields)
        config.update(batch_size=16, eval_batch_size=8, epochs=1.0, resolution=8)
        config.schedule.warmup_epochs = 0.0
        change(config)
        return reads.watch(config)

    # With both, every field of the sections that a whole training reads is reached.
    config = small(augment__mixup=0.2, schedule__name="exponential", optimizer__name="rmsprop")
    options = main.Options("train", config, [], tmp_path / "w", "")
    monkeypatch.setattr(main, "parse", lambda argv: options)
    assert main.main(["main"]) == 0
    for name in ("sgd", "adamw"):
        steps.build(small(optimizer__name=name))
    return {name for name, _ in config_lib.flatten(config)} - reads.names


# `train` hands this section on as a whole: test_every_field_of_augment_has_an_effect has its proof.
HANDED_ON = {name for name in config_lib.FIELDS if name.startswith("augment.")}
HANDED_ON -= {"augment.mixup", "augment.cutmix"}
# `config.replicas` reads these for all others: tests/test_replicas.py.
HANDED_ON |= {"replicas", "replica.seeds", "replica.weight_decay"}


def test_every_field_is_read(monkeypatch, tmp_path):
    assert unread(monkeypatch, tmp_path) == HANDED_ON


def test_a_field_that_nothing_reads_is_found(monkeypatch, tmp_path):
    sections = ("", "dataset.", "preprocess.", "optimizer.", "schedule.")
    useless = {f"{section}useless" for section in sections}
    for name in useless:
        monkeypatch.setitem(config_lib.FIELDS, name, config_lib.Field(int))

    def change(config):
        config.unlock()
        for section in sections:
            (config[section.rstrip(".")] if section else config)["useless"] = 1

    assert unread(monkeypatch, tmp_path, change) == HANDED_ON | useless


@pytest.mark.parametrize("section", ["model", "augment"])
def test_a_useless_field_of_a_section_that_is_handed_on_is_refused(section, monkeypatch, tmp_path):
    monkeypatch.setitem(config_lib.FIELDS, f"{section}.useless", config_lib.Field(int))
    replace_what_is_slow(monkeypatch)
    config = build("mobilenet_v3_small_minimalistic", batch_size=16, epochs=20.0).unlock()
    config[section].useless = 1
    with pytest.raises(InputError, match=r"^Unknown (model switch|field of augment) 'useless'"):
        train.train(config, tmp_path)


# field: value, and what else is needed for it to have an effect
MODEL_EFFECTS = {
    "name": ("mobilenet_v1", {}),
    "alpha": (0.5, {}),
    "activation": ("gelu", {}),
    "activation_everywhere": (True, {"activation": "relu"}),
    "rule": ("torchvision", {"name": "mobilenet_v3_large", "alpha": 0.75}),
    "standard_conv": (True, {}),
    "linear_bottleneck": (False, {}),
    "expansion": (3, {}),
    "residual": ("classical", {}),
    "shortcut": ("none", {}),
    "se": (True, {}),
    "hswish_from": (14, {}),
    "last_stage": ("shortened", {}),
    "stem": (16, {}),
    "shallow": (True, {"name": "mobilenet_v1"}),
    "drop_strides": (0, {}),
    "padding": ("symmetric", {}),
    "bn_momentum": (0.5, {}),
    "bn_epsilon": (0.5, {}),
    "dropout": (0.5, {}),
    "se_gate": ("sigmoid", {"name": "mobilenet_v3_large"}),
    "depth": (1.4, {"name": "mobilenet_v2"}),
    "timm_variant": ("h", {"name": "mobilenet_v1"}),
    "dtype": ("bfloat16", {}),
    "depthwise_implementation": ("lax", {}),
}


def test_every_field_of_the_model_has_an_effect():
    model = build().model.to_dict()
    assert set(MODEL_EFFECTS) == set(model)
    for key, (value, needed) in MODEL_EFFECTS.items():
        without = create_model(num_classes=10, **{**model, **needed})
        assert create_model(num_classes=10, **{**model, **needed, key: value}) != without, key


# field: value, and what else is needed for it to have an effect
AUGMENT_EFFECTS = {
    "crop": ("pad", {}),
    "padding": (1, {"crop": "pad"}),
    "min_area": (0.9, {"crop": "random_resized"}),
    "rotate": (45.0, {}),
    "flip": (True, {}),
    "brightness": (0.5, {}),
    "saturation": (0.9, {}),
    "randaugment": (2, {}),
    "magnitude": (3.0, {"randaugment": 2}),
    "erasing": (1.0, {}),
    "mixup": (0.4, {}),
    "cutmix": (0.4, {}),
}


def test_every_field_of_augment_has_an_effect():
    plain = default.base("mobilenet_v2", "digits").augment.to_dict()
    assert set(AUGMENT_EFFECTS) == set(plain)
    images = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)

    def batch(fields):
        rng = np.random.default_rng(1)
        batch = np.stack([augment.augment_train(i, rng, 16, fields) for i in images])
        key = jax.random.key(0)
        mixed = augment.mix(
            batch.astype(np.float32), np.arange(4), 4, key, fields["mixup"], fields["cutmix"]
        )
        return np.asarray(mixed[0])

    for key, (value, needed) in AUGMENT_EFFECTS.items():
        without = batch({**plain, **needed})
        assert not np.array_equal(batch({**plain, **needed, key: value}), without), key


@pytest.mark.parametrize("name", optim.OPTIMIZER_KEYS)
def test_an_optimizer_reads_the_fields_that_are_listed_for_it(name, monkeypatch):
    config = build(optimizer__name=name)
    reads = Reads(monkeypatch)
    reads.watch(config)
    params = {"stem": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    optim.make_optimizer(config.optimizer, lambda step: 0.1, params)
    listed = {f"optimizer.{key}" for key in ("name", *optim.OPTIMIZER_KEYS[name])}
    assert reads.names - {"optimizer"} == listed


@pytest.mark.parametrize("name", optim.SCHEDULE_KEYS)
def test_a_schedule_reads_the_fields_that_are_listed_for_it(name, monkeypatch):
    config = build(schedule__name=name)
    reads = Reads(monkeypatch)
    reads.watch(config)
    optim.learning_rate_schedule(config.schedule, 10, 1000)
    listed = {f"schedule.{key}" for key in ("name", *optim.SCHEDULE_KEYS[name])}
    assert reads.names - {"schedule"} == listed


# Fields that other choices make useless -----------------------------------------------------------


@pytest.mark.parametrize("name", optim.OPTIMIZER_KEYS)
def test_fields_of_another_optimizer_are_refused(name):
    for field in config_lib.FIELDS:
        section, _, leaf = field.rpartition(".")
        if section == "optimizer":
            message = refusal(build(optimizer__name=name), field)
            used = leaf in ("name", *optim.OPTIMIZER_KEYS[name])
            assert (message == "") is used, field
            if not used:
                assert message.startswith(f"{field} is not used by optimizer.name={name}.")


@pytest.mark.parametrize("name", optim.SCHEDULE_KEYS)
def test_fields_of_another_schedule_are_refused(name):
    for field in config_lib.FIELDS:
        section, _, leaf = field.rpartition(".")
        if section == "schedule":
            message = refusal(build(schedule__name=name), field)
            assert (message == "") is (leaf in ("name", *optim.SCHEDULE_KEYS[name])), field


@pytest.mark.parametrize(
    ("field", "useless", "useful", "condition"),
    [
        (
            "augment.padding",
            {"augment__crop": "none"},
            {"augment__crop": "pad"},
            "augment.crop=pad",
        ),
        (
            "augment.min_area",
            {"augment__crop": "pad"},
            {"augment__crop": "random_resized"},
            "augment.crop=random_resized",
        ),
        (
            "augment.magnitude",
            {"augment__randaugment": 0},
            {"augment__randaugment": 1},
            "augment.randaugment above 0",
        ),
        (
            "augment.saturation",
            {"dataset__name": "fashion_mnist"},
            {"dataset__name": "cifar10"},
            "images in colour",
        ),
        (
            "optimizer.weight_decay_depthwise",
            {"optimizer__weight_decay": 0.0},
            {"optimizer__weight_decay": 1e-4},
            "optimizer.weight_decay above 0 and depthwise convolutions",
        ),
        (
            "optimizer.weight_decay_depthwise",
            {"model__standard_conv": True},
            {"model__standard_conv": False},
            "optimizer.weight_decay above 0 and depthwise convolutions",
        ),
        (
            "dataset.manual_dir",
            {"dataset__name": "digits"},
            {"dataset__name": "image_folder"},
            "dataset.name=fashion_mnist or imagenet2012 or image_folder",
        ),
        (
            "dataset.data_dir",
            {"dataset__name": "image_folder", "dataset__manual_dir": "/photos"},
            {"dataset__name": "image_folder"},
            "dataset.manual_dir=None",
        ),
        (
            "model.se_gate",
            {},
            {"model__se": True},
            "squeeze-and-excite, model.se=True",
        ),
        (
            "model.se_gate",
            {"model__name": "mobilenet_v3_small", "model__se": False},
            {"model__name": "mobilenet_v3_small"},
            "squeeze-and-excite, model.se=True",
        ),
        ("model.hswish_from", {"model__activation": "relu"}, {}, "model.activation=None"),
        ("init_source", {}, {"init_from": "weights.npz"}, "init_from"),
        (
            "optimizer.backbone_scale",
            {"init_from": "weights.npz", "freeze": "backbone"},
            {"init_from": "weights.npz"},
            "freeze=None",
        ),
        (
            "model.activation_everywhere",
            {},
            {"model__activation": "relu"},
            "model.activation and linear bottlenecks",
        ),
    ],
)  # fmt: skip
def test_a_field_without_what_it_needs_is_refused(field, useless, useful, condition):
    assert refusal(build(**useful), field) == ""
    message = refusal(build(**useless), field)
    assert message == f"{field} is set but not used: it needs {condition}."
    # Only what the user set is refused: recipes may leave what their other choices do not read.
    assert refusal(build(**useless)) == ""


def test_what_is_frozen_must_come_from_somewhere():
    assert refusal(build(init_from="weights.npz", freeze="backbone"), "freeze") == ""
    assert refusal(build(freeze="backbone")) == (
        "freeze=backbone without init_from would keep random weights: give init_from, or leave "
        "freeze out."
    )
    assert refusal(build(init_from="weights.npz", freeze="bakbone")) == (
        "Unknown freeze 'bakbone'. Did you mean 'backbone'? Choose one of: backbone."
    )
    assert refusal(build(init_from="weights.npz", init_source="tim")).startswith(
        "Unknown init_source 'tim'. Did you mean 'timm'?"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 3}, ""),
        ({"replicas": 2, "replica__seeds": (7, 3)}, ""),
        ({"replicas": 2, "replica__seeds": (7, 7), "replica__weight_decay": (0.0, 0.1)}, ""),
        ({"replica__seeds": (3,)}, "replica.seeds is set but not used: it needs replicas above 1."),
        ({"replicas": 0}, "replicas must be an integer from 1 to 1024, not 0."),
        ({"replicas": 3, "replica__learning_rate": (0.1, 0.2)},
         "replica.learning_rate has 2 values, but there are 3 replicas: give 3 values, or none."),
        ({"replicas": 2, "replica__seeds": (5,)},
         "replica.seeds has 1 value, but there are 2 replicas: give 2 values, or none."),
        ({"replicas": 2, "replica__seeds": (7, -1)},
         "replica.seeds must be integers such as (0, 1), each from 0 to 2147483647, not (7, -1)."),
        ({"replicas": 2, "replica__learning_rate": (0.1, 0)},
         "replica.learning_rate must be numbers such as (0.01, 0.03), each above 0, not (0.1, 0)."),
        ({"replicas": 3, "replica__seeds": (7, 8, 7)},
         "Replicas 0 and 2 are the same training, seed_7: choose other values of replica.seeds."),
        ({"replicas": 2, "seed": 2**31 - 1},
         "seed is 2147483647, but the seeds of 2 replicas follow it and must be an integer from 0 "
         "to 2147483647: choose a smaller one."),
    ],
)  # fmt: skip
def test_replicas_are_as_many_as_they_shall_be_and_different(fields, message):
    assert refusal(build(**fields)) == message


@pytest.mark.parametrize(
    ("name", "fields", "useless"),
    [
        ("seed", {"replica__seeds": (1, 2)}, "replica.seeds=()"),
        ("schedule.learning_rate", {"replica__learning_rate": (0.1, 0.2)},
         "replica.learning_rate=()"),
        ("optimizer.weight_decay", {"replica__weight_decay": (0.1, 0.2)},
         "replica.weight_decay=()"),
    ],
)  # fmt: skip
def test_what_each_replica_has_of_its_own_is_not_read_elsewhere(name, fields, useless):
    config = build(replicas=2, **fields)
    assert refusal(config, name) == f"{name} is set but not used: it needs {useless}."
    assert refusal(build(replicas=2), name) == ""


def test_replicas_on_the_command_line():
    def parsed(*arguments):
        config = "--config=configs/v2.py"
        return main.parse(["main", config, *(f"--config.{argument}" for argument in arguments)])

    config = parsed("replicas=2", "replica.learning_rate=(0.01,0.03)", "replica.seeds=4,7").config
    assert config.replica.learning_rate == (0.01, 0.03)
    assert config.replica.seeds == (4, 7)
    assert config_lib.replicas(config) == ((4, 0.01, None), (7, 0.03, None))
    assert config_lib.replicas(parsed("replicas=2", "seed=5").config) == (
        (5, None, None),
        (6, None, None),
    )
    restored = config_lib.restore(config_lib.plain(config))
    assert restored.replica.to_dict() == config.replica.to_dict()


MODEL_VALUES = {
    "activation_everywhere": (False, True),
    "standard_conv": (False, True),
    "linear_bottleneck": (False, True),
    "expansion": (1, 3, 6),
    "residual": ("inverted", "classical"),
    "shortcut": ("bottleneck", "expansion", "none"),
    "se": (False, True),
    "hswish_from": (112, 56, 28, 14, 7),
    "last_stage": ("original", "shortened"),
    "stem": (16, 32),
    "shallow": (False, True),
    "drop_strides": (0, 1, 2),
    "padding": specs.PADDINGS,
    "bn_momentum": (0.5, 0.9),
    "bn_epsilon": (0.01, 0.1),
    "dropout": (0.0, 0.5),
    "se_gate": specs.SE_GATES,
}
CONTEXTS = (
    {},
    {"activation": "relu"},
    {"activation": "relu", "activation_everywhere": True},
    {"linear_bottleneck": False},
    {"linear_bottleneck": True},
    {"linear_bottleneck": True, "activation": "relu", "activation_everywhere": True},
    {"linear_bottleneck": False, "activation": "relu"},
    {"se": True},
    {"se": False},
    {"standard_conv": True},
    {"residual": "classical"},
    {"hswish_from": 14},
)


@pytest.mark.parametrize("name", specs.list_models())
def test_a_model_switch_is_refused_where_none_of_its_values_changes_the_network(name):
    def networks(context, key):
        """What the network is for each value of the switch that it accepts."""
        found = set()
        for value in MODEL_VALUES[key]:
            try:
                spec = switches.build_spec(name, 10, 0.75, **{**context, key: value})
            except InputError:
                continue
            gate = spec.se_gate if any(block.se for block in spec.blocks) else None
            found.add((repr(spec).replace(f"se_gate='{spec.se_gate}'", ""), gate))
        return found

    refused = 0
    for context, key in itertools.product(CONTEXTS, MODEL_VALUES):
        try:
            switches.build_spec(name, **context)
        except InputError:
            continue
        if key == "activation_everywhere" and "activation" not in context:
            continue  # alone it is an error of its own
        useless = len(networks(context, key)) < 2
        for value in MODEL_VALUES[key]:
            fields = {f"model__{k}": v for k, v in {**context, key: value}.items()}
            message = refusal(build(name, **fields), f"model.{key}")
            if useless:
                assert message, (context, key, value)
                refused += 1
            else:
                assert "not used" not in message, (context, key, value)
    assert refused > 0


# Two configs compared -----------------------------------------------------------------------------


def test_plain_is_what_json_gives_back():
    config = build("mobilenet_v3_large", "imagenet2012")
    plain = config_lib.plain(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["preprocess"]["mean"] == [127.5, 127.5, 127.5]
    assert plain["model"]["activation"] is None
    assert refusal(ConfigDict(plain)) == ""


def test_difference_names_the_first_field():
    old, new = (config_lib.plain(build(batch_size=size)) for size in (64, 32))
    assert config_lib.difference(old, copy.deepcopy(old)) == ""
    assert config_lib.difference(old, new) == "batch_size is 64 there and 32 here"
    new = config_lib.plain(build(batch_size=64, model__activation="relu"))
    assert config_lib.difference(old, new) == "model.activation is None there and 'relu' here"


WITHOUT_EFFECT = {
    "log_every": 7,
    "distributed": True,
    "dataset__workers": 2,
    "eval_batch_size": 7,
    "checkpoint_every": 7.0,
    "dataset__data_dir": "/elsewhere",
    "dataset__manual_dir": "/elsewhere",
}


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_difference_overlooks_what_changes_no_number(field):
    other = build(dataset="fashion_mnist", **{field: WITHOUT_EFFECT[field]})
    plain = config_lib.plain(build(dataset="fashion_mnist"))
    assert config_lib.difference(plain, config_lib.plain(other)) == ""


def test_a_config_from_before_a_field_came_is_the_same_training(tmp_path):
    plain = config_lib.plain(build())
    before = copy.deepcopy(plain)
    del before["replicas"], before["replica"], before["model"]["expansion"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert config_lib.read(tmp_path) == plain
    assert config_lib.identity(before) == config_lib.identity(plain)
    # The name that this config's folder has had from the beginning.
    assert main.default_workdir(build()).name == "mobilenet_v2-digits-7ef58bd5"
    two = config_lib.plain(build(replicas=2))
    assert config_lib.difference(plain, two) == "replicas is 1 there and 2 here"


@pytest.mark.parametrize("field", ["dataset__data_dir", "dataset__manual_dir"])
def test_another_folder_of_photos_is_another_experiment(field):
    cats, dogs = (
        config_lib.plain(build(dataset="image_folder", **{field: place}))
        for place in ("/cats", "/dogs")
    )
    name = field.replace("__", ".")
    assert config_lib.difference(cats, dogs) == f"{name} is '/cats' there and '/dogs' here"


def test_every_other_field_is_a_difference():
    old = config_lib.plain(build())
    for name in config_lib.FIELDS:
        new = copy.deepcopy(old)
        section, _, leaf = name.rpartition(".")
        (new[section] if section else new)[leaf] = "another"
        differs = config_lib.difference(old, new) != ""
        assert differs is (name.replace(".", "__") not in WITHOUT_EFFECT), name


# Stored configs -----------------------------------------------------------------------------------


def test_read_gives_back_what_was_stored(tmp_path):
    plain = config_lib.plain(build())
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert config_lib.read(tmp_path) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no {path}: give the --workdir of a training that was started."),
        ("{", "{path} is not a config of this version (Expecting property name enclosed in double "
         "quotes: line 1 column 2 (char 1)): choose another --workdir."),
        ("[1]", "{path} is not a config of this version ('list' object has no attribute 'items'): "
         "choose another --workdir."),
        ("{}", "{path} is not a config of this version (The config has no field "
         "'augment.brightness': build it on configs/default.py, which has all): choose another "
         "--workdir."),
    ],
)  # fmt: skip
def test_read_refuses(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        config_lib.read(tmp_path)
    assert str(caught.value) == message.format(path=path)


def test_a_restored_config_is_the_one_stored_with_its_types():
    config = build(model__activation="relu")
    restored = config_lib.restore(config_lib.plain(config))
    assert restored.to_dict() == config.to_dict()
    for name, field in config_lib.FIELDS.items():
        section, _, leaf = name.rpartition(".")
        assert (restored[section] if section else restored).get_type(leaf) is field.kind, name


def test_read_where_the_workdir_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^There is no .*/file/config\.json: give"):
        config_lib.read(tmp_path / "file")


def test_a_crop_fraction_of_none_is_stored_and_read():
    config = build(preprocess__crop_fraction=None)
    assert refusal(config) == ""
    restored = config_lib.restore(config_lib.plain(config))
    assert restored.preprocess.crop_fraction is None
    restored.preprocess.crop_fraction = 0.5


def test_an_evaluation_keeps_the_training_and_takes_how_to_evaluate():
    trained = config_lib.plain(build(optimizer__name="adamw", epochs=3.0, seed=5))
    how = build(eval_batch_size=8, resolution=64, beta=0.5, preprocess__crop_fraction=0.5)
    config = config_lib.for_evaluation(trained, how, ["eval_batch_size", "beta"])
    assert refusal(config) == ""
    assert (config.optimizer.name, config.epochs, config.seed) == ("adamw", 3.0, 5)
    assert (config.eval_batch_size, config.resolution, config.beta) == (8, 64, 0.5)
    assert config.preprocess.crop_fraction == 0.5


def test_an_evaluation_refuses_what_only_a_training_reads():
    trained = config_lib.plain(build(batch_size=64))
    same = build(epochs=trained["epochs"])
    config_lib.for_evaluation(trained, same, ["epochs"])
    with pytest.raises(InputError) as caught:
        config_lib.for_evaluation(trained, build(batch_size=512), ["batch_size"])
    assert str(caught.value) == (
        "batch_size is set to 512, but the training had 64 and an evaluation does not read it. "
        "Did you mean 'eval_batch_size'?"
    )
    with pytest.raises(InputError, match=r"^augment\.flip is set to True, but .* read it\.$"):
        config_lib.for_evaluation(trained, build(augment__flip=True), ["augment.flip"])
