"""Trainings that are killed from outside, and those of two processes."""

import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.xdist_group("workers")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables for a training on one device; importing TensorFlow leaves a mark and fails."""
    directory = tmp_path_factory.mktemp("tensorflow")
    (directory / "tensorflow.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).with_name('imported').touch()\n"
        "raise ImportError('no TensorFlow here')\n"
    )
    variables = tiny.environment(tmp_path_factory.mktemp("compiled"))
    return {**variables, "PYTHONPATH": str(directory)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment, data_dir):
    """The workdir of a training that nothing happened to."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    training = tiny.Training(workdir, environment, dataset__data_dir=data_dir)
    assert training.end() == 0, training.output()
    return workdir


def test_tensorflow_is_not_used(uninterrupted, environment):
    assert (uninterrupted / "result.json").exists()
    assert not (Path(environment["PYTHONPATH"]) / "imported").exists()


def assert_same_training(workdir, expected, **fields):
    """Compares every array of the last checkpoint by bits, every metric and every result."""
    config = tiny.config(**fields)
    actual_arrays, actual_meta = tiny.arrays(workdir, config)
    expected_arrays, expected_meta = tiny.arrays(expected, config)
    tiny.assert_same_bits(actual_arrays, expected_arrays)
    for field in ("step", "params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats"):
        assert any(name.startswith(f".{field}") for name in expected_arrays)
    assert actual_meta["class_names"] == expected_meta["class_names"]
    assert tiny.metrics(workdir) == tiny.metrics(expected)
    assert tiny.result(workdir) == tiny.result(expected)


def saved_steps(workdir):
    paths = (workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def test_killed_then_stopped_then_finished(tmp_path, uninterrupted, environment, data_dir):
    """SIGKILL during a save and SIGTERM with two workers, then to the end without any."""
    workdir = tmp_path / "run"
    training = tiny.Training(workdir, environment, dataset__data_dir=data_dir, dataset__workers=2)
    assert training.wait_until(lambda: training.step() >= 9), training.output()
    assert len(tiny.session(training.process.pid)) >= 3  # the training and its workers
    assert training.wait_until(lambda: tiny.saving(workdir)), training.output()
    training.signal(signal.SIGKILL)
    assert training.end() == -signal.SIGKILL
    steps = saved_steps(workdir)
    assert steps
    assert steps[-1] < 44

    training = tiny.Training(workdir, environment, dataset__data_dir=data_dir, dataset__workers=2)
    assert training.wait_until(lambda: training.step() > steps[-1]), training.output()
    training.signal(signal.SIGTERM)
    assert training.end() == 143, training.output()
    assert f"Resuming from step {steps[-1]}." in training.output()
    stopped = int(re.search(r"saved step (\d+)", training.output())[1])
    assert steps[-1] < stopped < 44
    assert saved_steps(workdir)[-1] == stopped

    training = tiny.Training(workdir, environment, dataset__data_dir=data_dir)
    assert training.end() == 0, training.output()
    assert f"Resuming from step {stopped}." in training.output()
    assert_same_training(workdir, uninterrupted, dataset__data_dir=data_dir)


@pytest.mark.slow
def test_killed_at_random_steps(tmp_path, uninterrupted, environment, data_dir):
    """The long variant of this is marked slow."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown if the test fails
    rng = random.Random(seed)
    workdir = tmp_path / "run"
    for _ in range(2):
        step = rng.randrange((saved_steps(workdir) or [0])[-1] + 1, 40)
        training = tiny.Training(workdir, environment, dataset__data_dir=data_dir)
        if training.wait_until(lambda training=training, step=step: training.step() >= step):
            training.signal(signal.SIGKILL)
        assert training.end() in (0, -signal.SIGKILL), training.output()
    training = tiny.Training(workdir, environment, dataset__data_dir=data_dir)
    assert training.end() == 0, training.output()
    assert_same_training(workdir, uninterrupted, dataset__data_dir=data_dir)


def wait_for_moment(training, kind, workdir):
    """Waits for the first step, or for a save after it; False if the training ends before."""
    if kind == "start":
        return True
    running = training.wait_until(lambda: training.step() > 0)
    if running and kind != "step":
        running = training.wait_until(lambda: not tiny.saving(workdir))
        running = running and training.wait_until(lambda: tiny.saving(workdir))
    return running


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_until_finished(tmp_path, environment, data_dir, workers):
    """Kills come at any time from the start of the process on, and during saves."""
    fields = {
        "epochs": 1.0,  # 89 steps
        "eval_every": 0.15,  # 13 steps
        "checkpoint_every": 0.034,  # 3 steps
        "log_every": 2,
        "dataset__data_dir": data_dir,
    }
    expected = tmp_path / "uninterrupted"
    training = tiny.Training(expected, environment, **fields)
    assert training.end() == 0, training.output()

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown if the test fails
    rng = random.Random(seed)
    workdir = tmp_path / "run"
    codes = []
    for attempt in range(12):
        kind = rng.choice(["start", "step", "step", "step", "save", "late save"])
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        delay = rng.uniform(0, {"start": 8, "step": 1.5, "save": 0, "late save": 0.1}[kind])
        print(f"attempt {attempt}: {kind}, {number.name} after {delay:.3f} s")
        training = tiny.Training(workdir, environment, dataset__workers=workers, **fields)
        if wait_for_moment(training, kind, workdir) and training.wait(delay):
            training.signal(number)
        codes.append(training.end())
        print(f"  code {codes[-1]}, saved steps {saved_steps(workdir)}")
        assert codes[-1] in (0, 143, -signal.SIGKILL, -signal.SIGTERM), training.output()
        if codes[-1] == -signal.SIGTERM:  # before there was anything to save
            assert training.step() == 0
        if codes[-1] == 0:
            break
    else:
        training = tiny.Training(workdir, environment, **fields)
        assert training.end() == 0, training.output()
    assert len(codes) > 3
    assert_same_training(workdir, expected, **fields)


# several processes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_train_like_one(tmp_path, environment, data_dir):
    """And are stopped by a SIGTERM to both or to one of them, and go on.

    Without dropout and mixup, which depend on the order of the images within the batch.
    """
    fields = {
        "augment__mixup": 0.0,
        "model__dropout": 0.0,
        # Where a ReLU meets a background, all equal, rounding errors decide large gradients.
        "model__activation": "silu",
        "schedule__learning_rate": 0.01,
        "log_every": 1,
        "dataset__data_dir": data_dir,
    }
    one = tmp_path / "one"
    training = tiny.Training(one, environment, **fields)
    assert training.end() == 0, training.output()

    two = tmp_path / "two"
    trainings = tiny.start_two(two, environment, **fields)
    assert [training.end() for training in trainings] == [0, 0], trainings[0].output()
    assert "on 2 cpu device(s)" in trainings[0].output()
    assert not re.search("step|Finished|mobilenet", trainings[1].output())
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert len(list((two / "tensorboard").iterdir())) == 1
    lines = zip(tiny.metrics(one), tiny.metrics(two), strict=True)
    for expected, line in lines:
        assert (line["step"], line["split"]) == (expected["step"], expected["split"])
        tolerance = 1e-6 if line["step"] <= 10 else 1e-3
        assert line["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    expected_arrays = tiny.arrays(one, tiny.config(**fields))[0]
    arrays = tiny.arrays(two, tiny.config(**fields))[0]
    for name, value in expected_arrays.items():
        if not name.startswith(".opt_state"):
            np.testing.assert_allclose(arrays[name], value, rtol=1e-2, atol=1e-2, err_msg=name)
    result = tiny.result(two)
    assert result["test_examples"] == 100
    assert result["device"]["count"] == 2

    workdir = tmp_path / "run"
    for signaled in ([0, 1], [1]):
        trainings = tiny.start_two(workdir, environment, **fields)
        begun = saved_steps(workdir)[-1] if workdir.exists() else 0
        first = trainings[0]
        assert first.wait_until(lambda first=first, n=begun: first.step() >= n + 3), first.output()
        for i in signaled:
            trainings[i].signal(signal.SIGTERM)
        assert [training.end() for training in trainings] == [143, 143], first.output()
        stopped = int(re.search(r"saved step (\d+)", first.output())[1])
        assert begun < stopped == saved_steps(workdir)[-1] < 44
    trainings = tiny.start_two(workdir, environment, **fields)
    assert [training.end() for training in trainings] == [0, 0], trainings[0].output()
    assert f"Resuming from step {stopped}." in trainings[0].output()
    assert_same_training(workdir, two, **fields)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a whole number, not 'two'"),
    ],
)
def test_an_incomplete_cluster(tmp_path, environment, data_dir, variables, message):
    fields = {"distributed": True, "dataset__data_dir": data_dir}
    training = tiny.Training(tmp_path / "run", {**environment, **variables}, **fields)
    assert training.end() == 2
    assert message in training.output()
    assert training.output().count("\n") == 1
    assert not (tmp_path / "run").exists()
