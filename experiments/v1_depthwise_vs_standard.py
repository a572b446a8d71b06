"""What do depthwise separable convolutions lose against standard ones (V1, Table 4)?

    python -m experiments.sweep experiments/v1_depthwise_vs_standard.py --workdir=DIR --scale=small

The paper: 1.1 points of accuracy, for 8.6 times fewer MACs and 7.0 times fewer parameters. What
that is in time is the question of `depthwise_multiplier_cost`.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 5 min at small scale with
3 seeds.

Finding: at small scale with 3 seeds standard convolutions are 3.3 ± 1.2 points better, which is
resolved and of the paper's sign, for 8.2 times the MACs and 8.6 times the parameters. Other
programs ran beside the trainings: their seconds say nothing.
"""

from experiments.ablation import Comparison, Run, compare, difference, network, points

MODEL = "mobilenet_v1"
PAPER = points("v1", "table4", model=MODEL)


def runs(scale: str) -> list[Run]:
    """Depthwise separable convolutions, and standard ones."""
    return [network(scale, MODEL, standard_conv=on) for on in (False, True)]


def comparisons(scale: str) -> list[Comparison]:
    """Standard against depthwise."""
    depthwise, standard = runs(scale)
    paper = difference(PAPER, {"standard_conv": True}, {"standard_conv": False})
    claim = "Standard convolutions are better than depthwise separable ones"
    return [compare(claim, standard, depthwise, PAPER[0].source, paper)]
