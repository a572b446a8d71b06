"""The benchmark's rounds on cores that were near to each other, and on cores that were far.

Owns this table of docs/benchmarks.md. Must not measure or change a number (`handover` measures).
"""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.benchmark_cells import MODELS, best_torch, table_row, timed_in
from experiments.handover import FAR

_TASKS = ("training", "inference")
_INTRO = f"""\
Around every round, a thread adds to 256 KiB on one core just after it did so on the other, and then
once more; the first time over the second is the *handover* (`experiments/handover.py`). In a *far*
round it was more than {FAR:g} both before and after, in a *near* one neither. Medians are of the
rounds in which that was so for ours and for PyTorch's best; other rounds are left out here, and in
no other table."""


def table(cells: list[dict[str, Any]]) -> list[str]:
    """Near and far rounds by themselves, where ours or PyTorch's best met far ones."""
    columns = ("rounds", "ours ms", "PyTorch ms", "ratio")
    head = [
        *("model", "task", "px", "batch", "dtype"),
        *(f"{side}: {column}" for side in ("near", "far") for column in columns),
    ]
    rows = []
    for cell in sorted(cells, key=_order):
        handovers = [h for record in _ours_and_best(cell) for h in record.get("handovers", ())]
        if not any(_side(pair) == "far" for pair in handovers):
            continue
        found = _by_side(cell)
        values: list[Any] = []
        for side in ("near", "far"):
            pairs = found.get(side, [])
            own, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
            ratios = [b / a for a, b in pairs]
            values += [len(pairs), _milliseconds(own), _milliseconds(theirs)]
            values.append(f"{statistics.median(ratios):.2f}" if ratios else "–")
        key = cell["cell"]
        sizes = (key["task"], key["resolution"], key["batch"], key["dtype"])
        rows.append(table_row(MODELS[key["model"]], *sizes, *values))
    if not rows:
        return []
    title = "### Rounds with the cores near to and far from each other"
    return ["", title, "", _INTRO, "", table_row(*head), table_row("---", *["---:"] * 12), *rows]


def _side(handovers: Sequence[float]) -> str:
    """Whether cores were "near" or "far" in a round, or either; of the handovers around it."""
    far = {handover > FAR for handover in handovers}
    return "either" if len(far) > 1 else "far" if far == {True} else "near"


def _ours_and_best(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """What is stored of ours and of PyTorch's best, of either nothing if it has no time."""
    return [timed_in(cell).get(name or "", {}) for name in ("ours", best_torch(cell))]


def _by_side(cell: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Side -> our seconds and those of PyTorch's best in each round in which both had that side."""
    rounds = [
        zip(map(_side, record.get("handovers", ())), record.get("round_seconds", ()), strict=False)
        for record in _ours_and_best(cell)
    ]
    found: dict[str, list[tuple[float, float]]] = {}
    for (side, own), (same, theirs) in zip(*rounds, strict=False):
        if side == same:
            found.setdefault(side, []).append((own, theirs))
    return found


def _milliseconds(seconds: Sequence[float]) -> str:
    """The median."""
    if not seconds:
        return "–"
    value = 1e3 * statistics.median(seconds)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _order(cell: dict[str, Any]) -> tuple[Any, ...]:
    key = cell["cell"]
    sizes = (-key["resolution"], -key["threads"], key["dtype"] != "float32")
    return (
        _TASKS.index(key["task"]),
        *sizes,
        list(MODELS).index(key["model"]),
        key["batch"],
    )
