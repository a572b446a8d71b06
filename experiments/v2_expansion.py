"""Which expansion t is best (V2, section 4)?

    python -m experiments.sweep experiments/v2_expansion.py --workdir=DIR --scale=small --seeds=3

The paper finds 5 to 10 nearly equal, somewhat less better for small networks, and takes 6; it
prints no numbers, and says nothing of less than 5 for one of α = 1. It compares curves, of accuracy
against MACs, and a larger t costs more at the same width: so some t are there twice, at the width
of the others, and at the MACs of t = 6.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 19 min at small scale with
3 seeds.

Finding: not measured.
"""

from experiments.ablation import (
    ALPHA,
    Comparison,
    PaperPoint,
    Run,
    alpha_for,
    compare,
    cost,
    network,
)

MODEL = "mobilenet_v2"
SOURCE = "MobileNetV2 (arXiv:1801.04381v4), section 4"
PAPER: list[PaperPoint] = []
OWN = 6
WIDE = {"smoke": (1, 3), "small": (1, 2, 3, 4, 5, 7, 8), "full": (1, 2, 3, 4, 5, 7, 8)}
COSTLY = {"smoke": (3,), "small": (2, 4, 8), "full": (2, 4, 8)}


def runs(scale: str) -> list[Run]:
    """Every t: the paper's, then others of its width, then others of its MACs."""
    own = network(scale, MODEL, expansion=OWN)
    macs = cost(own).macs
    alphas = {t: alpha_for(scale, MODEL, macs, expansion=t) for t in COSTLY[scale]}
    return [
        own,
        *(network(scale, MODEL, expansion=t) for t in WIDE[scale]),
        *(network(scale, MODEL, alpha, expansion=t) for t, alpha in alphas.items()),
    ]


def comparisons(scale: str) -> list[Comparison]:
    """The paper's t against each of the others."""
    own, *others = runs(scale)
    found = []
    for other in others:
        same = "width" if other.factors["alpha"] == ALPHA[scale] else "MACs"
        t = other.factors["expansion"]
        sign = 0 if t >= 5 and same == "MACs" else None
        words = "against" if sign is None else "is as good as"
        claim = f"Expansion {OWN} {words} {t}, at the same {same}"
        found.append(compare(claim, own, other, SOURCE, sign=sign))
    return found
