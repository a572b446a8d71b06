"""The report's pictures as PNGs: differences, accuracy against cost, training curves.

Owns their looks in print; report_figures.py draws the same for the page. Must not compute a
statistic. Colours are Okabe and Ito's, which colour-blind readers can tell apart; where groups are
more than colours, dashes and the filling of markers tell them apart, and their shape tells β.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments import ablation, report_data
from experiments.report_data import Judgement, Record

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
COSTS = {"macs": "MACs", "params": "parameters"}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_FILLS: tuple[dict[str, Any], ...] = (
    {},
    {"markerfacecolor": "white"},
    {"fillstyle": "left", "markerfacecoloralt": "white"},
    {"fillstyle": "bottom", "markerfacecoloralt": "white"},
)
_MARKERS = "osD^vPXp"
_TEXT, _GREY, _RULE = "#333333", "#808080", "#e5e5e5"
MOST_NAMED = 16  # curves of runs, each with a name of its own
LOOKS = len(COLOURS) * len(_FILLS)


def differences(judgements: Sequence[Judgement]) -> Figure | None:
    """Draws a row for each comparison of accuracies: ours with its interval, and the paper's.

    Returns:
        The figure; None if there is nothing to draw.
    """
    shown = comparable(judgements)
    if not shown:
        return None
    figure = Figure(figsize=(9, 1.1 + 0.55 * len(shown)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row, judgement in enumerate(shown):
        found = judgement.difference
        assert found is not None
        axes.errorbar(
            *(found.mean, row - 0.12),
            xerr=found.half or 0,
            fmt="o",
            color=COLOURS[0],
            markerfacecolor=COLOURS[0] if judgement.resolved else "white",
            markersize=6,
            capsize=4 if found.half else 0,
        )
        if judgement.comparison.paper is not None:
            axes.plot(judgement.comparison.paper, row + 0.16, "D", color=COLOURS[1], markersize=5)
    axes.axvline(0, color=_TEXT, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [wrap(j.comparison.claim, 52) for j in shown])
    for label in axes.get_yticklabels():
        label.set(fontsize=8, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("difference of accuracy, percentage points", color=_TEXT)
    _plain(axes)
    handles = [
        Line2D([], [], marker="o", color=COLOURS[0], label="ours, 95 % interval: resolved"),
        Line2D([], [], marker="o", color=COLOURS[0], markerfacecolor="white", label="not resolved"),
    ]
    if any(j.comparison.paper is not None for j in shown):
        paper = Line2D([], [], marker="D", linestyle="", color=COLOURS[1], label="the paper's")
        handles.append(paper)
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def comparable(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Returns the comparisons of accuracies that have a difference."""
    return [
        j for j in judgements if j.difference and j.comparison.metric.startswith("test_accuracy")
    ]


def tradeoff(record: Record, paper: Sequence["ablation.PaperPoint"]) -> Figure | None:
    """Draws accuracy against MACs and parameters, with intervals, and the paper's points below.

    Returns:
        The figure; None if no run has a result.
    """
    runs = record["runs"]
    shown = report_data.axes(runs)
    lines = report_data.lines(runs, shown)
    if not lines:
        return None
    points = drawable(paper)
    rows = 1 + bool(points)
    figure = Figure(figsize=(11, 4.3 * rows + 0.3), dpi=110, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False, sharey="row")
    markers = marker_values(runs, shown.marker)
    groups = report_data.groups(runs, shown)
    drawn = [run for line in lines for run in line.runs]
    for axes, cost in zip(panels[0], COSTS, strict=True):
        front, x = report_data.front(runs, cost), beside(drawn, cost)
        for line in lines:
            _line(axes, line, x, shown, markers, front)
        data = " and ".join(map(str, record["settings"].get("data set", ["?"])))
        _cost_axis(axes, cost, [run[cost] for run in drawn])
        axes.set_title(f"ours, {data}", fontsize=10, color=_TEXT, parse_math=False)
    panels[0][0].set_ylabel("test accuracy, averaged weights (%)", color=_TEXT)
    papers = report_data.paper_lines(points, runs, shown)
    if points:
        for axes, cost in zip(panels[1], COSTS, strict=True):
            _paper(axes, papers, cost, shown, groups, markers)
        panels[1][0].set_ylabel("top-1 accuracy (%)", color=_TEXT)
    values = {point.factors.get(shown.marker) for point in points} if shown.marker else set()
    there = {line.group for line in lines} | {group for group, _ in papers}
    named = {group: number for group, number in groups.items() if group in there}
    _legend(figure, named, shown, markers, bool(values - set(markers)))
    return figure


def drawable(paper: Sequence["ablation.PaperPoint"]) -> list[Any]:
    """Returns the paper's points that have an accuracy and a cost, each network once."""
    found: dict[Any, Any] = {}
    for point in paper:
        if point.accuracy is not None and (point.macs or point.params):
            found.setdefault(tuple(sorted(point.factors.items())), point)
    return list(found.values())


def beside(runs: Sequence[Record], cost: str) -> dict[str, float]:
    """Returns where each run is drawn: at its cost, and those of equal cost side by side.

    The intervals of networks that cost the same would hide each other.
    """
    values = [run[cost] for run in runs]
    step = max((max(values) / min(values)) ** 0.012, 1.0005)
    found = {}
    for run in runs:
        same = [other["name"] for other in runs if other[cost] == run[cost]]
        last = len(same) - 1
        place = same.index(run["name"]) - last / 2
        # However many they are, they take no more room than three.
        found[run["name"]] = run[cost] * step ** (place * min(1, 2 / max(1, last)))
    return found


def marker_values(runs: Sequence[Record], marker: str | None) -> list[Any]:
    """Returns the values of the factor that markers show, in order; [None] if there is none."""
    if marker is None:
        return [None]
    found = {run["factors"].get(marker) for run in runs}
    return sorted(found, key=lambda value: (value is None, value or 0), reverse=True)


def _line(
    axes: Axes,
    line: report_data.Line,
    x: dict[str, float],
    shown: report_data.Axes,
    markers: list[Any],
    front: set[str],
) -> None:
    colour, cycle = look(line.colour)
    runs = sorted(line.runs, key=lambda run: x[run["name"]])
    found = [report_data.accuracy(run) for run in runs]
    if len(runs) > 1:
        across, up = [x[run["name"]] for run in runs], [one.mean for one in found if one]
        axes.plot(across, up, color=colour, linestyle=_DASHES[cycle], linewidth=1.4)
    for run, one in zip(runs, found, strict=True):
        assert one is not None
        value = run["factors"].get(shown.marker) if shown.marker else None
        axes.errorbar(
            *(x[run["name"]], one.mean),
            yerr=one.half or 0,
            fmt=_MARKERS[markers.index(value) % len(_MARKERS)],
            color=colour,
            markersize=5.5,
            capsize=3 if one.half else 0,
            elinewidth=1,
            **_FILLS[cycle],
        )
        if run["name"] in front:
            axes.plot(x[run["name"]], one.mean, "o", color=_TEXT, markersize=12, fillstyle="none")


def _paper(
    axes: Axes,
    papers: dict[tuple[str, Any], list[Any]],
    cost: str,
    shown: report_data.Axes,
    groups: dict[str, int],
    markers: list[Any],
) -> None:
    costs = []
    for (group, _), points in papers.items():
        members = sorted(
            (point for point in points if getattr(point, cost)), key=lambda p: getattr(p, cost)
        )
        colour, cycle = look(groups[group]) if group in groups else (_GREY, 0)
        x, y = [getattr(p, cost) for p in members], [100 * p.accuracy for p in members]
        if shown.line:
            axes.plot(x, y, color=colour, linestyle=_DASHES[cycle], linewidth=1)
        for across, up, point in zip(x, y, members, strict=True):
            value = point.factors.get(shown.marker) if shown.marker else None
            marker = _MARKERS[markers.index(value) % len(_MARKERS)] if value in markers else "*"
            axes.plot(across, up, marker=marker, color=colour, **_FILLS[cycle])
        costs += x
    if costs:
        _cost_axis(axes, cost, costs)
        axes.set_title("the papers', ImageNet", fontsize=10, color=_TEXT)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"the paper prints no {COSTS[cost]}", ha="center", color=_GREY)


def curves(record: Record, found: dict[str, Any]) -> Figure | None:
    """Draws training loss and test accuracy of each run, means over seeds.

    Args:
        record: the experiment's.
        found: as `report_data.curves` returns them.

    Returns:
        The figure; None if there are no curves.
    """
    if not any(points for splits in found.values() for points in splits.values()):
        return None
    runs = record["runs"]
    groups = curve_groups(record)
    figure = Figure(figsize=(11, 4.3), dpi=110, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for run in runs:
        colour, cycle = look(groups[curve_group(record, run)])
        for axes, split, scale in ((loss, "train", 1), (accuracy, "test_ema", 100)):
            points = found.get(run["name"], {}).get(split, [])
            axes.plot(
                [epoch for epoch, _ in points],
                [scale * value for _, value in points],
                color=colour,
                linestyle=_DASHES[cycle],
                linewidth=1.2,
                marker="o" if len(points) <= 10 and len(runs) <= MOST_NAMED else None,
                markersize=4,
                **_FILLS[cycle],
            )
    loss.set_ylabel("training loss", color=_TEXT)
    accuracy.set_ylabel("test accuracy, averaged weights (%)", color=_TEXT)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch", color=_TEXT)
        axes.set_xlim(left=0)
        _plain(axes)
    _legend(figure, groups, report_data.Axes(None, None, ()), [None], False)
    return figure


def curve_group(record: Record, run: Record) -> str:
    """Returns what tells a run's curve apart: its factors, or its group if runs are many."""
    factors = report_data.varying(record["runs"])
    if len(record["runs"]) > MOST_NAMED:
        return report_data.group_of(run["factors"], report_data.axes(record["runs"]))
    shown = report_data.Axes(None, None, tuple(factors))
    return report_data.group_of(run["factors"], shown) or run["name"]


def curve_groups(record: Record) -> dict[str, int]:
    """Returns the groups of all runs' curves, numbered."""
    names = dict.fromkeys(curve_group(record, run) for run in record["runs"])
    return {name: number for number, name in enumerate(names)}


def look(number: int) -> tuple[str, int]:
    """Returns a group's colour, and the place of its dashes and of its markers' filling."""
    return COLOURS[number % len(COLOURS)], number // len(COLOURS) % len(_FILLS)


def cost_range(values: Sequence[float]) -> tuple[float, float, bool]:
    """Returns an axis' ends and whether it is logarithmic: not where costs are about the same."""
    low, high = min(values, default=1), max(values, default=1)
    if high <= 2 * low:
        margin = max(0.06 * (high - low), 0.02 * high)
        return low - margin, high + margin, False
    margin = (high / low) ** 0.06
    return low / margin, high * margin, True


def _cost_axis(axes: Axes, cost: str, values: Sequence[int]) -> None:
    axes.set_xlabel(COSTS[cost], color=_TEXT)
    low, high, logarithmic = cost_range(values)
    axes.set_xlim(low, high)
    if logarithmic:
        axes.set_xscale("log")
        # Ticks at 1, 2 and 5, for a span of less than a decade would have one tick otherwise.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    _plain(axes)


def short(value: float) -> str:
    """Returns a count in thousands or millions: 24.5M."""
    if value <= 0:
        return "0"
    power = min(3, int(math.log10(value) / 3 + 1e-9))
    return f"{value / 1000**power:.3g}{('', 'k', 'M', 'G')[power]}"


def _plain(axes: Axes) -> None:
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(
    figure: Figure,
    groups: dict[str, int],
    shown: report_data.Axes,
    markers: list[Any],
    others: bool,
) -> None:
    handles = []
    named = [name for name in groups if name]
    if len(groups) <= LOOKS:  # else two would look the same
        for name in named:
            colour, cycle = look(groups[name])
            handle = Line2D([], [], color=colour, linestyle=_DASHES[cycle], linewidth=2, label=name)
            handle.set(marker="o", markersize=6, **_FILLS[cycle])
            handles.append(handle)
    if shown.marker:
        for i, value in enumerate(markers):
            label = f"{report_data.symbol(shown.marker)} = {value}"
            marker = _MARKERS[i % len(_MARKERS)]
            handles.append(Line2D([], [], color=_GREY, marker=marker, linestyle="", label=label))
    if others and shown.marker:
        label = f"another {report_data.symbol(shown.marker)}"
        handles.append(Line2D([], [], color=_GREY, marker="*", linestyle="", label=label))
    if shown.line:
        label = f"lines: {report_data.symbol(shown.line)}"
        handles.append(Line2D([], [], color=_GREY, linewidth=1.4, label=label))
    if shown != report_data.Axes(None, None, ()):
        ring = Line2D([], [], color=_TEXT, marker="o", fillstyle="none", markersize=10, ls="")
        ring.set_label("Pareto front")
        handles.append(ring)
    if handles:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def wrap(text: str, width: int) -> str:
    """Returns text broken into lines of at most `width` characters, at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG without what differs from run to run."""
    figure.savefig(path, metadata={"Software": None})
