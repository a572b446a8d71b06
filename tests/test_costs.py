"""Counts equal the independent recount as integers, and the published figures as printed."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from mobilenets_jax import costs
from mobilenets_jax.errors import InputError
from mobilenets_jax.specs import RULES, list_models
from mobilenets_jax.switches import build_spec

DATA = Path(__file__).parent / "data"
RECOUNT = json.loads((DATA / "recount.json").read_text())
PUBLISHED = json.loads((DATA / "published.json").read_text())
DISCREPANCIES = json.loads((DATA / "discrepancies.json").read_text())
V1_RULES = ("keras", "timm", "slim")
# Our kinds in the recount's terms.
KINDS = {
    "stem": "stem",
    "expand": "pw",
    "project": "pw",
    "depthwise": "dw",
    "full": "full",
    "se": "se",
    "last": "last",
    "head": "head",
    "classifier": "fc",
}


def counts(spec, resolution=224):
    """The recount's figures, from our layers."""
    found = costs.layers(spec, resolution)
    by_kind = Counter()
    for layer in found:
        if layer.kind != "pool":
            by_kind[KINDS[layer.kind]] += layer.macs
    bn_channels = sum(layer.bn_channels for layer in found)
    trainable = sum(layer.params for layer in found)
    return {
        "macs": sum(layer.macs for layer in found),
        "macs_by_kind": dict(by_kind),
        "weights": sum(layer.weights for layer in found),
        "biases": sum(layer.biases for layer in found),
        "bn_channels": bn_channels,
        "trainable": trainable,
        "with_bn_stats": trainable + 2 * bn_channels,
    }


def assert_counts(row, spec, resolution=224):
    ours = counts(spec, resolution)
    assert ours == {key: row[key] for key in ours}, row
    assert costs.params(spec) == row["trainable"]
    assert costs.macs(spec, resolution) == row["macs"]


# The recount


@pytest.mark.parametrize("rule", V1_RULES)
def test_v1_recount(rule):
    assert len(RECOUNT["v1"]) == 16
    for row in RECOUNT["v1"]:
        spec = build_spec("mobilenet_v1", alpha=row["alpha"], rule=rule)
        assert_counts(row, spec, row["resolution"])


@pytest.mark.parametrize("rule", V1_RULES)
def test_v1_variants_recount(rule):
    full, shallow = RECOUNT["v1_variants"]
    assert_counts(full, build_spec("mobilenet_v1", rule=rule, standard_conv=True))
    assert_counts(shallow, build_spec("mobilenet_v1", rule=rule, shallow=True))


@pytest.mark.parametrize("rule", RULES)
def test_v2_recount(rule):
    assert len(RECOUNT["v2"]) == 22
    for row in RECOUNT["v2"]:
        spec = build_spec("mobilenet_v2", alpha=row["alpha"], rule=rule)
        assert_counts(row, spec, row["resolution"])


def test_v3_recount():
    assert len(RECOUNT["v3"]) == 60
    for row in RECOUNT["v3"]:
        spec = build_spec(f"mobilenet_v3_{row['model']}", alpha=row["alpha"], rule="slim")
        assert_counts(row, spec, row["resolution"])


@pytest.mark.parametrize("rule", RULES)
def test_v3_recount_at_alpha_1_is_every_rules(rule):
    for row in RECOUNT["v3"]:
        if row["alpha"] == 1.0:
            spec = build_spec(f"mobilenet_v3_{row['model']}", rule=rule)
            assert_counts(row, spec, row["resolution"])


@pytest.mark.parametrize("rule", RULES)
def test_v3_recount_of_every_rule(rule):
    assert len(RECOUNT["v3_other_styles"]) == 10
    for row in RECOUNT["v3_other_styles"]:
        name = f"mobilenet_v3_{row['model']}"
        spec = build_spec(name, alpha=row["alpha"], rule=rule)
        assert costs.macs(spec, row["resolution"]) == row[rule]["macs"], row
        assert costs.params(spec) == row[rule]["trainable"], row


def test_v3_recount_with_slims_scaled_head():
    """TF-slim's plain wrappers scale the pooled layer: the spec's integer says so."""
    for row in RECOUNT["v3_other_styles"]:
        name = f"mobilenet_v3_{row['model']}"
        spec = build_spec(name, alpha=row["alpha"], rule="slim")
        scaled = build_spec(name, alpha=row["alpha"], rule="torchvision").head
        spec = replace(spec, head=scaled)
        assert costs.macs(spec, row["resolution"]) == row["slim_head_scaled"]["macs"], row
        assert costs.params(spec) == row["slim_head_scaled"]["trainable"], row


@pytest.mark.parametrize("rule", RULES)
def test_v3_minimalistic_recount(rule):
    for row in RECOUNT["v3_minimalistic"]:
        spec = build_spec(f"mobilenet_v3_{row['model']}_minimalistic", rule=rule)
        assert_counts(row, spec, row["resolution"])


def test_v3_small_with_the_preprints_head():
    for row in RECOUNT["v3_small_head1280"]:
        spec = build_spec("mobilenet_v3_small", alpha=row["alpha"], rule="slim")
        assert_counts(row, replace(spec, head=replace(spec.head, out=1280)), row["resolution"])


def test_v3_redesign_savings():
    redesign = RECOUNT["v3_redesign"]
    after = build_spec("mobilenet_v3_large")
    before = build_spec("mobilenet_v3_large", last_stage="original")
    assert costs.macs(before) - costs.macs(after) == redesign["last_stage_saving"]
    assert redesign["removed"] - redesign["added"] == redesign["last_stage_saving"]
    head = next(layer for layer in costs.layers(after) if layer.kind == "head")
    assert head.macs == redesign["added"]
    # Fig. 5, upper row: the layers behind the expansion to 960.
    operators = [(x.kind, x.operator, x.output) for x in costs.layers(before)[-6:]]
    assert operators == [
        ("expand", "conv 1x1", (7, 7, 960)),
        ("depthwise", "dw 3x3", (7, 7, 960)),
        ("project", "conv 1x1", (7, 7, 320)),
        ("last", "conv 1x1", (7, 7, 1280)),
        ("pool", "avgpool 7x7", (1, 1, 1280)),
        ("classifier", "fc", (1, 1, 1000)),
    ]
    wide = build_spec("mobilenet_v3_large", stem=32)
    assert costs.macs(wide) - costs.macs(after) == redesign["stem_saving"]
    saved = [a.macs - b.macs for a, b in zip(costs.layers(wide), costs.layers(after), strict=True)]
    assert saved[:3] == list(redesign["stem_parts"].values())
    assert set(saved[3:]) == {0}


# Published figures


def _printed(count, printed, digit):
    """`count` in millions with as many decimals as `printed` has."""
    rounding = {"nearest": ROUND_HALF_UP, "truncated": ROUND_DOWN}[digit]
    return str(Decimal(count).scaleb(-6).quantize(Decimal(printed), rounding))


def _published_spec(row, rule):
    spec = build_spec(
        row["model"],
        row.get("num_classes", 1000),
        row["alpha"],
        rule=rule,
        **row.get("switches", {}),
    )
    return replace(spec, head=replace(spec.head, out=row["head"])) if "head" in row else spec


@pytest.mark.parametrize("name", PUBLISHED["tables"])
def test_published_table(name):
    """Every printed figure is ours, but for exactly those that are listed with a reason."""
    table = PUBLISHED["tables"][name]
    wrong = {}
    for row in table["rows"]:
        ours = counts(_published_spec(row, table.get("rule", "keras")), row["resolution"])
        params = ours["trainable"]
        if table["params"] == "without BatchNorm":
            params = ours["weights"] + ours["biases"]
        for quantity, count in (("macs", ours["macs"]), ("params", params)):
            printed = row.get(f"{quantity}_M")
            if printed and _printed(count, printed, table[f"{quantity}_digit"]) != printed:
                wrong[row["row"], quantity] = (printed, count)
    listed = {
        (row, entry["quantity"])
        for entry in DISCREPANCIES["discrepancies"]
        if entry["table"] == name
        for row in entry["rows"]
    }
    assert set(wrong) == listed, (wrong, listed)


def test_discrepancies_name_tables_and_give_reasons():
    for entry in DISCREPANCIES["discrepancies"]:
        assert entry["table"] in PUBLISHED["tables"]
        assert len(entry["reason"]) > 20
    listed = [
        (entry["table"], entry["quantity"], row)
        for entry in DISCREPANCIES["discrepancies"]
        for row in entry["rows"]
    ]
    assert len(listed) == len(set(listed))


def test_v1_one_layer():
    """V1, Table 3: one 14×14 layer of 512 channels, full, separable, thin, small."""

    def layer(alpha, resolution, kinds, **switches):
        spec = build_spec("mobilenet_v1", alpha=alpha, **switches)
        found = costs.layers(spec, resolution)
        return [x for x in found if x.name.startswith("blocks_7/") and x.kind in kinds]

    ours = [
        layer(1.0, 224, ("full",), standard_conv=True),
        layer(1.0, 224, ("depthwise", "project")),
        layer(0.75, 224, ("depthwise", "project")),
        layer(0.75, 160, ("depthwise", "project")),
    ]
    for found, row in zip(ours, PUBLISHED["v1_one_layer"]["rows"], strict=True):
        macs, weights = sum(x.macs for x in found), sum(x.weights for x in found)
        assert _printed(macs, str(row["mult_adds_M"]), "nearest") == str(row["mult_adds_M"])
        assert _printed(weights, str(row["params_M"]), "nearest") == str(row["params_M"])


def test_v1_shares():
    """V1, Table 2; the stem's share of the MACs is a digit swap there."""
    ours = counts(build_spec("mobilenet_v1"))
    weights = Counter()
    for layer in costs.layers(build_spec("mobilenet_v1")):
        weights[KINDS.get(layer.kind)] += layer.weights
    rows = {row["type"]: row for row in PUBLISHED["v1_shares"]["rows"]}
    for label, kind in (
        ("Conv 1x1", "pw"),
        ("Conv DW 3x3", "dw"),
        ("Conv 3x3", "stem"),
        ("Fully Connected", "fc"),
    ):
        macs = round(100 * ours["macs_by_kind"][kind] / ours["macs"], 2)
        assert macs == {"stem": 1.91}.get(kind, rows[label]["mult_adds"])
        assert round(100 * weights[kind] / ours["weights"], 2) == rows[label]["params"]
    assert rows["Conv 3x3"]["mult_adds"] == 1.19


# The layer list


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("resolution", [224, 33, 1])
def test_layers_chain(name, resolution):
    found = costs.layers(build_spec(name, alpha=0.5, num_classes=7), resolution)
    assert found[0].input == (resolution, resolution, 3)
    for layer, following in itertools.pairwise(found):
        assert layer.output == following.input
    assert found[-1].output == (1, 1, 7)
    assert len({layer.name for layer in found}) == len(found)


def test_layers_of_other_channels_and_bytes():
    spec = build_spec("mobilenet_v2")
    stem = costs.layers(spec, 32, channels=1)[0]
    assert stem.weights == 3 * 3 * 1 * 32
    assert stem.macs == 16 * 16 * stem.weights
    assert stem.activation_bytes() == 4 * 16 * 16 * 32
    assert stem.activation_bytes(2) == 2 * 16 * 16 * 32


def test_v2_activations_are_the_papers_memory():
    """V2, Table 3: at 16 bit the 112×112×16 bottleneck takes 400 kB, the 7×7×320 one 32 kB."""
    found = {x.name: x for x in costs.layers(build_spec("mobilenet_v2"))}
    assert round(found["blocks_0/project"].activation_bytes(2) / 1000) == 401
    assert round(found["blocks_16/project"].activation_bytes(2) / 1000) == 31


def test_padding_changes_no_count_but_keras_v1s_at_odd_sizes():
    for name in list_models():
        same, symmetric = (build_spec(name, padding=p) for p in ("same", "symmetric"))
        for resolution in (224, 97, 33):
            assert counts(same, resolution) == counts(symmetric, resolution)
    fixed = build_spec("mobilenet_v1", padding="bottom_right")
    assert counts(fixed) == counts(build_spec("mobilenet_v1"))
    sizes = [x.output[0] for x in costs.layers(fixed, 97) if x.kind == "depthwise"]
    assert sizes == [49, 24, 24, 12, 12, 6, 6, 6, 6, 6, 6, 3, 3]


def test_counts_do_not_depend_on_what_costs_nothing():
    base = counts(build_spec("mobilenet_v3_small"))
    for change in ({"activation": "mish"}, {"dropout": 0.0}, {"bn_epsilon": 1e-5}):
        assert counts(build_spec("mobilenet_v3_small", **change)) == base


@pytest.mark.parametrize("resolution", [0, -224, 224.0, "224", None])
def test_layers_reject_a_resolution(resolution):
    with pytest.raises(InputError, match="The resolution must be a positive integer, not "):
        costs.layers(build_spec("mobilenet_v2"), resolution)


def test_layers_reject_an_image_too_small_for_keras_padding():
    spec = build_spec("mobilenet_v1", padding="bottom_right")
    assert costs.layers(spec, 32)[-3].output == (1, 1, 1024)
    with pytest.raises(InputError, match="leaves nothing of a feature map of 1 pixel"):
        costs.layers(spec, 16)


def test_summary():
    spec = build_spec("mobilenet_v3_small", num_classes=10)
    lines = costs.summary(spec, 96).splitlines()
    assert lines[0].split() == ["layer", "operator", "input", "output", "parameters", "MACs"]
    assert len(lines) == len(costs.layers(spec, 96)) + 4
    assert set(lines[1]) == set(lines[-2]) == {"-"}
    stem = f"stem conv 3x3 s2 96x96x3 48x48x16 {16 * 27 + 32} {48 * 48 * 16 * 27:,}"
    assert lines[2].split() == stem.split()
    total = lines[-1].split()
    assert total == ["total", f"{costs.params(spec):,}", f"{costs.macs(spec, 96):,}"]
    assert max(map(len, lines)) < 100
