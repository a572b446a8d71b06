"""How much of a 2-D spiral survives n random dimensions and an activation (V2, Fig. 1)?

    python -m experiments.sweep experiments/relu_information_loss.py --workdir=DIR

Points of a spiral go through a random n × 2 matrix T, through an activation, and back through the
pseudo-inverse of T. The figure shows pictures for n = 2, 3, 5, 15 and 30, no numbers: with few
dimensions ReLU collapses parts of the spiral onto each other, with 15 and more it keeps them apart.
Here other activations do the same and many T give a spread. The error is the distance relative to
the input after the best scaling, since an activation that is zero for half of its inputs halves
what the pseudo-inverse returns. "kept" is what could be recovered by anything: the share of
points of which at least two dimensions are where the activation can be undone. (h-swish has two
inputs for most of its negative outputs and is left out of that.)

Seconds at any scale; no seeds.

Finding: with more dimensions less is lost, as in the figure. After ReLU, a quarter of the spiral's
points could still be recovered at n = 2, half at n = 3, four fifths at n = 5, and all from n = 15
on; ReLU6 is like it, the error after h-swish is smaller, and without an activation there is none.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Array = np.ndarray
DIMENSIONS = (2, 3, 5, 15, 30)
MATRICES = {"smoke": 50, "small": 500, "full": 5000}
POINTS, TURNS, RADIUS = 500, 2.0, 3.0
SOURCE = "MobileNetV2 (arXiv:1801.04381v4), Fig. 1"


def _relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": _relu6,
    "hswish": lambda x: x * _relu6(x + 3) / 6,
    "linear": lambda x: x,
}
# Where an activation can be undone.
INVERTIBLE: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: x > 0,
    "relu6": lambda x: (x > 0) & (x < 6),
    "linear": lambda x: np.ones_like(x, bool),
}


def spiral() -> Array:
    """Returns the points, `[2, POINTS]`, from near the centre to `RADIUS`.

    With a T of standard normal elements, some of the outermost points reach where ReLU6 is flat.
    """
    t = np.arange(1, POINTS + 1) / POINTS
    return RADIUS * t * np.stack([np.cos(2 * np.pi * TURNS * t), np.sin(2 * np.pi * TURNS * t)])


def matrix(dimensions: int, seed: int) -> Array:
    """Returns T, `[dimensions, 2]`, of standard normal elements."""
    return np.random.default_rng([seed, dimensions]).standard_normal((dimensions, 2))


def there_and_back(x: Array, t: Array, activation: str) -> Array:
    """Returns the points as they come back, `[2, N]`."""
    return np.linalg.pinv(t) @ ACTIVATIONS[activation](t @ x)


def error(x: Array, back: Array) -> float:
    """Returns the distance of `back` from `x`, relative to x, after the best scaling of `back`."""
    scale = np.vdot(back, x) / max(np.vdot(back, back), np.finfo(float).tiny)
    return float(np.linalg.norm(x - scale * back) / np.linalg.norm(x))


def kept(x: Array, t: Array, activation: str) -> float | None:
    """Returns the share of points that could be recovered from their activations."""
    if activation not in INVERTIBLE:
        return None
    return float(np.mean(INVERTIBLE[activation](t @ x).sum(0) >= 2))


def measure(scale: str, directory: Path) -> dict[str, Any]:
    """Measures errors over many T, and draws spirals.png and error.png into the directory."""
    x = spiral()
    rows = []
    for activation in ACTIVATIONS:
        for n in DIMENSIONS:
            matrices = [matrix(n, seed) for seed in range(MATRICES[scale])]
            errors = [error(x, there_and_back(x, t, activation)) for t in matrices]
            shares = [kept(x, t, activation) for t in matrices]
            # Rounded to what is the same whichever linear algebra library computes it.
            low, median, high = (round(q, 9) for q in np.quantile(errors, (0.1, 0.5, 0.9)).tolist())
            known = [share for share in shares if share is not None]
            rows.append(
                {
                    "activation": activation,
                    "dimensions": n,
                    "error_mean": round(statistics.fmean(errors), 9),
                    "error_deviation": round(statistics.stdev(errors), 9),
                    "error_median": median,
                    "error_low": low,
                    "error_high": high,
                    "kept_mean": round(statistics.fmean(known), 9) if known else None,
                }
            )
    _draw_spirals(x, directory / "spirals.png")
    _draw_errors(rows, directory / "error.png")
    return {"source": SOURCE, "matrices": MATRICES[scale], "points": POINTS, "rows": rows}


def _draw_spirals(x: Array, path: Path) -> None:
    """One picture for each activation and n, of the first T; colour is the place on the spiral."""
    figure = Figure(figsize=(2 * (len(DIMENSIONS) + 1), 2.1 * len(ACTIVATIONS)), dpi=100)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(ACTIVATIONS), len(DIMENSIONS) + 1)
    place = np.linspace(0, 1, x.shape[1])
    for row, activation in zip(axes, ACTIVATIONS, strict=True):
        pictures = {"input": x}
        for n in DIMENSIONS:
            pictures[f"n = {n}"] = there_and_back(x, matrix(n, 0), activation)
        for panel, (title, points) in zip(row, pictures.items(), strict=True):
            panel.scatter(*points, c=place, cmap="viridis", s=3)
            panel.set(title=f"{activation}, {title}", xticks=[], yticks=[])
            panel.set_aspect("equal", adjustable="datalim")
    figure.savefig(path)


def _draw_errors(rows: list[dict[str, Any]], path: Path) -> None:
    """Median error against n, with the middle four fifths of the matrices."""
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = ("#0072b2", "#d55e00", "#009e73", "#7f7f7f")  # Okabe and Ito's
    for place, (activation, colour) in enumerate(zip(ACTIVATIONS, colours, strict=True)):
        mine = [row for row in rows if row["activation"] == activation]
        low, median, high = (
            np.array([row[f"error_{key}"] for row in mine]) for key in ("low", "median", "high")
        )
        n = np.array(DIMENSIONS) * 1.04 ** (place - 1.5)  # side by side
        bars = np.maximum([median - low, high - median], 0)
        axes.errorbar(n, median, bars, label=activation, color=colour, marker="o", capsize=3)
    axes.set(xscale="log", xlabel="dimensions n", ylabel="relative error of what comes back")
    axes.set_xticks(DIMENSIONS, [str(n) for n in DIMENSIONS])
    axes.minorticks_off()
    axes.set_ylim(bottom=-0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
