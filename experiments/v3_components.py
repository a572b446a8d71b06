"""What does each of V3's components buy, and what does it cost (V3, section 5, Table 5, Fig. 9)?

    python -m experiments.sweep experiments/v3_components.py --workdir=DIR --scale=small --seeds=3

One change at a time to V3-Large: no squeeze-and-excite; ReLU everywhere; h-swish from 112 pixels
on, which is everywhere (the paper's @16; its own is @80, and its @112 has no counterpart here);
but at smoke scale, h-swish from 28 and from 7 on, with ReLU in the stem, of which the paper says
nothing; the last stage as it was before its redesign; a stem of 32 filters; a stem of 32 with ReLU,
as it was before; and the last two changes together. The paper on ImageNet: ReLU 0.7 points worse,
h-swish everywhere 0.2 better, the redesigned ends as good as those before and 7 + 2 ms faster of 60
on a Pixel 1. It has no V3 without squeeze-and-excite, but MnasNet with it, 0.3 points better.

Estimated time on two CPU cores: 5 min at smoke scale with 2 seeds, 25 min at small scale with
3 seeds.

Finding: not measured.
"""

from typing import Any

from experiments.ablation import Comparison, Run, compare, difference, network, points, table

MODEL = "mobilenet_v3_large"
PAPER = [*points("v3", "table5", model=MODEL), *points("v3", "fig9", model=MODEL)]
LATENCY = True
# Half as wide, stems of 32 and 16 are still two.
ALPHAS = {"smoke": 0.5, "small": 0.5, "full": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no_se": {"se": False},
    "relu": {"activation": "relu"},
    "hswish_from_112": {"hswish_from": 112},
    "hswish_from_28": {"hswish_from": 28},
    "hswish_from_7": {"hswish_from": 7},
    "last_stage_before": {"last_stage": "original"},
    "stem_32": {"stem": 32},
    "stem_before": {"stem": 32, "hswish_from": 14},  # 14 is V3's own but for the stem
    "ends_before": {"stem": 32, "hswish_from": 14, "last_stage": "original"},
}
TABLE5, FIG9 = PAPER[0].source, PAPER[-1].source
SECTION = "MobileNetV3 (arXiv:1905.02244v5), section 5"
# Variant -> its claim about V3 itself, where the paper makes it, and the difference's sign if it
# prints no number.
CLAIMS: dict[str, tuple[str, str, int | None]] = {
    "no_se": (
        "Squeeze-and-excite improves V3",
        f"{FIG9}, its step from MnasNet, 75.2 to 75.5 %",
        1,
    ),
    "relu": ("h-swish improves V3 over ReLU everywhere", TABLE5, None),
    "hswish_from_112": ("h-swish in deep layers alone is worse than everywhere", TABLE5, None),
    "hswish_from_28": ("h-swish from 14 pixels on against from 28 on", SECTION, None),
    "hswish_from_7": ("h-swish from 14 pixels on against from 7 on", SECTION, None),
    "last_stage_before": ("The shortened last stage is as good as the one before", SECTION, 0),
    "stem_32": ("A stem of 16 filters is as good as one of 32", SECTION, 0),
    "stem_before": ("A stem of 16 with h-swish is as good as 32 with ReLU", SECTION, 0),
    "ends_before": ("The redesigned ends are as good as those before", FIG9, None),
}


def _printed(name: str, variant: str) -> str:
    """Returns a table's source with its times of V3 and of a variant."""
    rows = {row["factors"]["variant"]: row["pixel1_ms"] for row in table("v3", name)["rows"]}
    own, other = rows["paper"], rows[variant]
    return f"{table('v3', name)['source']}: {own:g} against {other:g} ms on a Pixel 1"


# Variant -> sign of V3's time minus the variant's on the paper's Pixel 1, and where it says it.
TIMES: dict[str, tuple[int | None, str]] = {
    "no_se": (None, SECTION),
    "relu": (1, _printed("table5", "relu")),
    "hswish_from_112": (-1, _printed("table5", "hswish_from_112")),
    "hswish_from_28": (None, SECTION),
    "hswish_from_7": (None, SECTION),
    "last_stage_before": (-1, SECTION),
    "stem_32": (-1, SECTION),
    "stem_before": (-1, SECTION),
    "ends_before": (-1, _printed("fig9", "ends_before")),
}


def runs(scale: str) -> list[Run]:
    """V3 itself, and each variant."""
    return [
        network(scale, MODEL, ALPHAS[scale], variant=name, **switches)
        for name, switches in VARIANTS.items()
        if scale != "smoke" or name not in ("hswish_from_28", "hswish_from_7")
    ]


def comparisons(scale: str) -> list[Comparison]:
    """V3 itself against each variant: accuracy, and time."""
    own, *others = runs(scale)
    found = []
    for other in others:
        name = other.factors["variant"]
        claim, source, sign = CLAIMS[name]
        paper = difference(PAPER, {"variant": "paper"}, {"variant": name})
        found.append(compare(claim, own, other, source, paper, sign=sign))
    for other in others:
        name = other.factors["variant"]
        sign, source = TIMES[name]
        words = {1: "V3 is slower than", -1: "V3 is faster than", None: "The time of V3 against"}
        claim = f"{words[sign]} its variant {name}"
        found.append(compare(claim, own, other, source, metric="latency_seconds", sign=sign))
    return found
