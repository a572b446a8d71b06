"""What a sweep found: its folder read into one small record, and what follows from the record.

Owns where the numbers of a sweep lie and what is compared with what. Must not know how any of it
looks: report_sections.py words it, report_plots.py and report_html.py draw it.

A record is plain JSON: what `report store` keeps of an experiment. The question, the comparisons
and the paper's points come from the experiment's file, so that a record is nothing but
measurements.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import ablation, intervals
from experiments.intervals import Estimate
from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

Record = dict[str, Any]

ACCURACY = "test_accuracy_ema"  # what plots and fronts show: the averaged weights at the end
BY_SEED = ("test_accuracy", "test_accuracy_ema", "test_loss")
STATES = ("done", "partial", "unfinished", "failed", "missing")
PLAN = ("experiment", "scale", "seeds")
_SETTINGS = {
    "data set": ("dataset", "name"),
    "classes": ("dataset", "num_classes"),
    "training split": ("dataset", "train_split"),
    "test split": ("dataset", "eval_split"),
    "epochs": ("epochs",),
    "batch size": ("batch_size",),
    "base resolution": ("resolution",),
    "strides dropped": ("model", "drop_strides"),
    "optimizer": ("optimizer", "name"),
    "schedule": ("schedule", "name"),
    "learning rate": ("schedule", "learning_rate"),
    "weight decay": ("optimizer", "weight_decay"),
    "label smoothing": ("label_smoothing",),
    "EMA decay": ("ema_decay",),
}


class Judgement(NamedTuple):
    """A comparison and what our runs say of it.

    Attributes:
        comparison: the paper's statement.
        difference: of a minus b, over the seeds (or timing rounds) that both have; None if none.
        relative: difference over b's mean; None for accuracies.
        missing: why there is no difference, or which seeds are left out; "" if nothing is missing.
        begun: whether all that it takes was at least begun.
    """

    comparison: "ablation.Comparison"
    difference: Estimate | None
    relative: float | None
    missing: str
    begun: bool = True

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes 0."""
        return intervals.resolved(self.difference)

    @property
    def agrees(self) -> bool | None:
        """Whether the difference has the paper's sign; None if nothing tells.

        Where the paper says that there is none, a resolved one disagrees; one that is not resolved
        shows nothing.
        """
        paper, sign = self.comparison.paper, self.comparison.sign
        said = sign if paper is None else paper
        if self.difference is None or said is None:
            return None
        if said == 0:
            return False if self.resolved else None
        # Differences that cancel each other leave what rounding made.
        mean = round(self.difference.mean, 9)
        return (mean > 0) == (said > 0) if mean else None


class Line(NamedTuple):
    """Runs that differ in the factor along a line only (α), so that a line may join them.

    Attributes:
        group: what tells the line's colour apart; "" if there is one only.
        colour: index of the group.
        runs: in order of the factor along the line.
    """

    group: str
    colour: int
    runs: tuple[Record, ...]


class Axes(NamedTuple):
    """Which factor is shown how; those that are the same in all runs are not shown.

    Attributes:
        line: the factor that lines follow; None if there is none.
        marker: the factor that markers show.
        group: the factors that colours show.
    """

    line: str | None
    marker: str | None
    group: tuple[str, ...]


# Reading a sweep's folder


def experiments_in(directory: Path) -> list[Path]:
    """Returns the folders of experiments: `directory` itself, or those right below it, by name.

    Raises:
        InputError: there are none.
    """
    if not directory.is_dir():
        raise InputError(f"There is no directory {directory}: give the --workdir of a sweep.")
    for folders in ([directory], sorted(path for path in directory.iterdir() if path.is_dir())):
        found = [path for path in folders if _is_experiment(path)]
        if found:
            return found
    raise InputError(
        f"{directory} holds no experiment (no sweep.json in it or below it): give the --workdir of "
        "a sweep."
    )


def _is_experiment(path: Path) -> bool:
    return (path / "sweep.json").is_file() or (path / "measure" / "result.json").is_file()


def gather(folder: Path) -> Record:
    """Returns the record of an experiment from its folder, whatever state its runs are in.

    Raises:
        InputError: a file is damaged, or a seed was found twice.
    """
    path = folder / "sweep.json"
    with _naming(path):
        unplanned: Record = {"experiment": folder.name, "scale": None, "seeds": [], "runs": []}
        sweep = {**unplanned, **(_read(path) if path.exists() else {})}
        plans = [(folder / planned["name"], planned) for planned in sweep["runs"]]
    runs, results = [], []
    for directory, planned in plans:
        run, found = _run(directory, planned, sweep["seeds"])
        runs.append(run)
        results += found
    measure = folder / "measure" / "result.json"
    measured = _read(measure) if measure.exists() else None
    return {
        **{name: sweep[name] for name in PLAN},
        "settings": {
            name: values
            for name, keys in _SETTINGS.items()
            if (values := distinct(_field(result, ("config", *keys)) for result in results))
        },
        "test_examples": distinct(result.get("test_examples") for result in results),
        "device": distinct(result.get("device") for result in results),
        "versions": distinct(result.get("versions") for result in results),
        "git_revision": distinct(result.get("git_revision") for result in results),
        "runs": runs,
        "latency": _latencies(folder / "latency.json", runs),
        "measure": measured,
        "errors": {
            name: _message(folder / name / "error.json")
            for name in ("measure", "latency")
            if (folder / name / "error.json").exists()
        },
        "pictures": sorted(path.name for path in measure.parent.glob("*.png")) if measured else [],
    }


def _run(
    folder: Path, planned: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[Record, list[Record]]:
    """Returns a run's part of the record, and its result files' contents."""
    values: dict[str, dict[int, float | None]] = {name: {} for name in BY_SEED}
    results, seconds = [], []
    for path in _files(folder, "result.json"):
        with _naming(path):
            result = _read(path)
            for i, seed in enumerate(_list(result["seed"])):
                if seed in values[ACCURACY]:
                    raise InputError(
                        f"{folder} has results of seed {seed} twice: move one of them away."
                    )
                for name in BY_SEED:
                    values[name][seed] = _finite(_list(result[name])[i])
            seconds.append(result["train_seconds"])
            results.append(result)
    found = sorted(values[ACCURACY])
    state, note = _state(folder, found, seeds, planned.get("steps"))
    return {
        **{key: planned.get(key) for key in ("name", "config", "overrides", "factors")},
        **{key: planned.get(key) for key in ("params", "macs", "resolution", "steps")},
        "state": state,
        "note": note,
        "seed": found,
        **{name: [by_seed[seed] for seed in found] for name, by_seed in values.items()},
        "train_seconds": math.fsum(seconds) if seconds else None,
    }, results


def _state(
    folder: Path, found: Sequence[int], seeds: Sequence[int], steps: int | None
) -> tuple[str, str]:
    """Returns one of `STATES` and, unless all is done, a note that says more."""
    absent = sorted(set(seeds) - set(found))
    if found and not absent:
        return "done", ""
    note = f"no result of seed{'s'[: len(absent) - 1]} {', '.join(map(str, absent))}"
    if errors := _files(folder, "error.json"):
        return "failed", f"{note}: {_message(errors[0])}" if found else _message(errors[0])
    if found:
        return "partial", note
    metrics = _files(folder, "metrics.jsonl")
    if metrics or _files(folder, "config.json") or _files(folder, "log.txt"):
        lines = [line for path in metrics for line in logs.read_metrics(path)]
        done = max((line["step"] for line in lines), default=0)
        of = f" of {steps:,}" if steps else ""
        return "unfinished", f"running or interrupted, at step {done:,}{of}"
    return "missing", "not started"


def _latencies(path: Path, runs: Sequence[Record]) -> dict[str, Any] | None:
    """Returns what latency.json holds, if there is one."""
    if not path.exists():
        return None
    with _naming(path):
        found: dict[str, Any] = _read(path)
        for timed in (found[run["name"]] for run in runs if run["name"] in found):
            _ = timed["median_seconds"], timed["quartile_seconds"][1], timed["round_seconds"][0]
    return found


def _files(folder: Path, name: str) -> list[Path]:
    """Returns a run's files of that name: its own, and those of seeds that have folders."""
    # Nothing else is looked into: a training that runs removes checkpoints meanwhile.
    folders = [folder, *sorted(folder.glob("seed_*"))]
    return [path for one in folders if (path := one / name).is_file()]


def _message(path: Path) -> str:
    error = _read(path)
    return str(error.get("message") or f"exit code {error.get('code')}")


def curves(folder: Path, record: Record) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Returns for each run and split ("train": loss; "test_ema": accuracy) its (epoch, value).

    Values are means over seeds, at the epochs that every seed has reached.
    """
    found = {}
    for run in record["runs"]:
        by_split: dict[str, dict[float, list[float]]] = {"train": {}, "test_ema": {}}
        for path in _files(folder / run["name"], "metrics.jsonl"):
            for line in logs.read_metrics(path):
                if line["split"] in by_split:
                    value = line["loss" if line["split"] == "train" else "accuracy"]
                    values = [v for v in map(_finite, _list(value)) if v is not None]
                    by_split[line["split"]].setdefault(line["epoch"], []).extend(values)
        lines = {}
        for split, points in by_split.items():
            most = max((len(values) for values in points.values()), default=0)
            lines[split] = [
                (epoch, math.fsum(values) / most)
                for epoch, values in sorted(points.items())
                if values and len(values) == most
            ]
        found[run["name"]] = lines
    return found


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Has a file that lacks something named, and what it lacks."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): run the sweep again.") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): run the sweep again.") from error


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _finite(value: Any) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _field(config: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def distinct(values: Iterable[Any]) -> list[Any]:
    """Returns the different values, without None, in the order in which they come."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


# What follows from a record


def by_seed(run: Record, metric: str = ACCURACY) -> dict[int, float]:
    """Returns the values of `metric` for each seed that has one."""
    pairs = zip(run["seed"], run[metric], strict=True)
    return {seed: value for seed, value in pairs if value is not None}


def accuracy(run: Record, metric: str = ACCURACY) -> Estimate | None:
    """Returns mean and interval in per cent."""
    return intervals.estimate([100 * value for value in by_seed(run, metric).values()])


def front(runs: Sequence[Record], cost: str = "macs") -> set[str]:
    """Returns the names of runs on the Pareto front of `cost` and mean accuracy.

    Only runs with the most seeds take part: a mean of fewer may be one lucky seed's.
    """
    known = [(run, found) for run in runs if run[cost] is not None and (found := accuracy(run))]
    most = max((found.n for _, found in known), default=0)
    known = [(run, found) for run, found in known if found.n == most]
    # To 1e-9 points, so that means of the same accuracies in another order are ties.
    on = intervals.pareto(
        [run[cost] for run, _ in known], [round(found.mean, 9) for _, found in known]
    )
    return {run["name"] for (run, _), is_on in zip(known, on, strict=True) if is_on}


def judge(record: Record, comparison: "ablation.Comparison") -> Judgement:
    """Returns what the record says of a comparison.

    Accuracies are paired by seed, latencies by the round in which both were timed.
    """
    runs = {run["name"]: run for run in record["runs"]}
    names = (comparison.a, comparison.b)
    absent = [name for name in names if name not in runs]
    if absent:
        missing = f"no run {' and no run '.join(absent)} in this sweep"
        return Judgement(comparison, None, None, missing)
    timing = comparison.metric == "latency_seconds"
    over, scale = ("round", 1) if timing else ("seed", 100)
    a, b = (_values(record, runs[name], comparison.metric) for name in names)
    difference = intervals.paired(
        {key: scale * value for key, value in a.items()},
        {key: scale * value for key, value in b.items()},
    )
    if difference is None:
        empty = [name for name, values in zip(names, (a, b), strict=True) if not values]
        if timing:
            begun = bool(record["latency"] or record["errors"].get("latency"))
            missing = "no latency was measured" if empty else "no round in common"
            return Judgement(comparison, None, None, missing, begun)
        begun = all(runs[name]["state"] != "missing" for name in empty)
        states = ", ".join(f"{name}: {runs[name]['state']}" for name in empty)
        return Judgement(comparison, None, None, states or "no seed in common", begun)
    relative = None
    if timing and (base := math.fsum(b[key] for key in b if key in a) / difference.n):
        relative = difference.mean / base
    left = sorted(set(a) ^ set(b))
    missing = f"{over}{'s'[: len(left) - 1]} {', '.join(map(str, left))} in one run only"
    return Judgement(comparison, difference, relative, missing if left else "")


def _values(record: Record, run: Record, metric: str) -> dict[Any, float]:
    if metric == "latency_seconds":
        timed = latency(record, run["name"]) or {}
        rounds = timed.get("round_seconds", [])
        return {i: seconds for i, seconds in enumerate(rounds) if seconds is not None}
    return dict(by_seed(run, metric))


def latency(record: Record, name: str) -> dict[str, Any] | None:
    """Returns a run's entry of latency.json, if it was timed."""
    return (record.get("latency") or {}).get(name)


def varying(runs: Sequence[Record]) -> list[str]:
    """Returns the factors that are not the same in all runs, in the order in which they come."""
    names = dict.fromkeys(name for run in runs for name in run["factors"])
    return [name for name in names if len({repr(run["factors"].get(name)) for run in runs}) > 1]


def axes(runs: Sequence[Record]) -> Axes:
    """Returns which factor lines, markers and colours show.

    Lines follow α; without it, a number that takes three values or more.
    """
    names = varying(runs)
    marker = "beta" if "beta" in names else None

    def values(name: str) -> list[Any]:
        return [run["factors"][name] for run in runs if run["factors"].get(name) is not None]

    numbers = [
        name
        for name in names
        if len(set(map(repr, values(name)))) >= 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values(name))
    ]
    line = "alpha" if "alpha" in names else next(iter(numbers), None)
    return Axes(line, marker, tuple(name for name in names if name not in (line, marker)))


def group_of(factors: Mapping[str, Any], shown: Axes) -> str:
    """Returns the words that tell a run's group apart from the others."""
    return ", ".join(filter(None, (factor(n, factors[n]) for n in shown.group if n in factors)))


def factor(name: str, value: Any) -> str:
    """Returns a factor in words: "ReLU6" is clear by itself, 0.5 and True need their name."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return name.replace("_", " ") if value else f"no {name.replace('_', ' ')}"
    return value if isinstance(value, str) else f"{symbol(name)} = {value}"


def symbol(name: str) -> str:
    """Returns what a factor is called in tables and plots."""
    return {"alpha": "α", "beta": "β", "expansion": "t"}.get(name, name.replace("_", " "))


def groups(runs: Sequence[Record], shown: Axes) -> dict[str, int]:
    """Returns the groups of all runs, numbered.

    Also of runs without a result, so that a group keeps its colour when they come.
    """
    names = dict.fromkeys(group_of(run["factors"], shown) for run in runs)
    return {name: number for number, name in enumerate(names)}


def lines(runs: Sequence[Record], shown: Axes) -> list[Line]:
    """Returns the runs that have a result as lines, in the order of the sweep."""
    numbers = groups(runs, shown)
    found: dict[tuple[str, Any], list[Record]] = {}
    for run in runs:
        group = group_of(run["factors"], shown)
        if accuracy(run) and run["macs"] is not None:
            marker = run["factors"].get(shown.marker) if shown.marker else None
            # A line of β joins its markers.
            key = (group, None if shown.line == shown.marker else marker)
            found.setdefault(key, []).append(run)
    return [
        Line(group, numbers[group], tuple(sorted(members, key=lambda run: run["macs"])))
        for (group, _), members in found.items()
    ]


def paper_point(run: Record, points: Sequence["ablation.PaperPoint"]) -> Any:
    """Returns the first paper's point whose factors, as many as possible, are those of a run."""
    found = [
        point
        for point in points
        if point.factors and all(run["factors"].get(k) == v for k, v in point.factors.items())
    ]
    return max(found, key=lambda point: len(point.factors), default=None)


def paper_group(point: "ablation.PaperPoint", runs: Sequence[Record], shown: Axes) -> str:
    """Returns the group whose colour a paper's point has: the first that its factors allow."""
    for run in runs:
        factors = run["factors"]
        if all(factors.get(n) == point.factors[n] for n in shown.group if n in point.factors):
            return group_of(factors, shown)
    return group_of(point.factors, shown)


def paper_lines(
    points: Sequence["ablation.PaperPoint"], runs: Sequence[Record], shown: Axes
) -> dict[tuple[str, Any], list["ablation.PaperPoint"]]:
    """Returns the points on each line, by cost; its group and marker are its key."""
    found: dict[tuple[str, Any], list[ablation.PaperPoint]] = {}
    for point in sorted(points, key=lambda point: point.macs or point.params or 0):
        marker = None if shown.marker in (None, shown.line) else point.factors.get(shown.marker)
        found.setdefault((paper_group(point, runs, shown), marker), []).append(point)
    return found
