"""Processes of a sweep: their slots, their end, their errors, and Slurm's jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from experiments import launchers
from experiments.launchers import STOPPED, Ended, Entry, Local, Slot, Slurm, Task
from mobilenets_jax.errors import InputError

PYTHON = (sys.executable, "-I", "-S", "-c")
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"


def task(tmp_path, name, code=WRITE, **fields):
    directory = tmp_path / name
    result = directory / "result.json"
    return Task(name, (*PYTHON, code, str(result)), directory, result, **fields)


def finish(launcher, count, seconds=60):
    """Waits until so many tasks have ended."""
    found, end = [], time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < end, found
        found += launcher.ended()
        time.sleep(0.01)
    return found


def wait_for(path, seconds=30):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.005)


def error(of):
    return json.loads((of.directory / "error.json").read_text())


# How a task ends --------------------------------------------------------------------------------


def test_done(tmp_path):
    a = task(tmp_path, "a", "print('hello'); " + WRITE)
    launcher = Local([Slot({})])
    assert launcher.start([a]) == [a]
    assert finish(launcher, 1) == [Ended(a, 0, "")]
    assert (a.directory / "log.txt").read_text() == "hello\n"
    assert not (a.directory / "error.json").exists()


@pytest.mark.parametrize(
    ("code", "expected", "message", "tail"),
    [
        (
            "import sys; print('x'); sys.stdout.flush(); print('error: A b: c.', file=sys.stderr); "
            "print('later', file=sys.stderr); sys.exit(2)",
            2,
            "A b: c.",
            "x\nerror: A b: c.\nlater",
        ),
        ("import sys; sys.exit('gone')", 1, "gone", "gone"),
        ("raise SystemExit(3)", 3, "It said nothing.", ""),
        ("pass", 0, "Ended without result.json.", ""),
        (
            "import os; os.kill(os.getpid(), 9)",
            -9,
            "Killed by SIGKILL (out of memory?).",
            "",
        ),
        ("raise SystemExit(143)", 143, "Stopped by a signal that this sweep did not send.", ""),
    ],
)
def test_failure_is_recorded(tmp_path, code, expected, message, tail):
    a = task(tmp_path, "a", code)
    a.directory.mkdir()
    (a.directory / "log.txt").write_text("error: of an earlier attempt\n")
    launcher = Local([Slot({})])
    launcher.start([a])
    assert finish(launcher, 1) == [Ended(a, expected, message)]
    assert error(a) == {"code": expected, "message": message, "stderr_tail": tail}


def test_only_the_end_of_a_long_log_is_kept(tmp_path):
    a = task(tmp_path, "a", "[print(i) for i in range(100)]; raise SystemExit(1)")
    launcher = Local([Slot({})])
    launcher.start([a])
    assert finish(launcher, 1)[0].error == "99"
    assert error(a)["stderr_tail"].split("\n") == [str(i) for i in range(70, 100)]
    assert len((a.directory / "log.txt").read_text().split()) == 100


def test_a_new_attempt_forgets_the_failure(tmp_path):
    a = task(tmp_path, "a")
    launchers.begin(a)
    launchers.record(a, 1, "old")
    launcher = Local([Slot({})])
    launcher.start([a])
    assert finish(launcher, 1) == [Ended(a, 0, "")]
    assert not (a.directory / "error.json").exists()


# Local ------------------------------------------------------------------------------------------

SLEEP = "import time; time.sleep(60)"


def test_as_many_as_there_are_slots_in_order(tmp_path):
    tasks = [task(tmp_path, name) for name in "abc"]
    launcher = Local([Slot({}), Slot({})])
    assert launcher.start(tasks) == tasks[:2]
    assert launcher.start(tasks[2:]) == []
    assert {end.task for end in finish(launcher, 2)} == set(tasks[:2])
    assert launcher.start(tasks[2:]) == tasks[2:]
    assert finish(launcher, 1) == [Ended(tasks[2], 0, "")]


def test_what_measures_runs_alone(tmp_path):
    a, b = task(tmp_path, "a"), task(tmp_path, "b")
    alone = task(tmp_path, "alone", alone=True)
    launcher = Local([Slot({}), Slot({})])
    assert launcher.start([a, alone, b]) == [a]
    finish(launcher, 1)
    assert launcher.start(iter([alone, b])) == [alone]
    assert launcher.start([b]) == []
    finish(launcher, 1)
    assert launcher.start([b]) == [b]
    finish(launcher, 1)


def test_stopping_asks_and_records_no_error(tmp_path):
    code = (
        "import signal, pathlib, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "pathlib.Path(sys.argv[1]).with_name('ready').touch()\n"
        "time.sleep(60)"
    )
    saves, unready = task(tmp_path, "a", code), task(tmp_path, "b", SLEEP)
    launcher = Local([Slot({}), Slot({})])
    launcher.start([saves, unready])
    wait_for(saves.directory / "ready")
    launcher.stop()
    ends = {end.task.name: end for end in finish(launcher, 2)}
    assert ends == {"a": Ended(saves, STOPPED, ""), "b": Ended(unready, -signal.SIGTERM, "")}
    assert not list(tmp_path.glob("*/error.json"))


def test_every_process_leads_a_session_and_gets_its_slot(tmp_path):
    code = (
        "import json, os, pathlib, sys\n"
        "names = ('CUDA_VISIBLE_DEVICES', 'GLIBC_TUNABLES')\n"
        "pathlib.Path(sys.argv[1]).write_text(json.dumps({\n"
        "    'session': os.getsid(0) == os.getpid(), 'cores': sorted(os.sched_getaffinity(0)),\n"
        "    'cwd': os.getcwd(), **{name: os.environ.get(name) for name in names}}))"
    )
    core = max(os.sched_getaffinity(0))
    a, b = task(tmp_path, "a", code), task(tmp_path, "b", code, alone=True)
    launcher = Local([Slot({"CUDA_VISIBLE_DEVICES": "3"}, (core,))])
    launcher.start([a])
    finish(launcher, 1)
    launcher.start([b])
    finish(launcher, 1)
    seen = json.loads(a.result.read_text())
    assert seen["session"]
    assert seen["cores"] == [core]
    assert seen["cwd"] == str(tiny.ROOT)
    assert seen["CUDA_VISIBLE_DEVICES"] == "3"
    assert "glibc.malloc.hugetlb=1" in seen["GLIBC_TUNABLES"]
    alone = json.loads(b.result.read_text())
    assert alone == {**seen, "cores": sorted(os.sched_getaffinity(0))}


def test_a_process_dies_with_its_parent(tmp_path):
    """Even one that ignores SIGTERM, and one that has replaced itself, as main does."""
    program = (
        "import os, pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sleep = 'import pathlib, sys, time; "
        'pathlib.Path(sys.argv[1]).with_name(str(__import__("os").getpid())).touch(); '
        "time.sleep(60)'\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', sleep, sys.argv[1]])"
    )
    parent = (
        "import time\nfrom pathlib import Path\n"
        "from experiments.launchers import Local, Slot, Task\n"
        f"task = Task('a', ({PYTHON!r} + ({program!r}, {str(tmp_path / 'a' / 'result.json')!r})), "
        f"Path({str(tmp_path / 'a')!r}), Path({str(tmp_path / 'a' / 'result.json')!r}))\n"
        "Local([Slot({})]).start([task])\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tiny.ROOT)
    end = time.monotonic() + 60
    while not (found := [p for p in (tmp_path / "a").glob("*") if p.name.isdigit()]):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    child = int(found[0].name)
    assert tiny.session(child)
    process.kill()
    process.wait()
    while tiny.session(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_whose_parent_is_gone_does_nothing(tmp_path):
    command = [sys.executable, str(launchers.CHILD), "1", "-", *PYTHON, WRITE, str(tmp_path / "x")]
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "x").exists()


def test_locked(tmp_path):
    assert not launchers.locked(tmp_path / "none")
    code = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [*PYTHON, code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert launchers.locked(tmp_path)
    holder.communicate()
    assert not launchers.locked(tmp_path)


# Slots ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "devices", "cores", "expected"),
    [
        (None, [], [0, 1], [Slot({})]),
        (1, [], [0, 1], [Slot({})]),
        (2, [], [0, 1], [Slot({}, (0,)), Slot({}, (1,))]),
        (2, [], [2, 3, 6, 7, 8], [Slot({}, (2, 3)), Slot({}, (6, 7))]),
        (3, [], [4, 5], [Slot({}, (4,)), Slot({}, (5,)), Slot({}, (4,))]),
        (2, [], [], [Slot({}), Slot({})]),
        (
            None,
            ["0", "1"],
            [0],
            [Slot({"CUDA_VISIBLE_DEVICES": "0"}), Slot({"CUDA_VISIBLE_DEVICES": "1"})],
        ),
        (1, ["4", "5"], [0], [Slot({"CUDA_VISIBLE_DEVICES": "4,5"})]),
        (
            2,
            ["0", "1", "2", "3", "4"],
            [0],
            [Slot({"CUDA_VISIBLE_DEVICES": "0,1"}), Slot({"CUDA_VISIBLE_DEVICES": "2,3"})],
        ),
    ],
)
def test_slots(jobs, devices, cores, expected):
    assert launchers.slots(jobs, devices, cores) == expected


def test_jobs_share_the_memory_of_a_gpu():
    found = [slot.environment for slot in launchers.slots(3, ["0", "1"], [0])]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in found] == ["0", "1", "0"]
    assert {slot["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in found} == {"0.450"}


def test_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: object())
    assert launchers.gpus({"CUDA_VISIBLE_DEVICES": "2,GPU-5c"}) == ["2", "GPU-5c"]
    assert launchers.gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert launchers.gpus({"CUDA_VISIBLE_DEVICES": "2", "JAX_PLATFORMS": "cpu"}) == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launchers.gpus({}) == ["0", "1"]
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    assert launchers.gpus({}) == []


# Slurm ------------------------------------------------------------------------------------------


@pytest.fixture
def in_root(monkeypatch):
    """Jobs import `experiments` from where the sweep was started."""
    monkeypatch.chdir(tiny.ROOT)


def test_slurm_parameters():
    text = "slurm_partition=gpu,timeout_min=60,slurm_exclude=a1,b2"
    expected = {"slurm_partition": "gpu", "timeout_min": 60, "slurm_exclude": "a1,b2"}
    assert launchers.slurm_parameters(text) == expected
    assert launchers.slurm_parameters("") == {}
    with pytest.raises(InputError, match="not 'gpu'"):
        launchers.slurm_parameters("gpu")


def test_slurm_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="srun"):
        Slurm(tmp_path / "slurm")


def test_slurm_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs submitit: pip install '.\[slurm\]'"):
        Slurm(tmp_path / "slurm")


def test_slurm_refuses_a_parameter(tmp_path):
    with pytest.raises(InputError, match="slurm_colour"):
        Slurm(tmp_path / "slurm", parameters={"slurm_colour": 1}, cluster="local")


def test_jobs_by_submitit(tmp_path, in_root):
    """Through submitit's local executor: done, failed, and finished before."""
    good, finished = task(tmp_path, "good"), task(tmp_path, "finished", "raise SystemExit(1)")
    bad = task(tmp_path, "bad", "import sys; sys.exit('error: Wrong: mend it.')")
    finished.directory.mkdir()
    finished.result.write_text("{}")
    launcher = Slurm(tmp_path / "slurm", cluster="local")
    assert launcher.start([good, bad, finished]) == [good, bad, finished]
    ends = {end.task.name: end for end in finish(launcher, 3)}
    assert ends == {
        "good": Ended(good, 0, ""),
        "bad": Ended(bad, 1, "Wrong: mend it."),
        "finished": Ended(finished, 0, ""),
    }
    assert error(bad)["code"] == 1
    assert set(json.loads((tmp_path / "slurm" / "jobs.json").read_text())) == set(ends)


def test_a_job_that_vanishes(tmp_path, in_root):
    """It was killed from outside, so it could say nothing."""
    a = task(tmp_path, "a", "import os; os.kill(os.getppid(), 9)")
    launcher = Slurm(tmp_path / "slurm", cluster="local")
    launcher.start([a])
    [end] = finish(launcher, 1)
    assert end.code is None
    assert end.error.startswith("Job ")
    assert error(a)["message"] == end.error


def test_checkpoint_saves_and_goes_on(tmp_path):
    """At the end of its time: the training saves first, and the new entry is of the same task."""
    submitit = pytest.importorskip("submitit")
    code = (
        "import signal, pathlib, sys, time\n"
        "saved = pathlib.Path(sys.argv[1]).with_name('saved')\n"
        "def save(*_):\n    saved.touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "saved.with_name('ready').touch(); time.sleep(60)"
    )
    a = task(tmp_path, "a", code)
    entry = Entry(a)
    launchers.begin(a)
    entry._process = launchers.popen(a, {})
    wait_for(a.directory / "ready")
    again = entry.checkpoint()
    assert (a.directory / "saved").exists()
    assert entry._process.wait() == STOPPED
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert isinstance(again.function, Entry)
    assert again.function.task == a


@pytest.mark.parametrize("both", [False, True])
def test_a_cancelled_job_hands_sigterm_on_once(tmp_path, both):
    """Slurm signals the job's own process alone, or the training too: it saves either way."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "here = pathlib.Path(sys.argv[1]).parent\n"
        "def save(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(0.5); (here / 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(here / 'partial').write_text(str(os.getpid()))\n"
        "os.replace(here / 'partial', here / 'ready'); time.sleep(60)"
    )
    a = task(tmp_path, "a", code)
    fields = f"{a.name!r}, {a.command!r}, Path({str(a.directory)!r}), Path({str(a.result)!r})"
    program = (
        "import sys; from pathlib import Path; from experiments.launchers import Entry, Task\n"
        f"sys.exit(Entry(Task({fields}))())"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=launchers.ROOT) as job:
        wait_for(a.directory / "ready")
        if both:
            os.kill(int((a.directory / "ready").read_text()), signal.SIGTERM)
            time.sleep(0.2)
        job.terminate()
        assert job.wait() == STOPPED
    assert (a.directory / "saved").exists()


@pytest.mark.parametrize("alone", [0, 1])
def test_slurm_measures_time_when_nothing_else_runs(tmp_path, alone):
    pytest.importorskip("submitit")
    tasks = [task(tmp_path, name, f"import time; time.sleep(0.5); {WRITE}") for name in "abc"]
    tasks = [*tasks[:alone], *(each._replace(alone=True) for each in tasks[alone:])]
    launcher = Slurm(tmp_path / "slurm", cluster="local")
    started = []
    while tasks:
        new = launcher.start(tasks)
        assert len(new) <= 1
        started += new
        assert launcher.start([each for each in tasks if each not in new]) == []
        finish(launcher, 1)
        tasks = [each for each in tasks if each not in new]
    assert [each.name for each in started] == ["a", "b", "c"]


FAKES = {
    "srun": "exit 0",
    "sbatch": 'echo "$@" >> {log}; cp "$1" {log}.script 2>/dev/null; echo Submitted batch job 12',
    "sacct": "printf 'JobID|State|NodeList\\n'; cat {log}.states",
    "scancel": 'echo scancel "$@" >> {log}',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs that answer as Slurm's do; returns the file of what they were told."""
    log = tmp_path / "asked"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in FAKES.items():
        (programs / name).write_text(f"#!/bin/sh\n{code.format(log=log)}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Path(f"{log}.states").write_text("")
    return log


def states(log, *values):
    """What sacct answers from now on."""
    import submitit

    lines = "".join(f"12_{i}|{value}|node\n" for i, value in enumerate(values))
    Path(f"{log}.states").write_text(lines)
    submitit.SlurmJob.watcher.clear()


def test_one_array_for_all(tmp_path, in_root, slurm):
    tasks = [task(tmp_path, name) for name in "abc"]
    parameters = {"slurm_partition": "gpu", "timeout_min": 60}
    launcher = Slurm(tmp_path / "slurm", 2, parameters)
    assert launcher.start(tasks) == tasks
    script = Path(f"{slurm}.script").read_text()
    assert "#SBATCH --array=0-2%2" in script
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --time=60" in script
    assert slurm.read_text().count("\n") == 1
    jobs = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert jobs == {"a": "12_0", "b": "12_1", "c": "12_2"}

    states(slurm, "RUNNING", "FAILED", "PENDING")
    [end] = launcher.ended()
    assert (end.task, end.code) == (tasks[1], None)
    assert end.error.startswith("Job 12_1 ended as FAILED: see ")
    launcher.stop()
    assert slurm.read_text().splitlines()[1:] == ["scancel 12_0", "scancel 12_2"]
    states(slurm, "CANCELLED", "FAILED", "CANCELLED")
    assert launcher.ended() == [Ended(tasks[0], STOPPED, ""), Ended(tasks[2], STOPPED, "")]


def test_jobs_of_an_earlier_sweep_are_taken_up(tmp_path, in_root, slurm):
    tasks = [task(tmp_path, name) for name in "abc"]
    Slurm(tmp_path / "slurm").start(tasks)
    states(slurm, "RUNNING", "TIMEOUT", "COMPLETED")
    again = Slurm(tmp_path / "slurm")
    assert again.start(tasks) == tasks
    assert "#SBATCH --array=0-1%" in Path(f"{slurm}.script").read_text()  # b and c
    states(slurm, "COMPLETED")
    tasks[0].directory.mkdir(exist_ok=True)
    tasks[0].result.write_text("{}")
    assert Ended(tasks[0], 0, "") in again.ended()
