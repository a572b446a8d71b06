import contextlib
import dataclasses
import fcntl
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image
from tensorboardX.proto import event_pb2

from mobilenets_jax import (
    augment,
    checkpoint,
    costs,
    data,
    evaluation,
    logs,
    main,
    plots,
    steps,
    train,
)
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError

STEPS = 22  # of the training that most tests look at, evaluated at 11 and 22


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory):
    with tiny.fast(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Returns a function that makes the tiny config."""
    data_dir = str(tmp_path_factory.mktemp("data"))

    def make(**fields):
        short = {"epochs": 0.25, "eval_every": 0.125, "dataset__data_dir": data_dir}
        return tiny.config(**{**short, **fields})

    return make


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """The workdir of a finished training, on eight devices."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.train(make(), workdir)
    return workdir


@pytest.fixture(scope="module")
def experiment(make):
    return steps.build(make())


@pytest.fixture(scope="module")
def final(experiment, trained):
    """The state at the end of the training."""
    with checkpoint.open_manager(trained, read_only=True) as manager:
        return checkpoint.restore(manager, steps.initial_state(experiment))[0]


def batches_of(experiment):
    config = experiment.config
    return data.train_batches(
        experiment.dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        resolution=experiment.resolution,
        augment=config.augment.to_dict(),
        interpolation=config.preprocess.interpolation,
    )


def on_devices(experiment, count):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    return experiment._replace(
        sharded=NamedSharding(mesh, PartitionSpec("data")),
        replicated=NamedSharding(mesh, PartitionSpec()),
    )


def take_steps(experiment, count):
    """Returns the states before and after each of the first steps, and the steps' losses."""
    step_fn, _ = steps.compile_steps(experiment)
    state = steps.initial_state(experiment)
    states, losses = [tiny.named(state)], []
    with batches_of(experiment) as batches:
        for _ in range(count):
            batch = steps.to_devices(next(batches), experiment.sharded)
            state, metrics = step_fn(state, batch)
            states.append(tiny.named(state))
            losses.append(float(metrics["loss"]))
    return states, losses


def part(state, name):
    """Returns the arrays under a field of a state."""
    return {k.removeprefix(f".{name}"): v for k, v in state.items() if k.startswith(f".{name}[")}


def snapshot(workdir):
    """Returns time, size and contents of every file."""
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in files}


def run(config, workdir):
    """Trains as the command line does, flags apart; returns the exit code."""
    options = main.Options("train", config, [], workdir, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "parse", lambda argv: options)
        return main.main([])


def assert_same_training(workdir, expected, config):
    assert tiny.metrics(workdir) == tiny.metrics(expected)
    assert tiny.result(workdir) == tiny.result(expected)
    tiny.assert_same_bits(tiny.arrays(workdir, config)[0], tiny.arrays(expected, config)[0])
    best = [best_step(path) for path in (workdir, expected)]
    assert best[0] == best[1]
    tiny.assert_same_bits(
        tiny.arrays(workdir, config, best[0])[0], tiny.arrays(expected, config, best[0])[0]
    )


def best_step(workdir):
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        return checkpoint.best_step(manager)


# what a training writes ---------------------------------------------------------------------------


def test_a_workdir_holds(trained):
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "predictions.png",
        "result.json",
        "tensorboard",
    }


def test_result(trained, make, experiment):
    result = json.loads((trained / "result.json").read_text())
    assert set(result) == {
        "test_accuracy",
        "test_accuracy_ema",
        "test_loss",
        "test_examples",
        "params",
        "macs",
        "steps",
        "train_seconds",
        "images_per_second",
        "resolution",
        "config",
        "seed",
        "versions",
        "git_revision",
        "device",
    }
    test, test_ema = tiny.metrics(trained)[-2:]
    assert result["test_accuracy"] == test["accuracy"]
    assert result["test_accuracy_ema"] == test_ema["accuracy"]
    assert result["test_loss"] == test["loss"]
    assert result["test_examples"] == 100
    assert result["params"] == costs.params(experiment.model.spec)
    assert result["macs"] == costs.macs(experiment.model.spec, 8)
    assert result["steps"] == STEPS
    assert result["resolution"] == 8
    assert result["seed"] == 0
    assert result["config"] == config_lib.plain(make())
    assert result["config"] == json.loads((trained / "config.json").read_text())
    assert result["device"]["count"] == 8
    assert 0 < 16 * STEPS / result["images_per_second"] < result["train_seconds"] + 60


def test_metrics_have_a_line_for_every_log_and_evaluation(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    fields = ["step", "epoch", "split", "loss", "accuracy", "images_per_second", "seconds"]
    assert all(list(line) == fields for line in lines)
    assert [(line["step"], line["split"]) for line in lines] == [
        *((step, "train") for step in (3, 6, 9)),
        *((11, split) for split in ("test", "test_ema")),
        *((step, "train") for step in (12, 15, 18, 21, 22)),
        *((22, split) for split in ("test", "test_ema")),
    ]
    spent = [line["seconds"] for line in lines]
    assert 0 < spent[0] < spent[-1]
    assert spent == sorted(spent)
    for line in lines:
        assert line["epoch"] == line["step"] / (1437 // 16)
        assert 0 <= line["accuracy"] <= 1
        assert 0 < line["loss"] < 10
        if line["split"] != "train":
            assert line["images_per_second"] is None
    # The evaluation at 11 breaks the only two-step stretch before line 12.
    speeds = {line["step"]: line["images_per_second"] for line in lines if line["split"] == "train"}
    assert speeds[12] is None or speeds[12] > 0
    assert all(speeds[step] > 0 for step in (3, 6, 9, 15, 18, 21))


def test_metrics_are_the_means_of_the_steps(trained, experiment):
    """The lines are compared with the steps taken one by one."""
    losses = take_steps(experiment, 9)[1]
    lines = [line for line in tiny.metrics(trained) if line["split"] == "train"]
    for i in range(3):
        assert lines[i]["loss"] == sum(losses[3 * i : 3 * i + 3]) / 3


def test_tensorboard_has_every_number_the_rate_and_the_images(trained, experiment):
    scalars, images = {}, {}
    for path in sorted((trained / "tensorboard").iterdir()):
        for event in events(path):
            for value in event.summary.value:
                if value.HasField("image"):
                    images[value.tag, event.step] = value.image
                else:
                    assert (value.tag, event.step) not in scalars
                    scalars[value.tag, event.step] = value.simple_value
    expected = {}
    for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()):
        for key in ("loss", "accuracy", "images_per_second"):
            if line[key] is not None:
                expected[f"{line['split']}/{key}", line["step"]] = np.float32(line[key])
        if line["split"] == "train":
            step, warmup = line["step"] - 1, 9  # 0.1 epochs; cosine after
            rate = 0.1 * min(step / warmup, 1)
            if step > warmup:
                rate = 0.05 * (1 + np.cos(np.pi * (step - warmup) / (STEPS - warmup)))
            expected["learning_rate", line["step"]] = pytest.approx(rate, rel=1e-5)
    assert scalars == expected
    with batches_of(experiment) as batches:
        grid = plots.image_grid(next(batches)["image"], 8)
    assert list(images) == [("inputs", 1)]
    picture = images["inputs", 1]
    assert (picture.height, picture.width) == grid.shape[:2]
    shown = Image.open(io.BytesIO(picture.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown), grid)


def events(path):
    """Reads a TensorBoard file: records of length, its checksum, contents, their checksum."""
    raw = path.read_bytes()
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        yield event_pb2.Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]


@pytest.mark.parametrize("name", ["curves.png", "predictions.png"])
def test_pictures(trained, name):
    with Image.open(trained / name) as image:
        assert image.format == "PNG"
        image.load()
        assert 600 < image.width < 3000
        assert 300 < image.height < 3000
        colors = image.convert("RGB").getcolors(2**24)
    assert len(colors) > 50


def test_the_latest_two_checkpoints_and_the_best_stay(trained):
    tests = {line["step"]: line for line in tiny.metrics(trained) if line["split"] == "test_ema"}
    best = max(tests, key=lambda step: (tests[step]["accuracy"], step))
    assert best_step(trained) == best
    kept = {int(path.name) for path in (trained / "checkpoints").iterdir()}
    assert kept == {20, 22, best}


# a workdir that is there already ------------------------------------------------------------------


def test_a_finished_workdir_is_left_alone(trained, make, capsys):
    before = snapshot(trained)
    assert run(make(), trained) == 0
    result = json.loads((trained / "result.json").read_text())
    out = capsys.readouterr().out
    assert "is finished" in out
    assert f"{result['test_accuracy']:.4f}" in out
    assert "step" not in out
    assert snapshot(trained) == before


def test_fields_without_effect_may_differ(trained, make, capsys):
    before = snapshot(trained)
    assert run(make(dataset__workers=2, log_every=7), trained) == 0
    assert "is finished" in capsys.readouterr().out
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"seed": 3}, "seed is 0 there and 3 here"), ({"augment__flip": True}, "augment.flip is")],
)
def test_a_workdir_of_another_config_is_refused(trained, make, capsys, fields, named):
    before = snapshot(trained)
    assert run(make(**fields), trained) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert named in error
    assert error.count("\n") == 1
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    "text", ["", '{"test_accuracy": 0.5', "[]", "{}", '{"test_accuracy": null}'], ids=str
)
def test_a_damaged_result_is_named(trained, make, tmp_path, capsys, text):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "result.json").write_text(text)
    assert run(make(), workdir) == 2
    error = capsys.readouterr().err
    assert f"{workdir}/result.json is damaged" in error
    assert error.count("\n") == 1


def test_a_deleted_result_is_written_again(trained, make, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for name in ("result.json", "curves.png", "predictions.png"):
        (workdir / name).unlink()
    assert run(make(), workdir) == 0
    assert_same_training(workdir, trained, make())
    for name in ("curves.png", "predictions.png"):
        assert (workdir / name).read_bytes() == (trained / name).read_bytes()


def test_a_second_training_in_a_workdir_is_refused(trained, make, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "result.json").unlink()
    before = snapshot(workdir)
    directory = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        assert run(make(), workdir) == 2
    finally:
        os.close(directory)
    assert f"Another training is running in {workdir}" in capsys.readouterr().err
    assert snapshot(workdir) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 cannot be shared by 8 devices: choose a multiple of 8"),
        ({"batch_size": 1440}, "1440 is larger than the training split"),
        ({"dataset__num_classes": 11}, "num_classes is 11, but digits has 10"),
        ({"schedule__warmup_epochs": 3.0}, "warmup_epochs is 3.0"),
    ],
)
def test_what_cannot_be_trained_leaves_no_workdir(make, tmp_path, capsys, fields, message):
    """So that the same --workdir serves for the corrected command."""
    assert run(make(**fields), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(make, tmp_path, capsys):
    (tmp_path / "run").write_text("not a directory")
    assert run(make(), tmp_path / "run") == 2
    assert f"The workdir {tmp_path}/run cannot be used" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "not a directory"


# evaluation ---------------------------------------------------------------------------------------


def test_evaluating_a_workdir_gives_its_result(trained, make, tmp_path, monkeypatch, capsys):
    result = json.loads((trained / "result.json").read_text())
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    before = snapshot(workdir)
    monkeypatch.chdir(tmp_path)  # also: a relative workdir
    assert main.main(["main", "--mode=eval", "--workdir=run"]) == 0
    evaluated = json.loads((workdir / "eval.json").read_text())
    names = ("test_accuracy", "test_accuracy_ema", "test_loss", "test_examples", "resolution")
    assert {name: evaluated[name] for name in names} == {name: result[name] for name in names}
    assert evaluated["step"] == STEPS
    assert json.loads(capsys.readouterr().out) == evaluated
    after = snapshot(workdir)
    del after[str(workdir / "eval.json")]
    assert after == before


def test_a_training_for_another_number_of_devices_can_be_evaluated(trained, make, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    stored = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**stored, "batch_size": 13}))
    assert main.main(["main", "--mode=eval", f"--workdir={workdir}"]) == 0
    evaluated = json.loads((workdir / "eval.json").read_text())
    assert evaluated["test_loss"] == json.loads((trained / "result.json").read_text())["test_loss"]


def plain_evaluation(experiment, params, batch_stats):
    """Returns loss, accuracy and predictions, by NumPy but for the network."""
    losses, predictions, labels = [], [], []
    for i in range(len(experiment.dataset.test)):
        example = experiment.dataset.test[i]
        image = data.decode(example["image"], "")
        image = augment.evaluation_transform(image, experiment.resolution)
        x = (image[None].astype(np.float64) - 127.5) / 127.5
        variables = {"params": params, "batch_stats": batch_stats}
        logits = np.asarray(experiment.model.apply(variables, jnp.asarray(x, jnp.float32)))[0]
        shifted = logits.astype(np.float64) - logits.max()
        losses.append(np.log(np.exp(shifted).sum()) - shifted[example["label"]])
        predictions.append(int(np.argmax(logits)))
        labels.append(example["label"])
    return np.mean(losses), np.mean(np.equal(predictions, labels)), predictions


@pytest.fixture(scope="module")
def reference(experiment, final):
    state = jax.tree.map(np.asarray, final)
    return {
        "test": plain_evaluation(experiment, state.params, state.batch_stats),
        "test_ema": plain_evaluation(experiment, state.ema_params, state.ema_batch_stats),
    }


@pytest.mark.parametrize("size", [1, 13, 64, 100, 256])
def test_every_test_image_counts_once(make, final, reference, size):
    """Eight devices, 100 images, batches that divide neither."""
    experiment = steps.build(make(eval_batch_size=size))
    results, _ = evaluation.evaluate(experiment, steps.compile_steps(experiment)[1], final)
    for split, (loss, accuracy, _) in reference.items():
        assert results[split]["examples"] == 100
        assert results[split]["accuracy"] == accuracy
        assert results[split]["loss"] == pytest.approx(loss, rel=1e-5)
    assert reference["test"][0] != reference["test_ema"][0]


def test_pictured_images_are_spread_over_the_test_split(experiment, final, reference):
    _, pictured = evaluation.evaluate(experiment, steps.compile_steps(experiment)[1], final)
    shown = range(0, 96, 3)
    assert len(pictured.images) == len(shown) == evaluation.PICTURED
    for i, position in enumerate(shown):
        example = experiment.dataset.test[position]
        image = data.decode(example["image"], "")
        np.testing.assert_array_equal(pictured.images[i], augment.evaluation_transform(image, 8))
        assert pictured.labels[i] == example["label"]
        assert pictured.predicted[i] == reference["test_ema"][2][position]


def test_padding_is_not_pictured(make, final):
    experiment = steps.build(make(dataset__eval_split="test[:20]"))
    _, pictured = evaluation.evaluate(experiment, steps.compile_steps(experiment)[1], final)
    labels = [experiment.dataset.test[i]["label"] for i in range(20)]
    assert pictured.labels.tolist() == labels
    assert len(pictured.images) == len(pictured.predicted) == 20


# devices ------------------------------------------------------------------------------------------


def test_eight_devices_train_like_one(make):
    """With a smooth activation: where a ReLU meets a background, all equal, rounding decides."""
    experiment = steps.build(make(model__activation="silu"))
    eight, losses_of_eight = take_steps(experiment, 12)
    one, losses_of_one = take_steps(on_devices(experiment, 1), 12)
    tiny.assert_same_bits(eight[0], one[0])
    np.testing.assert_allclose(losses_of_eight, losses_of_one, rtol=1e-6)
    for name, value in one[-1].items():
        np.testing.assert_allclose(eight[-1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    name = ".params['classifier']['kernel']"
    assert np.abs(one[-1][name] - one[0][name]).max() > 1e-2


def test_the_batch_is_shared_and_the_state_is_everywhere(experiment):
    state = steps.initial_state(experiment)
    step_fn, eval_fn = steps.compile_steps(experiment)
    with batches_of(experiment) as batches:
        batch = next(batches)
    placed = steps.to_devices(batch, experiment.sharded)
    shards = placed["image"].addressable_shards
    assert [shard.device for shard in shards] == jax.devices()
    for i, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.data, batch["image"][2 * i : 2 * i + 2])
    after, metrics = step_fn(state, placed)
    for leaf in [*jax.tree.leaves(after), *metrics.values()]:
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 8
    # Its memory is given to the state after.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    masked = steps.to_devices({**batch, "mask": np.ones(16, np.float32)}, experiment.sharded)
    predicted = eval_fn(after.params, after.batch_stats, masked)["predicted"]
    assert [shard.data.shape for shard in predicted.addressable_shards] == [(2,)] * 8


@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_a_training_begins_as_its_parts(make, replicas):
    """With the same bits as state and step one after the other."""
    experiment = steps.build(make(replicas=replicas))
    step_fn, _ = steps.compile_steps(experiment)
    state, compiled = steps.begin(experiment, step_fn)
    assert isinstance(compiled, jax.stages.Compiled)
    expected = steps.initial_state(experiment)
    tiny.assert_same_bits(tiny.named(state), tiny.named(expected))
    front = () if replicas == 1 else (replicas,)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (*front, 16, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 10, (*front, 16), np.int32),
    }
    where = steps.placement(experiment)
    placed = [leaf.sharding for leaf in jax.tree.leaves(expected)]
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == placed
    after, metrics = compiled(state, steps.to_devices(batch, where.batch))
    expected_after, expected_metrics = step_fn(expected, steps.to_devices(batch, where.batch))
    tiny.assert_same_bits(tiny.named(after), tiny.named(expected_after))
    tiny.assert_same_bits(metrics, expected_metrics)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_both_steps_are_compiled_with_the_options(experiment, monkeypatch):
    monkeypatch.setattr(steps.runtime, "training_options", lambda: {"xla_no_such_option": 1})
    train_step, eval_step = steps.compile_steps(experiment)
    state = jax.eval_shape(lambda: steps.initial_state(experiment))
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    masked = {**batch, "mask": jax.ShapeDtypeStruct((16,), jnp.float32)}
    evaluation = (state.params, state.batch_stats, masked)
    for step, arguments in ((train_step, (state, batch)), (eval_step, evaluation)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            step.lower(*arguments).compile()


@pytest.mark.parametrize("switch", ["jax_disable_jit", "jax_debug_nans"])
def test_what_debugs_jax_gets_the_step_that_heeds_it(experiment, monkeypatch, switch):
    monkeypatch.setattr(steps, "_initial_state", lambda experiment: (lambda key: key, 7))
    step_fn = steps.compile_steps(experiment)[0]
    before = getattr(jax.config, switch)
    jax.config.update(switch, True)
    try:
        assert steps.begin(experiment, step_fn) == (7, step_fn)
    finally:
        jax.config.update(switch, before)


@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_devices_exchange_sums_and_no_activations(make, mixup):
    """Gradients, BatchNorm's sums and metrics are added up; mixing also swaps image shards."""
    experiment = steps.build(make(augment__mixup=mixup))
    state = jax.eval_shape(lambda: steps.initial_state(experiment))
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    text = steps.compile_steps(experiment)[0].lower(state, batch).compile().as_text()
    found = re.findall(
        r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        r"|ragged-all-to-all|collective-broadcast)(?:-start)?\(",
        text,
    )
    exchanged = {"all-reduce": [], "collective-permute": []}
    for shapes, kind in found:
        for _, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            exchanged[kind].append(tuple(int(n) for n in shape.split(",") if n))
    variables = [*jax.tree.leaves(state.params), *jax.tree.leaves(state.batch_stats)]
    allowed = {tuple(sorted(leaf.shape)) for leaf in variables} | {()}
    stem = state.params["stem"]["kernel"].shape
    allowed.add(tuple(sorted((math.prod(stem[:3]), stem[3]))))  # its gradient is a matrix product
    assert len(exchanged["all-reduce"]) >= len(variables)
    assert {tuple(sorted(shape)) for shape in exchanged["all-reduce"]} <= allowed
    swapped = [(2, 8, 8, 3), (2, 10)] if mixup else []
    assert sorted(exchanged["collective-permute"]) == sorted(swapped)


# averages -----------------------------------------------------------------------------------------


def test_averages_follow_the_formula(experiment):
    """Of weights and of BatchNorm's statistics, over five steps, against NumPy."""
    states, _ = take_steps(experiment, 5)
    for field in ("params", "batch_stats"):
        expected = {k: v.astype(np.float64) for k, v in part(states[0], field).items()}
        for step in range(5):
            decay = min(0.99, (1 + step) / (10 + step))
            new = part(states[step + 1], field)
            for name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * new[name]
        averages, raw = part(states[5], f"ema_{field}"), part(states[5], field)
        assert averages.keys() == expected.keys() == raw.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(averages[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        far = [name for name in raw if np.abs(averages[name] - raw[name]).max() > 1e-6]
        assert len(far) > len(raw) / 2


def test_statistics_move_from_their_own_last_values(make):
    """BatchNorm's momentum, 0.9, is what is left of a difference; weights do not notice it."""
    experiment, batch, states, _ = plain_steps(make, 2)
    after, _ = steps.train_step(experiment, states[2], batch)
    shifted = jax.tree.map(lambda leaf: leaf + 1.0, states[2].batch_stats)
    other, _ = steps.train_step(experiment, states[2].replace(batch_stats=shifted), batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), other.batch_stats, after.batch_stats)
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, 0.9, rtol=1e-5)
    tiny.assert_same_bits(tiny.named(other.params), tiny.named(after.params))


# what each field of the config changes ------------------------------------------------------------

# The config whose fields are changed one by one: nothing that is random or that regularizes.
PLAIN = {
    "model__dropout": 0.0,
    "augment__mixup": 0.0,
    "augment__erasing": 0.0,
    "augment__crop": "none",
    "augment__rotate": 0.0,
    "label_smoothing": 0.0,
    "optimizer__weight_decay": 0.0,
    "schedule__name": "constant",
    "schedule__warmup_epochs": 0.0,
}
UPDATE = {"params", "ema_params", "opt_state"}
ALL = {*UPDATE, "loss", "batch_stats", "ema_batch_stats"}


def plain_steps(make, count, **fields):
    """Returns an experiment, its first batch, the states around each step and the last metrics.

    Computed operation by operation: what a field does not touch is then equal to the last bit,
    which it need not be in two different compiled programs.
    """
    experiment = on_devices(steps.build(make(**{**PLAIN, **fields})), 1)
    states = [steps.initial_state(experiment)]
    with batches_of(experiment) as source:
        batches = [next(source) for _ in range(count)]
    for batch in batches:
        state, metrics = steps.train_step(experiment, states[-1], batch)
        states.append(state)
    return experiment, batches[0], states, metrics


def first_step(make, **fields):
    """Returns all that the first step starts from and ends with, by name."""
    _, batch, (before, after), metrics = plain_steps(make, 1, **fields)
    found = {key: {"": value} for key, value in batch.items()}
    found["start"] = tiny.named(before.params)
    found["loss"] = {"": np.asarray(metrics["loss"])}
    for field in dataclasses.fields(after):
        if field.name != "step":
            found[field.name] = tiny.named(getattr(after, field.name))
    assert int(after.step) == 1
    return found


@pytest.fixture(scope="module")
def plain(make):
    return first_step(make)


def named(value):
    """Names a parametrization by its fields."""
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


def changed(found, plain):
    """Returns the names of what differs."""

    def same(a, b):
        return a.keys() == b.keys() and all(
            a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
        )

    return {name for name in plain if not same(found[name], plain[name])}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"label_smoothing": 0.1}, {"loss", *UPDATE}),
        ({"model__dropout": 0.5}, {"loss", *UPDATE}),
        ({"augment__mixup": 0.2}, ALL),
        ({"augment__cutmix": 1.0}, ALL),
        ({"optimizer__weight_decay": 0.1}, UPDATE),
        ({"optimizer__clip_norm": 0.01}, UPDATE),
        ({"schedule__learning_rate": 0.2}, {"params", "ema_params"}),
        ({"optimizer__momentum": 0.5}, {"params", "ema_params"}),
        ({"optimizer__nesterov": False}, {"params", "ema_params"}),
        ({"ema_decay": 0.05}, {"ema_params", "ema_batch_stats"}),
        ({"model__bn_momentum": 0.5}, {"batch_stats", "ema_batch_stats"}),
        ({"preprocess__mean": (100.0, 127.5, 127.5)}, ALL),
        ({"preprocess__std": (100.0, 127.5, 127.5)}, ALL),
        ({"preprocess__interpolation": "area"}, {"image", *ALL}),
        ({"augment__flip": True}, {"image", *ALL}),
        ({"augment__crop": "pad"}, {"image", *ALL}),
        ({"augment__crop": "random_resized"}, {"image", *ALL}),
        ({"augment__rotate": 30.0}, {"image", *ALL}),
        ({"augment__brightness": 0.5}, {"image", *ALL}),
        ({"augment__randaugment": 2}, {"image", *ALL}),
        ({"augment__erasing": 1.0}, {"image", *ALL}),
        ({"beta": 0.375}, {"image", *ALL}),
        ({"seed": 1}, {"start", "image", "label", *ALL}),
        # Only of use together with another field, or later than the first step.
        ({"schedule__name": "cosine"}, set()),
        ({"epochs": 3.0}, set()),
        ({"optimizer__weight_decay_depthwise": True}, set()),
        ({"augment__padding": 2}, set()),
        ({"augment__min_area": 0.5}, set()),
        ({"augment__magnitude": 2.0}, set()),
        ({"preprocess__crop_fraction": 0.5}, set()),
        ({"eval_batch_size": 8}, set()),
        ({"dataset__workers": 0, "log_every": 1}, set()),
    ],
    ids=named,
)
def test_a_field_changes_what_it_should_and_nothing_else(make, plain, fields, expected):
    assert changed(first_step(make, **fields), plain) == expected


def rmsprop(more):
    return pytest.param({"optimizer__name": "rmsprop"}, more, UPDATE, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("fields", "more", "expected"),
    [
        ({"augment__crop": "pad"}, {"augment__padding": 1}, {"image", *ALL}),
        ({"augment__crop": "random_resized"}, {"augment__min_area": 0.9}, {"image", *ALL}),
        ({"augment__randaugment": 2}, {"augment__magnitude": 1.0}, {"image", *ALL}),
        ({"augment__mixup": 0.2}, {"augment__mixup": 5.0}, ALL),
        ({"augment__cutmix": 1.0}, {"augment__cutmix": 5.0}, ALL),
        ({"schedule__warmup_epochs": 0.1}, {"schedule__learning_rate": 0.2}, set()),
        rmsprop({"optimizer__decay": 0.5}),
        # Epsilon and the rate are inside the momentum.
        rmsprop({"optimizer__epsilon": 0.1}),
        rmsprop({"schedule__learning_rate": 0.2}),
    ],
    ids=named,
)
def test_a_field_that_needs_another(make, fields, more, expected):
    found = first_step(make, **{**fields, **more})
    assert changed(found, first_step(make, **fields)) == expected


@pytest.mark.parametrize(
    "fields",
    [{"model__dropout": 0.5}, {"augment__mixup": 1.0}, {"augment__cutmix": 1.0}],
    ids=named,
)
def test_chance_depends_on_the_step_and_on_nothing_before_it(make, fields):
    """The same weights and the same batch at two steps."""
    experiment, batch, (state, _), _ = plain_steps(make, 1, **fields)
    losses = [
        float(steps.train_step(experiment, state.replace(step=jnp.int32(step)), batch)[1]["loss"])
        for step in (3, 4, 3)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_weight_decay_on_depthwise_kernels_alone(make):
    found = [
        first_step(make, optimizer__weight_decay=0.1, optimizer__weight_decay_depthwise=depthwise)
        for depthwise in (False, True)
    ]
    differing = {k for k, v in found[0]["params"].items() if (found[1]["params"][k] != v).any()}
    assert differing == {"['blocks_0']['depthwise']['kernel']"}


def test_the_schedule_and_the_length_change_later_steps(make):
    states = [
        [tiny.named(state) for state in plain_steps(make, 2, **fields)[2]]
        for fields in (
            {"schedule__name": "cosine"},
            {"schedule__name": "cosine", "epochs": 3.0},
            {},
        )
    ]
    for other in states[1:]:
        tiny.assert_same_bits(states[0][1], other[1])
        name = ".params['stem']['kernel']"
        assert (other[2][name] != states[0][2][name]).any()


def test_without_averaging_the_averages_are_the_weights(make):
    """ema_decay = 0 means none."""
    state = tiny.named(plain_steps(make, 3, ema_decay=0.0)[2][-1])
    for field in ("params", "batch_stats"):
        averages = part(state, f"ema_{field}")
        for name, value in part(state, field).items():
            np.testing.assert_allclose(averages[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


# numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_bfloat16_is_for_the_computation_alone(make, optimizer):
    experiment = steps.build(make(model__dtype="bfloat16", optimizer__name=optimizer))
    state = jax.eval_shape(lambda: steps.initial_state(experiment))
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    step = functools.partial(steps.train_step, experiment)
    after, metrics = jax.eval_shape(step, state, batch)
    for tree in (state, after):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            counter = jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.shape == ()
            assert leaf.dtype == jnp.float32 or counter, keys
    assert metrics["loss"].dtype == jnp.float32
    assert "bf16[16,8,8,8]" in str(jax.make_jaxpr(step)(state, batch))  # activations


def test_an_infinite_loss_stops_at_once(make, tmp_path, capsys):
    """The rate of step s is 1e30 · s / 9: step 1 moves nothing, step 2 too far."""
    # checkpoint_every: each step.
    config = make(schedule__learning_rate=1e30, checkpoint_every=0.0112, log_every=1)
    assert run(config, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert re.search(r"the loss is (nan|inf) at step 3 ", error)
    assert error.count("\n") == 1
    kept = int(re.search(r"step (\d) is the last good checkpoint", error)[1])
    state, _ = tiny.arrays(tmp_path / "run", config)
    assert state[".step"] == kept == 2
    assert all(np.isfinite(value).all() for value in state.values())
    assert not (tmp_path / "run" / "result.json").exists()
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [1, 2]


def test_weights_that_are_not_finite_are_not_saved(make, tmp_path, capsys):
    """The loss of step 1 is finite; the update after it is not."""
    config = make(
        schedule__learning_rate=1e38,
        schedule__warmup_epochs=0.0,
        optimizer__weight_decay=1e4,
        checkpoint_every=0.0112,
        eval_every=0.0112,
    )
    assert run(config, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert re.search(r"state\.params.* is not finite after step 1 \(no checkpoint", error)
    assert error.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# interruptions, without leaving this process ------------------------------------------------------


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda *args: None)
    monkeypatch.setattr(plots, "predictions", lambda *args: None)


class Killed(BaseException):
    """Stands in for a kill: nothing in the package catches it."""


def stop_at(monkeypatch, step):
    """Makes the next training find itself asked to stop after `step`."""
    stop = contextlib.nullcontext(lambda completed: completed == step)
    monkeypatch.setattr(train, "stop_signal", lambda manager: stop)


@pytest.fixture(scope="module")
def stopped(make, tmp_path_factory):
    """A workdir stopped after an evaluation step, before its evaluation."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        stop_at(patch, 11)
        assert run(make(), workdir) == 143
    assert "saved step 11: the same command resumes" in out.getvalue()
    assert [line["step"] for line in tiny.metrics(workdir)] == [3, 6, 9]
    state, meta = tiny.arrays(workdir, make())
    assert state[".step"] == 11
    assert meta["evaluated"] is False
    return workdir


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_a_stop_before_an_evaluation_is_made_up_for(
    trained, stopped, make, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        assert run(make(), workdir) == 143
    assert "Resuming from step 11." in capsys.readouterr().out
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        assert list(manager.all_steps()) == [11, 12]
        assert checkpoint.best_step(manager) == 11
        assert checkpoint.read_meta(manager, 11)["evaluated"] is True
        (accuracy,) = [
            line["accuracy"]
            for line in tiny.metrics(trained)
            if (line["step"], line["split"]) == (11, "test_ema")
        ]
        assert manager.metrics(11) == {"accuracy": accuracy}
    assert run(make(), workdir) == 0
    assert_same_training(workdir, trained, make())


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        pytest.param(logs, "append_metrics", 1, marks=pytest.mark.slow),
        pytest.param(logs, "append_metrics", 2, marks=pytest.mark.slow),
        (checkpoint, "save", 1),  # the checkpoint without evaluation is gone by now
        pytest.param(logs, "append_metrics", 3, marks=pytest.mark.slow),  # at the next line
    ],
)
def test_a_kill_while_making_up_for_an_evaluation(
    trained, stopped, make, tmp_path, monkeypatch, where, name, call
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    function, calls = getattr(where, name), []

    def killed(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            run(make(), workdir)
    assert run(make(), workdir) == 0
    assert_same_training(workdir, trained, make())


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_a_stop_after_the_last_step(trained, make, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS)
        assert run(make(), workdir) == 143
    assert not (workdir / "result.json").exists()
    # Only evaluated: the step is not compiled.
    monkeypatch.setattr(train, "begin", lambda *_: pytest.fail("compiled a step that is not taken"))
    assert run(make(), workdir) == 0
    assert_same_training(workdir, trained, make())


@pytest.mark.usefixtures("no_pictures")
def test_sigterm_during_an_evaluation(trained, make, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    evaluate = evaluation.evaluate

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        assert run(make(), workdir) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    # The evaluation is finished; the next step sees the signal.
    assert "saved step 12" in capsys.readouterr().out
    expected = [line for line in tiny.metrics(trained) if line["step"] <= 12]
    assert tiny.metrics(workdir) == expected
    assert run(make(), workdir) == 0
    assert_same_training(workdir, trained, make())


# the meter ----------------------------------------------------------------------------------------


def test_meter_means_and_speed(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    meter = train.Meter()
    looked_at = []
    for step in range(1, 4):
        meter.add(step, {"loss": jnp.float32(step), "accuracy": jnp.float32(0.5)})
        looked_at.append(meter.sums["steps"])
    # The first, with which the clock starts, at once; then one step late.
    assert looked_at == [1, 1, 2]
    meter.settle()
    # Step 1 starts the clock at 10; steps 2 and 3 end at 11 and 13.
    assert meter.line() == {"loss": 2.0, "accuracy": 0.5, "rate": 2 / 3}
    meter.pause()
    for step in (4, 5):
        meter.add(step, {"loss": jnp.float32(step), "accuracy": jnp.float32(0.0)})
    meter.settle()
    assert meter.line() == {"loss": 4.5, "accuracy": 0.0, "rate": 1 / 4}
    assert meter.rate() == 3 / 7


def test_a_restored_meter_goes_on(monkeypatch):
    clock = iter([0.0, 1.0, 1.5, 50.0, 52.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    metrics = {"loss": jnp.float32(0.1), "accuracy": jnp.float32(0.7)}
    meter = train.Meter()
    for step in (1, 2, 3):
        meter.add(step, metrics)
    meter.settle()
    meter = train.Meter(json.loads(json.dumps(meter.sums)))
    for step in (4, 5):
        meter.add(step, metrics)
    meter.settle()
    line = meter.line()
    assert line["loss"] == sum([float(np.float32(0.1))] * 5) / 5
    # This line's speed is that since the restart, not of the whole training.
    assert line["rate"] == 1 / 2
    assert meter.rate() == 3 / 3.5


def test_meter_names_the_step(monkeypatch):
    meter = train.Meter()
    meter.add(1, {"loss": jnp.float32(1.0), "accuracy": jnp.float32(0.0)})
    meter.add(2, {"loss": jnp.float32(np.inf), "accuracy": jnp.float32(0.0)})
    with pytest.raises(train.Diverged, match="the loss is inf at step 2"):
        meter.settle()


def test_check_finite(experiment):
    state = steps.initial_state(experiment)
    train.check_finite(state, 3)
    stats = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), state.ema_batch_stats)
    with pytest.raises(train.Diverged, match=r"state.ema_batch_stats\[.* after step 3"):
        train.check_finite(state.replace(ema_batch_stats=stats), 3)


def test_unknown_num_classes_are_taken_from_the_data(make):
    experiment = steps.build(make(dataset__num_classes=None))
    assert experiment.model.spec.num_classes == 10
    with pytest.raises(InputError, match=r"dataset\.num_classes is 9"):
        steps.build(make(dataset__num_classes=9))
