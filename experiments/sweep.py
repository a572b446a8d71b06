"""Runs experiments: every network, every seed, over all of the machine, and goes on where it was.

    python -m experiments.sweep FILE [FILE …] --workdir=DIR [--scale=smoke|small|full] [--seeds=n]
        [--only=PATTERN] [--jobs=N] [--launcher=local|slurm] [--slurm=key=value,…] [--dry_run]

FILE is an experiment's file or name, or "all" (`ablation.py` says what an experiment is). Each run
is a training by `mobilenets_jax.main` in DIR/<experiment>/<run>/, all seeds in one program; at
scale full, one seed after the other in seed_<i>/. log.txt beside its results is what it printed,
error.json why it failed, and DIR/<experiment>/sweep.json what was planned. What is measured
(`measure.py`) comes after all trainings, one at a time.

The same command goes on where the last one ended, however that ended: finished runs are skipped,
interrupted ones go on from their checkpoints, failed ones are tried again.

Exit codes: 0 all is done, 1 something failed (the rest is done), 2 bad input, 143 stopped by
SIGTERM or ^C, the runs' states saved; a second ^C ends everything at once.

Owns the plan, the order, what is skipped and what is shown. Knows nothing of how processes are
started (`launchers`), of training, and of what the results mean (`report`).
"""

import argparse
import contextlib
import fcntl
import fnmatch
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from experiments import ablation, launchers
from experiments.launchers import STOPPED, Launcher, Task
from mobilenets_jax import config as config_lib
from mobilenets_jax import logs, signals
from mobilenets_jax.errors import InputError, nearest

# Two are the fewest that have an interval; a training on ImageNet takes days.
SEEDS = {"smoke": 2, "small": 5, "full": 1}
ROOT = Path(__file__).resolve().parents[1]
POLL = 0.2  # seconds between looks at the processes
LINES = 60.0  # seconds between lines where there is no terminal


# The plan ---------------------------------------------------------------------------------------


class Experiment(NamedTuple):
    """What is to be done of an experiment.

    Attributes:
        name: of its file.
        directory: DIR/<name>.
        record: the contents of sweep.json.
        tasks: trainings in order, then what is measured.
        configs: the plain config of each workdir, but for the seeds.
    """

    name: str
    directory: Path
    record: dict[str, Any]
    tasks: list[Task]
    configs: dict[Path, dict[str, Any]]


def plan(file: str, workdir: Path, scale: str, seeds: Sequence[int]) -> Experiment:
    """Plans an experiment.

    Args:
        file: path or name.
        workdir: the sweep's, absolute.
        scale: one of `ablation.SCALES`.
        seeds: of every run.

    Raises:
        InputError: if it is no experiment, or a run's name or config is wrong.
    """
    module = ablation.load(file)
    name = module.__name__.rpartition(".")[2]
    directory = workdir / name
    record: dict[str, Any] = {"experiment": name, "scale": scale, "seeds": list(seeds), "runs": []}
    tasks: list[Task] = []
    configs: dict[Path, dict[str, Any]] = {}
    runs = module.runs(scale) if hasattr(module, "runs") else []
    for run in runs:
        if ablation.NAME.fullmatch(run.name) is None or run.name in ("measure", "latency"):
            raise InputError(
                f"The run name '{run.name}' of {name} must match {ablation.NAME.pattern} and be "
                "neither measure nor latency: rename it."
            )
        try:
            config = config_lib.plain(ablation.config(run))
            cost = ablation.cost(run, 1 if scale == "full" else len(seeds))
        except InputError as error:
            raise InputError(f"The run {name}/{run.name} is wrong ({_inner(error)}).") from error
        record["runs"].append(
            {
                **run._asdict(),
                "params": cost.params,
                "macs": cost.macs,
                "resolution": cost.resolution,
                "steps": cost.steps,
            }
        )
        together = [list(seeds)] if scale != "full" else [[seed] for seed in seeds]
        for group in together:
            folder = directory / run.name
            if scale == "full":
                folder /= f"seed_{group[0]}"
            tasks.append(
                Task(
                    str(folder.relative_to(workdir)),
                    tuple(ablation.command(run, folder, group)),
                    folder,
                    folder / "result.json",
                    steps=cost.steps,
                    seconds=cost.seconds,
                )
            )
            configs[folder] = config
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError(f"Two runs of {name} have the same name: rename one.")

    def measuring(action: str, folder: Path, result: str) -> Task:
        given = (module.__file__, f"--scale={scale}", f"--directory={folder}")
        command = (sys.executable, "-m", "experiments.measure", action, *given)
        label = "measure" if action == "experiment" else action
        logs_to = directory / label
        return Task(f"{name}/{label}", command, logs_to, folder / result, alone=True)

    if hasattr(module, "measure"):
        tasks.append(measuring("experiment", directory / "measure", "result.json"))
    if getattr(module, "LATENCY", False):
        tasks.append(measuring("latency", directory, "latency.json"))
    return Experiment(name, directory, json.loads(json.dumps(record)), tasks, configs)


def _inner(error: InputError) -> str:
    return " ".join(str(error).split()).rstrip(".")


def check(experiment: Experiment) -> None:
    """Checks that what lies in the folder was made by the same plan.

    Raises:
        InputError: names the difference.
    """
    path = experiment.directory / "sweep.json"
    instead = "choose another --workdir, or give what it was started with"
    if path.exists():
        try:
            there = _identity(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): {instead}.") from error
        here = _identity(experiment.record)
        for key in (name for name in here if name in there):
            if here[key] != there[key]:
                of = f" of run {key}" if key else ""
                old, new = there[key], here[key]
                names = (name for name in {**old, **new} if old.get(name) != new.get(name))
                name = next(names)
                raise InputError(
                    f"{experiment.directory} is of another sweep ({name}{of} is "
                    f"{old.get(name)!r} there and {new.get(name)!r} here): {instead}."
                )
    for workdir, config in experiment.configs.items():
        if (workdir / "config.json").exists():
            trained = config_lib.read(workdir)
            for plain in (trained, config):
                for key in ("seed", "replicas", "replica"):
                    plain.pop(key, None)
            if difference := config_lib.difference(trained, config):
                raise InputError(f"{workdir} is of another config ({difference}): {instead}.")


def forget_outdated(experiment: Experiment) -> None:
    """Removes latencies from before a run was added: they are measured again, of all."""
    path = experiment.directory / "latency.json"
    if path.exists():
        measured = json.loads(path.read_text(encoding="utf-8"))
        if any(run["name"] not in measured for run in experiment.record["runs"]):
            path.unlink()


def _identity(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what makes a sweep, under "", and each of its runs, by name, what it is."""
    runs = {run["name"]: {"config": run["config"], **run["overrides"]} for run in record["runs"]}
    return {"": {key: record[key] for key in ("scale", "seeds")}, **runs}


def select(experiments: Sequence[Experiment], pattern: str) -> list[Task]:
    """Returns the tasks whose name contains the pattern, trainings first.

    Raises:
        InputError: if there is none.
    """
    tasks = [task for experiment in experiments for task in experiment.tasks]
    found = [task for task in tasks if fnmatch.fnmatchcase(task.name, f"*{pattern}*")]
    if not found:
        hint = nearest(pattern, [name for task in tasks for name in (*task.name.split("/"),)])
        raise InputError(
            f"--only={pattern} matches none of {len(tasks)} runs.{hint} See them by --dry_run."
        )
    return sorted(found, key=lambda task: task.alone)


# Time -------------------------------------------------------------------------------------------


class Pace(NamedTuple):
    """How much longer than estimated runs take here.

    Attributes:
        factor: the median of measured by estimated time.
        runs: of how many finished runs; 0 means that the estimates stand as they are.
    """

    factor: float
    runs: int

    def seconds(self, task: Task) -> float | None:
        """Returns how long a task should take; None if unknown."""
        return None if task.seconds is None else task.seconds * self.factor

    def __str__(self) -> str:
        """Says where times come from."""
        if self.runs:
            return (
                f"estimates of ablation.cost, times {self.factor:.2f}, the median of the "
                f"{self.runs} finished run(s) here"
            )
        return (
            "estimates of ablation.cost, good to a factor of two where each has two CPU cores; no "
            "run is finished here that would correct them"
        )


def pace(tasks: Sequence[Task]) -> Pace:
    """Returns the pace of the tasks that are finished."""
    ratios = []
    for task in tasks:
        if task.seconds is not None and task.result.exists():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                result = json.loads(task.result.read_text(encoding="utf-8"))
                ratios.append(result["train_seconds"] / task.seconds)
    return Pace(statistics.median(ratios), len(ratios)) if ratios else Pace(1.0, 0)


def clock(seconds: float) -> str:
    """Returns e.g. "1:02:03" or "2 d 03:00:00"."""
    days, rest = divmod(round(seconds), 86400)
    minutes, second = divmod(rest, 60)
    hour, minute = divmod(minutes, 60)
    return (
        f"{days} d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
    )


def progress(task: Task) -> tuple[int, float | None]:
    """Returns a training's last step and its latest accuracy on test images, from metrics.jsonl.

    The accuracy is of the averaged weights, the mean over the seeds; None before an evaluation.
    """
    try:
        lines = logs.read_metrics(task.directory / "metrics.jsonl")
    except InputError:
        return 0, None
    tested = [line["accuracy"] for line in lines if line.get("split") == "test_ema"]
    accuracy = tested[-1] if tested else None
    if isinstance(accuracy, list):
        accuracy = statistics.fmean(accuracy)
    return max((line["step"] for line in lines), default=0), accuracy


# What is shown ----------------------------------------------------------------------------------


class Status:
    """Where a sweep stands. Tasks keep their order."""

    def __init__(self, tasks: Sequence[Task], jobs: int):
        self.tasks = list(tasks)
        self.jobs = jobs
        self.queued = [task for task in tasks if not task.result.exists()]
        self.skipped = len(self.tasks) - len(self.queued)
        self.running: dict[Task, float] = {}  # since when
        self.done: list[Task] = []
        self.failed: dict[Task, str] = {}
        self.pace = pace(tasks)

    def left(self, now: float) -> float | None:
        """Returns the seconds that trainings still take; None if there are none."""
        total, known = 0.0, False
        for task in self.queued:
            if (seconds := self.pace.seconds(task)) is not None:
                total, known = total + seconds, True
        for task, since in self.running.items():
            if (seconds := self.pace.seconds(task)) is not None:
                total, known = total + max(0.0, seconds - (now - since)), True
        return (
            total / min(self.jobs, max(1, len(self.queued) + len(self.running))) if known else None
        )

    def line(self, now: float) -> str:
        """Returns the counts and the remaining time."""
        counts = (
            f"{len(self.queued)} queued, {len(self.running)} running, "
            f"{self.skipped + len(self.done)} done, {len(self.failed)} failed"
        )
        left = self.left(now)
        return counts if left is None else f"{counts}, about {clock(left)} left"

    def rows(self, now: float) -> list[tuple[str, str, str, str]]:
        """Returns name, step, accuracy and time of everything that runs."""
        rows = []
        for task, since in self.running.items():
            step, accuracy = progress(task)
            steps = "" if task.steps is None else f"{step}/{task.steps}"
            shown = "" if accuracy is None else f"{accuracy:.4f}"
            rows.append((task.name, steps, shown, clock(now - since)))
        return rows


class Board:
    """Shows a sweep: a table that is redrawn on a terminal, and lines anywhere else."""

    def __init__(self, file: TextIO):
        self._file = file
        self._live: Any = None
        self._shown = time.monotonic()

    def __enter__(self) -> "Board":
        """Starts the table."""
        if self._file.isatty():
            from rich.console import Console
            from rich.live import Live

            # A thread that redraws would be in the way of the processes' parent.
            self._live = Live(console=Console(file=self._file), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table on the screen."""
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the table."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._file, flush=True)

    def show(self, status: Status) -> None:
        """Redraws the table; where there is no terminal, prints it now and then."""
        now = time.monotonic()
        if now - self._shown < (LINES if self._live is None else 1.0):
            return
        self._shown = now
        rows = status.rows(now)
        if self._live is None:
            self.say(status.line(now))
            for name, step, accuracy, seconds in rows:
                facts = (step and f"step {step}", accuracy and f"accuracy {accuracy}", seconds)
                self.say(f"  {name}: {', '.join(filter(None, facts))}")
            return
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for title in ("running", "step", "accuracy", "time"):
            table.add_column(title, justify="left" if title == "running" else "right")
        for row in rows:
            table.add_row(*row)
        self._live.update(Group(table, Text(status.line(now))), refresh=True)


def listing(experiments: Sequence[Experiment], tasks: Sequence[Task], jobs: int) -> str:
    """Returns --dry_run's text: each run with its cost, and the sum."""
    known = pace([task for experiment in experiments for task in experiment.tasks])
    rows = [("run", "seeds", "parameters", "MACs", "pixels", "steps", "time", "")]
    for experiment in experiments:
        costs = {run["name"]: run for run in experiment.record["runs"]}
        seeds = len(experiment.record["seeds"])
        for task in experiment.tasks:
            if task not in tasks:
                continue
            state = "finished" if task.result.exists() else ""
            if not state and (task.directory / "error.json").exists():
                state = "failed before"
            elif not state and (task.directory / "config.json").exists():
                state = "begun"
            cost = costs.get(task.name.split("/")[1])
            seconds = known.seconds(task)
            if cost is None:
                rows.append((task.name, *[""] * 6, state))
                continue
            together = 1 if experiment.record["scale"] == "full" else seeds
            numbers = (together, *(cost[key] for key in ("params", "macs", "resolution", "steps")))
            shown = "" if seconds is None else clock(seconds)
            rows.append((task.name, *(f"{number:,}" for number in numbers), shown, state))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:7], widths[1:7], strict=True)]
        lines.append("  ".join([*cells, row[7]]).rstrip())
    left = [task for task in tasks if not task.result.exists()]
    seconds = sum(known.seconds(task) or 0.0 for task in left)
    measured = sum(task.seconds is None for task in left)
    lines.append(
        f"{len(tasks)} in all, {len(tasks) - len(left)} finished; about "
        f"{clock(seconds / jobs)} left with {jobs} at once"
        + (f", without {measured} that measure" if measured else "")
        + f" ({known})."
    )
    return "\n".join(lines)


# Running ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(experiments: Sequence[Experiment]) -> Iterator[None]:
    """Keeps a second sweep out of the experiments' folders, as long as this process lives.

    Raises:
        InputError: if another sweep runs in one, or a folder cannot be used.
    """
    with contextlib.ExitStack() as stack:
        for experiment in experiments:
            directory = experiment.directory
            try:
                directory.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(directory, os.O_RDONLY)
            except OSError as error:
                raise InputError(
                    f"The folder {directory} cannot be used ({error.strerror}): choose another "
                    "--workdir."
                ) from error
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"Another sweep is running in {directory}: wait for it, stop it, or choose "
                    "another --workdir."
                ) from None
            except OSError:
                pass  # a file system without locks
        yield


def execute(tasks: Sequence[Task], launcher: Launcher, board: Board, jobs: int) -> int:
    """Runs all tasks that are not finished, and returns the exit code.

    Args:
        tasks: in order.
        launcher: where they run.
        board: where it is shown.
        jobs: how many the launcher runs at once, for the remaining time.
    """
    status = Status(tasks, jobs)
    board.say(status.line(time.monotonic()))
    waiting: set[Task] = set()
    stopped = False
    with signals.preemption() as stop_requested:
        while status.running or (status.queued and not stopped):
            if stop_requested() and not stopped:
                stopped = True
                launcher.stop()
                board.say(
                    f"Stopping: {len(status.running)} running save their state first; a second "
                    "signal ends them at once."
                )
            elif not stopped:
                _start(status, launcher, board, waiting)
            for task, code, error in launcher.ended():
                seconds = clock(time.monotonic() - status.running.pop(task))
                if error:
                    status.failed[task] = error
                    board.say(f"failed {task.name} after {seconds}: {error} (code {code})")
                elif task.result.exists():
                    status.done.append(task)
                    status.pace = pace(tasks)
                    accuracy = progress(task)[1]
                    reached = "" if accuracy is None else f": accuracy {accuracy:.4f}"
                    board.say(f"done {task.name} in {seconds}{reached}")
                else:
                    status.queued.append(task)
                    board.say(f"stopped {task.name}")
            board.show(status)
            time.sleep(POLL)
    board.say(status.line(time.monotonic()))
    if stopped and status.queued:
        board.say("Stopped by a signal: the same command goes on.")
        return STOPPED
    for task, error in status.failed.items():
        board.say(f"failed: {task.name}: {error} See {task.directory}/log.txt.")
    return 1 if status.failed else 0


def _start(status: Status, launcher: Launcher, board: Board, waiting: set[Task]) -> None:
    """Starts what there is room for; a workdir in which another process trains has to wait."""

    def free() -> Iterator[Task]:
        for task in status.queued:
            if not launcher.blocked(task):
                yield task
            elif task not in waiting:
                waiting.add(task)
                board.say(
                    f"{task.name} is being trained by another process, perhaps an earlier "
                    "sweep's: waiting until it ends."
                )

    for task in launcher.start(free()):
        status.queued.remove(task)
        status.running[task] = time.monotonic()
        board.say(f"start {task.name}")


# The command line -------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}; see --help.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Raises:
        InputError: with one sentence that says what is wrong.
    """
    parser = _Parser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="an experiment's file or name, or all")
    add("--workdir", type=Path, required=True, help="where everything goes")
    add("--scale", choices=ablation.SCALES, default="smoke", help="data set and budget")
    default = ", ".join(f"{scale} {number}" for scale, number in SEEDS.items())
    add("--seeds", type=_positive, help=f"how many seeds (default: {default})")
    add("--only", default="", metavar="PATTERN", help="part of a run's name; *, ? and [] match")
    add(
        "--jobs",
        type=_positive,
        help="how many at once (default: one for each GPU, one on CPU; Slurm's own)",
    )
    add("--launcher", choices=("local", "slurm"), default="local")
    add(
        "--slurm",
        default="",
        metavar="KEY=VALUE,…",
        help="for submitit, e.g. slurm_partition=gpu,gpus_per_node=1,cpus_per_task=8",
    )
    add("--dry_run", action="store_true", help="list the runs and what they cost, and do nothing")
    options = parser.parse_intermixed_args(arguments)
    if options.slurm and options.launcher != "slurm":
        raise InputError("--slurm is not used by --launcher=local: give --launcher=slurm.")
    options.slurm = launchers.slurm_parameters(options.slurm)
    options.seeds = list(range(options.seeds or SEEDS[options.scale]))
    options.workdir = options.workdir.expanduser().absolute()
    return options


def run(options: argparse.Namespace) -> int:
    """Does what the command line says and returns the exit code.

    Raises:
        InputError: for bad input.
    """
    experiments = {}
    files = [
        name for file in options.files for name in (ablation.names() if file == "all" else [file])
    ]
    for file in files:
        found = plan(file, options.workdir, options.scale, options.seeds)
        experiments[found.name] = found
    planned = list(experiments.values())
    tasks = select(planned, options.only)
    for experiment in planned:
        check(experiment)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = launchers.slots(options.jobs, launchers.gpus(os.environ), cores)
    jobs = len(shares)
    if options.launcher == "slurm":
        jobs = options.jobs or len(tasks)
    if options.dry_run:
        print(listing(planned, tasks, jobs))
        return 0
    launcher: Launcher
    if options.launcher == "slurm":
        launcher = launchers.Slurm(options.workdir / "slurm", options.jobs, options.slurm)
    else:
        launcher = launchers.Local(shares)
    with claimed(planned):
        for experiment in planned:
            forget_outdated(experiment)
            logs.write_json(experiment.directory / "sweep.json", experiment.record)
        with Board(sys.stdout) as board:
            return execute(tasks, launcher, board, jobs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, turning bad input into one sentence and an exit code."""
    try:
        return run(parse(arguments))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
