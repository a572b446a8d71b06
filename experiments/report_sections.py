"""An experiment's record in words and tables: blocks, of which report.py makes documents.

Owns wording and tables; equal records give equal blocks. Must not change a number, and knows
nothing of folders, Markdown and HTML.
"""

import inspect
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import ablation, report_data
from experiments.intervals import Estimate
from experiments.report_blocks import (
    NONE,
    Block,
    Cell,
    Code,
    Heading,
    Items,
    Picture,
    Table,
    Text,
    plain,
    prose,
)
from experiments.report_data import Judgement, Record
from mobilenets_jax.errors import InputError

_METRICS = {
    "test_accuracy": "test accuracy, %",
    "test_accuracy_ema": "averaged weights, %",
    "latency_seconds": "latency",
}
_SIGNS = {1: "> 0", -1: "< 0", 0: "≈ 0"}
_ENVIRONMENT = ("device", "versions", "git_revision")


class View(NamedTuple):
    """An experiment to be shown: its record and what its file says.

    Attributes:
        record: what was measured.
        title: the docstring's first sentence, the question.
        text: the docstring's rest.
        judgements: of the file's comparisons.
        paper: the paper's points.
        note: why the file could not be read; "".
    """

    record: Record
    title: str
    text: str
    judgements: tuple[Judgement, ...] = ()
    paper: tuple[Any, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """The experiment's."""
        return str(self.record["experiment"])


def view(record: Record) -> View:
    """Returns a record with what its experiment's file says of it."""
    try:
        module = ablation.load(record["experiment"])
    except InputError as error:
        note = f"No question, comparisons or paper's points: {error}"
        return View(record, record["experiment"], "", note=note)
    title, _, text = inspect.cleandoc(module.__doc__ or record["experiment"]).partition("\n\n")
    comparisons = []
    if record["runs"] and hasattr(module, "comparisons"):
        comparisons = module.comparisons(record["scale"])
    return View(
        record,
        " ".join(title.split()),
        text,
        tuple(report_data.judge(record, comparison) for comparison in comparisons),
        tuple(getattr(module, "PAPER", ())),
    )


# Words


def signed(value: float, digits: int = 2) -> str:
    """Returns a number with its sign, of which zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def spread(found: Estimate | None, sign: bool = False, digits: int = 2) -> str:
    """Returns "mean ± half" of an estimate; "–" for what there is not."""
    if found is None:
        return NONE
    mean = signed(found.mean, digits) if sign else f"{found.mean:.{digits}f}"
    return f"{mean} ± {NONE if found.half is None else f'{found.half:.{digits}f}'}"


def _number(value: float | None, text: str = "{:,}") -> Cell:
    return Cell(NONE) if value is None else Cell(text.format(value), float(value))


def _estimate(found: Estimate | None) -> tuple[Cell, Cell]:
    """Returns the cells of mean and interval, and of n."""
    n = found.n if found else 0
    return Cell(spread(found), found.mean if found else None), Cell(str(n), n)


def verdict(judgement: Judgement) -> str:
    """Returns the plain words: resolved, or not, and at which n."""
    if judgement.difference is None:
        return f"not measured ({plain(judgement.missing)})"
    if judgement.resolved:
        return "**resolved**"
    n = judgement.difference.n
    half = judgement.difference.half
    same = n > 1 and half is not None and half <= 1e-9 * abs(judgement.difference.mean)
    return f"not resolved at n = {n}{' (all differences are equal)' if same else ''}"


def direction(judgement: Judgement) -> str:
    """Returns whether the sign of the difference is the paper's, and whether that is resolved."""
    if judgement.agrees is None:
        return NONE
    word = "agrees" if judgement.agrees else "disagrees"
    return word if judgement.resolved else f"{word} (not resolved)"


def contrast(a: str, b: str) -> str:
    """Returns "a − b" of runs' names, without the parts (between commas) that both have."""
    first, second = a.split(","), b.split(",")
    only = [
        ",".join(p for p in one if p not in two) for one, two in ((first, second), (second, first))
    ]
    return " − ".join(only if all(only) else (a, b))


def _difference(judgement: Judgement) -> Cell:
    found, metric = judgement.difference, judgement.comparison.metric
    if found is None:
        return Cell(NONE)
    if metric == "latency_seconds":
        shown = Estimate(1e3 * found.mean, found.half and 1e3 * found.half, found.n)
        text = f"{spread(shown, sign=True, digits=3)} ms"
    else:
        text = spread(found, sign=True)
    if judgement.relative is not None:
        text += f" ({signed(100 * judgement.relative, 1)} %)"
    return Cell(text, found.mean)


def _papers_difference(made: "ablation.Comparison") -> Cell:
    if made.paper is not None:
        text = f"{made.paper:{'+' * (made.paper != 0)}g}"
        return Cell(text.replace("-", "−"), made.paper)
    return Cell(NONE if made.sign is None else plain(_SIGNS[made.sign]))


# Sections


def sections(views: Sequence[View], paper: bool, pictures: dict[str, list[Picture]]) -> list[Block]:
    """Returns the blocks of all experiments.

    Args:
        views: the experiments.
        paper: whether to show the paper's numbers, too.
        pictures: of each experiment.
    """
    blocks: list[Block] = []
    for shown in views:
        record = shown.record
        blocks += [Heading(2, plain(shown.name)), Text(f"**{prose(shown.title)}**")]
        blocks += _document(shown.text)
        if shown.note:
            blocks.append(Text(plain(shown.note)))
        if shown.judgements:
            blocks += [Heading(3, "Comparisons"), Text(_summary(shown.judgements))]
            if listed := [judgement for judgement in shown.judgements if judgement.begun]:
                blocks.append(_comparisons(listed))
        if record["runs"]:
            blocks += [Heading(3, "Runs"), Text(_states(record))]
            if _begun(record):
                blocks.append(_runs(shown, paper))
        blocks += pictures.get(shown.name, [])
        if paper and (points := _papers_points(shown)):
            blocks += [Heading(3, "The paper's numbers"), _papers(shown, points)]
        if record["measure"] is not None:
            blocks += [Heading(3, "Measured"), *_measured(record["measure"])]
        for what, error in record["errors"].items():
            blocks.append(Text(f"**Failed: {plain(what)}.** {plain(_shorten(error))}"))
        if not record["runs"] and record["measure"] is None:
            blocks.append(Text("Not measured yet."))
        blocks += [Heading(3, "Settings"), _settings(record)]
    return blocks


def overview(views: Sequence[View]) -> list[Block]:
    """Returns how to read the report, and a table with a row for each experiment."""
    count = sum(j.difference is not None for shown in views for j in shown.judgements)
    rows = []
    for shown in views:
        states = [run["state"] for run in shown.record["runs"]]
        measured = shown.record["measure"] is not None
        failed = ", ".join(
            f"{number} {state}"
            for state in report_data.STATES[1:]
            if (number := states.count(state) + (state == "failed") * len(shown.record["errors"]))
        )
        done = f"{states.count('done')} of {len(states)} done" if states else ""
        known = [j for j in shown.judgements if j.difference is not None]
        rows.append(
            (
                Cell(plain(shown.name)),
                Cell(prose(shown.title)),
                Cell(", ".join(filter(None, (done, "measured" * measured, failed))) or NONE),
                Cell(f"{sum(j.resolved for j in known)} of {len(known)}" if known else NONE),
                Cell(_agreement(shown.judgements)),
            )
        )
    head = ("experiment", "question", "runs", "resolved", "with the paper, of the resolved")
    guide = [
        "Mean ± half of the 95 % interval over n seeds (Student's t). n = 1 has no interval, which "
        f"is shown as “± {NONE}”.",
        "A comparison is the difference of two runs, a − b, paired by seed: only seeds that both "
        "runs have, n of them. It is **resolved** if its 95 % interval excludes 0, and otherwise "
        "not resolved at this n, which doesn't say that there is no difference. Latencies are "
        "paired by round instead, all of one process: their n counts rounds, and their intervals "
        "say nothing of another process or machine.",
        f"{count} comparison{' is' if count == 1 else 's are'} made here, and the intervals are "
        "not corrected for their number: of 20 without any effect, one is expected to look "
        "resolved.",
        "The intervals of accuracies say what other seeds would change (initialisation, order of "
        "the images, augmentation), not what other test images would.",
        "Agrees and disagrees say whether the sign of our difference is that of the paper's, no "
        "more: the papers' numbers are of ImageNet, of the papers' recipes, and mostly of α = 1; "
        r"times are of the papers' devices. \> 0, \< 0 and ≈ 0 stand for a difference of which the "
        "paper states no number of points. Where it says that there is none, a resolved difference "
        "disagrees, and one that is not resolved says nothing.",
        "Accuracies are of the averaged weights (EMA) at the end of training unless a column says "
        "otherwise; no checkpoint was chosen by the test images.",
        "◆ marks the Pareto front of the runs with the most seeds: no other of them has no more "
        "MACs and no lower mean accuracy, unless it is equal in both.",
    ]
    return [Table(head, (False,) * 5, tuple(rows)), Items(tuple(guide))]


def _agreement(judgements: Sequence[Judgement]) -> str:
    known = [j.agrees for j in judgements if j.resolved and j.agrees is not None]
    if not known:
        return NONE
    counts = {"agree": known.count(True), "disagree": known.count(False)}
    return ", ".join(f"{n} {word}{'s' * (n == 1)}" for word, n in counts.items() if n)


def _summary(judgements: Sequence[Judgement]) -> str:
    count, unknown = len(judgements), sum(j.difference is None for j in judgements)
    resolved = sum(j.resolved for j in judgements)
    text = f"{count} comparison{'s' * (count > 1)}: {resolved} resolved"
    agreement = _agreement(judgements)
    text += f" ({agreement} with the paper)" * (agreement != NONE)
    text += f", {count - resolved - unknown} not resolved"
    if unknown:
        text += f", {unknown} not measured"
    if hidden := sum(not j.begun for j in judgements):
        these = f"{hidden} of them " * (hidden < unknown)
        text += f" ({these}not listed: what they compare was not run)"
    return f"{text}."


def _comparisons(judgements: Sequence[Judgement]) -> Table:
    head = ("statement", "a − b", "measured by", "the paper's difference")
    rows = []
    for judgement in judgements:
        made = judgement.comparison
        n = judgement.difference.n if judgement.difference else 0
        words = verdict(judgement)
        if judgement.difference is not None and judgement.missing:
            words += f"; {plain(judgement.missing)}"
        rows.append(
            (
                Cell(f"{prose(made.claim)} ({prose(made.source)})"),
                Cell(plain(contrast(made.a, made.b))),
                Cell(plain(_METRICS.get(made.metric, made.metric))),
                _papers_difference(made),
                _difference(judgement),
                Cell(str(n), n),
                Cell(words),
                Cell(direction(judgement)),
            )
        )
    return Table(
        (*head, "ours", "n", "resolved?", "direction"),
        (False, False, False, True, True, True, False, False),
        tuple(rows),
    )


def _states(record: Record) -> str:
    states = [run["state"] for run in record["runs"]]
    counts = [f"{states.count(s)} {s}" for s in report_data.STATES if s in states]
    wanted = record["seeds"]
    seeds = f"seed{'s'[: len(wanted) - 1]} {', '.join(map(str, wanted))}"
    text = f"{len(states)} run{'s' * (len(states) != 1)} ({', '.join(counts)}), {seeds} of each."
    return text + " Those not listed were not run." * (len(_begun(record)) < len(states))


def _begun(record: Record) -> list[Record]:
    """Returns the runs of which there is anything to show."""
    return [
        run
        for run in record["runs"]
        if run["state"] != "missing" or report_data.latency(record, run["name"])
    ]


def _runs(shown: View, paper: bool) -> Table:
    record = shown.record
    factors = report_data.varying(record["runs"])
    runs = _begun(record)
    front = report_data.front(runs)
    timed = any(report_data.latency(record, run["name"]) for run in runs)
    incomplete = any(run["state"] != "done" for run in runs)
    head = [plain(report_data.symbol(name)) for name in factors] or ["run"]
    head += ["state"] * incomplete
    first = len(head)
    head += ["pixels", "parameters", "MACs", "averaged weights, %", "n", "last weights, %", "front"]
    if timed:
        head.append("latency, ms (quartiles)")
    points = [report_data.paper_point(run, shown.paper) if paper else None for run in runs]
    if any(points):
        head += ["paper's accuracy, %", "paper's MACs"]
    head.append("training, s")
    rows = []
    for run, point in zip(runs, points, strict=True):
        averaged, n = _estimate(report_data.accuracy(run))
        last, its_n = _estimate(report_data.accuracy(run, "test_accuracy"))
        if last.value is not None and its_n != n:
            last = Cell(f"{last.text} (n = {its_n.text})", last.value)
        row = [_factor(run["factors"].get(name)) for name in factors] or [Cell(plain(run["name"]))]
        if incomplete:
            note = f": {plain(_shorten(run['note']))}" if run["note"] else ""
            row.append(Cell(f"{run['state']}{note}"))
        row += [_number(run[key]) for key in ("resolution", "params", "macs")]
        row += [averaged, n, last, Cell("◆" * (run["name"] in front))]
        if timed:
            row.append(_latency(report_data.latency(record, run["name"])))
        if any(points):
            row.append(_number(point and point.accuracy and 100 * point.accuracy, "{:.1f}"))
            row.append(_number(point and point.macs))
        row.append(_number(run["train_seconds"], "{:,.0f}"))
        rows.append(tuple(row))
    numeric = [i >= first and name != "front" for i, name in enumerate(head)]
    numeric[: len(factors)] = _are_numbers(runs, factors)
    return Table(tuple(head), tuple(numeric), tuple(rows))


def _are_numbers(runs: Sequence[Record], factors: Sequence[str]) -> list[bool]:
    """Returns for each factor whether all values are numbers."""
    values = [[run["factors"].get(name) for run in runs] for name in factors]
    return [not any(isinstance(value, str | bool) for value in found) for found in values]


def _papers_points(shown: View) -> list["ablation.PaperPoint"]:
    """Returns the paper's points, once each, of models that were run."""
    models = {run["factors"].get("model") for run in _begun(shown.record)}
    found: dict[Any, ablation.PaperPoint] = {}
    for point in shown.paper:
        if point.factors.get("model") in {*models, None}:
            # Tables repeat the network that they begin with.
            found.setdefault((point.accuracy, *sorted(point.factors.items())), point)
    return list(found.values())


def _papers(shown: View, points: Sequence["ablation.PaperPoint"]) -> Table:
    ours = [run["factors"] for run in shown.record["runs"]]
    every = dict.fromkeys(name for one in (*ours, *(p.factors for p in points)) for name in one)
    names = [name for name in every if any(name in point.factors for point in points)]
    symbols = (plain(report_data.symbol(name)) for name in names)
    head = (*symbols, "top-1, %", "MACs", "parameters", "source")
    numbers = _are_numbers([{"factors": point.factors} for point in points], names)
    rows = tuple(
        (
            *(_factor(point.factors.get(name)) for name in names),
            _number(point.accuracy and 100 * point.accuracy, "{:.1f}"),
            _number(point.macs),
            _number(point.params),
            Cell(prose(point.source)),
        )
        for point in points
    )
    return Table(head, (*numbers, True, True, True, False), rows)


def _factor(value: Any) -> Cell:
    if value is None:
        return Cell(NONE)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    return Cell(plain(value), float(value) if isinstance(value, int | float) else None)


def _latency(timed: dict[str, Any] | None) -> Cell:
    if not timed or timed.get("median_seconds") is None:
        return Cell(NONE)
    low, high = (1e3 * seconds for seconds in timed["quartile_seconds"])
    median = 1e3 * timed["median_seconds"]
    return Cell(f"{median:.3f} ({low:.3f}–{high:.3f})", median)


def _shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _settings(record: Record) -> Items:
    items = []
    if record["scale"]:
        items.append(f"Scale: {plain(record['scale'])}.")
    for name, values in record["settings"].items():
        items.append(f"{name[0].upper()}{name[1:]}: {plain(', '.join(map(str, values)))}.")
    for examples in record["test_examples"]:
        points = 100 / examples
        items.append(f"Test images: {examples:,}; one of them is {points:.2g} points of accuracy.")
    if steps := sorted({run["steps"] for run in record["runs"] if run["steps"]}):
        items.append(f"Steps: {', '.join(f'{s:,}' for s in steps)}.")
    measured = record["measure"] or {}
    latency = record["latency"] or {}
    for field in _ENVIRONMENT:
        known = [*record.get(field, []), measured.get(field), latency.get(field)]
        name = field.replace("_", " ").capitalize()
        texts = dict.fromkeys(_pairs(value) for value in known if value)
        items += [f"{name}: {plain(text)}." for text in texts]
    return Items(tuple(items) or ("None stored.",))


def _pairs(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)


def _measured(result: dict[str, Any]) -> list[Block]:
    """Returns what an experiment measured: lists of rows as tables, the rest as a list."""
    blocks: list[Block] = []
    scalars = []
    for name, value in result.items():
        words = name.replace("_", " ")
        rows = _rows(value)
        if name in _ENVIRONMENT:
            continue
        if rows is None:
            scalars.append(f"{plain(words)}: {_value(value).text}")
            continue
        rows = [_flat(row) for row in rows]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        numeric = tuple(
            all(isinstance(row.get(k, 0), int | float | None) for row in rows) for k in keys
        )
        cells = tuple(tuple(_value(row.get(key)) for key in keys) for row in rows)
        heads = tuple(plain(key.replace("_", " ")) for key in keys)
        blocks += [Text(f"**{plain(words)}**"), Table(heads, numeric, cells)]
    if scalars:
        blocks.insert(0, Items(tuple(scalars)))
    return blocks


def _rows(value: Any) -> list[dict[str, Any]] | None:
    """Returns a value as a table's rows, if it is a list of dicts, or a dict."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return value
    if isinstance(value, dict) and value:
        if all(isinstance(v, dict) for v in value.values()):
            return [{"": key, **row} for key, row in value.items()]
        return [value]
    return None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row whose dicts are columns of their own."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{key} {name}".strip(): item for name, item in inner.items()}
    return found


def _value(value: Any) -> Cell:
    if value is None:
        return Cell(NONE)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return _number(value, "{:,.4g}")
    if isinstance(value, list):
        return Cell(", ".join(_value(item).text for item in value))
    return Cell(plain(value))


def _document(text: str) -> list[Block]:
    """Returns a docstring's paragraphs, lists and indented code as blocks."""
    blocks: list[Block] = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        part_lines = part.split("\n")
        if not part.strip():
            continue
        if all(line.startswith("    ") for line in part_lines):
            blocks.append(Code(inspect.cleandoc("\n" + part)))
        elif part.lstrip().startswith("- "):
            items = re.split(r"(?:^|\n)\s*- ", part)[1:]
            blocks.append(Items(tuple(prose(item) for item in items)))
        else:
            blocks.append(Text(prose(part)))
    return blocks
