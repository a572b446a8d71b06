"""Each switch changes what the papers' ablations change, and its cost is known from the spec."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest

from mobilenets_jax import costs
from mobilenets_jax.errors import InputError
from mobilenets_jax.specs import ACTIVATIONS, Block, Conv, list_models, table
from mobilenets_jax.switches import SWITCHES, build_spec

V1, V2 = "mobilenet_v1", "mobilenet_v2"
LARGE, SMALL = "mobilenet_v3_large", "mobilenet_v3_small"
NOT_V1 = [name for name in list_models() if name != V1]
# Every value of every switch.
VALUES = {
    "timm_variant": ("h", "rw"),
    "depth": (1.0, 1.2, 1.4),
    "last_stage": ("original", "shortened"),
    "stem": (16, 32),
    "shallow": (False, True),
    "expansion": (1, 3, 6),
    "residual": ("inverted", "classical"),
    "se": (False, True),
    "shortcut": ("bottleneck", "expansion", "none"),
    "hswish_from": (112, 56, 28, 14, 7),
    "linear_bottleneck": (False, True),
    "standard_conv": (False, True),
    "drop_strides": (0, 1, 3, 5),
}


def kinds(spec, resolution=224):
    return Counter(layer.kind for layer in costs.layers(spec, resolution))


def activations(spec):
    """Of every layer, in order; None where the layer is absent."""
    ends = [c and c.activation for c in (spec.last, spec.head)]
    blocks = [(b.activation, b.projection_activation) for b in spec.blocks]
    return [spec.stem.activation, *blocks, *ends]


def test_every_switch_is_in_the_table():
    assert list(VALUES) == list(SWITCHES)


@pytest.mark.parametrize("name", list_models())
def test_no_switch_is_the_papers_network(name):
    assert build_spec(name) == table(name)
    nothing = dict.fromkeys([*SWITCHES, "padding", "bn_epsilon", "bn_momentum", "dropout"])
    assert build_spec(name, 1000, 1.0, None, se_gate=None, **nothing) == table(name)
    own = {"se": None, "shortcut": table(name).blocks[0].shortcut, "drop_strides": 0}
    own |= {"standard_conv": False, "shallow": False, "linear_bottleneck": name != V1}
    own |= {"residual": "inverted", "stem": table(name).stem.out}
    if name == V2:
        own |= {"last_stage": "original", "expansion": 6}
    elif name != V1:
        own["last_stage"] = "shortened"
    assert build_spec(name, **own) == table(name)


def test_arguments_and_fields_reach_the_spec():
    spec = build_spec(
        SMALL,
        7,
        0.75,
        "mish",
        rule="slim",
        padding="symmetric",
        bn_epsilon=1e-5,
        bn_momentum=0.9,
        dropout=0.5,
        se_gate="sigmoid",
    )
    assert (spec.num_classes, spec.alpha, spec.rule) == (7, 0.75, "slim")
    assert (spec.padding, spec.bn_epsilon, spec.bn_momentum) == ("symmetric", 1e-5, 0.9)
    assert (spec.dropout, spec.se_gate) == (0.5, "sigmoid")
    assert activations(spec)[0] == "mish"


# One switch at a time


@pytest.mark.parametrize("name", list_models())
def test_standard_conv(name):
    base, spec = build_spec(name), build_spec(name, standard_conv=True)
    expected = kinds(base)
    expected["full"] = expected.pop("depthwise")
    del expected["project"]
    assert kinds(spec) == expected
    # The cost: k²·E·O instead of k²·E + E·O, at the block's output size.
    before, after = costs.layers(base), costs.layers(spec)
    full = [layer.weights for layer in after if layer.kind == "full"]
    assert full == [b.kernel**2 * b.expansion * b.out for b in base.blocks]
    pairs = zip(
        [x for x in before if x.kind == "depthwise"],
        [x for x in before if x.kind == "project"],
        [x for x in after if x.kind == "full"],
        strict=True,
    )
    for depthwise, project, one in pairs:
        assert (one.input, one.output) == (depthwise.input, project.output)
        assert one.bn_channels == project.bn_channels
    assert activations(spec) == activations(base)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", list_models())
def test_activation_where_the_paper_is_non_linear(name, activation):
    base, spec = build_spec(name), build_spec(name, activation=activation)
    projection = activation if name == V1 else "linear"
    ends = [c and activation for c in (base.last, base.head)]
    assert activations(spec) == [activation, *[(activation, projection)] * len(base.blocks), *ends]
    assert costs.layers(spec) == costs.layers(base)


@pytest.mark.parametrize("name", list_models())
def test_activation_everywhere(name):
    spec = build_spec(name, activation="silu", activation_everywhere=True)
    assert {a for pair in activations(spec)[1:-2] for a in pair} == {"silu"}
    # A bottleneck that is non-linear already takes the new one too.
    spec = build_spec(name, activation="silu", linear_bottleneck=False)
    assert {a for pair in activations(spec)[1:-2] for a in pair} == {"silu"}


@pytest.mark.parametrize("name", list_models())
def test_linear_bottleneck(name):
    base = build_spec(name)
    spec = build_spec(name, linear_bottleneck=False)
    assert [b.projection_activation for b in spec.blocks] == [b.activation for b in base.blocks]
    linear = build_spec(name, linear_bottleneck=True)
    assert {b.projection_activation for b in linear.blocks} == {"linear"}
    assert costs.layers(spec) == costs.layers(base) == costs.layers(linear)


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("name", NOT_V1)
def test_expansion(name, t):
    base, spec = table(name), build_spec(name, expansion=t)
    first, *rest = spec.blocks
    assert first == base.blocks[0]  # has no expand layer
    inputs = [block.out for block in spec.blocks]
    assert [block.expansion for block in rest] == [t * channels for channels in inputs[:-1]]
    for old, new in zip(base.blocks, spec.blocks, strict=True):
        assert replace(new, expansion=old.expansion) == old
    # Every layer of a block that expands costs in proportion to t, but with t = 1 there is none.
    assert kinds(spec)["expand"] == (0 if t == 1 else len(rest))
    narrow = build_spec(name, alpha=0.5, expansion=t)
    inputs = [block.out for block in narrow.blocks]
    for block, channels in zip(narrow.blocks[1:], inputs, strict=False):
        assert block.expansion == t * channels


def test_expansion_of_v2_is_6_and_v1_has_none():
    assert build_spec(V2, expansion=6) == table(V2)
    macs = [costs.macs(build_spec(V2, expansion=t)) for t in range(2, 9)]
    # The bottlenecks' cost is linear in t.
    assert len({b - a for a, b in itertools.pairwise(macs)}) == 1


@pytest.mark.parametrize("name", NOT_V1)
def test_classical_residual(name):
    base, spec = build_spec(name), build_spec(name, residual="classical")
    assert len(spec.blocks) == len(base.blocks)
    # The chain of 1×1 widths is the same; it starts and ends one layer later.
    inverted = [w for b in base.blocks for w in (b.expansion, b.out)]
    classical = [w for b in spec.blocks for w in (b.expansion, b.out)]
    assert classical[:-1] == inverted[1:]
    assert classical[-1] == base.blocks[-1].expansion
    for old, new in zip(base.blocks, spec.blocks, strict=True):
        assert new == replace(
            old, expansion=new.expansion, out=new.out, projection_activation=old.activation
        )
        assert new.expansion < new.out
    depthwise = [x.output[2] for x in costs.layers(spec) if x.kind == "depthwise"]
    assert depthwise == [b.out for b in base.blocks]
    assert costs.macs(spec) != costs.macs(base)
    if name == V2:
        # Equally wide neighbours: V2's ten shortcuts, and one over its last bottleneck.
        widths = [spec.stem.out, *(b.out for b in spec.blocks)]
        ends = zip(widths[:-1], widths[1:], spec.blocks, strict=True)
        assert sum(a == b and row.strides == 1 for a, b, row in ends) == 11


def test_classical_residual_needs_bottlenecks():
    assert build_spec(V1, residual="inverted") == table(V1)
    with pytest.raises(InputError, match="mobilenet_v1 has no bottlenecks: residual='classical'"):
        build_spec(V1, residual="classical")


@pytest.mark.parametrize("kind", ["bottleneck", "expansion", "none"])
@pytest.mark.parametrize("name", list_models())
def test_shortcut(name, kind):
    spec = build_spec(name, shortcut=kind)
    assert {b.shortcut for b in spec.blocks} == {kind}
    assert costs.layers(spec) == costs.layers(build_spec(name))


@pytest.mark.parametrize("name", list_models())
def test_se(name):
    on, off = build_spec(name, se=True), build_spec(name, se=False)
    assert kinds(on)["se"] == len(on.blocks)
    assert kinds(off)["se"] == 0
    squeezes = [(b.expansion, on.squeeze(b)) for b in on.blocks]
    extra = sum(2 * e * s + e + s for e, s in squeezes)
    assert costs.params(on) - costs.params(off) == extra
    assert costs.macs(on) - costs.macs(off) == sum(2 * e * s for e, s in squeezes)


def test_hswish_from_14_is_v3s_own_choice_of_blocks():
    for name in (LARGE, SMALL):
        base, spec = table(name), build_spec(name, hswish_from=14)
        assert spec == replace(base, stem=replace(base.stem, activation="relu"))


def test_hswish_from_every_resolution():
    # Outputs of V3-Large's stem and blocks, in pixels.
    sizes = [112, 112, 56, 56, 28, 28, 28, *[14] * 6, *[7] * 3]
    for start in (112, 56, 28, 14, 7):
        spec = build_spec(LARGE, hswish_from=start)
        expected = ["hswish" if size <= start else "relu" for size in sizes]
        assert [spec.stem.activation, *(b.activation for b in spec.blocks)] == expected
        assert {b.projection_activation for b in spec.blocks} == {"linear"}
        assert (spec.last.activation, spec.head.activation) == ("hswish", "hswish")
        assert costs.layers(spec) == costs.layers(table(LARGE))
    # What comes after the pooling has one pixel.
    for name, switches in ((f"{SMALL}_minimalistic", {}), (V2, {"last_stage": "shortened"})):
        spec = build_spec(name, hswish_from=7, **switches)
        assert activations(spec)[-2:] == ["hswish", "hswish"]
        assert spec.stem.activation == "relu"
    # V1's outputs are not linear and take part.
    spec = build_spec(V1, hswish_from=7)
    assert activations(spec)[1:-2] == [("relu", "relu")] * 11 + [("hswish", "hswish")] * 2
    # The resolution is that of the 224-pixel network, whatever is dropped.
    dropped = build_spec(LARGE, hswish_from=14, drop_strides=3)
    assert activations(dropped) == activations(build_spec(LARGE, hswish_from=14))


def test_original_last_stage():
    for name, width, head in ((LARGE, 160, 1280), (SMALL, 96, 1024)):
        base, spec = table(name), build_spec(name, last_stage="original")
        *kept, extra = spec.blocks
        assert tuple(kept) == base.blocks
        assert extra == Block(3, 6 * width, 2 * width, False, "hswish", 1)
        assert spec.last == Conv(1, head, "hswish")
        assert spec.head is None
    minimal = build_spec(f"{LARGE}_minimalistic", last_stage="original")
    assert minimal.blocks[-1] == Block(3, 960, 320, False, "relu", 1)
    # V2 has it; going there and back is nothing.
    assert build_spec(V2, last_stage="original") == table(V2)


def test_shortened_last_stage():
    base, spec = table(V2), build_spec(V2, last_stage="shortened")
    assert spec.blocks == base.blocks[:-1]
    assert spec.last == Conv(1, 960, "relu6")
    assert spec.head == Conv(1, 1280, "relu6")
    assert build_spec(LARGE, last_stage="shortened") == table(LARGE)
    saved = costs.macs(base) - costs.macs(spec)
    #       dw          320·960        1280·320         1280 at one pixel
    assert saved == 49 * (9 * 960 + 960 * 320 + 320 * 1280) - 960 * 1280


@pytest.mark.parametrize("rule", ["keras", "timm", "slim", "torchvision"])
def test_shortened_last_stage_scales(rule):
    """The 1×1 before the pooling keeps the width of the expansion that it was."""
    for alpha in (0.35, 0.5, 0.75, 1.4):
        spec = build_spec(V2, alpha=alpha, rule=rule, last_stage="shortened")
        original = build_spec(V2, alpha=alpha, rule=rule)
        assert spec.last.out == original.blocks[-1].expansion, (alpha, spec.last)
        assert spec.blocks == original.blocks[:-1]


def test_stem():
    wide = build_spec(LARGE, stem=32)
    assert (wide.stem.out, wide.blocks[0].expansion, wide.blocks[0].out) == (32, 32, 16)
    assert wide.blocks[1:] == table(LARGE).blocks[1:]
    thin = build_spec(V2, stem=16)
    assert (thin.stem.out, thin.blocks[0].expansion, thin.blocks[0].out) == (16, 16, 16)
    assert thin.blocks[1:] == table(V2).blocks[1:]
    thin = build_spec(V1, stem=16)
    assert (thin.stem.out, thin.blocks[0].expansion, thin.blocks[0].out) == (16, 16, 64)
    for name in list_models():
        for filters in (16, 32):
            spec = build_spec(name, stem=filters)
            assert kinds(spec) == kinds(table(name))
            more = costs.macs(spec) - costs.macs(table(name))
            assert math.copysign(1, more) == math.copysign(1, filters - table(name).stem.out)


def test_shallow():
    spec = build_spec(V1, shallow=True)
    assert len(spec.blocks) == 8
    assert spec.blocks == table(V1).blocks[:6] + table(V1).blocks[11:]
    assert [x.output[0] for x in costs.layers(spec) if x.kind == "project"] == [
        *(112, 56, 56, 28, 28, 14, 7, 7)
    ]
    for name in NOT_V1:
        assert build_spec(name, shallow=False) == table(name)
        with pytest.raises(InputError, match=f"shallow=True is V1's ablation: {name} has no"):
            build_spec(name, shallow=True)


@pytest.mark.parametrize("name", list_models())
def test_drop_strides(name):
    base = table(name)
    strides = [base.stem.strides, *(b.strides for b in base.blocks)]
    twos = [i for i, s in enumerate(strides) if s == 2]
    assert len(twos) == 5
    for n in range(6):
        spec = build_spec(name, drop_strides=n)
        expected = [1 if i in twos[:n] else s for i, s in enumerate(strides)]
        assert [spec.stem.strides, *(b.strides for b in spec.blocks)] == expected
        assert costs.params(spec) == costs.params(base)
        pool = next(x for x in costs.layers(spec, 32) if x.kind == "pool")
        assert pool.input[0] == 2**n
        # Without its first n halvings, a 224-pixel network on 224 / 2^n pixels has the same maps
        # behind them.
        assert costs.layers(spec, 224 >> n)[-3:] == costs.layers(base, 224)[-3:]


# Together


@pytest.mark.parametrize("name", list_models())
def test_switches_combine_in_any_order(name):
    """Every pair of values: a chain of layers that fits, or one sentence; order is irrelevant."""
    flat = [(key, value) for key, values in VALUES.items() for value in values]
    for first, second in itertools.combinations(flat, 2):
        if first[0] == second[0]:
            continue
        found = []
        for pair in (dict([first, second]), dict([second, first])):
            try:
                found.append(build_spec(name, alpha=0.5, activation="elu", **pair))
            except InputError as error:
                found.append(str(error))
        assert found[0] == found[1]
        if isinstance(found[0], str):
            own = ("shallow", "depth", "timm_variant")
            assert name == V1 or any(switch in found[0] for switch in own)
        else:
            layers = costs.layers(found[0], 32)
            for layer, following in itertools.pairwise(layers):
                assert layer.output == following.input
            # The first block of "rw" has none.
            assert len({b.shortcut for b in found[0].blocks[1:]}) == 1


@pytest.mark.parametrize("name", list_models())
def test_every_switch_is_a_change(name):
    """All values that are not the paper's own give another spec."""
    for key, values in VALUES.items():
        specs = []
        for value in values:
            try:
                specs.append(build_spec(name, **{key: value}))
            except InputError:
                continue
        assert len(set(specs)) == len(specs), key
        if specs and key not in ("hswish_from", "se", "timm_variant", "expansion"):
            assert table(name) in specs, key


def test_depth_adds_layers_and_keeps_the_ends():
    spec = build_spec(V2, alpha=1.2, rule="timm", depth=1.4)
    assert spec.stages == (1, 3, 5, 6, 5, 5, 1)
    assert (spec.stem.out, spec.last.out) == (32, 1280)
    assert [block.strides for block in spec.blocks].count(2) == 4
    assert build_spec(V2, alpha=1.1, depth=1.2).stages == (1, 3, 4, 5, 4, 4, 1)


def test_timm_variants():
    spec = build_spec(V1, alpha=0.5, timm_variant="h")
    assert spec.last == Conv(1, 1024, "relu6")
    rw = build_spec("mobilenet_v3_large", timm_variant="rw")
    assert [block.shortcut for block in rw.blocks[:2]] == ["none", "bottleneck"]
    assert [rw.squeeze(block) for block in rw.blocks if block.se][:3] == [18, 30, 30]
    assert (rw.head_bias, rw.se_activation) == (False, "block")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mobilenet_v5"}, "Unknown model 'mobilenet_v5'. Did you mean 'mobilenet_v"),
        ({"name": "MobileNetV2"}, "Unknown model 'MobileNetV2'."),
        ({"name": None}, "Unknown model 'None'."),
        ({"alhpa": 0.5}, "Unknown model switch 'alhpa'. Did you mean 'alpha'?"),
        ({"rul": "slim"}, "Unknown model switch 'rul'. Did you mean 'rule'?"),
        ({"shortcuts": "none"}, "Unknown model switch 'shortcuts'. Did you mean 'shortcut'?"),
        ({"drop_stride": 2}, "Unknown model switch 'drop_stride'. Did you mean 'drop_strides'?"),
        ({"dtype": "bfloat16"}, "Unknown model switch 'dtype'."),
        ({"activation": "swish"}, "Unknown activation 'swish'. Did you mean 'hswish'?"),
        ({"activation": "ReLU6"}, "Unknown activation 'ReLU6'."),
        ({"activation_everywhere": True}, "activation_everywhere=True needs an activation, "),
        ({"rule": "slimm"}, "Unknown rounding rule 'slimm'. Did you mean 'slim'?"),
        ({"name": V1, "rule": "torchvision"}, "torchvision has no MobileNetV1: choose the rule"),
        ({"padding": "valid"}, "Unknown padding 'valid'."),
        ({"padding": "symetric"}, "Unknown padding 'symetric'. Did you mean 'symmetric'?"),
        ({"se_gate": "hard_sigmoid6"}, "Did you mean 'hard_sigmoid'?"),
        ({"alpha": 0}, "alpha must be a positive number up to 100, not 0."),
        ({"alpha": -0.5}, "alpha must be a positive number up to 100, not -0.5."),
        ({"alpha": math.nan}, "alpha must be a positive number up to 100, not nan."),
        ({"alpha": "0.5"}, "alpha must be a positive number up to 100, not '0.5'."),
        ({"alpha": True}, "alpha must be a positive number up to 100, not True."),
        ({"num_classes": 0}, "num_classes must be a positive integer, not 0."),
        ({"drop_strides": 6}, "drop_strides must be an integer from 0 to 5 (mobilenet_v2's"),
        ({"drop_strides": -1}, "drop_strides must be an integer from 0 to 5 "),
        ({"drop_strides": 1.0}, "drop_strides must be an integer from 0 to 5 "),
        ({"drop_strides": "2"}, "drop_strides must be an integer from 0 to 5 "),
        ({"drop_strides": True}, "drop_strides must be an integer from 0 to 5 "),
        ({"hswish_from": 16}, "hswish_from must be one of 112, 56, 28, 14 and 7, not 16."),
        ({"hswish_from": "14"}, "hswish_from must be one of 112, 56, 28, 14 and 7, not '14'."),
        ({"stem": 24}, "stem must be 16 or 32, not 24."),
        ({"stem": 16.0}, "stem must be 16 or 32, not 16.0."),
        ({"expansion": 0}, "expansion must be an integer from 1 to 20, not 0."),
        ({"expansion": 21}, "expansion must be an integer from 1 to 20, not 21."),
        ({"expansion": True}, "expansion must be an integer from 1 to 20, not True."),
        ({"expansion": 6.0}, "expansion must be an integer from 1 to 20, not 6.0."),
        ({"name": V1, "expansion": 6}, "mobilenet_v1 has no bottlenecks: expansion needs V2 or"),
        ({"residual": "classic"}, "Unknown residual 'classic'. Did you mean 'classical'?"),
        ({"shortcut": "expansions"}, "Unknown shortcut 'expansions'. Did you mean 'expansion'?"),
        ({"shortcut": False}, "Unknown shortcut 'False'."),
        ({"last_stage": "short"}, "Unknown last_stage 'short'. Did you mean 'shortened'?"),
        ({"name": V1, "last_stage": "original"}, "mobilenet_v1 has no last stage to change"),
        ({"se": "yes"}, "se must be True, False or None, not 'yes'."),
        ({"standard_conv": 2}, "standard_conv must be True, False or None, not 2."),
        ({"linear_bottleneck": "no"}, "linear_bottleneck must be True, False or None, not 'no'."),
        ({"shallow": True}, "shallow=True is V1's ablation: mobilenet_v2 has no such layers."),
        ({"depth": 0.5}, "depth must be a number in [1, 10], not 0.5."),
        ({"depth": True}, "depth must be a number in [1, 10], not True."),
        ({"name": V1, "depth": 2}, "depth is a switch of V2: mobilenet_v1 has no stages"),
        ({"timm_variant": "hh"}, "Unknown timm_variant 'hh'. Did you mean 'h'?"),
        ({"timm_variant": "h"}, "timm_variant='h' is a variant of mobilenet_v1, not of"),
        ({"dropout": 1}, "dropout must be a number in [0.0, 1.0), not 1."),
    ],
)
def test_bad_input_is_one_clear_message(arguments, message):
    with pytest.raises(InputError) as caught:
        build_spec(**{"name": V2, **arguments})
    text = str(caught.value)
    assert message in text
    assert text.endswith(".")
    assert "\n" not in text
