"""Where should the shortcut be: between bottlenecks, between expansions, or nowhere (V2, Fig. 6b)?

    python -m experiments.sweep experiments/v2_shortcut.py --workdir=DIR --scale=small --seeds=3

The paper finds the bottlenecks best, expansions 0.4 points and no shortcut 1.4 points worse.

Finding: not measured.
"""

from experiments.ablation import Comparison, PaperPoint, Run, compare, network, points, table

MODEL = "mobilenet_v2"
SOURCE = table("v2", "fig6b")["source"]
PAPER: list[PaperPoint] = points("v2", "fig6b", model=MODEL)


def runs(scale: str) -> list[Run]:
    """The three shortcuts."""
    return [network(scale, MODEL, shortcut=kind) for kind in ("bottleneck", "expansion", "none")]


def comparisons(scale: str) -> list[Comparison]:
    """Each of the others against the paper's."""
    bottleneck, expansion, none = runs(scale)
    return [
        compare(
            "Shortcuts between expansions are worse than between bottlenecks",
            expansion,
            bottleneck,
            -0.4,
            SOURCE,
        ),
        compare("No shortcuts are worse than shortcuts", none, bottleneck, -1.4, SOURCE),
    ]
