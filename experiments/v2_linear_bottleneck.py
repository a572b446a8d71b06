"""Does a non-linearity after the bottleneck hurt (V2, section 3.2 and Fig. 6a)?

    python -m experiments.sweep experiments/v2_linear_bottleneck.py --workdir=DIR --scale=small

The text says that it hurts by several percent; the figure's curves end at 71.0 and 70.4 %.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 4 min at small scale with
3 seeds.

Finding: at small scale with 3 seeds ReLU6 after the bottlenecks is 3.5 points worse in the mean, as
in the paper, but the interval is ± 4.5: not resolved.
"""

from experiments.ablation import Comparison, Run, compare, difference, network, points

MODEL = "mobilenet_v2"
PAPER = points("v2", "fig6a", model=MODEL)


def runs(scale: str) -> list[Run]:
    """Linear bottlenecks, and ReLU6 there."""
    return [network(scale, MODEL, linear_bottleneck=linear) for linear in (True, False)]


def comparisons(scale: str) -> list[Comparison]:
    """ReLU6 against linear."""
    linear, relu6 = runs(scale)
    paper = difference(PAPER, {"linear_bottleneck": False}, {"linear_bottleneck": True})
    claim = "ReLU6 after the bottlenecks is worse than linear bottlenecks"
    return [compare(claim, relu6, linear, PAPER[0].source, paper)]
