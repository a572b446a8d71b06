"""Sweeps: what is planned, what it costs, in which order it runs, and what survives a kill.

Scheduling is tested with `fake_main.py` in main's place; two slow tests train.
"""

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_sweep
import pytest
import tiny

from experiments import (
    ablation,
    measure,
    report_data,
    report_store,
    sweep,
    sweep_board,
    sweep_plan,
)
from mobilenets_jax import checkpoint, costs
from mobilenets_jax.errors import InputError
from mobilenets_jax.switches import build_spec

HEAD = '''"""Is it so?"""
from experiments.ablation import Run
PAPER = []
def comparisons(scale):
    return []
'''
RUNS = """
def runs(scale):
    fields = {fields!r}
    return [
        Run(name, {config!r}, {{**fields, "model.alpha": alpha}}, {{"alpha": alpha}})
        for name, alpha in {runs!r}
    ]
"""
MEASURE = """
def measure(scale, directory):
    if {fails!r}:
        raise RuntimeError("no clock")
    (directory / "picture.png").write_bytes(b"x")
    return {{"scale": scale, "ratio": 0.125}}
"""
CONFIG = f"configs/default.py:{tiny.ARGUMENT}"


def write_experiment(folder, name, runs=(), fields=None, measures=False, fails=False, more=""):
    """Writes an experiment's file; `runs` are names with alphas."""
    text = HEAD
    if runs:
        text += RUNS.format(fields=fields or {}, config=CONFIG, runs=list(runs))
    if measures:
        text += MEASURE.format(fails=fails)
    path = folder / f"{name}.py"
    path.write_text(text + more)
    return str(path)


@pytest.fixture
def three(tmp_path):
    """An experiment of three runs."""
    return write_experiment(tmp_path, "three", [("a", 0.25), ("b", 0.5), ("c", 0.75)])


@pytest.fixture
def fake(monkeypatch):
    """Runs are fake_main.py's, of ten quick steps."""
    monkeypatch.setattr(ablation, "command", fake_sweep.command)
    monkeypatch.setenv("FAKE_STEPS", "10")
    monkeypatch.setenv("FAKE_SECONDS", "0.005")
    monkeypatch.delenv("FAKE_FAIL", raising=False)


def run(*arguments):
    return sweep.main([str(argument) for argument in arguments])


def starts(workdir):
    """The step that each attempt at a run began at."""
    path = workdir / "starts.txt"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def chain(workdir):
    value = json.loads((workdir / "result.json").read_text())
    return value["step"], value["chain"], value["config"]


def processes(text):
    """Returns the numbers of the processes whose command line holds a text."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if str(text).encode() in command and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


# The plan ---------------------------------------------------------------------------------------


def test_sweep_json_holds_what_costs_say(tmp_path):
    found = sweep_plan.plan("v2_shortcut", tmp_path, "small", [0, 1, 2])
    record = found.record
    assert (record["experiment"], record["scale"], record["seeds"]) == (
        "v2_shortcut",
        "small",
        [0, 1, 2],
    )
    module = ablation.load("v2_shortcut")
    assert [entry["name"] for entry in record["runs"]] == [r.name for r in module.runs("small")]
    for entry, planned in zip(record["runs"], module.runs("small"), strict=True):
        config = ablation.config(planned)
        spec = build_spec(
            "mobilenet_v2",
            10,
            config.model.alpha,
            shortcut=config.model.shortcut,
            drop_strides=config.model.drop_strides,
        )
        assert entry["params"] == costs.params(spec)
        assert entry["macs"] == costs.macs(spec, 32)
        assert entry["resolution"] == 32
        assert entry["steps"] == round(config.epochs * (60_000 // config.batch_size))
        assert entry["overrides"] == planned.overrides
        assert entry["factors"] == planned.factors
    for task, planned in zip(found.tasks, module.runs("small"), strict=True):
        assert task.directory == tmp_path / "v2_shortcut" / planned.name
        assert task.command == tuple(ablation.command(planned, task.directory, [0, 1, 2]))


def test_full_trains_seeds_one_by_one(tmp_path, three):
    found = sweep_plan.plan(three, tmp_path, "full", [0, 1])
    assert [task.name for task in found.tasks] == [
        f"three/{name}/seed_{seed}" for name in "abc" for seed in (0, 1)
    ]
    for task in found.tasks:
        assert f"--config.seed={task.name[-1]}" in task.command
        assert not any("replicas" in argument for argument in task.command)


def test_dry_run_lists_and_does_nothing(tmp_path, three, capsys):
    workdir = tmp_path / "out"
    assert run(three, f"--workdir={workdir}", "--dry_run", "--seeds=3", "--jobs=2") == 0
    lines = capsys.readouterr().out.splitlines()
    module = ablation.load(three)
    cores = len(os.sched_getaffinity(0)) // 2  # of each; the estimates are of two
    total = 0.0
    assert len(lines) == 5
    for line, planned in zip(lines[1:4], module.runs("smoke"), strict=True):
        cost = ablation.cost(planned, 3)
        total += cost.seconds
        assert line.split() == [
            f"three/{planned.name}",
            "3",
            f"{cost.params:,}",
            f"{cost.macs:,}",
            "32",
            f"{cost.steps:,}",
            sweep_board.clock(cost.seconds * 2 / min(2, cores)),
        ]
    total *= 2 / min(2, cores)
    assert lines[4].startswith(
        f"3 in all, 0 finished; about {sweep_board.clock(total / 2)} left with 2"
    )
    assert "estimates of ablation.cost, good to a factor of two on CPU" in lines[4]
    assert not workdir.exists()


def test_times_are_those_of_finished_runs(tmp_path, three, capsys):
    workdir = tmp_path / "out"
    seconds = ablation.cost(ablation.load(three).runs("smoke")[0], 1).seconds
    (workdir / "three" / "a").mkdir(parents=True)
    result = {"train_seconds": 3 * seconds}
    (workdir / "three" / "a" / "result.json").write_text(json.dumps(result))
    assert run(three, f"--workdir={workdir}", "--dry_run", "--seeds=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("finished")
    assert "times 3.00, the median of the 1 finished run(s) here" in lines[4]
    times = [3 * ablation.cost(r, 1).seconds for r in ablation.load(three).runs("smoke")]
    assert f"1 finished; about {sweep_board.clock(sum(times[1:]))} left" in lines[4]


def test_all_experiments(tmp_path, three, monkeypatch, capsys):
    other = write_experiment(tmp_path, "clocks", measures=True)
    monkeypatch.setattr(ablation, "names", lambda: [three, other])
    assert run("all", f"--workdir={tmp_path / 'out'}", "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["three/a", "three/b", "three/c", "clocks/measure"]
    assert [line.split()[0] for line in lines[1:5]] == names
    assert "without 1 that measure" in lines[5]


def test_only(tmp_path, three, fake):
    measuring = write_experiment(tmp_path, "clocks", measures=True)
    workdir = tmp_path / "out"
    assert run(three, measuring, f"--workdir={workdir}", "--only=three/[bc]", "--seeds=1") == 0
    assert {path.parent.name for path in workdir.glob("*/*/result.json")} == {"b", "c"}
    assert len(json.loads((workdir / "three" / "sweep.json").read_text())["runs"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale=smal"], "invalid choice: 'smal'"),
        (["--seeds=0"], "'0' is not a positive integer"),
        (["--job=2"], "Unrecognized arguments: --job=2"),
        (["--only=zz"], "--only=zz matches none of 3 runs."),
        (["--slurm=timeout_min=3"], "--slurm is not used by --launcher=local"),
        (["--launcher=slurm", "--slurm=gpu"], "--slurm takes key=value"),
        (["nothing"], "There is no experiment 'nothing'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, three, capsys, arguments, message):
    workdir = tmp_path / "out"
    assert run(three, f"--workdir={workdir}", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("runs", "fields", "message"),
    [
        ([("a", 0.25), ("a", 0.5)], {}, "Two runs of wrong have the same name"),
        ([("A b", 0.25)], {}, "The run name 'A b' of wrong must match"),
        ([("measure", 0.25)], {}, "neither measure nor latency"),
        ([("a", 0.25)], {"model.alpa": 1}, "The run wrong/a is wrong (Unknown config field"),
    ],
)
def test_wrong_experiments(tmp_path, capsys, runs, fields, message):
    file = write_experiment(tmp_path, "wrong", runs, fields)
    assert run(file, f"--workdir={tmp_path / 'out'}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--scale=small"], "(scale is 'smoke' there and 'small' here)"),
        (["--seeds=2"], "(seeds is [0] there and [0, 1] here)"),
        ("overrides", "(epochs of run a is 1.0 there and 2.0 here)"),
        ("config.json", "is of another config (epochs is 7.0 there and 1.0 here)"),
        ("sweep.json", "sweep.json is damaged"),
    ],
)
def test_another_plan_is_refused(tmp_path, fake, capsys, change, message):
    runs, workdir = [("a", 0.25), ("b", 0.5)], tmp_path / "out"
    file = write_experiment(tmp_path, "two", runs, {"epochs": 1.0})
    assert run(file, f"--workdir={workdir}", "--seeds=1") == 0
    more = ["--seeds=1"]
    if isinstance(change, list):
        more += change
    elif change == "overrides":
        write_experiment(tmp_path, "two", runs, {"epochs": 2.0})
    elif change == "config.json":
        config = tiny.config_lib.plain(ablation.config(ablation.load(file).runs("smoke")[0]))
        stored = {**config, "epochs": 7.0, "seed": 3}
        (workdir / "two" / "a" / "config.json").write_text(json.dumps(stored))
    else:
        (workdir / "two" / "sweep.json").write_text('{"scale": "smoke"}')
    before = (workdir / "two" / "sweep.json").read_text()
    capsys.readouterr()
    assert run(file, f"--workdir={workdir}", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (workdir / "two" / "sweep.json").read_text() == before


def test_a_run_may_be_added(tmp_path, fake):
    workdir = tmp_path / "out"
    file = write_experiment(tmp_path, "two", [("a", 0.25)])
    assert run(file, f"--workdir={workdir}", "--seeds=1") == 0
    write_experiment(tmp_path, "two", [("a", 0.25), ("b", 0.5)])
    assert run(file, f"--workdir={workdir}", "--seeds=1") == 0
    assert starts(workdir / "two" / "a") == starts(workdir / "two" / "b") == [0]


def test_seeds_may_be_added_where_each_has_a_folder(tmp_path, fake, capsys):
    workdir = tmp_path / "out"
    file = write_experiment(tmp_path, "one", [("a", 0.25)])
    assert run(file, f"--workdir={workdir}", "--scale=full", "--seeds=1") == 0
    assert run(file, f"--workdir={workdir}", "--scale=full", "--seeds=2") == 0
    assert [starts(workdir / "one" / "a" / f"seed_{seed}") for seed in (0, 1)] == [[0], [0]]
    assert run(file, f"--workdir={workdir}", "--scale=full", "--seeds=1") == 2
    assert "(seeds is [0, 1] there and [0] here)" in capsys.readouterr().err


def test_latencies_without_an_added_run_are_forgotten(tmp_path, three):
    experiment = sweep_plan.plan(three, tmp_path, "smoke", [0])
    path = experiment.directory / "latency.json"
    measuring = [experiment.tasks[0]._replace(result=path)]
    sweep_plan.forget_outdated(experiment, measuring)  # there are none
    path.parent.mkdir()
    path.write_text('{"a": {}, "b": {}, "c": {}, "device": {}}')
    sweep_plan.forget_outdated(experiment, measuring)
    assert path.exists()
    path.write_text('{"a": {}, "b": {}, "device": {}}')
    sweep_plan.forget_outdated(experiment, experiment.tasks)  # which would not renew them
    assert path.exists()
    sweep_plan.forget_outdated(experiment, measuring)
    assert not path.exists()


# Scheduling -------------------------------------------------------------------------------------


def test_order_and_skipping(tmp_path, three, fake, capsys):
    """Trainings of all files in their order, then what is measured; nothing twice."""
    first = write_experiment(tmp_path, "first", [("z", 0.25)], measures=True)
    workdir = tmp_path / "out"
    assert run(first, three, f"--workdir={workdir}", "--seeds=1") == 0
    out = capsys.readouterr().out
    order = ["first/z", "three/a", "three/b", "three/c", "first/measure"]
    assert re.findall(r"^start (.*)", out, re.MULTILINE) == order
    assert re.findall(r"^done (\S*)", out, re.MULTILINE) == order
    assert "done three/a in 0:00:00: accuracy 0.5000" in out
    assert out.splitlines()[0].startswith("5 queued, 0 running, 0 done, 0 failed, about ")
    assert out.splitlines()[-1] == "0 queued, 0 running, 5 done, 0 failed"
    measured = workdir / "first" / "measure"
    assert json.loads((measured / "result.json").read_text()) == {"scale": "smoke", "ratio": 0.125}
    assert (measured / "picture.png").exists()

    assert run(three, first, f"--workdir={workdir}", "--seeds=1") == 0
    assert "start" not in capsys.readouterr().out
    assert [starts(workdir / "three" / name) for name in "abc"] == [[0]] * 3


def test_a_failure_is_recorded_and_the_rest_done(tmp_path, three, fake, monkeypatch, capsys):
    workdir = tmp_path / "out"
    monkeypatch.setenv("FAKE_FAIL", "three/b")
    clocks = write_experiment(tmp_path, "clocks", measures=True, fails=True)
    assert run(three, clocks, f"--workdir={workdir}", "--seeds=1") == 1
    message = "The learning rate is wrong: lower it."
    assert json.loads((workdir / "three" / "b" / "error.json").read_text()) == {
        "code": 2,
        "message": message,
        "stderr_tail": f"a warning\nerror: {message}",
    }
    assert (workdir / "three" / "c" / "result.json").exists()
    out = capsys.readouterr().out
    assert f"failed three/b after 0:00:00: {message} (code 2)" in out
    assert "0 queued, 0 running, 2 done, 2 failed" in out
    failed = json.loads((workdir / "clocks" / "measure" / "error.json").read_text())
    assert failed["message"] == "RuntimeError: no clock"

    assert run(three, f"--workdir={workdir}", "--seeds=1", "--dry_run") == 0
    assert re.search(r"three/b .* failed before$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.delenv("FAKE_FAIL")
    assert run(three, f"--workdir={workdir}", "--seeds=1") == 0
    assert [starts(workdir / "three" / name) for name in "abc"] == [[0]] * 3
    assert not (workdir / "three" / "b" / "error.json").exists()


def test_jobs_run_beside_each_other(tmp_path, three, fake, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    workdir = tmp_path / "out"
    assert run(three, f"--workdir={workdir}", "--seeds=1", "--jobs=2") == 0
    spans = []
    for name in "abc":
        result = json.loads((workdir / "three" / name / "result.json").read_text())
        spans.append((result["began"], result["ended"]))
    beside = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(beside) == 2
    cores = len(os.sched_getaffinity(0))
    [line] = (workdir / "three" / "a" / "starts.txt").read_text().splitlines()
    assert line.split()[1] == str(max(1, cores // 2))


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, three, fake, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    workdir = tmp_path / "out"

    def stop():
        end = time.monotonic() + 60
        while not (workdir / "three" / "b" / "metrics.jsonl").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert run(three, f"--workdir={workdir}", "--seeds=1") == 143
    thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    out = capsys.readouterr().out
    assert "Stopping: 1 running save their state first" in out
    assert "stopped three/b" in out
    assert "Stopped by a signal: the same command goes on." in out
    assert processes(workdir) == []
    assert not list(workdir.glob("*/*/error.json"))
    saved = json.loads((workdir / "three" / "b" / "state.json").read_text())["step"]
    assert 0 < saved < 10
    assert starts(workdir / "three" / "c") == []

    assert run(three, f"--workdir={workdir}", "--seeds=1") == 0
    assert [starts(workdir / "three" / name) for name in "abc"] == [[0], [0, saved], [0]]


def test_a_second_sweep_is_refused(tmp_path, three, fake, capsys):
    workdir = tmp_path / "out"
    (workdir / "three").mkdir(parents=True)
    other = os.open(workdir / "three", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert run(three, f"--workdir={workdir}", "--seeds=1") == 2
    assert "Another sweep is running in" in capsys.readouterr().err
    os.close(other)
    assert run(three, f"--workdir={workdir}", "--seeds=1") == 0


def test_a_workdir_in_use_is_waited_for(tmp_path, three, fake, capsys):
    """As if an earlier sweep's child still trained there; the other runs come first."""
    workdir = tmp_path / "out"
    (workdir / "three" / "a").mkdir(parents=True)
    other = os.open(workdir / "three" / "a", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    def release():
        end = time.monotonic() + 60
        while not (workdir / "three" / "c" / "result.json").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        os.close(other)

    thread = threading.Thread(target=release)
    thread.start()
    assert run(three, f"--workdir={workdir}", "--seeds=1") == 0
    thread.join()
    out = capsys.readouterr().out
    assert out.count("three/a is being trained by another process") == 1
    assert re.findall(r"^start three/(.)", out, re.MULTILINE) == ["b", "c", "a"]


# Kills ------------------------------------------------------------------------------------------


def written(workdir):
    """Returns how many lines of progress all attempts have written, the stand-in's or main's."""
    metrics = b"".join(path.read_bytes() for path in workdir.glob("*/*/metrics.jsonl"))
    logs = b"".join(path.read_bytes() for path in workdir.glob("*/*/log.txt"))
    return metrics.count(b"\n") if b"step " not in logs else logs.count(b"step ")


def killed_until_finished(command, environment, workdir, rng):
    """Starts a sweep again and again, and kills it at random moments; returns how many times.

    First as soon as a run has started, then after some steps of an attempt; alone or with its
    children, it or they first.
    """
    kills = 0
    for lines in [0, *(rng.randrange(3, 9) for _ in range(4)), None]:
        process = subprocess.Popen(
            command,
            cwd=tiny.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if lines is not None:
            before, end = written(workdir), time.monotonic() + 900
            while process.poll() is None and (
                written(workdir) < before + lines or not processes(f"--workdir={workdir}/")
            ):
                assert time.monotonic() < end
                time.sleep(0.01)
        try:
            out, _ = process.communicate(timeout=None if lines is None else rng.uniform(0, 0.5))
            assert process.returncode == 0, out.decode()
            return kills
        except subprocess.TimeoutExpired:
            victims = [process.pid, *processes(f"--workdir={workdir}/")]
            victims = rng.choice([victims[:1], victims, victims[::-1]])
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            process.communicate()
            end = time.monotonic() + 30
            while left := processes(f"{workdir}/"):
                assert time.monotonic() < end, left
                time.sleep(0.01)
            kills += 1
    raise AssertionError("the last attempt was not killed, but did not end")


def test_killed_at_random_moments(tmp_path, three, fake, monkeypatch):
    """No process is left behind, and in the end all is as if nothing had happened."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown if the test fails
    assert run(three, f"--workdir={tmp_path / 'whole'}", "--seeds=1", "--jobs=2") == 0
    workdir = tmp_path / "out"
    command = [sys.executable, str(tiny.ROOT / "tests" / "fake_sweep.py"), three]
    command += [f"--workdir={workdir}", "--seeds=1", "--jobs=2"]
    environment = {**os.environ, "FAKE_SECONDS": "0.15"}
    rng = random.Random(seed)
    assert killed_until_finished(command, environment, workdir, rng) > 0
    for name in "abc":
        assert chain(workdir / "three" / name) == chain(tmp_path / "whole" / "three" / name)
    assert not list(workdir.glob("*/*/error.json"))


REAL = [("a", 0.25), ("b", 0.3)]


def last_arrays(workdir):
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        return tiny.named(checkpoint.restore_arrays(manager)[0])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_trainings_killed_at_random_moments(tmp_path):
    """All that is reported but the time, and every array, are bitwise those of a whole sweep."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown if the test fails
    fields = {k: v for k, v in tiny.FIELDS.items() if k != "model.alpha"}
    data = str(tmp_path / "data")
    file = write_experiment(tmp_path, "real", REAL, {**fields, "dataset.data_dir": data})
    environment = tiny.environment(tmp_path / "compiled")
    command = [sys.executable, "-m", "experiments.sweep", file, "--seeds=2"]
    whole, workdir = tmp_path / "whole", tmp_path / "out"
    first = subprocess.run(
        [*command, f"--workdir={whole}"], cwd=tiny.ROOT, env=environment, capture_output=True
    )
    assert first.returncode == 0, first.stdout.decode() + first.stderr.decode()
    rng = random.Random(seed)
    command.append(f"--workdir={workdir}")
    kills = killed_until_finished(command, environment, workdir, rng)
    print(f"{kills} kills")
    assert kills > 1
    assert any("Resuming from step" in path.read_text() for path in workdir.glob("*/*/log.txt"))
    records = [report_data.gather(folder / "real") for folder in (whole, workdir)]
    for record in records:
        assert all(trained.pop("train_seconds") > 0 for trained in record["runs"])
    assert report_store.stored(records[0]) == report_store.stored(records[1])
    for name, _ in REAL:
        a, b = whole / "real" / name, workdir / "real" / name
        assert tiny.result(a) == tiny.result(b)
        assert tiny.metrics(a) == tiny.metrics(b)
        tiny.assert_same_bits(last_arrays(b), last_arrays(a))


# What is measured -------------------------------------------------------------------------------


def test_networks_take_turns():
    called = []

    def network(name, calls):
        return measure.Network(32, lambda: called.append(name), calls)

    seconds = measure.rounds({"a": network("a", 1), "b": network("b", 2)}, 3)
    assert called == ["a", "a", "b", "b", "b"] * 3  # one more than is timed
    assert [len(seconds[name]) for name in "ab"] == [3, 3]


@pytest.mark.slow
def test_latency(tmp_path, monkeypatch):
    """Of every run; runs that differ in the recipe alone share a network's."""
    monkeypatch.setattr(measure, "ROUNDS", 4)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.01)
    more = (
        "LATENCY = True\nhead = runs\n"
        "def runs(scale):\n"
        "    found = head(scale)\n"
        "    return [*found, found[0]._replace(name='c', overrides={**found[0].overrides, "
        "'epochs': 3.0})]\n"
    )
    file = write_experiment(
        tmp_path, "timed", [("a", 0.25), ("b", 0.5)], {"model.shallow": True}, more=more
    )
    tasks = sweep_plan.plan(file, tmp_path, "smoke", [0]).tasks
    assert [task.name for task in tasks] == [f"timed/{name}" for name in ("a", "b", "c", "latency")]
    assert tasks[-1].alone
    assert tasks[-1].result == tmp_path / "timed" / "latency.json"
    assert tasks[-1].command[2:] == (
        "experiments.measure",
        "latency",
        file,
        "--scale=smoke",
        f"--directory={tmp_path / 'timed'}",
    )
    measure.main(list(tasks[-1].command[3:]))
    found = json.loads((tmp_path / "timed" / "latency.json").read_text())
    assert {"versions", "device", "git_revision"} < found.keys()
    for name in "abc":
        assert len(found[name]["round_seconds"]) == found[name]["rounds"]
        low, high = found[name]["quartile_seconds"]
        assert 0 < low <= found[name]["median_seconds"] <= high
        assert (found[name]["batch"], found[name]["resolution"]) == (1, 32)
        assert found[name]["rounds"] == 4
    assert found["a"] == found["c"] != found["b"]


def test_two_seeds_or_more_have_an_interval():
    options = sweep.parse(["x", "--workdir=y"])
    assert options.seeds == [0, 1]
    assert sweep.parse(["x", "--workdir=y", "--scale=small"]).seeds == [0, 1, 2, 3, 4]
    assert sweep.parse(["x", "--workdir=y", "--scale=full"]).seeds == [0]
    with pytest.raises(InputError, match="workdir"):
        sweep.parse(["x"])
