"""README's tables of ratios, from the results that experiments.benchmark stored.

Owns which rows they have and in which order. Must not measure or change a number, and knows
nothing of README but the marks that the tables stand between.
"""

from collections.abc import Sequence
from typing import Any

from experiments.benchmark_report import MODELS, best_torch, device_of, ratio, table_row

# Task -> whose times, "torch" being PyTorch's fastest setting in the row.
_AGAINST = {"training": ("naive", "torch"), "inference": ("torch", "litert", "onnxruntime")}
_HEADS = {
    "training": "**Training steps**: the naive twin in Flax / PyTorch's best",
    "inference": "**Inference**: PyTorch's best / LiteRT / ONNX Runtime",
}


def render(cells: Sequence[dict[str, Any]]) -> str:
    """Returns a table for each task: a row for each processor, date, size of images and batch.

    Args:
        cells: as `benchmark_report.load` returns them; networks in float32 are shown.
    """
    lines: list[str] = []
    for task, against in _AGAINST.items():
        rows: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for cell in cells:
            key = cell["cell"]
            if (cell["kind"], key.get("task"), key["dtype"]) == ("networks", task, "float32"):
                size = (-key["resolution"], -key["threads"], key["batch"])
                place = (cell["run"]["date"][:10], device_of(cell), *size)
                rows.setdefault(place, {})[key["model"]] = cell
        head = ("measured", "on", "images", "threads", "batch", *MODELS.values())
        lines += ["", _HEADS[task], "", table_row(*head), table_row(*["---"] * 2, *["---:"] * 7)]
        newest = sorted({(date, device) for date, device, *_ in rows}, reverse=True)
        for place in sorted(rows, key=lambda place: (newest.index(place[:2]), place[2:])):
            date, device, resolution, threads, batch = place
            size = (f"{-resolution} × {-resolution}", -threads, batch)
            ratios = (_ratios(rows[place].get(model), against) for model in MODELS)
            lines.append(table_row(date, device, *size, *ratios))
    return "\n".join(lines[1:])


def _ratios(cell: dict[str, Any] | None, against: Sequence[str]) -> str:
    """Other times over ours, those below 1, where ours is slower, in bold."""
    if cell is None:
        return "–"
    names = [best_torch(cell) if name == "torch" else name for name in against]
    texts = [ratio(cell, name) if name else "–" for name in names]
    return " / ".join(f"**{text}**" if text.startswith("0") else text for text in texts)
