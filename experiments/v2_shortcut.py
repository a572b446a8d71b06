"""Where should the shortcut be: between bottlenecks, between expansions, or nowhere (V2, Fig. 6b)?

    python -m experiments.sweep experiments/v2_shortcut.py --workdir=DIR --scale=small --seeds=3

The figure's curves end at 71.0, 70.6 and 69.6 %.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 6 min at small scale with
3 seeds.

Finding: not measured.
"""

from experiments.ablation import Comparison, Run, compare, difference, network, points

MODEL = "mobilenet_v2"
PAPER = points("v2", "fig6b", model=MODEL)


def runs(scale: str) -> list[Run]:
    """The three shortcuts."""
    kinds = ("bottleneck", "expansion", "none")
    return [network(scale, MODEL, shortcut=kind) for kind in kinds]


def comparisons(scale: str) -> list[Comparison]:
    """The others against the paper's."""
    bottleneck, *others = runs(scale)
    claims = (
        "Shortcuts between expansions are worse than between bottlenecks",
        "No shortcuts are worse than shortcuts between bottlenecks",
    )
    return [
        compare(
            claim,
            other,
            bottleneck,
            PAPER[0].source,
            difference(PAPER, {"shortcut": other.factors["shortcut"]}, {"shortcut": "bottleneck"}),
        )
        for claim, other in zip(claims, others, strict=True)
    ]
