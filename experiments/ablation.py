"""What the experiments share: runs, comparisons, the papers' points, and the budget of each scale.

An experiment is a module with a docstring, `runs(scale)`, `comparisons(scale)` and `PAPER`, or with
`measure(scale, directory)` if it trains nothing. `sweep` runs it and `report` draws it.

Owns how a network and what varies in it become a run, how a run becomes a config and a command, and
what a run costs. Knows nothing of processes, of folders, and of results.
"""

import bisect
import functools
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mobilenets_jax import config as config_lib
from mobilenets_jax import costs, main
from mobilenets_jax.errors import InputError, choose, nearest
from mobilenets_jax.specs import Spec
from mobilenets_jax.switches import build_spec

ROOT = Path(__file__).parents[1]
SCALES = ("smoke", "small", "full")
DATASETS = {"smoke": "digits", "small": "fashion_mnist", "full": "imagenet2012"}
# The width at which an experiment asks its question, unless the width is the question.
ALPHA = {"smoke": 0.25, "small": 0.5, "full": 1.0}
CONFIGS = {
    "mobilenet_v1": "configs/v1.py:dataset={}",
    "mobilenet_v2": "configs/v2.py:dataset={}",
    "mobilenet_v3_large": "configs/v3.py:variant=large,dataset={}",
    "mobilenet_v3_small": "configs/v3.py:variant=small,dataset={}",
}
# Fields that a scale sets. Full is the paper's recipe as it is.
BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "epochs": 4.0,
        "eval_every": 4.0,
        "checkpoint_every": 4.0,
        "log_every": 11,
        "ema_decay": 0.9,
        "schedule.warmup_epochs": 0.25,
    },
    # 24,000 of the 60,000 images, each once.
    "small": {
        "epochs": 0.4,
        "eval_every": 0.4,
        "checkpoint_every": 0.2,
        "ema_decay": 0.99,
        "schedule.warmup_epochs": 0.05,
    },
    "full": {},
}
# Images for training and for testing.
IMAGES = {
    "digits": (1437, 360),
    "fashion_mnist": (60_000, 10_000),
    "imagenet2012": (1_281_167, 50_000),
}
NAME = re.compile(r"[a-z0-9._=,-]+")


class Run(NamedTuple):
    """One network and recipe, trained with several seeds.

    Attributes:
        name: of its folder, unique within the experiment, matches `NAME`.
        config: e.g. "configs/v2.py:dataset=digits".
        overrides: dotted config field -> value.
        factors: what varies, for tables and axes: {"model": "mobilenet_v2", "alpha": 0.5, …}.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    factors: dict[str, Any]


class Comparison(NamedTuple):
    """A statement: a metric of run `a` minus that of run `b`.

    Attributes:
        claim: in plain words, e.g. "Standard convolutions are better than depthwise ones".
        a: a run's name.
        b: another run's name.
        paper: the paper's difference in percentage points; None if it states none.
        source: of the paper's difference, or of the question.
        metric: "test_accuracy_ema" or "latency_seconds".
        sign: of the paper's a − b where it states no such number: 1, −1, or 0 for no difference.
    """

    claim: str
    a: str
    b: str
    paper: float | None
    source: str
    metric: str = "test_accuracy_ema"
    sign: int | None = None


class PaperPoint(NamedTuple):
    """A point of the paper's, to draw beside ours.

    Attributes:
        factors: as those of a run.
        accuracy: top-1, a fraction; None if the paper prints none.
        macs: multiply-accumulates as printed, rounded as there.
        params: parameters as printed.
        source: paper and table or figure.
    """

    factors: dict[str, Any]
    accuracy: float | None
    macs: int | None
    params: int | None
    source: str


class Cost(NamedTuple):
    """What a run costs.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates of one image's inference.
        resolution: in pixels, as the network sees it.
        steps: of training, one seed's.
        seconds: on two CPU cores, of all seeds in one program; an estimate.
    """

    params: int
    macs: int
    resolution: int
    steps: int
    seconds: float


# Runs -----------------------------------------------------------------------------------


def network(
    scale: str,
    model: str,
    alpha: float | None = None,
    beta: float = 1.0,
    variant: str | None = None,
    **switches: Any,
) -> Run:
    """Returns the run of a network.

    Args:
        scale: one of `SCALES`.
        model: a key of `CONFIGS`.
        alpha: width multiplier; None is the scale's own, `ALPHA`.
        beta: resolution multiplier.
        variant: what the switches together are called; it is then the factor in their place.
        **switches: fields of config.model, each a factor. "paper" is the paper's own.

    Raises:
        InputError: for an unknown scale or model.
    """
    choose("scale", scale, SCALES)
    choose("model", model, CONFIGS)
    alpha = ALPHA[scale] if alpha is None else alpha
    shown = switches if variant is None else {"variant": variant}
    # The published widths of V3 are TF-slim's; those of V1 and V2 are the same by every rule.
    fields = {"alpha": alpha} | ({"rule": "slim"} if "v3" in model and alpha != 1 else {})
    fields |= {key: value for key, value in switches.items() if value != "paper"}
    overrides = dict(BUDGETS[scale])
    if beta != 1:
        overrides["beta"] = beta
    overrides |= {f"model.{key}": value for key, value in fields.items()}
    parts = [f"{key}={value:.4g}" for key, value in (("alpha", alpha), ("beta", beta))]
    parts += [f"{key}={value}".lower() for key, value in shown.items()]
    return Run(
        ",".join((model, *parts)),
        CONFIGS[model].format(DATASETS[scale]),
        overrides,
        {"model": model, "alpha": alpha, "beta": beta, **shown},
    )


def compare(
    claim: str,
    a: Run,
    b: Run,
    source: str,
    paper: float | None = None,
    metric: str = "test_accuracy_ema",
    sign: int | None = None,
) -> Comparison:
    """Returns the comparison of two runs."""
    return Comparison(claim, a.name, b.name, paper, source, metric, sign)


def neighbours(
    factor: str, runs: Sequence[Run], paper: Sequence[PaperPoint], keys: Sequence[str]
) -> list[Comparison]:
    """Returns the comparison of each run with the next one.

    Args:
        factor: what differs between them.
        runs: from the one that should be best to the worst.
        paper: the paper's points.
        keys: the factors by which a run finds its point.
    """
    found = []
    for a, b in itertools.pairwise(runs):
        mine, its = ({key: run.factors[key] for key in keys} for run in (a, b))
        claim = f"{factor} = {a.factors[factor]} is better than {b.factors[factor]}"
        source, stated = _stated(paper, mine, its) or (paper[0].source, None)
        found.append(compare(claim, a, b, source, stated))
    return found


def unique(runs: Iterable[Run]) -> list[Run]:
    """Returns the runs without repetitions, in order."""
    return list({run.name: run for run in runs}.values())


def _flag(value: Any) -> str:
    return ",".join(map(str, value)).join("()") if isinstance(value, tuple | list) else str(value)


def _flags(run: Run) -> list[str]:
    fields = [f"--config.{field}={_flag(value)}" for field, value in run.overrides.items()]
    return [f"--config={run.config}", *fields]


def config(run: Run) -> ConfigDict:
    """Returns the run's config, of one seed, as the command line would make and check it.

    Raises:
        InputError: for a field or value that the command line would refuse.
    """
    flags = _flags(run)
    flags[0] = f"--config={ROOT / run.config}"
    options = main.parse(["main", *flags])
    assert options.config is not None
    config_lib.check(options.config, options.overrides)
    return options.config


def command(run: Run, workdir: Path, seeds: Sequence[int]) -> list[str]:
    """Returns the command that trains the run, to be run in `ROOT`.

    Args:
        run: what to train.
        workdir: where results go.
        seeds: one or more; several are trained together, in one program.
    """
    seeds = list(seeds)
    several = [f"--config.replicas={len(seeds)}"] if len(seeds) > 1 else []
    if seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        fields = [f"--config.seed={seeds[0]}", *several]
    else:
        fields = [*several, f"--config.replica.seeds={_flag(seeds)}"]
    program = [sys.executable, "-m", "mobilenets_jax.main"]
    return [*program, *_flags(run), *fields, f"--workdir={workdir}"]


# Costs ----------------------------------------------------------------------------------


def spec(run: Run) -> Spec:
    """Returns the network of a run."""
    checked = config(run)
    model = checked.model.to_dict()
    for computed in ("dtype", "depthwise_implementation"):
        model.pop(computed)
    return build_spec(num_classes=checked.dataset.num_classes, **model)


def cost(run: Run, seeds: int = 1) -> Cost:
    """Returns what a run costs, all its seeds trained in one program.

    The estimate of time is good to a factor of two. Of training, one image takes 18 ns for each
    thousand MACs and 0.88 ns for each byte of activations, half as much again with V3's
    squeeze-and-excite and h-swish; an evaluation, of the weights and their average, takes a third
    of that for each image and each of the two. That fits the measured rates of V1 and V2 at 32 × 32
    pixels on two cores. Starting and compiling takes 10 s, with V3 20 s.

    Raises:
        InputError: for a wrong field, or a data set whose size is not in `IMAGES`.
    """
    checked, network = config(run), spec(run)
    resolution = config_lib.effective_resolution(checked.resolution, checked.beta)
    layers = costs.layers(network, resolution)
    macs = sum(layer.macs for layer in layers)
    if checked.dataset.name not in IMAGES:
        raise InputError(
            f"How many images '{checked.dataset.name}' has is not known: put it into IMAGES in "
            "experiments/ablation.py"
        )
    train, test = IMAGES[checked.dataset.name]
    steps_per_epoch = train // checked.batch_size
    steps = max(1, round(checked.epochs * steps_per_epoch))
    evaluations = max(1, round(checked.epochs / checked.eval_every))
    images = steps * checked.batch_size + evaluations * test * 2 / 3
    v3 = network.family == "v3"
    image = 18e-12 * macs + 0.88e-9 * sum(layer.activation_bytes() for layer in layers)
    seconds = (20.0 if v3 else 10.0) + seeds * images * image * (1.5 if v3 else 1.0)
    return Cost(costs.params(network), macs, resolution, steps, seconds)


@functools.cache
def alpha_for(scale: str, model: str, macs: int, **switches: Any) -> float:
    """Returns the alpha, a multiple of 0.01 up to 5, whose network costs most nearly `macs`.

    Of several that cost the same, the smallest.
    """
    checked = config(network(scale, model, **switches))
    resolution = config_lib.effective_resolution(checked.resolution, checked.beta)
    switches["drop_strides"] = checked.model.drop_strides

    @functools.cache
    def costing(percent: int) -> int:
        rule = "slim" if "v3" in model and percent != 100 else "keras"
        classes = checked.dataset.num_classes
        found = build_spec(model, classes, percent / 100, rule=rule, **switches)
        return costs.macs(found, resolution)

    # A wider network never costs less.
    percents = range(5, 501)
    above = bisect.bisect_left(percents, macs, key=costing)
    best = min(percents[max(0, above - 1) : above + 1], key=lambda p: abs(costing(p) - macs))
    return percents[bisect.bisect_left(percents, costing(best), key=costing)] / 100


# The papers' numbers ------------------------------------------------------------------------


@functools.cache
def _paper(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "papers" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def table(paper: str, name: str) -> dict[str, Any]:
    """Returns a table of a paper: {"source": …, "rows": […]}.

    Args:
        paper: "v1", "v2" or "v3".
        name: a key of experiments/papers/<paper>.json.
    """
    return _paper(paper)[name]


def points(paper: str, name: str, **factors: Any) -> list[PaperPoint]:
    """Returns a table's rows as points, `factors` added to each.

    Where a row has no MACs and parameters, but a network that can be counted, they are ours, and
    the source says so.
    """
    return [
        _point(row, factors, table(paper, name)["source"]) for row in table(paper, name)["rows"]
    ]


def _point(row: dict[str, Any], factors: dict[str, Any], source: str) -> PaperPoint:
    factors = {"alpha": 1.0, "beta": 1.0, **factors, **row["factors"]}
    accuracy = round(row["top1"] / 100, 6)
    if "variant" in factors:
        return PaperPoint(factors, accuracy, None, None, source)
    if "macs_M" not in row:
        counted = cost(network("full", **factors))
        source += " (MACs and parameters counted)"
        return PaperPoint(factors, accuracy, counted.macs, counted.params, source)
    macs, params = (round(row[key] * 1_000_000) for key in ("macs_M", "params_M"))
    return PaperPoint(factors, accuracy, macs, params, source)


def difference(points: Iterable[PaperPoint], a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """Returns by how many percentage points `a` is better than `b` in a paper.

    Args:
        points: of one or more tables; the first that has both counts.
        a: some or all of a point's factors.
        b: likewise.

    Returns:
        The difference of the accuracies, or None if no table has both.
    """
    stated = _stated(points, a, b)
    return stated and stated[1]


def _stated(
    points: Iterable[PaperPoint], a: dict[str, Any], b: dict[str, Any]
) -> tuple[str, float] | None:
    """Returns the difference with its source."""
    found: dict[str, dict[str, float]] = {}
    for point in points:
        for key, factors in (("a", a), ("b", b)):
            if point.accuracy is not None and factors.items() <= point.factors.items():
                found.setdefault(point.source, {}).setdefault(key, point.accuracy)
    for source, both in found.items():
        if len(both) == 2:
            return source, round(100 * (both["a"] - both["b"]), 3)
    return None


# Experiment files --------------------------------------------------------------------------


def load(path_or_name: str | Path) -> ModuleType:
    """Returns an experiment's module.

    Args:
        path_or_name: a file, or the name of one in this folder, e.g. "v1_width".

    Raises:
        InputError: if there is no such file, it fails, or it is no experiment.
    """
    here = Path(__file__).parent
    path = Path(path_or_name)
    if path.suffix != ".py":
        path = here / f"{path_or_name}.py"
    if not path.is_file():
        hint = nearest(Path(path_or_name).stem, names())
        raise InputError(
            f"There is no experiment '{path_or_name}'.{hint} Choose one of: {', '.join(names())}, "
            "or give a file."
        )
    if path.resolve().parent == here:
        module_spec = importlib.util.find_spec(f"experiments.{path.stem}")
    else:
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"The experiment {path} failed ({type(error).__name__}: {error}): correct it."
        ) from error
    if not is_experiment(module):
        raise InputError(
            f"{path} is no experiment: it needs runs(scale), comparisons(scale) and PAPER, or "
            "measure(scale, directory)."
        )
    return module


def is_experiment(module: ModuleType) -> bool:
    """Says whether a module has what an experiment has."""
    trains = all(hasattr(module, name) for name in ("runs", "comparisons", "PAPER"))
    return trains or hasattr(module, "measure")


def names() -> list[str]:
    """Returns the names of the experiments in this folder, in alphabetical order."""
    tools = re.compile(r"^def (?:runs|measure)\(scale", re.MULTILINE)
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if tools.search(file.read_text(encoding="utf-8"))]
