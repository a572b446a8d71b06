"""Fine-tuning: what a training starts from, what stays as it was, and how fast the rest moves."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import default
from mobilenets_jax import checkpoint, finetune, optim, published, steps, train, weights
from mobilenets_jax.errors import InputError
from mobilenets_jax.state import init_state

SHORT = {"epochs": 4 / 89, "eval_every": 100.0, "checkpoint_every": 100.0}  # 4 steps


@pytest.fixture(scope="module", autouse=True)
def fast():
    """A network of one block, on one device, and programs that are compiled in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "build_model", tiny.small_model)
        patch.setattr(jax, "devices", lambda *backend: jax.local_devices()[:1])
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Returns a function that makes the tiny config, by default with plain SGD."""
    data_dir = str(tmp_path_factory.mktemp("data"))

    def make(**fields):
        plain = {"optimizer__name": "sgd", "schedule__name": "constant"}
        plain |= {"schedule__warmup_epochs": 0.0, "dataset__data_dir": data_dir}
        return tiny.config(**{**plain, **SHORT, **fields})

    return make


def variables_of(model, seed=0):
    """Arbitrary variables, negative zeros among them, which adding 0 would change."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in weights.shapes(model).items():
        flat[name] = rng.uniform(0.1, 0.5, shape).astype(np.float32)
        if not name.endswith(("/scale", "/var")):
            flat[name].flat[0] = -0.0
    return unflatten_dict(flat, sep="/")


def sound_variables_of(model):
    """Arbitrary variables whose network tells images apart, negative zeros among them."""
    rng = np.random.default_rng(0)
    flat = {}
    for name, shape in weights.shapes(model).items():
        is_near_one = name.endswith(("/scale", "/var"))
        width = (2 / np.prod(shape[:-1])) ** 0.5 if name.endswith("/kernel") else 0.1
        flat[name] = rng.uniform(-width, width, shape).astype(np.float32) + is_near_one
        if not is_near_one:
            flat[name].flat[0] = -0.0
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def file(make, tmp_path_factory):
    """A file of the tiny network's weights, and those."""
    model = tiny.small_model(make(), 10)
    variables = variables_of(model)
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    weights.save(variables, path, model, format="npz", naming="native")
    return path, variables


def start(config):
    """Returns the experiment, and the state that its training starts from."""
    experiment = steps.build(config)
    return experiment, finetune.replace(experiment, blank(experiment), finetune.load(experiment))


def blank(experiment):
    """Stands in for `steps.initial_state`: zeros, which need no compiling."""
    model, optimizer, freeze = experiment.model, experiment.optimizer, experiment.config.freeze
    state = jax.eval_shape(
        lambda: init_state(model, optimizer, experiment.resolution, jax.random.key(0), freeze)
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)


def count_steps(experiment):
    """Stands in for `steps.compile_steps`: steps that change nothing but their number."""
    one = jnp.ones(())

    def evaluate(params, batch_stats, batch):
        sums = {"loss": one, "correct": one, "examples": one}
        return {**sums, "predicted": jnp.zeros(len(batch["label"]), jnp.int32)}

    def step(state, batch):
        return dataclasses.replace(state, step=state.step + 1), {"loss": one, "accuracy": one}

    return step, evaluate


def batch_of(experiment, seed=0):
    rng = np.random.default_rng(seed)
    size, side = experiment.config.batch_size, experiment.resolution
    image = rng.integers(256, size=(size, side, side, 3), dtype=np.uint8)
    batch = {"image": image, "label": rng.integers(10, size=size, dtype=np.int32)}
    return steps.to_devices(batch, experiment.sharded)


def after(config, count=2):
    """Returns the arrays of a state before and after some steps."""
    experiment, state = start(config)
    before = tiny.named(state)
    step_fn, _ = steps.compile_steps(experiment)
    for i in range(count):
        state, _ = step_fn(state, batch_of(experiment, i))
    return before, tiny.named(state)


def message_of(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    return str(caught.value)


# Where it starts


def test_a_training_starts_from_the_files_weights(make, file, capsys):
    path, variables = file
    _, state = start(make(init_from=str(path)))
    for name in ("params", "batch_stats"):
        expected = tiny.named(variables[name])
        tiny.assert_same_bits(tiny.named(getattr(state, name)), expected)
        tiny.assert_same_bits(tiny.named(getattr(state, f"ema_{name}")), expected)
    assert int(state.step) == 0
    assert capsys.readouterr().out == f"Starting from {path}, our own weights.\n"


def test_without_init_from_it_starts_from_the_seed(make):
    experiment = steps.build(make())
    assert finetune.load(experiment) is None


def test_another_number_of_classes_starts_with_a_fresh_classifier(make, tmp_path, capsys):
    model = tiny.small_model(make(), 7)
    variables = variables_of(model)
    path = tmp_path / "seven.npz"
    weights.save(variables, path, model, format="npz", naming="native")
    loaded = [
        finetune.load(steps.build(make(init_from=str(path), seed=seed)))["params"]
        for seed in (0, 0, 1)
    ]
    assert "its classifier has 7 classes and this network has 10" in capsys.readouterr().out
    kernels = [np.asarray(params["classifier"]["kernel"]) for params in loaded]
    assert kernels[0].shape[1] == 10
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()
    expected = tiny.named({**variables["params"], "classifier": None})
    for params in loaded:
        tiny.assert_same_bits(tiny.named({**params, "classifier": None}), expected)


def test_a_training_reads_them_once_and_resumes_without(make, file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "initial_state", blank)
    monkeypatch.setattr(train, "begin", lambda experiment, step: (blank(experiment), step))
    monkeypatch.setattr(train, "compile_steps", count_steps)
    path, variables = file
    moved = tmp_path / "moved.npz"
    moved.write_bytes(path.read_bytes())
    config = make(init_from=str(moved), freeze="backbone", checkpoint_every=2 / 89)
    workdir = tmp_path / "run"
    assert train.train(config, workdir)
    assert capsys.readouterr().out.count("Starting from") == 1
    assert json.loads((workdir / "config.json").read_text())["init_from"] == str(moved)
    final, _ = tiny.arrays(workdir, config)
    params = {k.removeprefix(".params"): v for k, v in final.items() if k.startswith(".params")}
    tiny.assert_same_bits(params, tiny.named(variables["params"]))

    # As after a kill: step 2 is the latest, the file is gone, and the end is the same.
    moved.unlink()
    (workdir / "result.json").unlink()
    with checkpoint.open_manager(workdir) as manager:
        manager.delete(4)
    assert train.train(config, workdir)
    output = capsys.readouterr().out
    assert "Resuming from step 2." in output
    assert "Starting from" not in output
    tiny.assert_same_bits(tiny.arrays(workdir, config)[0], final)

    other = make(init_from=str(path), freeze="backbone", checkpoint_every=2 / 89)
    message = message_of(train.train, other, workdir)
    assert f"(init_from is '{moved}' there and '{path}' here)" in message


def test_a_bad_path_leaves_no_workdir_behind(make, tmp_path):
    config = make(init_from=str(tmp_path / "none.npz"))
    assert message_of(train.train, config, tmp_path / "run") == (
        f"There is no file of weights {tmp_path / 'none.npz'}: check the path."
    )
    assert not (tmp_path / "run").exists()


def test_a_workdir_gives_its_averaged_weights(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    config = default.get_config("model=mobilenet_v1")
    config.model.update(alpha=0.1, shallow=True)
    model = steps.build_model(config, 10)
    variables, averaged = variables_of(model, 1), variables_of(model, 2)
    state = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    state |= {f"ema_{name}": value for name, value in averaged.items()}
    with checkpoint.open_manager(tmp_path) as manager:
        meta = {"config": config.to_dict(), "class_names": []}
        checkpoint.save(manager, 5, state, meta, None)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.init_from = str(tmp_path)
    config.preprocess.std = (255.0, 255.0, 255.0)
    loaded = finetune.load(steps.build(config))
    tiny.assert_same_bits(tiny.named(loaded), tiny.named(averaged))
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{tmp_path}: to these weights belongs "
        "--config.preprocess.std='(127.5,127.5,127.5)', and this training has "
        "--config.preprocess.std='(255,255,255)': set theirs, unless you mean it."
    )
    config.model.update(alpha=1.0, drop_strides=0, dropout=0.5)
    assert message_of(finetune.load, steps.build(config)) == (
        f"The workdir {tmp_path} is of another network: set --config.model.alpha=0.1 "
        "--config.model.drop_strides=1 for its weights."
    )


HOW = published.Preprocessing((1.0, 2.0, 3.0), (127.5,) * 3, 0.875, "pillow_bicubic", 160)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_preprocessing_that_a_file_of_ours_holds_is_said(make, tmp_path, capsys, suffix):
    model = tiny.small_model(make(), 10)
    path = tmp_path / f"mine.{suffix}"
    weights.save(
        variables_of(model), path, model, format=suffix, naming="native", preprocessing=HOW
    )
    config = make(init_from=str(path))
    finetune.load(steps.build(config))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Starting from {path}, our own weights."
    assert second == (
        f"{path}: to these weights belongs --config.preprocess.mean='(1,2,3)' "
        "--config.preprocess.crop_fraction=0.875 --config.preprocess.interpolation=pillow_bicubic, "
        "and this training has --config.preprocess.mean='(127.5,127.5,127.5)' "
        "--config.preprocess.crop_fraction=1 --config.preprocess.interpolation=bilinear: set "
        "theirs, unless you mean it."
    )
    names = ("mean", "std", "crop_fraction", "interpolation")
    config.preprocess.update({name: getattr(HOW, name) for name in names})
    finetune.load(steps.build(config))
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": "symmetric"}, "set --config.model.padding=symmetric for its weights."),
        (
            {"alpha": 0.5, "bn_epsilon": 1e-5, "rule": "timm", "dropout": 0.0},
            # This V1 is the same by either rule.
            "set --config.model.alpha=0.5 --config.model.bn_epsilon=1e-05 for its weights.",
        ),
        ({"drop_strides": 3}, "set --config.model.drop_strides=3 for its weights."),
        (
            {"activation": "silu"},
            "(stem.activation is 'silu' there and 'relu6' here): give the name and switches of the "
            "one that was saved.",
        ),
        (
            {"name": "mobilenet_v2", "shallow": None},
            "give the config of a mobilenet_v2, as by --config=configs/default.py:"
            "model=mobilenet_v2.",
        ),
    ],
)
def test_a_file_of_ours_of_another_network_names_the_fields(
    make, tmp_path, monkeypatch, fields, message
):
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    theirs = make()
    theirs.model.update(fields)
    model = tiny._build_model(theirs, 10)
    path = tmp_path / "theirs.npz"
    weights.save(variables_of(model), path, model, format="npz", naming="native")
    text = message_of(finetune.load, steps.build(make(init_from=str(path))))
    assert text.startswith(f"{path} is of another network")
    assert text.endswith(message)


# What stays


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_a_frozen_backbone_stays_to_the_bit(name, make, file):
    path, _ = file
    fields = {"optimizer__name": name, "optimizer__weight_decay": 0.1, "ema_decay": 0.5}
    config = make(init_from=str(path), freeze="backbone", **fields)
    before, last = after(config)
    moved = {name for name in before if before[name].tobytes() != last[name].tobytes()}
    classifiers = {
        f".{tree}['classifier']['{leaf}']"
        for tree in ("params", "ema_params")
        for leaf in ("kernel", "bias")
    }
    assert {name for name in moved if not name.startswith(".opt_state")} == {".step", *classifiers}
    # The optimizer keeps nothing for what it does not change.
    sizes = {leaf.size for name, leaf in before.items() if name.startswith(".opt_state")}
    kernel, bias = (before[f".params['classifier']['{k}']"].size for k in ("kernel", "bias"))
    assert sizes == {1, kernel, bias}


def test_dropout_stays_on_over_a_frozen_backbone(make, file):
    """The gradient is that of running statistics with dropout between backbone and classifier."""
    path, variables = file
    fields = {"augment__mixup": 0.0, "label_smoothing": 0.0, "optimizer__momentum": 0.0}
    fields |= {"optimizer__nesterov": False, "optimizer__weight_decay": 0.0}
    config = make(init_from=str(path), freeze="backbone", **fields)
    experiment, state = start(config)
    batch = batch_of(experiment)
    assert experiment.model.spec.dropout == 0.3

    model = experiment.model
    image = steps.normalize(batch["image"], config)
    _, seen = model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])
    means = flatten_dict(seen["intermediates"], sep="/")["dropout/__call__"][0]
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    _, key = jax.random.split(jax.random.fold_in(key, 0))
    head = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    logits = model.apply(head, image, train=True, frozen=True, rngs={"dropout": key})
    classifier = variables["params"]["classifier"]
    plain = np.asarray(means) @ classifier["kernel"] + classifier["bias"]
    assert np.abs(np.asarray(logits) - plain).max() > 0.01
    still = model.apply(head, image, train=False)
    np.testing.assert_allclose(still, plain, rtol=1e-4, atol=1e-5)

    def loss(classifier):
        params = {**variables["params"], "classifier": classifier}
        out = model.apply(
            {**head, "params": params}, image, train=True, frozen=True, rngs={"dropout": key}
        )
        return optim.cross_entropy(out, batch["label"]).mean()

    gradient = jax.grad(loss)(classifier)
    new, _ = steps.compile_steps(experiment)[0](state, batch)
    rate = config.schedule.learning_rate
    for leaf, value in classifier.items():
        expected = value - rate * np.asarray(gradient[leaf])
        np.testing.assert_allclose(new.params["classifier"][leaf], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("workers")
def test_two_processes_start_from_the_same_file_and_leave_the_backbone(
    make, tmp_path, tmp_path_factory, monkeypatch
):
    """Without dropout and mixup, which depend on the order of the images within the batch."""
    monkeypatch.setattr(steps, "build_model", tiny._build_model)
    fields = {"augment__mixup": 0.0, "model__dropout": 0.0, "log_every": 1}
    fields |= {"schedule__learning_rate": 0.1, "freeze": "backbone", "epochs": 10 / 89}
    fields |= {"init_from": str(tmp_path / "weights.npz"), "eval_every": 100.0}
    fields |= {"checkpoint_every": 100.0, "dataset__data_dir": make().dataset.data_dir}
    config = tiny.config(**fields)
    model = steps.build_model(config, 10)
    variables = sound_variables_of(model)
    weights.save(variables, config.init_from, model, format="npz", naming="native")
    environment = tiny.environment(tmp_path_factory.mktemp("compiled"))
    one, two = tmp_path / "one", tmp_path / "two"
    training = tiny.Training(one, environment, **fields)
    assert training.end() == 0, training.output()
    trainings = tiny.start_two(two, environment, **fields)
    assert [each.end() for each in trainings] == [0, 0], trainings[0].output()
    assert "on 2 cpu device(s)" in trainings[0].output()
    said = f"Starting from {config.init_from}, our own weights; the backbone stays as it is."
    assert [each.output().count(said) for each in trainings] == [1, 0]

    losses = [
        [line["loss"] for line in tiny.metrics(workdir) if line["split"] == "train"]
        for workdir in (one, two)
    ]
    assert len(losses[0]) == 10
    assert np.std(losses[0]) > 0.01
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    expected = tiny.named({"params": variables["params"], "stats": variables["batch_stats"]})
    for workdir in (one, two):
        found, _ = tiny.arrays(workdir, config)
        for average in ("", "ema_"):
            trees = {"params": f".{average}params", "stats": f".{average}batch_stats"}
            for name, value in expected.items():
                tree, _, rest = name[2:].partition("']")
                actual = found[trees[tree] + rest]
                is_same = actual.tobytes() == value.tobytes()
                assert is_same == ("classifier" not in name), (workdir, average, name)


# How fast the rest moves


def test_a_step_of_sgd_is_scaled_exactly(make, file):
    path, _ = file
    fields = {"optimizer__momentum": 0.0, "optimizer__nesterov": False}
    fields |= {"optimizer__weight_decay": 0.0, "schedule__learning_rate": 0.5}
    (before, full), (_, scaled) = (
        after(make(init_from=str(path), optimizer__backbone_scale=scale, **fields), 1)
        for scale in (1.0, 0.5)
    )
    for name in before:
        if name.startswith(".params"):
            share = 1.0 if "classifier" in name else 0.5
            moved = full[name].astype(np.float64) - before[name]
            np.testing.assert_allclose(scaled[name] - before[name], share * moved, atol=1e-6)
            assert np.abs(moved).max() > 1e-4, name


# Errors, and what is said of other libraries' weights


def fields_of(name, source_name, alpha=1.0, source="timm"):
    """The fields of a config's `model` for a source's network, on 32 pixels."""
    model = default.get_config(f"model={name}").model.to_dict()
    return {**model, **weights.arguments(source, source_name, alpha), "alpha": alpha}


def test_a_network_of_the_source_needs_nothing():
    for network in weights.published.NETWORKS:
        model = default.get_config(f"model={network.model}").model.to_dict()
        fields = {**model, **network.arguments, "alpha": network.alpha, "drop_strides": 2}
        fields |= {"dropout": 0.5, "dtype": "bfloat16", "bn_momentum": 0.5}
        assert finetune.check_network(fields, network.source) == network


@pytest.mark.parametrize(
    ("source", "argument", "fields", "message"),
    [
        (
            "timm", "model=mobilenet_v2", {},
            "timm's mobilenetv2_100 differs from this mobilenet_v2: set "
            "--config.model.padding=symmetric --config.model.bn_epsilon=1e-05 for its weights.",
        ),
        (
            "torchvision", "model=mobilenet_v3_small", {"alpha": 0.75},
            "torchvision's mobilenet_v3_small differs from this mobilenet_v3_small: set "
            "--config.model.rule=torchvision --config.model.padding=symmetric for its weights.",
        ),
        (
            "keras", "model=mobilenet_v1", {},
            "keras's MobileNet differs from this mobilenet_v1: set "
            "--config.model.padding=bottom_right for its weights.",
        ),
        (
            "keras", "model=mobilenet_v2", {"activation": "hswish", "se": True},
            "keras's MobileNetV2 differs from this mobilenet_v2: set "
            "--config.model.activation=None --config.model.se=None for its weights.",
        ),
        (
            "timm", "model=mobilenet_v2",
            {"depth": 1.2, "alpha": 1.1, "padding": "symmetric", "rule": "keras"},
            "timm's mobilenetv2_110d differs from this mobilenet_v2: set "
            "--config.model.bn_epsilon=1e-05 for its weights.",
        ),
    ],
)  # fmt: skip
def test_a_network_that_the_source_has_otherwise_names_the_fields(
    source, argument, fields, message
):
    model = {**default.get_config(argument).model.to_dict(), **fields}
    assert message_of(finetune.check_network, model, source) == message


def test_a_network_that_the_source_has_not():
    model = default.get_config("model=mobilenet_v1").model.to_dict()
    assert message_of(finetune.check_network, model, "torchvision").startswith(
        "torchvision has no mobilenet_v1: choose one of mobilenet_v2,"
    )


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Returns a function: a config that starts from a file of a source's own network."""
    monkeypatch.setattr(steps, "build_model", tiny._build_model)

    def theirs(source, name, **fields):
        arguments = weights.arguments(source, name)
        model = weights.model_for(source, name, num_classes=10)
        path = tmp_path / "theirs.safetensors"
        weights.save(variables_of(model), path, model, naming=source)
        config = default.get_config(f"model={arguments['name']}")
        config.model.update({**arguments, **fields})
        config.init_from, config.init_source = str(path), source
        return config

    return theirs


def test_preprocessing_of_other_weights_is_said(theirs, capsys):
    config = theirs("torchvision", "mobilenet_v3_small")
    finetune.load(steps.build(config))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("theirs.safetensors, torchvision's mobilenet_v3_small.")
    theirs_flags = (
        "--config.preprocess.mean='(123.675,116.28,103.53)' "
        "--config.preprocess.std='(58.395,57.12,57.375)' "
        "--config.preprocess.crop_fraction=0.875 --config.preprocess.interpolation=pillow_bilinear"
    )
    assert f"to these weights belongs {theirs_flags}, and this training has" in second
    config.preprocess.mean = (123.675, 116.28, 103.53)
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.preprocess.crop_fraction = 0.875
    finetune.load(steps.build(config))
    flag = "--config.preprocess.interpolation"
    _, second = capsys.readouterr().out.splitlines()
    assert second.endswith(
        f"to these weights belongs {flag}=pillow_bilinear, and this training has {flag}=bilinear: "
        "set theirs, unless you mean it."
    )
    config.preprocess.interpolation = "pillow_bilinear"
    finetune.load(steps.build(config))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_networks_that_a_file_cannot_tell_apart_are_said(theirs, capsys):
    config = theirs("timm", "tf_mobilenetv3_small_100")
    config.preprocess.update(crop_fraction=0.875, interpolation="pillow_bilinear")
    capsys.readouterr()
    finetune.load(steps.build(config))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("theirs.safetensors, timm's tf_mobilenetv3_small_100.")
    assert second == (
        "timm's files do not say whether they are of mobilenetv3_small_100 "
        "(--config.model.padding=symmetric --config.model.bn_epsilon=1e-05) instead."
    )
