"""Several trainings in one program: each is the training that it would be alone."""

import contextlib
import functools
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboardX.proto import event_pb2

from mobilenets_jax import checkpoint, data, finetune, logs, main, plots, steps, train, weights
from mobilenets_jax import config as config_lib
from mobilenets_jax.state import replica

# With a smooth activation: where a ReLU meets a background, all equal, rounding decides.
SMOOTH = {"model__activation": "silu"}


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory):
    with tiny.fast(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Returns a function that makes the tiny config: 22 steps, evaluated at 11 and 22."""
    data_dir = str(tmp_path_factory.mktemp("data"))

    def make(**fields):
        short = {"epochs": 0.25, "eval_every": 0.125, "dataset__data_dir": data_dir}
        return tiny.config(**{**short, **fields})

    return make


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """The workdir of two replicas' finished training, on eight devices."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert train.train(make(replicas=2, seed=3), workdir)
    (workdir.parent / "out.txt").write_text(out.getvalue())
    return workdir


def on_devices(experiment, count):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    return experiment._replace(
        sharded=NamedSharding(mesh, PartitionSpec("data")),
        replicated=NamedSharding(mesh, PartitionSpec()),
    )


def batches_of(experiment, seed, **more):
    config = experiment.config
    return data.train_batches(
        experiment.dataset,
        batch_size=config.batch_size,
        seed=seed,
        resolution=experiment.resolution,
        augment=config.augment.to_dict(),
        **more,
    )


def take_steps(experiment, count):
    """Returns the state before and after the first steps, and the steps' metrics."""
    step_fn, _ = steps.compile_steps(experiment)
    state, where = steps.initial_state(experiment), steps.placement(experiment)
    before, metrics = tiny.named(state), []
    seeds = [each.seed for each in experiment.replicas]
    with batches_of(experiment, seeds if len(seeds) > 1 else seeds[0]) as batches:
        for _ in range(count):
            state, result = step_fn(state, steps.to_devices(next(batches), where.batch))
            metrics.append(tiny.named(result))
    return before, tiny.named(state), metrics


def of_replica(arrays, index):
    """Returns one replica's arrays of those of all."""
    return {name: value if name == ".step" else value[index] for name, value in arrays.items()}


# the same as alone --------------------------------------------------------------------------------


def test_batches_are_those_of_single_trainings_and_images_are_kept_once(make, monkeypatch):
    experiment = steps.build(make(augment__crop="random_resized", augment__flip=True))
    made = []
    decoded = data._Decoded
    monkeypatch.setattr(data, "_Decoded", lambda source: made.append(source) or decoded(source))
    seeds = (3, 8, 4)
    with batches_of(experiment, seeds, start_step=87) as batches:  # epochs have 89
        several = [next(batches) for _ in range(4)]
    assert made == [experiment.dataset.train]
    for i, seed in enumerate(seeds):
        with batches_of(experiment, seed, start_step=87) as batches:
            for found in several:
                expected = next(batches)
                assert found.keys() == expected.keys()
                for key, value in expected.items():
                    assert found[key].dtype == value.dtype
                    np.testing.assert_array_equal(found[key][i], value)


@pytest.mark.slow
@pytest.mark.xdist_group("workers")
def test_worker_processes_make_the_same_batches_of_several_seeds(make):
    experiment = steps.build(make())
    with batches_of(experiment, (3, 8)) as here, batches_of(experiment, (3, 8), workers=2) as there:
        for _ in range(4):
            tiny.assert_same_bits(next(there), next(here))


EVERYTHING = {"augment__cutmix": 1.0, "augment__crop": "pad", "augment__rotate": 10.0}


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        pytest.param(EVERYTHING, [{"seed": 3}, {"seed": 4}], marks=pytest.mark.slow),
        pytest.param(
            {"optimizer__name": "rmsprop", "schedule__name": "exponential", **EVERYTHING},
            [{"seed": 3}, {"seed": 4}],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"optimizer__name": "adamw", "optimizer__clip_norm": 1.0, **EVERYTHING},
            [{"seed": 3, "schedule__learning_rate": 0.02, "optimizer__weight_decay": 0.5},
             {"seed": 3, "schedule__learning_rate": 0.01, "optimizer__weight_decay": 0.0}],
            marks=pytest.mark.slow,
        ),
        ({"schedule__name": "constant"},
         [{"seed": 7, "schedule__learning_rate": 0.1, "optimizer__weight_decay": 0.0},
          {"seed": 3, "schedule__learning_rate": 0.02, "optimizer__weight_decay": 0.1}]),
    ],
    ids=["sgd", "rmsprop", "adamw, rates and decays", "sgd, rates and decays"],
)  # fmt: skip
def test_a_replica_is_the_single_training(make, fields, own):
    """With dropout, mixing, augmentation and averages, over 12 steps of which 9 warm up."""
    names = {
        "seed": "replica__seeds",
        "schedule__learning_rate": "replica__learning_rate",
        "optimizer__weight_decay": "replica__weight_decay",
    }
    values = {names[name]: tuple(each[name] for each in own) for name in own[0]}
    config = make(replicas=2, **SMOOTH, **fields, **values)
    before, after, metrics = take_steps(on_devices(steps.build(config), 1), 12)
    for i, each in enumerate(own):
        single = on_devices(steps.build(make(**{**SMOOTH, **fields, **each})), 1)
        expected_before, expected, expected_metrics = take_steps(single, 12)
        found = of_replica(before, i)
        for name in expected_before.keys() & found.keys():  # weight decay 0 has no state
            assert found[name].tobytes() == expected_before[name].tobytes(), name
        found = of_replica(after, i)
        for field in (".step", ".params", ".batch_stats", ".ema_params", ".ema_batch_stats"):
            for name in (name for name in expected if name.startswith(field)):
                np.testing.assert_allclose(
                    found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
                )
        for mine, theirs in zip(metrics, expected_metrics, strict=True):
            for name in ("['loss']", "['accuracy']"):
                np.testing.assert_allclose(mine[name][i], theirs[name], rtol=1e-5)
    name = ".params['classifier']['kernel']"
    assert np.abs(after[name] - before[name]).max() > 1e-3
    assert np.abs(after[name][0] - after[name][1]).max() > 1e-3


def test_the_state_of_replicas_has_an_axis_in_front_of_all_but_the_step(make):
    single = steps.initial_state(steps.build(make()))
    several = steps.initial_state(steps.build(make(replicas=3)))
    assert several.step.shape == ()
    shapes = {name: value.shape for name, value in tiny.named(several).items()}
    for name, value in tiny.named(single).items():
        assert shapes.pop(name) == (value.shape if name == ".step" else (3, *value.shape))
    assert not shapes
    tiny.assert_same_bits(tiny.named(replica(several.params, 0)), tiny.named(single.params))


# devices ------------------------------------------------------------------------------------------


def collectives(experiment):
    """Returns the kinds of communication in the compiled step."""
    state = jax.eval_shape(lambda: steps.initial_state(experiment))
    count = len(experiment.replicas)
    batch = {
        "image": jax.ShapeDtypeStruct((count, 16, 8, 8, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count, 16), jnp.int32),
    }
    text = steps.compile_steps(experiment)[0].lower(state, batch).compile().as_text()
    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return set(re.findall(kinds, text))


@pytest.mark.slow
def test_two_devices_share_out_two_replicas_and_exchange_nothing(make):
    experiment = steps.build(make(replicas=2, **SMOOTH))
    two, one = on_devices(experiment, 2), on_devices(experiment, 1)
    assert steps.placement(two).spread
    assert collectives(two) == set()
    state = steps.initial_state(two)
    kernel = state.params["stem"]["kernel"]
    assert [shard.data.shape[0] for shard in kernel.addressable_shards] == [1, 1]
    assert state.step.sharding.is_fully_replicated
    assert_close(take_steps(two, 12), take_steps(one, 12))


@pytest.mark.slow
def test_three_devices_share_each_batch_of_two_replicas(make):
    experiment = steps.build(make(replicas=2, batch_size=15, **SMOOTH))
    three = on_devices(experiment, 3)
    assert not steps.placement(three).spread
    batch = np.zeros((2, 15, 8, 8, 3), np.uint8)
    placed = steps.to_devices({"image": batch}, steps.placement(three).batch)["image"]
    assert [shard.data.shape[:2] for shard in placed.addressable_shards] == [(2, 5)] * 3
    assert_close(take_steps(three, 12), take_steps(on_devices(experiment, 1), 12))


def assert_close(actual, expected):
    """Compares the states and metrics of `take_steps`."""
    tiny.assert_same_bits(actual[0], expected[0])
    for name, value in expected[1].items():
        np.testing.assert_allclose(actual[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for mine, theirs in zip(actual[2], expected[2], strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5)


def test_shared_out_replicas_take_any_batch_size(make, tmp_path, capsys):
    """Eight devices: of two replicas each batch is shared, of eight the replicas are."""
    assert run(make(replicas=2, batch_size=13), tmp_path / "run") == 2
    assert "batch_size 13 cannot be shared by 8 devices" in capsys.readouterr().err
    assert steps.placement(steps.build(make(replicas=8, batch_size=13))).spread


# what a training writes ---------------------------------------------------------------------------


def run(config, workdir):
    """Trains as the command line does, flags apart; returns the exit code."""
    options = main.Options("train", config, [], workdir, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "parse", lambda argv: options)
        return main.main([])


def test_result_has_lists_of_what_differs(trained, make):
    result = json.loads((trained / "result.json").read_text())
    assert result["replicas"] == 2
    assert result["seed"] == [3, 4]
    test, test_ema = tiny.metrics(trained)[-2:]
    for name, line, key in (
        ("test_accuracy", test, "accuracy"),
        ("test_accuracy_ema", test_ema, "accuracy"),
        ("test_loss", test, "loss"),
    ):
        assert result[name] == line[key]
        assert [type(value) for value in result[name]] == [float, float]
    assert len(set(result["test_loss"])) == 2
    assert result["test_examples"] == 100
    assert result["steps"] == 22
    assert result["config"] == config_lib.plain(make(replicas=2, seed=3))
    for name in ("params", "macs", "train_seconds", "images_per_second", "resolution"):
        assert isinstance(result[name], int | float), name


def test_metrics_have_lists(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "test", "test_ema"}
    for line in lines:
        assert len(line["loss"]) == len(line["accuracy"]) == 2
        assert all(0 < loss < 10 for loss in line["loss"])
        assert isinstance(line["step"], int)
        assert line["images_per_second"] is None or line["images_per_second"] > 0


def test_progress_says_means(trained):
    out = (trained.parent / "out.txt").read_text()
    result = json.loads((trained / "result.json").read_text())
    mean, averaged = np.mean(result["test_accuracy"]), np.mean(result["test_accuracy_ema"])
    assert "2 replicas, 22 steps of 16 on 8" in out
    assert f"test accuracy {mean:.4f} (averaged weights {averaged:.4f}, means of 2 replicas)" in out
    line = next(m for m in tiny.metrics(trained) if m["split"] == "train")
    shown = f"step 3/22, loss {np.mean(line['loss']):.4f}, accuracy {np.mean(line['accuracy']):.3f}"
    assert shown in out


def test_tensorboard_has_a_curve_for_each_replica(trained):
    found = {}
    for path in (trained / "tensorboard").iterdir():
        raw = path.read_bytes()
        while raw:
            length = int.from_bytes(raw[:8], "little")
            event = event_pb2.Event.FromString(raw[12 : 12 + length])
            raw = raw[16 + length :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    tags = {tag for tag, _ in found}
    for split in ("train", "test", "test_ema"):
        for key in ("loss", "accuracy"):
            assert {f"{split}/{key}/seed_3", f"{split}/{key}/seed_4"} < tags
            assert f"{split}/{key}" not in tags
    assert {"learning_rate", "train/images_per_second", "inputs"} < tags
    last = tiny.metrics(trained)[-1]
    for i, tag in enumerate(("test_ema/loss/seed_3", "test_ema/loss/seed_4")):
        assert found[tag, 22] == np.float32(last["loss"][i])


def test_the_best_checkpoint_is_that_of_the_best_mean(trained):
    means = {
        line["step"]: np.mean(line["accuracy"])
        for line in tiny.metrics(trained)
        if line["split"] == "test_ema"
    }
    with checkpoint.open_manager(trained, read_only=True) as manager:
        best = checkpoint.best_step(manager)
        assert best == max(means, key=lambda step: (means[step], step))
        assert manager.metrics(best) == {"accuracy": means[best]}


def test_curves_have_a_line_for_each_replica_and_their_mean(trained, tmp_path):
    figure = plots.curves(trained / "metrics.jsonl", tmp_path / "curves.png", "title")
    lines = figure.axes[0].get_lines()
    assert len(lines) == 3 * 3
    tests = [line for line in tiny.metrics(trained) if line["split"] == "test"]
    named = {line.get_label(): line.get_ydata() for line in lines}
    np.testing.assert_allclose(named["test"], [np.mean(line["loss"]) for line in tests])
    own = [line.get_ydata() for line in lines if line.get_label().startswith("_")]
    for i in range(2):
        expected = [line["loss"][i] for line in tests]
        assert any(np.array_equal(values, expected) for values in own)


def test_a_finished_workdir_says_means(trained, make, capsys):
    result = json.loads((trained / "result.json").read_text())
    assert run(make(replicas=2, seed=3), trained) == 0
    out = capsys.readouterr().out
    assert f"test accuracy {np.mean(result['test_accuracy']):.4f} (averaged" in out
    assert "means of 2 replicas" in out
    assert run(make(seed=3), trained) == 2
    assert "replicas is 2 there and 1 here" in capsys.readouterr().err


def test_pictures_show_the_first_replica(make, trained):
    experiment = steps.build(make(replicas=2, seed=3))
    with checkpoint.open_manager(trained, read_only=True) as manager:
        state, _ = checkpoint.restore(manager, steps.initial_state(experiment))
    results, pictured = train.evaluate(experiment, steps.compile_steps(experiment)[1], state)
    single = steps.build(make())
    first = jax.tree.map(
        lambda leaf: jax.device_put(np.asarray(leaf), single.replicated),
        state.replace(
            **{
                name: replica(getattr(state, name), 0)
                for name in ("params", "batch_stats", "ema_params", "ema_batch_stats")
            }
        ),
    )
    expected, expected_pictured = train.evaluate(single, steps.compile_steps(single)[1], first)
    for split in ("test", "test_ema"):
        assert results[split]["accuracy"][0] == expected[split]["accuracy"]
        assert results[split]["loss"][0] == pytest.approx(expected[split]["loss"], rel=1e-5)
        assert results[split]["examples"] == 100
    for mine, theirs in zip(pictured, expected_pictured, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_shared_out_replicas_are_evaluated_like_those_on_one_device(make):
    experiment = steps.build(make(replicas=2))
    found = []
    for count in (1, 2):
        placed = on_devices(experiment, count)
        state = steps.initial_state(placed)
        found.append(train.evaluate(placed, steps.compile_steps(placed)[1], state))
    for split in ("test", "test_ema"):
        np.testing.assert_allclose(found[0][0][split]["loss"], found[1][0][split]["loss"], 1e-6)
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(mine, theirs)


# interruptions and ends ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_bits(trained, make, tmp_path, monkeypatch):
    config, workdir = make(replicas=2, seed=3), tmp_path / "run"
    monkeypatch.setattr(plots, "curves", lambda *args: None)
    monkeypatch.setattr(plots, "predictions", lambda *args: None)
    for step in (11, 13):  # before an evaluation, and amid a line's steps
        with monkeypatch.context() as patch:
            stop = contextlib.nullcontext(lambda completed, step=step: completed == step)
            patch.setattr(train, "stop_signal", lambda manager, stop=stop: stop)
            assert run(config, workdir) == 143
    assert run(config, workdir) == 0
    assert tiny.metrics(workdir) == tiny.metrics(trained)
    assert tiny.result(workdir) == tiny.result(trained)
    found = []
    for path in (workdir, trained):
        with checkpoint.open_manager(path, read_only=True) as manager:
            found.append(tiny.named(checkpoint.restore_arrays(manager)[0]))
    tiny.assert_same_bits(*found)


def test_the_replica_whose_loss_is_infinite_is_named(make, tmp_path, capsys):
    """The rate of step s is 1e30 · s / 9: step 1 moves nothing, step 2 too far."""
    config = make(replicas=2, replica__learning_rate=(0.1, 1e30), checkpoint_every=0.0112)
    assert run(config, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert re.search(r"the loss is (nan|inf) at step 3 of seed_1,learning_rate_1e\+30 \(", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_the_replica_whose_state_is_not_finite_is_named(make, devices):
    experiment = on_devices(steps.build(make(replicas=2)), devices)
    state = steps.initial_state(experiment)
    train.check_finite(state, 3, experiment.replicas)
    place = functools.partial(jax.device_put, device=steps.placement(experiment).weights)
    stats = jax.tree.map(lambda leaf: place(leaf.at[1, 0].set(np.nan)), state.ema_batch_stats)
    with pytest.raises(train.Diverged, match=r"state.ema_batch_stats\[.* of seed_1 is not finite"):
        train.check_finite(state.replace(ema_batch_stats=stats), 3, experiment.replicas)


def test_a_line_of_metrics_may_hold_what_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logs.append_metrics(path, step=1, epoch=0.5, split="test", loss=[1.0, np.nan], accuracy=[0, 1])
    assert logs.read_metrics(path)[0]["loss"] == [1.0, None]
    plots.curves(path, tmp_path / "curves.png", "title")


# later use ----------------------------------------------------------------------------------------


def test_evaluating_a_workdir_gives_lists(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main.main(["main", "--mode=eval", f"--workdir={workdir}"]) == 0
    evaluated = json.loads((workdir / "eval.json").read_text())
    assert json.loads(capsys.readouterr().out) == evaluated
    result = json.loads((trained / "result.json").read_text())
    for name in ("test_accuracy", "test_accuracy_ema", "test_loss", "test_examples", "seed"):
        assert evaluated[name] == result[name]
    assert evaluated["replicas"] == 2


def test_weights_of_a_workdir_are_the_first_replicas(trained, make, monkeypatch, capsys):
    experiment = steps.build(make(replicas=2))
    monkeypatch.setattr(weights, "build_spec", lambda **fields: experiment.model.spec)
    variables = weights.load(trained, experiment.model, "native")
    assert "a training of 2 replicas: taking the first one's weights" in capsys.readouterr().out
    with checkpoint.open_manager(trained, read_only=True) as manager:
        state, _ = checkpoint.restore_arrays(manager)
    expected = {"params": state["ema_params"], "batch_stats": state["ema_batch_stats"]}
    tiny.assert_same_bits(tiny.named(variables), tiny.named(replica(expected, 0)))


@pytest.mark.parametrize("devices", [1, 2])
def test_all_replicas_start_from_the_weights_and_from_classifiers_of_their_own(
    make, tmp_path, capsys, devices
):
    single, file = steps.build(make()), tmp_path / "w.npz"
    variables = variables_of(steps.initial_state(single))
    weights.save(variables, file, single.model, format="npz", naming="native")
    config = make(replicas=2, seed=5, init_from=str(file))
    wider = tiny.small_model(config, 11)  # classes
    experiment = on_devices(steps.build(config), devices)._replace(model=wider)
    capsys.readouterr()
    loaded = finetune.load(experiment)
    assert capsys.readouterr().out.count("starts fresh") == 1
    state = finetune.replace(experiment, steps.initial_state(experiment), loaded)
    for i in range(2):
        expected = weights.load(file, wider, "native", seed=5 + i)
        found = variables_of(jax.tree.map(np.asarray, state), i)
        tiny.assert_same_bits(tiny.named(found), tiny.named(expected))
    heads = state.params["classifier"]["kernel"]
    assert (heads[0] != heads[1]).any()
    assert heads.sharding == steps.placement(experiment).weights


def variables_of(state, index=None):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return variables if index is None else replica(variables, index)
