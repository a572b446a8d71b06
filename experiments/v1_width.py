"""What does a thinner network lose (V1, Table 6)?

    python -m experiments.sweep experiments/v1_width.py --workdir=DIR --scale=small --seeds=3

The paper: accuracy falls smoothly from 70.6 to 68.4 and 63.7 %, and drops off to 50.6 % at
alpha = 0.25.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 9 min at small scale with
3 seeds.

Finding: not measured.
"""

from experiments.ablation import Comparison, Run, neighbours, network, points

MODEL = "mobilenet_v1"
PAPER = points("v1", "table6", model=MODEL)
ALPHAS = {"smoke": (0.5, 0.25), "small": (1.0, 0.75, 0.5, 0.25), "full": (1.0, 0.75, 0.5, 0.25)}


def runs(scale: str) -> list[Run]:
    """Every width."""
    return [network(scale, MODEL, alpha) for alpha in ALPHAS[scale]]


def comparisons(scale: str) -> list[Comparison]:
    """Each width against the next wider one."""
    return neighbours("alpha", runs(scale), PAPER, ("alpha",))
