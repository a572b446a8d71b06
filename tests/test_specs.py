"""The tables are the papers', and every rule gives the widths of its library."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from numpy_reference import pads

from mobilenets_jax.errors import InputError
from mobilenets_jax.specs import (
    ACTIVATIONS,
    PADDINGS,
    RULES,
    Conv,
    list_models,
    make_divisible,
    output_size,
    pad_amounts,
    scale,
    table,
    with_overrides,
)

DATA = Path(__file__).parent / "data"
LAYERS = json.loads((DATA / "layers.json").read_text())
RECOUNT = json.loads((DATA / "recount.json").read_text())
NON_LINEARITIES = {"HS": "hswish", "RE": "relu"}


def widths(spec):
    """The recount's list: stem, [expansion, out] or out of each block, last, head."""
    if spec.family == "v1":
        return [spec.stem.out, *(block.out for block in spec.blocks)]
    if spec.family == "v2":
        return [spec.stem.out, *(block.out for block in spec.blocks), spec.last.out]
    blocks = ([block.expansion, block.out] for block in spec.blocks)
    return [spec.stem.out, *blocks, spec.last.out, spec.head.out]


# The papers' tables


def test_list_models():
    assert list_models() == [
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "mobilenet_v3_large_minimalistic",
        "mobilenet_v3_small_minimalistic",
    ]
    assert [table(name).name for name in list_models()] == list_models()


def test_v1_rows_are_the_papers():
    spec = table("mobilenet_v1")
    stem, *rows = [row for row in LAYERS["v1"] if "s" in row]
    assert spec.stem == Conv(stem["k"], stem["c"], "relu6", stem["s"])
    assert [(b.kernel, b.out, b.strides) for b in spec.blocks] == [
        (row["k"], row["c"], row["s"]) for row in rows
    ]
    inputs = [spec.stem.out, *(b.out for b in spec.blocks)]
    assert [b.expansion for b in spec.blocks] == inputs[:-1]
    for block in spec.blocks:
        assert (block.activation, block.projection_activation) == ("relu6", "relu6")
        assert not block.se
        assert block.shortcut == "none"
    assert spec.last is None
    assert spec.head is None


def test_v2_rows_are_the_papers():
    spec = table("mobilenet_v2")
    expected, width = [], LAYERS["v2"][0]["c"]
    for row in LAYERS["v2"]:
        for i in range(row.get("n", 0)):
            expected.append((3, row["t"] * width, row["c"], row["s"] if i == 0 else 1))
            width = row["c"]
    assert len(expected) == 17
    assert [(b.kernel, b.expansion, b.out, b.strides) for b in spec.blocks] == expected
    assert spec.stem == Conv(3, 32, "relu6", 2)
    assert spec.last == Conv(1, 1280, "relu6")
    assert spec.head is None
    for block in spec.blocks:
        assert (block.activation, block.projection_activation) == ("relu6", "linear")
        assert not block.se
        assert block.shortcut == "bottleneck"


@pytest.mark.parametrize("size", ["large", "small"])
def test_v3_rows_are_the_papers(size):
    spec = table(f"mobilenet_v3_{size}")
    rows = LAYERS[f"v3_{size}"]
    stem, last, head = rows[0], rows[-4], rows[-2]
    assert spec.stem == Conv(3, stem["out"], "hswish", stem["s"])
    assert [(b.kernel, b.expansion, b.out, b.se, b.activation, b.strides) for b in spec.blocks] == [
        (r["k"], r["exp"], r["out"], r["se"], NON_LINEARITIES[r["nl"]], r["s"])
        for r in rows
        if r["op"] == "bneck"
    ]
    assert spec.last == Conv(1, last["out"], "hswish")
    assert spec.head == Conv(1, head["out"], "hswish")
    assert {b.projection_activation for b in spec.blocks} == {"linear"}
    # The table's input columns follow from strides and widths.
    pixels, channels = 224, 3
    for row in rows[:-2]:
        assert (row["in_res"], row["in_ch"]) == (pixels, channels)
        pixels, channels = pixels // row["s"], row["out"] or channels


@pytest.mark.parametrize("size", ["large", "small"])
def test_minimalistic_keeps_widths_and_strides(size):
    spec, full = table(f"mobilenet_v3_{size}_minimalistic"), table(f"mobilenet_v3_{size}")
    assert widths(spec) == widths(full)
    assert [b.strides for b in spec.blocks] == [b.strides for b in full.blocks]
    assert {(b.kernel, b.se, b.activation) for b in spec.blocks} == {(3, False, "relu")}
    assert {c.activation for c in (spec.stem, spec.last, spec.head)} == {"relu"}


def test_squeeze_is_a_quarter_of_the_expansion_rounded_to_8():
    spec = table("mobilenet_v3_large")
    squeezes = [spec.squeeze(block) for block in spec.blocks if block.se]
    assert squeezes == [24, 32, 32, 120, 168, 168, 240, 240]


# The width multiplier


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((1, 8), (8, 8), (11.2, 16), (12, 16), (16, 16), (18.4, 24), (19, 24), (20, 24)),
        *((22.4, 24), (33.6, 32), (35.5, 32), (35.6, 40), (55.2, 56), (179.9, 176), (184.0, 184)),
    ],
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


def test_make_divisible_never_loses_more_than_ten_percent():
    for tenths in range(1, 20_000):
        rounded = make_divisible(tenths / 10)
        assert rounded % 8 == 0
        assert 0.9 * tenths / 10 <= rounded < tenths / 10 + 8
    assert make_divisible(10.0, 4) == 12


@pytest.mark.parametrize("rule", ["keras", "timm", "slim"])
def test_v1_widths(rule):
    for row in RECOUNT["v1"]:
        assert widths(scale(table("mobilenet_v1"), row["alpha"], rule)) == row["widths"]


def test_v1_rules_differ_where_nothing_is_published():
    def at(alpha, rule):
        return widths(scale(table("mobilenet_v1"), alpha, rule))[:3]

    assert at(0.35, "keras") == [11, 22, 44]
    assert at(0.35, "slim") == [11, 22, 44]
    assert at(0.35, "timm") == [16, 24, 48]
    assert at(0.1, "keras") == [3, 6, 12]
    assert at(0.1, "slim") == [8, 8, 12]
    assert at(0.01, "keras") == [1, 1, 1]


@pytest.mark.parametrize("rule", RULES)
def test_v2_widths(rule):
    for row in RECOUNT["v2"]:
        spec = scale(table("mobilenet_v2"), row["alpha"], rule)
        assert widths(spec) == row["widths"]
        inputs = [spec.stem.out, *(block.out for block in spec.blocks)]
        first, *others = spec.blocks
        assert first.expansion == spec.stem.out
        assert [b.expansion for b in others] == [6 * width for width in inputs[1:-1]]


def test_v2_rules_differ_where_nothing_is_published():
    """32 · 0.56 = 17.92: Keras cuts it to 17 before it rounds."""
    stems = {rule: scale(table("mobilenet_v2"), 0.56, rule).stem.out for rule in RULES}
    assert stems == {"keras": 16, "timm": 24, "slim": 24, "torchvision": 24}


def test_v3_widths():
    for row in RECOUNT["v3"]:
        spec = scale(table(f"mobilenet_v3_{row['model']}"), row["alpha"], "slim")
        assert widths(spec) == row["widths"]


@pytest.mark.parametrize("rule", RULES)
def test_v3_widths_of_every_rule(rule):
    for row in RECOUNT["v3_other_styles"]:
        spec = scale(table(f"mobilenet_v3_{row['model']}"), row["alpha"], rule)
        assert widths(spec) == row[rule]["widths"], (row["model"], row["alpha"])


@pytest.mark.parametrize("rule", RULES)
def test_scale_by_one_changes_nothing(rule):
    for name in list_models():
        spec = table(name)
        if spec.family == "v1" and rule == "torchvision":
            continue
        assert scale(spec, 1.0, rule) == dataclasses.replace(spec, rule=rule)
        assert scale(spec, 1, rule) == scale(spec, 1.0, rule)


def test_scale_changes_widths_only():
    for name in list_models():
        for alpha in (0.25, 1.4):
            spec, scaled = table(name), scale(table(name), alpha)
            assert (scaled.alpha, scaled.rule) == (alpha, "keras")
            for block, other in zip(spec.blocks, scaled.blocks, strict=True):
                kept = dataclasses.replace(other, expansion=block.expansion, out=block.out)
                assert kept == block


@pytest.mark.parametrize("alpha", [0, 0.0, -1, -0.5, math.nan, math.inf, "1", None, True, [1.0]])
def test_scale_rejects_alpha(alpha):
    with pytest.raises(InputError, match=r"^alpha must be a positive number up to 100, not ") as e:
        scale(table("mobilenet_v2"), alpha)
    assert repr(alpha) in str(e.value)


def test_scale_rejects_what_it_cannot_do():
    with pytest.raises(InputError, match=r"Unknown rounding rule 'Keras'\. Did you mean 'keras'\?"):
        scale(table("mobilenet_v2"), 1.0, "Keras")
    with pytest.raises(InputError, match="torchvision has no MobileNetV1: choose the rule keras"):
        scale(table("mobilenet_v1"), 1.0, "torchvision")
    with pytest.raises(InputError, match=r"already scaled by alpha = 0\.5"):
        scale(scale(table("mobilenet_v2"), 0.5), 0.5)


def test_table_rejects_an_unknown_name():
    with pytest.raises(InputError, match=r"Unknown model 'mobilenet_v4'\. Did you mean"):
        table("mobilenet_v4")


# Padding


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_the_frameworks(padding):
    for size in range(2, 40):
        for kernel in (1, 3, 5, 7):
            for strides in (1, 2):
                if padding == "bottom_right" and strides == 2 and kernel == 1:
                    continue
                got = pad_amounts(size, kernel, strides, padding)
                expected = pads(size, kernel, strides, padding)
                assert got == expected, (size, kernel, strides)
                out = (size + sum(expected) - kernel) // strides + 1
                assert output_size(size, kernel, strides, padding) == out
                if padding != "bottom_right" or strides == 1 or size % 2 == 0:
                    assert out == math.ceil(size / strides)
                else:
                    assert out == size // 2


def test_padding_of_a_single_pixel():
    for kernel in (1, 3, 5, 7):
        half = kernel // 2
        for strides in (1, 2):
            for padding in ("same", "symmetric"):
                assert pad_amounts(1, kernel, strides, padding) == (half, half)
                assert output_size(1, kernel, strides, padding) == 1
        assert pad_amounts(1, kernel, 1, "bottom_right") == (half, half)
    with pytest.raises(InputError, match="'bottom_right' leaves nothing of a feature map of 1"):
        pad_amounts(1, 3, 2, "bottom_right")


def test_keras_v1_padding():
    """ZeroPadding2D(((0, 1), (0, 1))) then "valid", at every size (keras mobilenet.py)."""
    for size in range(2, 20):
        assert pad_amounts(size, 3, 2, "bottom_right") == (0, 1)


# Overrides


def test_overrides_replace_what_is_given():
    spec = table("mobilenet_v2")
    assert with_overrides(spec, padding=None, dropout=None) == spec
    changed = with_overrides(spec, padding="symmetric", dropout=0.0, bn_epsilon=1e-5, num_classes=1)
    assert changed == dataclasses.replace(
        spec, padding="symmetric", dropout=0.0, bn_epsilon=1e-5, num_classes=1
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("padding", "valid", "Unknown padding 'valid'"),
        ("padding", "Same", "Did you mean 'same'"),
        ("se_gate", "hsigmoid", "Did you mean 'sigmoid'"),
        ("dropout", 1.0, "dropout must be a number in [0.0, 1.0), not 1.0."),
        ("dropout", -0.1, "dropout must be a number in [0.0, 1.0), not -0.1."),
        ("dropout", "0.2", "dropout must be a number in [0.0, 1.0), not '0.2'."),
        ("dropout", [0.2], "dropout must be a number in [0.0, 1.0), not [0.2]."),
        ("bn_momentum", math.nan, "bn_momentum must be a number in [0.0, 1.0), not nan."),
        ("bn_epsilon", "small", "bn_epsilon must be a number in [0.0, 1.0), not 'small'."),
        ("bn_epsilon", True, "bn_epsilon must be a number in [0.0, 1.0), not True."),
        ("num_classes", 0, "num_classes must be a positive integer, not 0."),
        ("num_classes", 10.0, "num_classes must be a positive integer, not 10.0."),
        ("num_classes", "10", "num_classes must be a positive integer, not '10'."),
        ("num_classes", True, "num_classes must be a positive integer, not True."),
    ],
)
def test_overrides_reject(field, value, message):
    with pytest.raises(InputError) as caught:
        with_overrides(table("mobilenet_v2"), **{field: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The package


def test_activations_are_those_that_the_tables_use():
    used = {b.activation for name in list_models() for b in table(name).blocks}
    assert used <= set(ACTIVATIONS)


def test_specs_need_no_jax():
    code = (
        "import sys, mobilenets_jax, mobilenets_jax.specs, mobilenets_jax.switches\n"
        "import mobilenets_jax.costs, mobilenets_jax.errors\n"
        "spec = mobilenets_jax.switches.build_spec('mobilenet_v3_small', alpha=0.5)\n"
        "mobilenets_jax.costs.summary(spec), mobilenets_jax.list_models()\n"
        "print(sorted({'jax', 'jaxlib', 'flax', 'numpy', 'tensorflow'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "[]\n"
