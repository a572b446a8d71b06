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

Owns the order, what is skipped and the command line. Knows nothing of what is to be done
(`sweep_plan`), of how that is shown (`sweep_board`), of how processes are started (`launchers`), of
training, and of what the results mean (`report`).
"""

import argparse
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import ablation, launchers
from experiments.arguments import Parser, positive
from experiments.launchers import STOPPED, Launcher, Task
from experiments.sweep_board import Board, Status, clock, listing, pace, progress
from experiments.sweep_plan import Experiment, check, forget_outdated, plan, select
from mobilenets_jax import logs, signals
from mobilenets_jax.errors import InputError

# Two are the fewest that have an interval; a training on ImageNet takes days.
SEEDS = {"smoke": 2, "small": 5, "full": 1}
POLL = 0.2  # seconds between looks at the processes
CORES = 2  # of the estimates


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


def execute(
    tasks: Sequence[Task], launcher: Launcher, board: Board, jobs: int, slowness: float = 1.0
) -> int:
    """Runs all tasks that are not finished, and returns the exit code.

    Args:
        tasks: in order.
        launcher: where they run.
        board: where it is shown.
        jobs: how many the launcher runs at once, for the remaining time.
        slowness: by how much longer than estimated each takes, until one has ended.
    """
    status = Status(tasks, jobs, slowness)
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
                    status.pace = pace(tasks, slowness)
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Raises:
        InputError: with one sentence that says what is wrong.
    """
    parser = Parser(
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
    add("--seeds", type=positive, help=f"how many seeds (default: {default})")
    add("--only", default="", metavar="PATTERN", help="part of a run's name; *, ? and [] match")
    add(
        "--jobs",
        type=positive,
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
    jobs, slowness = len(shares), CORES / min(CORES, len(shares[0].cores or cores) or CORES)
    if options.launcher == "slurm":
        jobs, slowness = options.jobs or len(tasks), 1.0
    if options.dry_run:
        print(listing(planned, tasks, jobs, slowness))
        return 0
    launcher: Launcher
    if options.launcher == "slurm":
        launcher = launchers.Slurm(options.workdir / "slurm", options.jobs, options.slurm)
    else:
        launcher = launchers.Local(shares)
    with claimed(planned):
        for experiment in planned:
            forget_outdated(experiment, tasks)
            logs.write_json(experiment.directory / "sweep.json", experiment.record)
        with Board(sys.stdout) as board:
            return execute(tasks, launcher, board, jobs, slowness)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, turning bad input into one sentence and an exit code."""
    try:
        return run(parse(arguments))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
