"""What a sweep shows: how far its runs are, how long they still take, and --dry_run's list.

Owns estimates of the remaining time, the live table and the lines. Starts nothing.
"""

import contextlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from experiments.launchers import Task
from experiments.sweep_plan import Experiment

LINES = 60.0  # seconds between lines where there is no terminal
TAIL = 1 << 18  # bytes of metrics.jsonl that are looked at


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
            "estimates of ablation.cost, good to a factor of two on CPU; no run is finished here "
            "that would correct them"
        )


def pace(tasks: Sequence[Task], slowness: float = 1.0) -> Pace:
    """Returns the pace of the tasks that are finished; of none, what is expected."""
    ratios = []
    for task in tasks:
        if task.seconds is not None and task.result.exists():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                result = json.loads(task.result.read_text(encoding="utf-8"))
                ratios.append(result["train_seconds"] / task.seconds)
    return Pace(statistics.median(ratios), len(ratios)) if ratios else Pace(slowness, 0)


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
    lines = []
    with contextlib.suppress(OSError), (task.directory / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        for text in file.read().splitlines():
            with contextlib.suppress(ValueError):  # cut at the beginning, or being written
                lines.append(json.loads(text))
    tested = [line["accuracy"] for line in lines if line.get("split") == "test_ema"]
    accuracy = tested[-1] if tested else None
    if isinstance(accuracy, list):
        accuracy = statistics.fmean(accuracy)
    return max((line["step"] for line in lines), default=0), accuracy


# What is shown ----------------------------------------------------------------------------------


class Status:
    """Where a sweep stands. Tasks keep their order."""

    def __init__(self, tasks: Sequence[Task], jobs: int, slowness: float = 1.0):
        self.tasks = list(tasks)
        self.jobs = jobs
        self.queued = [task for task in tasks if not task.result.exists()]
        self.skipped = len(self.tasks) - len(self.queued)
        self.running: dict[Task, float] = {}  # since when
        self.done: list[Task] = []
        self.failed: dict[Task, str] = {}
        self.pace = pace(tasks, slowness)

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


def listing(
    experiments: Sequence[Experiment], tasks: Sequence[Task], jobs: int, slowness: float = 1.0
) -> str:
    """Returns --dry_run's text: each run with its cost, and the sum."""
    known = pace([task for experiment in experiments for task in experiment.tasks], slowness)
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
