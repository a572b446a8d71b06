"""What do width, resolution and activation cost and buy, for V1, V2 and V3?

    python -m experiments.sweep experiments/alpha_beta_activation.py --workdir=DIR --scale=small

The trade-off of accuracy against MACs: V1's Tables 6 and 7 and Fig. 4, V2's of TF-slim's README
(the paper draws it in Fig. 5), V3's Table 9. The papers vary the activation in V3 alone (Table 5,
which is `v3_components`). "paper" is V3's own mixture of ReLU and h-swish; V1's and V2's own is
ReLU6 (V1's text says ReLU; its published networks have ReLU6).

At full scale each network has its whole grid, at small scale V2 has; the others, and all at smoke
scale, have a star: from one network, one step in each direction.

Estimated time on two CPU cores: 6 min at smoke scale with 2 seeds, 50 min at small scale with
3 seeds.

Finding: of V2's grid at small scale with 3 seeds (V1 and V3: not measured), a wider network and
more pixels are better in the mean, as in the papers, and so is h-swish instead of ReLU6 in five of
six networks, but one of the 15 differences is resolved: with so short a training, seeds move the
accuracy by half a point and more. Other programs ran beside the trainings: their seconds say
nothing.
"""

from experiments.ablation import (
    ALPHA,
    CONFIGS,
    Comparison,
    PaperPoint,
    Run,
    compare,
    difference,
    neighbours,
    network,
    points,
    unique,
)

V1, V2, LARGE, SMALL = CONFIGS
OWN = {V1: "relu6", V2: "relu6", LARGE: "paper", SMALL: "paper"}
PAPER: list[PaperPoint] = [
    *points("v1", "table6", model=V1, activation=OWN[V1]),
    *points("v1", "table7", model=V1, activation=OWN[V1]),
    *points("v1", "fig4", model=V1, activation=OWN[V1]),
    *points("v2", "grid", model=V2, activation=OWN[V2]),
    *points("v3", "table9_large", model=LARGE, activation=OWN[LARGE]),
    *points("v3", "table9_small", model=SMALL, activation=OWN[SMALL]),
]
# Model -> alphas, betas, activations; the network's own activation is the first.
V3_FULL = (
    (1.25, 1.0, 0.75, 0.5, 0.35),
    (1.143, 1.0, 0.857, 0.714, 0.571, 0.429),
    ("paper", "relu", "hswish"),
)
FULL = {
    V1: ((1.0, 0.75, 0.5, 0.25), (1.0, 0.857, 0.714, 0.571), ("relu6", "relu", "hswish")),
    V2: (
        (1.4, 1.3, 1.0, 0.75, 0.5, 0.35),
        (1.0, 0.857, 0.714, 0.571, 0.429),
        ("relu6", "relu", "hswish"),
    ),
    LARGE: V3_FULL,
    SMALL: V3_FULL,
}
STAR = {
    "smoke": ((0.5, 0.25), (1.0, 0.714), ("own", "hswish")),
    "small": ((0.5, 0.25), (1.0, 0.714), ("own", "hswish")),
}
ACTIVATION = "MobileNetV3 (arXiv:1905.02244v5), Table 5, of V3 alone"
SMALL_V2 = ((0.75, 0.5, 0.35), (1.0, 0.714), ("relu6", "relu", "hswish"))


def _axes(scale: str, model: str) -> tuple[tuple, tuple, tuple]:
    """Alphas, betas and activations of a network."""
    if scale == "full":
        return FULL[model]
    if (scale, model) == ("small", V2):
        return SMALL_V2
    alphas, betas, (_, other) = STAR[scale]
    return alphas, betas, (OWN[model], other)


def _is_grid(scale: str, model: str) -> bool:
    return scale == "full" or (scale, model) == ("small", V2)


def runs(scale: str) -> list[Run]:
    """The grid or the star of each network."""
    found = []
    for model in CONFIGS:
        alphas, betas, activations = _axes(scale, model)
        for alpha in alphas:
            for beta in betas:
                for activation in activations:
                    centre = (ALPHA[scale], 1.0, OWN[model])
                    steps = sum(
                        a != b for a, b in zip((alpha, beta, activation), centre, strict=True)
                    )
                    if steps <= 1 or _is_grid(scale, model):
                        found.append(network(scale, model, alpha, beta, activation=activation))
    return unique(found)


def comparisons(scale: str) -> list[Comparison]:
    """Along each axis through the network of the scale, and every activation against the own."""
    found = []
    for model in CONFIGS:
        mine = [run for run in runs(scale) if run.factors["model"] == model]
        keys = ("model", "alpha", "beta", "activation")
        for factor, constant in (("alpha", "beta"), ("beta", "alpha")):
            value = 1.0 if constant == "beta" else ALPHA[scale]
            line = [
                run
                for run in mine
                if run.factors[constant] == value and run.factors["activation"] == OWN[model]
            ]
            paper = [point for point in PAPER if point.factors["model"] == model]
            found += [
                comparison._replace(claim=f"{model}: {comparison.claim}")
                for comparison in neighbours(factor, line, paper, keys)
            ]
        own = {
            (run.factors["alpha"], run.factors["beta"]): run
            for run in mine
            if run.factors["activation"] == OWN[model]
        }
        for run in mine:
            alpha, beta, activation = (run.factors[key] for key in keys[1:])
            if activation == OWN[model]:
                continue
            claim = f"{model}, alpha {alpha}, beta {beta}: {activation} is better than {OWN[model]}"
            other = own[alpha, beta]
            paper_says = difference(PAPER, run.factors, other.factors)
            found.append(compare(claim, run, other, ACTIVATION, paper_says))
    return found
