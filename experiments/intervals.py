"""Statistics of the reports: means with intervals, paired differences, the Pareto front.

Owns the arithmetic, on plain numbers. Must not know where a number came from or how it is shown.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import special

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with Student's t interval.

    Attributes:
        mean: of the values.
        half: half the interval's width; None where one value says nothing of the spread.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int


def quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Returns the t for which Student's distribution has `confidence` between −t and t."""
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Returns mean and interval of independent values, of a normal distribution; None of none."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, quantile(n - 1, confidence) * math.sqrt(variance / n), n)


def paired(
    a: Mapping[Any, float], b: Mapping[Any, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Returns mean and interval of a − b over the keys (seeds, rounds) that both have."""
    return estimate([a[key] - b[key] for key in a if key in b], confidence)


def resolved(difference: Estimate | None) -> bool:
    """Whether a difference's interval excludes 0.

    Where all differences are equal there is no spread to judge by, and an interval of width 0 is
    no evidence: accuracies over few images take few values.
    """
    if difference is None or difference.half is None:
        return False
    return abs(difference.mean) > difference.half > 1e-9 * abs(difference.mean)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Returns for each point whether no other costs no more, has no less value, and is not equal.

    Of equal points all are on the front, or none.
    """
    best: dict[float, float] = {}  # cost -> highest value at no more than this cost, so far
    for cost, value in zip(costs, values, strict=True):
        best[cost] = max(value, best.get(cost, -math.inf))
    front, highest = set(), -math.inf
    for cost in sorted(best):
        if best[cost] > highest:
            front.add((cost, best[cost]))
            highest = best[cost]
    return [(cost, value) in front for cost, value in zip(costs, values, strict=True)]
