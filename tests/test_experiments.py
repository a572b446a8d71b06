"""One battery for every experiment file, and what the two that measure compute."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation, depthwise_multiplier_cost, relu_information_loss
from mobilenets_jax import costs, specs
from mobilenets_jax.specs import Block, Conv, Spec

PAPERS = Path(ablation.__file__).parent / "papers"
MODULES = {name: ablation.load(name) for name in ablation.names()}
TRAINED = [name for name, module in MODULES.items() if hasattr(module, "runs")]
METRICS = ("test_accuracy_ema", "latency_seconds")
HOURS = 3600.0


def test_the_thirteen_are_there():
    assert len(MODULES) == 13
    assert len(TRAINED) == 11


@pytest.mark.parametrize("name", list(MODULES))
def test_docstring_has_question_command_and_finding(name):
    text = MODULES[name].__doc__
    assert text.splitlines()[0].endswith("?")
    assert f"    python -m experiments.sweep experiments/{name}.py --workdir=DIR" in text
    assert text.count("\nFinding: ") == 1


@pytest.mark.parametrize("scale", ablation.SCALES)
@pytest.mark.parametrize("name", TRAINED)
def test_runs_and_comparisons(name, scale):
    module = MODULES[name]
    runs, comparisons = module.runs(scale), module.comparisons(scale)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) > 1
    assert all(ablation.NAME.fullmatch(run) and len(run) < 200 for run in names)
    factors = [json.dumps(run.factors, sort_keys=True) for run in runs]
    assert len(set(factors)) == len(factors)
    if len(runs) > 50:  # the whole grid; every eleventh shows each value of each axis
        runs = runs[::11]
    networks = set()
    for run in runs:
        assert {"model", "alpha", "beta"} <= run.factors.keys()
        cost = ablation.cost(run)
        networks.add((ablation.spec(run), cost.resolution))
    assert len(networks) == len(runs)  # each run is another network
    assert comparisons
    for comparison in comparisons:
        assert comparison.a in names
        assert comparison.b in names
        assert comparison.a != comparison.b
        assert comparison.metric in METRICS
        assert comparison.claim[-1] not in "."
        assert comparison.source
    assert len({(c.a, c.b, c.metric) for c in comparisons}) == len(comparisons)
    # A question about one thing compares every run.
    compared = {run for comparison in comparisons for run in (comparison.a, comparison.b)}
    if len(names) < 50:
        assert compared == set(names)


@pytest.mark.parametrize("name", TRAINED)
def test_every_experiment_states_the_papers_difference_where_there_is_one(name):
    stated = [c.paper for c in MODULES[name].comparisons("full") if c.paper is not None]
    assert bool(stated) == (name not in ("v2_inverted_vs_residual", "v2_expansion"))
    assert all(abs(paper) < 25 for paper in stated)


def test_what_papers_say_in_words_has_a_sign():
    inverted = MODULES["v2_inverted_vs_residual"].comparisons("full")
    assert [c.sign for c in inverted] == [1, 1]
    signs = {c.claim: c.sign for c in MODULES["v2_expansion"].comparisons("full")}
    assert signs["Expansion 6 against 4, at the same MACs"] is None
    assert signs["Expansion 6 against 1, at the same width"] is None
    assert signs["Expansion 6 is as good as 8, at the same MACs"] == 0
    assert signs["Expansion 6 against 8, at the same width"] is None
    claims = MODULES["v3_components"].CLAIMS
    assert claims["no_se"] == (
        "Squeeze-and-excite improves V3",
        "MobileNetV3 (arXiv:1905.02244v5), Fig. 9, its step from MnasNet, 75.2 to 75.5 %",
        1,
    )
    # An equality is claimed in words, or by equal numbers.
    stated = {c.claim: c.paper for c in MODULES["v3_components"].comparisons("full")}
    for claim, _, sign in claims.values():
        equal = "as good as" in claim
        assert (sign == 0 or stated[claim] == 0) == equal
        assert sign is None or stated[claim] is None


@pytest.mark.parametrize("table", ["table5", "fig9"])
def test_signs_of_times_are_those_of_the_papers_table(table):
    content = ablation.table("v3", table)
    times = {row["factors"]["variant"]: row["pixel1_ms"] for row in content["rows"]}
    own = times.pop("paper")
    for variant, time in times.items():
        sign = 1 if own > time else -1
        source = f"{content['source']}: {own:g} against {time:g} ms on a Pixel 1"
        assert MODULES["v3_components"].TIMES[variant] == (sign, source)


def test_budgets():
    smoke = [run for name in TRAINED for run in MODULES[name].runs("smoke")]
    assert len(smoke) <= 60
    work = [(ablation.cost(run, seeds=2), run) for run in smoke]
    assert all(cost.seconds < 60 for cost, _ in work)
    assert sum(cost.seconds for cost, _ in work) < 25 * 60
    assert sum(cost.macs * cost.steps * 32 for cost, _ in work) < 3e12
    for name in TRAINED:
        default = sum(ablation.cost(run, seeds=5).seconds for run in MODULES[name].runs("small"))
        assert default < 2 * HOURS, name
        seconds = sum(ablation.cost(run, seeds=3).seconds for run in MODULES[name].runs("small"))
        quick = sum(ablation.cost(run, seeds=2).seconds for run in MODULES[name].runs("smoke"))
        # The docstring says it.
        text = " ".join(MODULES[name].__doc__.split())
        stated = (
            "Estimated time on two CPU cores: {} min at smoke scale with 2 seeds, {} min at small"
        )
        assert stated.format(max(1, round(quick / 60)), round(seconds / 60)) in text, name


# The papers' numbers ----------------------------------------------------------------------------

ROWS = [
    (path.stem, table, row)
    for path in sorted(PAPERS.glob("*.json"))
    for table, content in json.loads(path.read_text(encoding="utf-8")).items()
    if table != "about"
    for row in content["rows"]
]


def fits(number, printed):
    """Whether a number in millions gives the printed digits, by rounding or by truncation."""
    digits = len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0
    return any(math.isclose(printed, n) for n in (round(number, digits), truncated(number, digits)))


def truncated(number, digits):
    return math.floor(number * 10**digits) / 10**digits


def model_of(paper, table):
    if paper == "v3":
        return "mobilenet_v3_small" if table.endswith("small") else "mobilenet_v3_large"
    return f"mobilenet_{paper}"


@pytest.mark.parametrize(("paper", "table", "row"), [r for r in ROWS if "macs_M" in r[2]])
def test_printed_costs_are_ours(paper, table, row):
    factors = {"model": model_of(paper, table), "alpha": 1.0, "beta": 1.0, **row["factors"]}
    run = ablation.network("full", **factors)
    cost = ablation.cost(run)
    # Some tables count BatchNorm, some do not.
    layers = costs.layers(ablation.spec(run), cost.resolution)
    without = sum(layer.weights + layer.biases for layer in layers)
    agrees = fits(cost.macs / 1e6, row["macs_M"]) and any(
        fits(params / 1e6, row["params_M"]) for params in (cost.params, without)
    )
    assert agrees == ("note" not in row)  # which says why not
    assert cost.macs == pytest.approx(row["macs_M"] * 1e6, rel=0.02, abs=1e6)


def test_accuracies_are_percentages_of_a_cited_table():
    assert {paper for paper, _, _ in ROWS} == {"v1", "v2", "v3"}
    for paper, table, row in ROWS:
        assert 40 < row["top1"] < 80
        source = ablation.table(paper, table)["source"]
        assert source.startswith(f"MobileNet{paper.upper()}")
        assert re.search(r"Table \d|Fig\. \d|README", source)


@pytest.mark.parametrize("name", TRAINED)
def test_points_have_factors_of_the_runs(name):
    module = MODULES[name]
    known = set(module.runs("full")[0].factors)
    for point in module.PAPER:
        assert set(point.factors) - {"variant"} <= known
        assert 0.4 < point.accuracy < 0.8


def test_table_4s_cost_ratio():
    runs = MODULES["v1_depthwise_vs_standard"].runs("full")
    depthwise, standard = (ablation.cost(run) for run in runs)
    assert (depthwise.macs, standard.macs) == (568_740_352, 4_867_293_184)
    assert 8 < standard.macs / depthwise.macs < 9


@pytest.mark.parametrize("scale", ablation.SCALES)
def test_equal_macs_are_equal(scale):
    """To a tenth or so: channels are multiples of 8."""
    module = MODULES["v1_v2_v3"]
    runs = {run.name: ablation.cost(run).macs for run in module.runs(scale)}
    for comparison in module.comparisons(scale):
        assert runs[comparison.a] == pytest.approx(runs[comparison.b], rel=0.1)
    inverted, wide, equal = (
        ablation.cost(run).macs for run in MODULES["v2_inverted_vs_residual"].runs(scale)
    )
    assert wide > 1.1 * inverted
    assert equal == pytest.approx(inverted, rel=0.05)
    own, *others = MODULES["v2_expansion"].runs(scale)
    for run in others:
        if run.factors["alpha"] != own.factors["alpha"]:
            assert ablation.cost(run).macs == pytest.approx(ablation.cost(own).macs, rel=0.12)


# What is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", [8, 64, 512])
def test_formula_is_the_counted_ratio(kernel, channels):
    def counted(convolution):
        block = Block(kernel, channels, channels, False, "relu", 1, convolution=convolution)
        spec = Spec("x", "v1", Conv(3, channels, "relu"), (block,))
        found = costs.layers(spec, 14)
        return sum(layer.macs for layer in found if layer.name.startswith("blocks"))

    ratio = counted("depthwise") / counted("standard")
    assert math.isclose(ratio, depthwise_multiplier_cost.formula(channels, kernel))


def test_the_two_layers_compute_the_same_shapes():
    size = depthwise_multiplier_cost.Size((8,), 6, 2, 0.25, 32, 2, 3)
    for name in depthwise_multiplier_cost.PAIR:
        calls = depthwise_multiplier_cost.layer(name, 8, 3, size)
        assert list(calls) == ["forward", "training"]
        step, arguments = calls["training"].args
        value, (weights, images) = step(*arguments)
        assert value > 0
        assert [w.shape for w in weights] == [w.shape for w in arguments[0]]
        assert images.shape == (2, 6, 6, 8)
        assert calls["forward"].args[0](*arguments).shape == images.shape


def test_times_take_turns():
    turns = []
    pair = {name: lambda name=name: turns.append(name) for name in "ab"}
    depthwise_multiplier_cost.ROUND_SECONDS, kept = 0.0, depthwise_multiplier_cost.ROUND_SECONDS
    try:
        seconds = depthwise_multiplier_cost.times(pair, 3)
    finally:
        depthwise_multiplier_cost.ROUND_SECONDS = kept
    assert [len(found) for found in seconds.values()] == [3, 3]
    assert "".join(turns) == "aabb" + 3 * "aabb"


@pytest.mark.parametrize("n", relu_information_loss.DIMENSIONS)
def test_nothing_is_lost_without_an_activation(n):
    x = relu_information_loss.spiral()
    for seed in range(20):
        t = relu_information_loss.matrix(n, seed)
        back = relu_information_loss.there_and_back(x, t, "linear")
        np.testing.assert_allclose(back, x, atol=1e-5)
        assert relu_information_loss.error(x, back) < 1e-5
        assert relu_information_loss.kept(x, t, "linear") == 1


def test_error_and_kept_of_known_points():
    x = np.array([[1.0, -1.0, 2.0], [1.0, 1.0, 8.0]])
    assert relu_information_loss.error(x, x / 2) == pytest.approx(0)
    assert relu_information_loss.error(x, 0 * x) == 1
    back = relu_information_loss.there_and_back(x, np.eye(2), "relu")
    np.testing.assert_allclose(back, [[1, 0, 2], [1, 1, 8]], atol=1e-12)
    assert relu_information_loss.kept(x, np.eye(2), "relu") == pytest.approx(2 / 3)
    assert relu_information_loss.kept(x, np.eye(2), "relu6") == pytest.approx(1 / 3)
    assert relu_information_loss.kept(x, np.eye(2), "hswish") is None


def test_the_spiral_loses_less_in_more_dimensions(tmp_path):
    first = relu_information_loss.measure("smoke", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"spirals.png", "error.png"}
    assert (
        json.loads(json.dumps(first)) == first == relu_information_loss.measure("smoke", tmp_path)
    )
    for activation in ("relu", "relu6", "hswish"):
        rows = [row for row in first["rows"] if row["activation"] == activation]
        assert [row["dimensions"] for row in rows] == [2, 3, 5, 15, 30]
        for narrow, wide in itertools.pairwise(rows):
            assert wide["error_mean"] < narrow["error_mean"]
        assert all(row["error_deviation"] > 0.01 for row in rows)
    assert set(relu_information_loss.ACTIVATIONS) <= set(specs.ACTIVATIONS)
