"""Where the processes of a sweep run: on this machine's devices or cores, or as Slurm jobs.

Owns starting, stopping and the end of processes, their log.txt and error.json. Knows nothing of
experiments: a task is a command, a folder, and the file that it leaves when it is done.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mobilenets_jax import runtime
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).resolve().with_name("child.py")
STOPPED = 143  # 128 + SIGTERM, as `mobilenets_jax.main` ends when it has saved
TAIL = 30  # lines of a failed task's output that error.json keeps
# Slurm's states of a job that is still to end.
ALIVE = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "SUSPENDED", "PREEMPTED")


class Task(NamedTuple):
    """A process to run to its end.

    Attributes:
        name: e.g. "v2_shortcut/mobilenet_v2,shortcut=none".
        command: program and arguments, run in the repository's root.
        directory: gets log.txt, and error.json if it fails.
        result: a file that is there when it is done.
        alone: beside nothing else, since it measures time.
        steps: of the training, for display.
        seconds: an estimate of its time; None if unknown.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    result: Path
    alone: bool = False
    steps: int | None = None
    seconds: float | None = None


class Ended(NamedTuple):
    """A task that has ended: with code 0 and its result, or with an error, or stopped."""

    task: Task
    code: int | None
    error: str  # one sentence, or "" if it is done or was stopped


class Launcher(Protocol):
    """What a sweep needs of a place to run."""

    def blocked(self, task: Task) -> bool:
        """Says whether a task must wait for another process, which trains in its workdir."""

    def start(self, tasks: Iterable[Task]) -> list[Task]:
        """Starts the tasks that there is room for, in order, and returns them."""

    def ended(self) -> list[Ended]:
        """Returns the tasks that have ended since the last call, their errors recorded."""

    def stop(self) -> None:
        """Asks all to save and end; `ended` returns them then."""


# A task's files ---------------------------------------------------------------------------------


def locked(directory: Path) -> bool:
    """Says whether a training runs in this workdir, whoever started it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def catches(process: int, number: int) -> bool:
    """Says whether a process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


def begin(task: Task) -> int:
    """Makes the task's folder, forgets an earlier failure, and returns the size of log.txt."""
    task.directory.mkdir(parents=True, exist_ok=True)
    (task.directory / "error.json").unlink(missing_ok=True)
    log = task.directory / "log.txt"
    return log.stat().st_size if log.exists() else 0


def popen(
    task: Task, environment: Mapping[str, str], cores: Sequence[int] = ()
) -> subprocess.Popen:
    """Starts a task's process, which leads a session of its own and dies with this one.

    ^C in a terminal goes to every process there: in another session, only the sweep gets it.
    Only for the main thread: the kernel watches the thread that starts a process.
    """
    head = [sys.executable, "-I", "-S", str(CHILD), str(os.getpid())]
    with (task.directory / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*head, ",".join(map(str, cores)) or "-", *task.command],
            cwd=ROOT,
            # The program would otherwise set these and start anew.
            env={**os.environ, **runtime.environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def settle(task: Task, code: int, start: int, stopping: bool) -> Ended:
    """Judges a task that has ended, and writes error.json if it failed.

    Args:
        task: the task.
        code: its exit code, negative for a signal.
        start: size of log.txt when it began.
        stopping: whether it was asked to stop.
    """
    if code == 0 and task.result.exists():
        return Ended(task, 0, "")
    if stopping and code in (STOPPED, -signal.SIGTERM):
        return Ended(task, code, "")
    with (task.directory / "log.txt").open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    if said:
        message = said[-1].removeprefix("error: ")
    elif code < 0:
        cause = " (out of memory?)" if code == -signal.SIGKILL else ""
        message = f"Killed by {signal.Signals(-code).name}{cause}."
    elif code == STOPPED:
        message = "Stopped by a signal that this sweep did not send."
    elif code == 0:
        message = f"Ended without {task.result.name}."
    else:
        message = next((line for line in reversed(lines) if line.strip()), "It said nothing.")
    return record(task, code, message, lines)


def record(task: Task, code: int | None, message: str, lines: Sequence[str] = ()) -> Ended:
    """Writes error.json, whole or not at all."""
    value = {"code": code, "message": message, "stderr_tail": "\n".join(lines[-TAIL:])}
    partial = task.directory / "error.json.tmp"
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, task.directory / "error.json")
    return Ended(task, code, message)


# This machine -----------------------------------------------------------------------------------


class Slot(NamedTuple):
    """A share of this machine: variables that choose a device, and cores (none: all)."""

    environment: dict[str, str]
    cores: tuple[int, ...] = ()


def gpus(variables: Mapping[str, str]) -> list[str]:
    """Returns what to put into CUDA_VISIBLE_DEVICES for each GPU that JAX would use here.

    JAX is not asked: it would take their memory.
    """
    platforms = variables.get("JAX_PLATFORMS", "cuda")
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not re.search("cuda|gpu", platforms) or not any(map(importlib.util.find_spec, plugins)):
        return []
    if "CUDA_VISIBLE_DEVICES" in variables:
        return [name for name in variables["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(len(re.findall(r"^GPU \d+", listed.stdout, re.MULTILINE)))]


def slots(jobs: int | None, devices: Sequence[str], cores: Sequence[int]) -> list[Slot]:
    """Shares a machine out.

    Args:
        jobs: how many at once; None is one for each GPU, or one on CPU.
        devices: of `gpus`. Each job gets as many; they share one if there are more jobs than GPUs.
        cores: that this process may use, where there is no GPU. Each gets as many, and all of
            them if it is alone.
    """
    if devices:
        jobs = jobs or len(devices)
        if jobs < len(devices):
            several = len(devices) // jobs
            groups = [devices[i * several : (i + 1) * several] for i in range(jobs)]
            return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups]
        each = -(-jobs // len(devices))
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / each:.3f}"} if each > 1 else {}
        return [
            Slot({"CUDA_VISIBLE_DEVICES": devices[i % len(devices)], **memory}) for i in range(jobs)
        ]
    jobs = jobs or 1
    if jobs == 1 or not cores:
        return [Slot({})] * jobs
    each = max(1, len(cores) // jobs)
    starts = [i * each % (len(cores) - each + 1) for i in range(jobs)]
    return [Slot({}, tuple(cores[start : start + each])) for start in starts]


class Local:
    """Runs one task in each slot."""

    def __init__(self, shares: Sequence[Slot]):
        self._free = list(shares)
        self._whole = Slot(shares[0].environment)
        self._running: dict[Task, tuple[subprocess.Popen, Slot, int]] = {}
        self._stopping = False

    def blocked(self, task: Task) -> bool:
        """Says whether another process trains in the task's workdir."""
        return locked(task.directory)

    def start(self, tasks: Iterable[Task]) -> list[Task]:
        """Starts the first tasks that there is room for; asks for no more of them than that."""
        started: list[Task] = []
        remaining = iter(tasks)
        while self._free and not any(running.alone for running in self._running):
            task = next(remaining, None)
            if task is None or (task.alone and self._running):
                break
            slot, begun = self._free.pop(0), begin(task)
            share = self._whole if task.alone else slot
            process = popen(task, share.environment, share.cores)
            self._running[task] = (process, slot, begun)
            started.append(task)
        return started

    def ended(self) -> list[Ended]:
        """Returns the tasks that have ended; their slots are free again."""
        found = []
        for task, (process, slot, begun) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[task]
                self._free.append(slot)
                found.append(settle(task, code, begun, self._stopping))
        return found

    def stop(self) -> None:
        """Sends SIGTERM to all."""
        self._stopping = True
        for process, _, _ in self._running.values():
            process.terminate()


# Slurm ------------------------------------------------------------------------------------------


class Entry:
    """What a job of the array calls: runs a task to its end, wherever it is.

    Slurm announces the end of a job's time by a signal: submitit then calls `checkpoint` and queues
    the job again, and the training goes on from the step that it saved.
    """

    def __init__(self, task: Task):
        self.task = task
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int | None:
        """Runs the task and returns its exit code."""
        while locked(self.task.directory):  # of another entry, or another machine
            time.sleep(5)
        if self.task.result.exists():
            return 0
        begun = begin(self.task)
        self._process = popen(self.task, {})
        signal.signal(signal.SIGTERM, self._terminate)
        self._wait()
        return settle(self.task, self._process.wait(), begun, stopping=True).code

    def checkpoint(self) -> Any:
        """Has the training save, and returns the same entry, for the job that goes on."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            self._wait()
        return DelayedSubmission(Entry(self.task))

    def _terminate(self, *_: Any) -> None:
        """Hands SIGTERM on: Slurm signals this process alone, or all of the job's.

        A training that got it already catches it no more; a second one would end it unsaved.
        """
        assert self._process is not None
        if catches(self._process.pid, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def _wait(self) -> None:
        """Waits for the process's end; Popen.wait would hang in a signal handler of its own."""
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def slurm_parameters(text: str) -> dict[str, Any]:
    """Reads key=value,… for submitit's `update_parameters`; a value may hold commas.

    Raises:
        InputError: for what is no key=value.
    """
    parameters: dict[str, Any] = {}
    for pair in re.split(r",(?=\w+=)", text) if text else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(
                f"--slurm takes key=value,…, as in --slurm=slurm_partition=gpu,timeout_min=240, "
                f"not '{pair}'."
            )
        parameters[key] = int(value) if value.isdecimal() else value
    return parameters


class Slurm:
    """Submits tasks as one job array, through submitit.

    Jobs outlive this process if it is killed: their numbers are in jobs.json, and the next sweep
    waits for those that are still to end.

    Args:
        folder: gets submitit's files and jobs.json; every node must see it.
        jobs: at most so many at once.
        parameters: for submitit's `update_parameters`.
        cluster: "slurm", or "local" to try the same without one.

    Raises:
        InputError: if submitit is missing, or there is no Slurm, or it refuses a parameter.
    """

    def __init__(
        self,
        folder: Path,
        jobs: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ):
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher=slurm needs submitit: pip install '.[slurm]'.") from None
        defaults: dict[str, Any] = {"name": "sweep", "timeout_min": 240}
        if jobs is not None:
            defaults["slurm_array_parallelism"] = jobs
        try:
            # A training goes on where it was, so it may run out of time as often as it needs.
            self._executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=1000)
            self._executor.update_parameters(**{**defaults, **(parameters or {})})
        except (OSError, RuntimeError, NameError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0].rstrip(" .")
            raise InputError(f"Slurm cannot be used ({reason}): see --slurm in --help.") from error
        self._job = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
        self._folder = folder
        self._running: dict[Task, Any] = {}
        self._stopping = False

    def blocked(self, task: Task) -> bool:
        """Says no: an entry waits where it runs, and what is in its way may be its own job."""
        return False

    def start(self, tasks: Iterable[Task]) -> list[Task]:
        """Takes up the jobs of an earlier sweep, and submits an array of the other tasks.

        What measures time waits until nothing else of the sweep runs or is queued.
        """
        asked = list(tasks)
        tasks = [task for task in asked if not task.alone]
        if not tasks and not self._running:
            tasks = asked[:1]
        path = self._folder / "jobs.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        new = []
        for task in tasks:
            job = self._job(self._folder, known[task.name]) if task.name in known else None
            if job is not None and job.state.upper() in ALIVE:
                self._running[task] = job
            else:
                new.append(task)
        if new:
            for task in new:
                begin(task)
            with self._executor.batch():
                submitted = [self._executor.submit(Entry(task)) for task in new]
            self._running |= zip(new, submitted, strict=True)
            known |= {task.name: job.job_id for task, job in self._running.items()}
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(known, indent=2) + "\n")
            os.replace(partial, path)
        return tasks

    def ended(self) -> list[Ended]:
        """Returns the tasks whose jobs have ended. What they pickled is not read."""
        found = []
        for task, job in list(self._running.items()):
            if not job.done():
                continue
            del self._running[task]
            error = task.directory / "error.json"
            if task.result.exists():
                found.append(Ended(task, 0, ""))
            elif error.exists():
                value = json.loads(error.read_text(encoding="utf-8"))
                found.append(Ended(task, value["code"], value["message"]))
            elif self._stopping:
                found.append(Ended(task, STOPPED, ""))
            else:
                message = f"Job {job.job_id} ended as {job.state}: see {job.paths.stderr}."
                found.append(record(task, None, message))
        return found

    def stop(self) -> None:
        """Cancels all: Slurm sends SIGTERM, and SIGKILL after its KillWait."""
        self._stopping = True
        for job in self._running.values():
            job.cancel(check=False)
