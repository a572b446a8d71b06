"""Is the inverted residual block better than the classical one (V2, section 3.3 and Fig. 3)?

    python -m experiments.sweep experiments/v2_inverted_vs_residual.py --workdir=DIR --scale=small

The paper prefers the inverted one and prints no number. Classical is wide–narrow–wide here, with
the same chain of 1×1 layers: the depthwise convolution moves to the narrow tensor and the shortcut
to the wide one. That costs more, 394 million MACs for 301 at full scale: wide layers move before
the strides, and the last 1×1 meets a wide tensor. So there are two classical networks, of the same
width and of the same MACs.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 5 min at small scale with
3 seeds.

Finding: at small scale with 3 seeds the inverted block is 3.9 ± 3.8 points better than the
classical one of the same width, and 6.1 ± 2.6 than the one of the same MACs: both resolved, and as
the paper says.
"""

from experiments.ablation import Comparison, PaperPoint, Run, alpha_for, compare, cost, network

MODEL = "mobilenet_v2"
SOURCE = "MobileNetV2 (arXiv:1801.04381v4), section 3.3"
PAPER: list[PaperPoint] = []


def runs(scale: str) -> list[Run]:
    """Inverted, classical as wide, and classical at the MACs of inverted."""
    inverted = network(scale, MODEL, residual="inverted")
    alpha = alpha_for(scale, MODEL, cost(inverted).macs, residual="classical")
    return [
        inverted,
        network(scale, MODEL, residual="classical"),
        network(scale, MODEL, alpha, residual="classical"),
    ]


def comparisons(scale: str) -> list[Comparison]:
    """Inverted against both."""
    inverted, as_wide, at_cost = runs(scale)
    claim = "Inverted is better than classical of the same"
    return [
        compare(f"{claim} {same}", inverted, other, SOURCE, sign=1)
        for same, other in (("width", as_wide), ("MACs", at_cost))
    ]
