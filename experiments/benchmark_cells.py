"""What a stored cell of the benchmark says: its contenders' times, its device, ratios.

Owns the reading of the stored files. Must not measure or change a number, and knows nothing of the
documents that are made of them.
"""

import json
from pathlib import Path
from typing import Any

from mobilenets_jax.errors import InputError

RESULTS = Path(__file__).parent / "results" / "benchmark"
RUNS = ("run", "compared")  # A cell's, by number: in which it was measured, and last compared.
MODELS = {"v1": "V1", "v2": "V2", "v3_large": "V3-Large", "v3_small": "V3-Small"}


def load(directory: Path = RESULTS) -> list[dict[str, Any]]:
    """Returns every cell of the stored files, with its file's `kind` and its `run` in it.

    Raises:
        InputError: a file is not one that the benchmark wrote.
    """
    cells: list[dict[str, Any]] = []
    for path in sorted(directory.glob("*.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            cells += [
                {
                    **cell,
                    "kind": results["kind"],
                    **{key: results["runs"][cell[key]] for key in RUNS if key in cell},
                }
                for cell in results["cells"]
            ]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is not a benchmark's result: remove it.") from error
    return cells


def timed_in(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The contenders of a cell that have a time."""
    return {n: r for n, r in cell["contenders"].items() if "median_seconds" in r}


def device_of(cell: dict[str, Any]) -> str:
    """Returns the device that a cell was measured on: the processor's name for "cpu"."""
    devices = [record["device"] for record in timed_in(cell).values()]
    return cell["run"]["processor"] if not devices or devices[0] == "cpu" else devices[0]


def best_torch(cell: dict[str, Any]) -> str | None:
    """Returns the name of PyTorch's fastest setting in a cell, None if it was not measured."""
    torch = {n: r["median_seconds"] for n, r in timed_in(cell).items() if n.startswith("torch")}
    return min(torch, key=torch.__getitem__, default=None)


def ratio(cell: dict[str, Any], name: str | None) -> str:
    """Returns a contender's time over ours as text, or why there is none."""
    records, timed = cell["contenders"], timed_in(cell)
    if name in timed and "ours" in timed:
        return f"{timed[name]['median_seconds'] / timed['ours']['median_seconds']:.2f}×"
    reasons = [r for n, r in records.items() if n.split()[0] == (name or "torch")]
    if not reasons or name in timed:
        return "–"
    if "failed" in reasons[0]:
        return "failed"
    return "not installed" if "not installed" in reasons[0]["left_out"] else "–"


def table_row(*values: Any) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(str(value) for value in values)} |"
