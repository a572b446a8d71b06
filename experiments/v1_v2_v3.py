"""What did the generations bring, at equal MACs?

    python -m experiments.sweep experiments/v1_v2_v3.py --workdir=DIR --scale=small --seeds=3

Each of the four networks is made as wide as it takes to cost what a reference does; costs find the
width, and the MACs agree to a tenth, since channels are multiples of 8. The papers, at about equal
MACs: V2 is 4.1 points better than V1 (585 and 575 million as printed; V2, Table 4), V3-Small 6.6
better than V2 (56 and 59 million; V3, Table 3). On ImageNet each network has its own paper's
recipe, and so the papers' difference is one of recipes too; the small data sets have one recipe.

Estimated time on two CPU cores: 2 min at smoke scale with 2 seeds, 17 min at small scale with
3 seeds.

Finding: not measured.
"""

from experiments.ablation import (
    CONFIGS,
    Comparison,
    Run,
    alpha_for,
    compare,
    cost,
    difference,
    network,
    points,
)

V1, V2, LARGE, SMALL = CONFIGS
PAPER = [*points("v2", "table4"), *points("v3", "table3")]
# The networks whose MACs the others get, and what the papers say near there, as a pair of models
# and their points.
V2_V1 = ((V2, V1), {"model": V2, "alpha": 1.4}, {"model": V1})
SMALL_V2 = ((SMALL, V2), {"model": SMALL, "alpha": 1.0}, {"model": V2, "alpha": 0.35})
REFERENCES = {
    "smoke": ((V2, 0.25, SMALL_V2),),
    "small": ((V1, 0.5, V2_V1), (V2, 0.35, SMALL_V2)),
    "full": ((V1, 1.0, V2_V1), (V2, 0.35, SMALL_V2)),
}
SOURCES = {V2: PAPER[0].source, LARGE: PAPER[-1].source, SMALL: PAPER[-1].source}


def _groups(scale: str) -> list[dict[str, Run]]:
    """For each reference, the run of each network."""
    groups = []
    for reference, reference_alpha, _ in REFERENCES[scale]:
        macs = cost(network(scale, reference, reference_alpha)).macs
        alphas = {model: alpha_for(scale, model, macs) for model in CONFIGS}
        alphas[reference] = reference_alpha
        groups.append({model: network(scale, model, alphas[model]) for model in CONFIGS})
    return groups


def runs(scale: str) -> list[Run]:
    """Every network at the MACs of every reference."""
    return [run for group in _groups(scale) for run in group.values()]


def comparisons(scale: str) -> list[Comparison]:
    """V2 against V1, V3 against V2, and V3-Small against V3-Large."""
    found = []
    for group, reference in zip(_groups(scale), REFERENCES[scale], strict=True):
        stated, its, others = reference[2]
        million = cost(group[reference[0]]).macs / 1e6
        for a, b in ((V2, V1), (LARGE, V2), (SMALL, V2), (SMALL, LARGE)):
            claim = f"{a} is better than {b} at {million:.3g} million MACs"
            paper = difference(PAPER, its, others) if (a, b) == stated else None
            found.append(compare(claim, group[a], group[b], SOURCES[a], paper))
    return found
