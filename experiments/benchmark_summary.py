"""README's tables of ratios, from the results that experiments.benchmark stored.

Owns which rows they have and in which order. Must not measure or change a number, and knows
nothing of README but the marks that the tables stand between.
"""

from collections.abc import Sequence
from typing import Any

from experiments.benchmark_cells import MODELS, best_torch, device_of, ratio, table_row

# Task -> whose times, "torch" being PyTorch's fastest setting in the row.
_AGAINST = {"training": ("naive", "torch"), "inference": ("torch", "litert", "onnxruntime")}
_HEADS = {
    "training": "**Training step**: the naive twin / PyTorch's best",
    "inference": "**Inference**: PyTorch's best / LiteRT / ONNX Runtime",
}


def render(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the tables, of the device that was measured last: a row for each size and batch.

    Args:
        cells: as `benchmark_cells.load` returns them; networks in float32 are shown.
    """
    shown = [
        cell for cell in cells if cell["kind"] == "networks" and cell["cell"]["dtype"] == "float32"
    ]
    if not shown:
        return "Not measured."
    last = max(shown, key=lambda cell: cell["run"]["date"])
    device, date = device_of(last), last["run"]["date"][:10]
    shown = [cell for cell in shown if device_of(cell) == device]
    most = max(cell["cell"]["threads"] for cell in shown)
    lines = [f"Of {device}, {date}:"]
    for task, against in _AGAINST.items():
        rows: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
        for cell in shown:
            key = cell["cell"]
            if key["task"] == task:
                size = (-key["resolution"], -key["threads"], key["batch"])
                rows.setdefault(size, {})[key["model"]] = cell
        if not rows:
            continue
        head = (_HEADS[task], *MODELS.values())
        lines += ["", table_row(*head), table_row("---", *["---:"] * len(MODELS))]
        for size in sorted(rows):
            resolution, threads, batch = -size[0], -size[1], size[2]
            name = f"{resolution} × {resolution}, batch {batch}"
            if threads != most:
                name += f", {threads} thread{'s' * (threads > 1)}"
            ratios = (_ratios(rows[size].get(model), against) for model in MODELS)
            lines.append(table_row(name, *ratios))
    return "\n".join(lines)


def _ratios(cell: dict[str, Any] | None, against: Sequence[str]) -> str:
    """Others' times over ours: bold where ours is slower; ~ where rounds disagree on that."""
    if cell is None:
        return "–"
    return " / ".join(_ratio(cell, best_torch(cell) if n == "torch" else n) for n in against)


def _ratio(cell: dict[str, Any], name: str | None) -> str:
    ours, other = (cell["contenders"].get(n or "", {}) for n in ("ours", name))
    if "median_seconds" not in ours or "median_seconds" not in other:
        return ratio(cell, name) if name else "–"
    rounds = zip(other["round_seconds"], ours["round_seconds"], strict=False)
    slower = {theirs < own for theirs, own in rounds}
    text = "~" * (len(slower) > 1) + ratio(cell, name)
    return f"**{text}**" if other["median_seconds"] < ours["median_seconds"] else text
