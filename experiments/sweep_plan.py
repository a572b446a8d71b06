"""What a sweep is to do: each experiment's tasks, and whether a folder is of the same plan.

Owns sweep.json. Knows nothing of processes, of what is shown, and of what the results mean.
"""

import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import ablation
from experiments.launchers import Task
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError, nearest


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
            added = set(experiment.record["seeds"]) > set(there[""]["seeds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): {instead}.") from error
        here = _identity(experiment.record)
        if added and experiment.record["scale"] == "full":  # each seed has a folder of its own
            there[""]["seeds"] = here[""]["seeds"]
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


def forget_outdated(experiment: Experiment, tasks: Sequence[Task]) -> None:
    """Removes latencies from before a run was added, if `tasks` measure them again, of all."""
    path = experiment.directory / "latency.json"
    if path.exists() and any(task.result == path for task in tasks):
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
