"""The report's interactive plots, as Plotly's JSON: {"data": traces, "layout": layout}.

Owns what they show on the page; report_plots.py draws the same as PNGs. Must not compute a
statistic. Colours of text and grid are the page's, which follows the reader's light or dark theme.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

from experiments import ablation, report_data, report_plots
from experiments.intervals import Estimate
from experiments.report_data import Judgement, Record

Figure = dict[str, Any]

_DASHES = ("solid", "dash", "dot", "dashdot")
_FILLS = ("", "-open", "-dot", "-open-dot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "pentagon")
_GREY = "#808080"
_MOST_POINTS = 300  # of a training curve; more cannot be seen


def differences(judgements: Sequence[Judgement]) -> Figure:
    """Returns a row for each comparison of accuracies: ours with its interval, and the paper's."""
    shown = report_plots.comparable(judgements)
    rows = list(range(len(shown)))
    found = [j.difference for j in shown if j.difference]
    texts = [
        f"{_text(j.comparison.claim)}<br>a: {_text(j.comparison.a)}<br>b: {_text(j.comparison.b)}"
        for j in shown
    ]
    blue, orange = report_plots.COLOURS[:2]
    ours = {
        "type": "scatter",
        "mode": "markers",
        "name": "ours, 95 % interval (filled: resolved)",
        "x": [one.mean for one in found],
        "y": [row - 0.1 for row in rows],
        "error_x": {**_bars(found), "color": blue},
        "marker": {
            "size": 10,
            "color": blue,
            "symbol": ["circle" if j.resolved else "circle-open" for j in shown],
            "line": {"width": 2, "color": blue},
        },
        "text": [f"{t}<br>{_interval(one)}" for t, one in zip(texts, found, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    papers = [(row, j) for row, j in enumerate(shown) if j.comparison.paper is not None]
    theirs = {
        "type": "scatter",
        "mode": "markers",
        "name": "the paper's",
        "x": [j.comparison.paper for _, j in papers],
        "y": [row + 0.14 for row, _ in papers],
        "marker": {"size": 9, "color": orange, "symbol": "diamond"},
        "text": [
            f"{_text(j.comparison.source)}<br>{j.comparison.paper:+g} points" for _, j in papers
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    claims = [_text(report_plots.wrap(j.comparison.claim, 50)) for j in shown]
    layout = {
        "height": 150 + 56 * len(shown),
        "xaxis": {"title": {"text": "difference of accuracy, percentage points"}, "zeroline": True},
        "yaxis": {
            "tickvals": rows,
            "ticktext": [claim.replace("\n", "<br>") for claim in claims],
            "range": [len(shown) - 0.5, -0.5],
            "automargin": True,
            "zeroline": False,
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"t": 50, "r": 20},
    }
    return {"data": [ours, *([theirs] if papers else [])], "layout": layout}


def tradeoff(record: Record, paper: Sequence["ablation.PaperPoint"]) -> Figure:
    """Returns accuracy against MACs, or parameters at a button's press, beside the paper's."""
    runs = record["runs"]
    shown = report_data.axes(runs)
    lines = report_data.lines(runs, shown)
    markers = report_plots.marker_values(runs, shown.marker)
    groups = report_data.groups(runs, shown)
    # A trace's x for each cost; the button exchanges them.
    traces: list[Figure] = []
    costs: list[dict[str, list[Any]]] = []
    named: set[str] = set()
    every = [run for line in lines for run in line.runs]
    x = {cost: report_plots.beside(every, cost) for cost in report_plots.COSTS}
    for line in lines:
        members = line.runs
        found = [one for run in members if (one := report_data.accuracy(run))]
        colour, cycle = report_plots.look(line.colour)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(members) > 1 else "markers",
                "name": _text(line.group) or "ours",
                "legendgroup": _text(line.group),
                "showlegend": line.group not in named,
                "y": [one.mean for one in found],
                "error_y": {**_bars(found), "color": colour, "thickness": 1.2, "width": 4},
                "line": {"color": colour, "dash": _DASHES[cycle], "width": 1.6},
                "marker": _marker(line.colour, [run["factors"] for run in members], shown, markers),
                "text": [_hover(run, one) for run, one in zip(members, found, strict=True)],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        costs.append({c: [x[c][run["name"]] for run in members] for c in report_plots.COSTS})
        named.add(line.group)
    rings: dict[str, list[Any]] = {}
    for cost in report_plots.COSTS:
        front = report_data.front(runs, cost)
        on = sorted((run for run in runs if run["name"] in front), key=lambda run: run[cost])
        rings[cost] = [
            (x[cost][run["name"]], one.mean)
            for run in on
            if (one := report_data.accuracy(run)) is not None
        ]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Pareto front",
            "y": [y for _, y in rings["macs"]],
            "line": {"color": _GREY, "dash": "dot", "width": 1, "shape": "hv"},
            "marker": {"symbol": "circle-open", "size": 17, "color": _GREY, "line": {"width": 2}},
            "hoverinfo": "skip",
        }
    )
    costs.append({cost: [x for x, _ in rings[cost]] for cost in report_plots.COSTS})
    ring = len(traces) - 1
    if shown.marker:
        for value in markers:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{_text(report_data.symbol(shown.marker))} = {_text(value)}",
                    "y": [None],
                    "marker": _marker(None, [{shown.marker: value}], shown, markers),
                    "hoverinfo": "skip",
                }
            )
            costs.append({cost: [None] for cost in report_plots.COSTS})
    points = report_plots.drawable(paper)
    for (group, _), papers in report_data.paper_lines(points, runs, shown).items():
        traces.append(_paper(group, papers, shown, groups, markers, group not in named))
        costs.append({c: [getattr(p, c) for p in papers] for c in report_plots.COSTS})
        named.add(group)
    for trace, by_cost in zip(traces, costs, strict=True):
        trace["x"] = by_cost["macs"]
    data = " and ".join(map(str, record["settings"].get("data set", ["?"])))
    layout: Figure = {
        "height": 560,
        "xaxis": {"title": {"text": "MACs"}, "exponentformat": "SI"},
        "yaxis": {"title": {"text": f"test accuracy on {_text(data)}, averaged weights (%)"}},
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
        "margin": {"t": 60, "r": 20},
        "updatemenus": [_buttons(costs, rings, ring, traces)],
    }
    if points:
        layout["xaxis"]["domain"] = [0, 0.46]
        layout["xaxis2"] = {**layout["xaxis"], "domain": [0.56, 1], "anchor": "y2"}
        layout["yaxis2"] = {
            "title": {"text": "the paper's top-1 on ImageNet (%)"},
            "anchor": "x2",
        }
    for axis in ("xaxis", "xaxis2")[: 1 + bool(points)]:
        layout[axis] |= _scale(traces, costs, axis, "macs")
    return {"data": traces, "layout": layout}


def _buttons(
    costs: list[dict[str, list[Any]]],
    rings: dict[str, list[Any]],
    ring: int,
    traces: list[Figure],
) -> Figure:
    """Returns the buttons that choose the axis of costs."""
    buttons = []
    for cost, name in report_plots.COSTS.items():
        heights = [trace["y"] for trace in traces]
        heights[ring] = [y for _, y in rings[cost]]
        titles: Figure = {}
        for axis in dict.fromkeys(trace.get("xaxis", "x") for trace in traces):
            axis = f"xaxis{axis[1:]}"
            titles[f"{axis}.title.text"] = name
            scale = _scale(traces, costs, axis, cost)
            titles |= {f"{axis}.{key}": value for key, value in scale.items()}
        buttons.append(
            {
                "label": name,
                "method": "update",
                "args": [{"x": [one[cost] for one in costs], "y": heights}, titles],
            }
        )
    return {
        "type": "buttons",
        "showactive": False,  # its colour is Plotly's, light; the axis says what was pressed
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "y": 1.02,
        "xanchor": "left",
        "yanchor": "bottom",
    }


def _scale(traces: list[Figure], costs: list[dict[str, list[Any]]], axis: str, cost: str) -> Figure:
    """Returns an axis' type, range and ticks."""
    values = [
        value
        for trace, by_cost in zip(traces, costs, strict=True)
        if f"xaxis{trace.get('xaxis', 'x')[1:]}" == axis
        for value in by_cost[cost]
        if value
    ]
    low, high, logarithmic = report_plots.cost_range(values)
    if not logarithmic:
        return {"type": "linear", "range": [low, high], "dtick": None}
    # Ticks at 1, 2 and 5.
    return {"type": "log", "range": [math.log10(low), math.log10(high)], "dtick": "D2"}


def _paper(
    group: str,
    members: Sequence[Any],
    shown: report_data.Axes,
    groups: dict[str, int],
    markers: list[Any],
    first: bool,
) -> Figure:
    """Returns a line of the paper's points as a trace of the right panel, without its x."""
    number = groups.get(group)
    colour, cycle = (_GREY, 0) if number is None else report_plots.look(number)
    return {
        "type": "scatter",
        "mode": "lines+markers" if shown.line and len(members) > 1 else "markers",
        "name": f"{_text(group)}, the paper's".removeprefix(", "),
        "legendgroup": _text(group),
        "showlegend": first and bool(group),
        "xaxis": "x2",
        "yaxis": "y2",
        "y": [100 * point.accuracy for point in members],
        "line": {"color": colour, "dash": _DASHES[cycle], "width": 1.2},
        "marker": _marker(number, [point.factors for point in members], shown, markers),
        "text": [
            f"{_text(_factors(p.factors))}<br>{100 * p.accuracy:.1f} %<br>"
            f"MACs {_count(p.macs)}, parameters {_count(p.params)}<br>{_text(p.source)}"
            for p in members
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def curves(record: Record, found: dict[str, Any]) -> Figure:
    """Returns training loss and test accuracy of each run, means over seeds."""
    groups = report_plots.curve_groups(record)
    traces: list[Figure] = []
    named: set[str] = set()
    for run in record["runs"]:
        group = report_plots.curve_group(record, run)
        colour, cycle = report_plots.look(groups[group])
        for split, scale, number in (("train", 1, ""), ("test_ema", 100, "2")):
            points = found.get(run["name"], {}).get(split, [])
            if not points:
                continue
            step = -(-len(points) // _MOST_POINTS)
            points = points[::-step][::-1]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(points) <= 10 else "lines",
                    "name": _text(group) or "ours",
                    "legendgroup": _text(group),
                    "showlegend": group not in named,
                    "xaxis": f"x{number}",
                    "yaxis": f"y{number}",
                    "x": [epoch for epoch, _ in points],
                    "y": [scale * value for _, value in points],
                    "line": {"color": colour, "dash": _DASHES[cycle], "width": 1.6},
                    "marker": {"symbol": f"circle{_FILLS[cycle]}"},
                    "hovertemplate": f"{_text(run['name'])}<br>epoch %{{x}}: %{{y:.4g}}"
                    "<extra></extra>",
                }
            )
            named.add(group)
    layout = {
        "height": 460,
        "xaxis": {"title": {"text": "epoch"}, "domain": [0, 0.46], "rangemode": "tozero"},
        "yaxis": {"title": {"text": "training loss"}},
        "xaxis2": {
            "title": {"text": "epoch"},
            "domain": [0.56, 1],
            "anchor": "y2",
            "rangemode": "tozero",
        },
        "yaxis2": {"title": {"text": "test accuracy, averaged weights (%)"}, "anchor": "x2"},
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
        "margin": {"t": 20, "r": 20},
    }
    return {"data": traces, "layout": layout}


def _hover(run: Record, found: Any) -> str:
    return (
        f"{_text(run['name'])}<br>{_interval(found)} %<br>"
        f"MACs {_count(run['macs'])}, parameters {_count(run['params'])}, "
        f"{run['resolution']} pixels"
    )


def _interval(found: Any) -> str:
    half = "–" if found.half is None else f"{found.half:.2f}"
    return f"{found.mean:.2f} ± {half}, n = {found.n}"


def _bars(found: Sequence[Estimate]) -> Figure:
    """Returns the intervals; without any, Plotly would draw their ends in the points."""
    halves = [one.half for one in found]
    return {"type": "data", "array": halves, "visible": any(halves)}


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _factors(factors: dict[str, Any]) -> str:
    names = (report_data.factor(name, value) for name, value in factors.items())
    return ", ".join(filter(None, names))


def _marker(
    number: int | None,
    factors: Sequence[dict[Any, Any]],
    shown: report_data.Axes,
    markers: list[Any],
) -> Figure:
    """Returns the markers of a group's points, of which these are the factors."""
    colour, cycle = (_GREY, 0) if number is None else report_plots.look(number)
    values = [one.get(shown.marker) if shown.marker else None for one in factors]
    shapes = [
        _SYMBOLS[markers.index(value) % len(_SYMBOLS)] if value in markers else "star"
        for value in values
    ]
    return {
        "color": colour,
        "size": 9,
        "symbol": [f"{shape}{_FILLS[cycle]}" for shape in shapes],
        "line": {"width": 1.5 * (cycle > 0), "color": "#ffffff"},  # of dots; open ones have none
    }


def _text(value: Any) -> str:
    """Returns data as Plotly's labels show it as it is: they understand some of HTML."""
    return html.escape(str(value), quote=False)
