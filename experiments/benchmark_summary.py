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
    "training": "**Training step**: the naive twin / PyTorch's best",
    "inference": "**Inference**: PyTorch's best / LiteRT / ONNX Runtime",
}


def render(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the tables, of the device that was measured last: a row for each size and batch.

    Args:
        cells: as `benchmark_report.load` returns them; networks in float32 are shown.
    """
    shown = [
        cell for cell in cells if cell["kind"] == "networks" and cell["cell"]["dtype"] == "float32"
    ]
    last = max(shown, key=lambda cell: cell["run"]["date"])
    device, date = device_of(last), last["run"]["date"][:10]
    lines = [f"Of {device}, {date}:"]
    for task, against in _AGAINST.items():
        rows: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
        for cell in shown:
            key = cell["cell"]
            if key["task"] == task and device_of(cell) == device:
                size = (-key["resolution"], -key["threads"], key["batch"])
                rows.setdefault(size, {})[key["model"]] = cell
        head = (_HEADS[task], *MODELS.values())
        lines += ["", table_row(*head), table_row("---", *["---:"] * len(MODELS))]
        for size in sorted(rows):
            resolution, threads, batch = -size[0], -size[1], size[2]
            name = f"{resolution} × {resolution}, batch {batch}"
            name += ", one thread" * (threads == 1)
            ratios = (_ratios(rows[size].get(model), against) for model in MODELS)
            lines.append(table_row(name, *ratios))
    return "\n".join(lines)


def _ratios(cell: dict[str, Any] | None, against: Sequence[str]) -> str:
    """Other times over ours, those below 1, where ours is slower, in bold."""
    if cell is None:
        return "–"
    names = [best_torch(cell) if name == "torch" else name for name in against]
    texts = [ratio(cell, name) if name else "–" for name in names]
    return " / ".join(f"**{text}**" if text.startswith("0") else text for text in texts)
