"""What does a lower resolution lose (V1, Table 7)?

    python -m experiments.sweep experiments/v1_resolution.py --workdir=DIR --scale=small --seeds=3

The paper: accuracy falls smoothly, from 70.6 to 69.1, 67.2 and 64.4 %. Beta multiplies 224 pixels
on ImageNet and 32 on the small data sets, which makes 32, 28, 24 and 20.

Estimated time on two CPU cores: 1 min at smoke scale with 2 seeds, 5 min at small scale with
3 seeds.

Finding: at small scale with 3 seeds each lower resolution is worse in the mean, as in the paper; of
the three differences the first, 32 pixels against 28, is resolved (0.6 ± 0.5 points).
"""

from experiments.ablation import Comparison, Run, neighbours, network, points

MODEL = "mobilenet_v1"
PAPER = points("v1", "table7", model=MODEL)
BETAS = {"smoke": (1.0, 0.571), "small": (1.0, 0.857, 0.714, 0.571)}
BETAS["full"] = BETAS["small"]


def runs(scale: str) -> list[Run]:
    """Every resolution."""
    return [network(scale, MODEL, beta=beta) for beta in BETAS[scale]]


def comparisons(scale: str) -> list[Comparison]:
    """Each resolution against the next higher one."""
    return neighbours("beta", runs(scale), PAPER, ("beta",))
