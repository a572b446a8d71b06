"""The ablations: functions from a spec to a spec, so that a change's cost is known at once.

Owns every change that a study makes to a paper's network, and `build_spec`, which applies them to
a table before the width multiplier. Knows nothing of JAX or of training.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mobilenets_jax.errors import InputError, choose
from mobilenets_jax.specs import ACTIVATIONS, Block, Conv, Spec, scale, table, with_overrides


def _each_block(spec: Spec, change: Callable[[Block], Block]) -> Spec:
    return replace(spec, blocks=tuple(change(block) for block in spec.blocks))


def set_standard_conv(spec: Spec, on: bool) -> Spec:
    """Full k×k convolutions instead of depthwise separable ones (V1, Table 4), or not.

    Each depthwise convolution and the 1×1 behind it become one full convolution of the same stride
    and width; SE, where there is one, comes before it.
    """
    kind = "standard" if on else "depthwise"
    return _each_block(spec, lambda block: replace(block, convolution=kind))


def set_activation(spec: Spec, activation: str, everywhere: bool = False) -> Spec:
    """Another non-linearity wherever the paper's own is non-linear, or everywhere.

    Args:
        spec: the network.
        activation: one of `ACTIVATIONS`.
        everywhere: also after the linear bottlenecks.

    The ReLU and the gate inside squeeze-and-excite are part of that unit and stay.
    """
    choose("activation", activation, ACTIVATIONS)

    def conv(row: Conv | None) -> Conv | None:
        return row and replace(row, activation=activation)

    def block(row: Block) -> Block:
        linear = row.projection_activation == "linear" and not everywhere
        return replace(
            row,
            activation=activation,
            projection_activation="linear" if linear else activation,
        )

    spec = _each_block(spec, block)
    stem = replace(spec.stem, activation=activation)
    return replace(spec, stem=stem, last=conv(spec.last), head=conv(spec.head))


def set_linear_bottleneck(spec: Spec, linear: bool) -> Spec:
    """Linear block outputs, or the block's own activation there (V2, Fig. 6a)."""
    return _each_block(
        spec,
        lambda block: replace(
            block, projection_activation="linear" if linear else block.activation
        ),
    )


def set_expansion(spec: Spec, t: int) -> Spec:
    """Another expansion t in every block that expands: t times the block's input channels.

    V2's are 6 (V2, section 4), V3's differ from block to block. With t = 1 no block has an
    expand layer; blocks that have none keep none.

    Raises:
        InputError: for V1, which does not expand, and for another t than 1 to 20.
    """
    if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= 20:
        raise InputError(f"expansion must be an integer from 1 to 20, not {t!r}.")
    if spec.family == "v1":
        raise InputError(f"{spec.name} has no bottlenecks: expansion needs V2 or V3.")
    inputs = [spec.stem.out, *(block.out for block in spec.blocks)]
    blocks = tuple(
        replace(block, expansion=block.expansion if block.expansion == before else t * before)
        for block, before in zip(spec.blocks, inputs, strict=False)
    )
    return replace(spec, blocks=blocks)


def set_residual(spec: Spec, kind: str) -> Spec:
    """The "inverted" residual block of V2 and V3, or the "classical" one (V2, Fig. 3).

    Classical is wide–narrow–wide with the shortcut between the wide ends. The chain of 1×1 layers
    keeps its widths; the block boundaries move by one layer, so that the depthwise convolution and
    its stride sit on the narrow tensor, and block outputs are wide and non-linear. The last block
    keeps its own expansion as output.

    Raises:
        InputError: for an unknown kind, and for V1, which has no bottlenecks.
    """
    choose("residual", kind, ("inverted", "classical"))
    if kind == "inverted":
        return spec
    if spec.family == "v1":
        raise InputError(f"{spec.name} has no bottlenecks: residual='classical' needs V2 or V3.")
    wide = [block.expansion for block in spec.blocks[1:]] + [spec.blocks[-1].expansion]
    blocks = tuple(
        replace(block, expansion=block.out, out=out, projection_activation=block.activation)
        for block, out in zip(spec.blocks, wide, strict=True)
    )
    return replace(spec, blocks=blocks)


def set_shortcut(spec: Spec, kind: str) -> Spec:
    """Shortcuts between bottlenecks, between expansions, or none (V2, Fig. 6b).

    Raises:
        InputError: for an unknown kind.
    """
    choose("shortcut", kind, ("bottleneck", "expansion", "none"))
    return _each_block(spec, lambda block: replace(block, shortcut=kind))


def set_se(spec: Spec, on: bool) -> Spec:
    """Squeeze-and-excite in every block, or in none."""
    return _each_block(spec, lambda block: replace(block, se=on))


def set_hswish_from(spec: Spec, resolution: int) -> Spec:
    """h-swish where feature maps have at most `resolution` pixels a side, ReLU above.

    V3's Table 5 counts channels instead: its h-swish@16 is 112 here, its own network (@80) is 14
    with h-swish in the stem too, and its @112, which starts within the 14-pixel blocks, has no
    counterpart.

    Args:
        spec: the network.
        resolution: of a block's output in the 224-pixel network: 112, 56, 28, 14 or 7.

    Raises:
        InputError: for another resolution.
    """
    if resolution not in (112, 56, 28, 14, 7):
        raise InputError(f"hswish_from must be one of 112, 56, 28, 14 and 7, not {resolution!r}.")

    def at(size: int) -> str:
        return "hswish" if size <= resolution else "relu"

    size = 224 // spec.stem.strides
    stem = replace(spec.stem, activation=at(size))
    blocks = []
    for block in spec.blocks:
        size //= block.strides
        linear = block.projection_activation == "linear"
        projection = "linear" if linear else at(size)
        blocks.append(replace(block, activation=at(size), projection_activation=projection))
    last = spec.last and replace(spec.last, activation=at(size))
    head = spec.head and replace(spec.head, activation="hswish")
    return replace(spec, stem=stem, blocks=tuple(blocks), last=last, head=head)


def _original_last_stage(spec: Spec) -> Spec:
    """V3's last stage as it was before its redesign (V3, Fig. 5, upper row).

    1×1 expand → depthwise → 1×1 to twice the width → 1×1 to the head's width → pooling. V2 has it
    already.
    """
    if spec.head is None or spec.last is None:
        return spec
    block = spec.blocks[-1]
    extra = Block(3, spec.last.out, 2 * block.out, False, spec.last.activation, 1)
    last = Conv(1, spec.head.out, spec.last.activation)
    return replace(spec, blocks=(*spec.blocks, extra), last=last, head=None)


def _shortened_last_stage(spec: Spec) -> Spec:
    """The redesigned last stage: the widest layer after the pooling (V3, Fig. 5, lower row).

    V2's last bottleneck gives its expansion to the 1×1 before the pooling, and its 1280 channels
    move behind it. V3 has it already.
    """
    if spec.head is not None or spec.last is None:
        return spec
    last = Conv(1, spec.blocks[-1].expansion, spec.last.activation)
    head = Conv(1, spec.last.out, spec.last.activation)
    return replace(spec, blocks=spec.blocks[:-1], last=last, head=head)


def set_last_stage(spec: Spec, kind: str) -> Spec:
    """V3's last stage "shortened", as it was redesigned, or "original" (V3, section 5.1, Fig. 5).

    Raises:
        InputError: for an unknown kind, and for V1, which has no such stage.
    """
    choose("last_stage", kind, ("original", "shortened"))
    if spec.family == "v1":
        raise InputError(f"{spec.name} has no last stage to change: last_stage needs V2 or V3.")
    return _original_last_stage(spec) if kind == "original" else _shortened_last_stage(spec)


def set_stem(spec: Spec, filters: int) -> Spec:
    """A stem of 32 or 16 filters (V3, section 5.1); the first block keeps its expansion ratio.

    Raises:
        InputError: for another number of filters.
    """
    if not isinstance(filters, int) or filters not in (16, 32):
        raise InputError(f"stem must be 16 or 32, not {filters!r}.")
    first, *rest = spec.blocks
    expansion = first.expansion * filters // spec.stem.out
    blocks = (replace(first, expansion=expansion), *rest)
    return replace(spec, stem=replace(spec.stem, out=filters), blocks=blocks)


def set_shallow(spec: Spec, on: bool) -> Spec:
    """V1 without its five 14×14×512 layers (V1, Table 5), or with them.

    Raises:
        InputError: for V2 and V3.
    """
    if not on:
        return spec
    if spec.family != "v1":
        raise InputError(f"shallow=True is V1's ablation: {spec.name} has no such layers.")
    blocks = tuple(b for b in spec.blocks if (b.expansion, b.out) != (512, 512))
    return replace(spec, blocks=blocks)


def set_drop_strides(spec: Spec, n: int) -> Spec:
    """The n earliest stride-2 layers at stride 1, for small images.

    Raises:
        InputError: if n is negative or more than the network's stride-2 layers.
    """
    strides = [spec.stem.strides, *(block.strides for block in spec.blocks)]
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= strides.count(2):
        raise InputError(
            f"drop_strides must be an integer from 0 to {strides.count(2)} "
            f"({spec.name}'s stride-2 layers), not {n!r}."
        )
    for _ in range(n):
        strides[strides.index(2)] = 1
    blocks = tuple(
        replace(block, strides=s) for block, s in zip(spec.blocks, strides[1:], strict=True)
    )
    return replace(spec, stem=replace(spec.stem, strides=strides[0]), blocks=blocks)


def set_depth(spec: Spec, multiplier: float) -> Spec:
    """More layers in each stage of V2 but the first and the last: ceil(multiplier · layers).

    Alpha then leaves the stem and the last 1×1 alone. That is timm's compound scaling:
    mobilenetv2_110d and 120d are alpha 1.1 and 1.2 with depth 1.2 and 1.4.

    Raises:
        InputError: for V1 and V3, or a multiplier below 1 or above 10.
    """
    if spec.family != "v2":
        raise InputError(f"depth is a switch of V2: {spec.name} has no stages of equal layers.")
    is_number = isinstance(multiplier, int | float) and not isinstance(multiplier, bool)
    if not is_number or not 1 <= multiplier <= 10:
        raise InputError(f"depth must be a number in [1, 10], not {multiplier!r}.")
    stages = [list(rows) for _, rows in itertools.groupby(spec.blocks, lambda block: block.out)]
    for rows in stages[1:-1]:
        rows += [rows[-1]] * (math.ceil(len(rows) * multiplier) - len(rows))
    return replace(spec, blocks=tuple(itertools.chain(*stages)), fixed_ends=multiplier > 1)


def set_timm_variant(spec: Spec, kind: str) -> Spec:
    """Two networks that timm publishes weights for and no paper describes.

    "h" is mobilenetv1_100h: V1 with a 1×1 convolution of 1024 before the pooling. "rw" is
    mobilenetv3_rw, an early V3 Large: no shortcut in the first block, no bias in the head,
    squeeze-and-excite not rounded to 8 and with the block's own activation inside.

    Raises:
        InputError: for an unknown kind, or the wrong network.
    """
    choose("timm_variant", kind, ("h", "rw"))
    wanted = "mobilenet_v1" if kind == "h" else "mobilenet_v3_large"
    if spec.name != wanted:
        raise InputError(f"timm_variant='{kind}' is a variant of {wanted}, not of {spec.name}.")
    if kind == "h":
        return replace(spec, last=Conv(1, spec.blocks[-1].out, spec.stem.activation))
    first, *rest = spec.blocks
    return replace(
        spec,
        blocks=(replace(first, shortcut="none"), *rest),
        head_bias=False,
        se_divisor=1,
        se_activation="block",
    )


# In the order in which they are applied: first what changes the rows, then what changes their
# columns.
SWITCHES: dict[str, Callable[[Spec, Any], Spec]] = {
    "timm_variant": set_timm_variant,
    "depth": set_depth,
    "last_stage": set_last_stage,
    "stem": set_stem,
    "shallow": set_shallow,
    "expansion": set_expansion,
    "residual": set_residual,
    "se": set_se,
    "shortcut": set_shortcut,
    "hswish_from": set_hswish_from,
    "linear_bottleneck": set_linear_bottleneck,
    "standard_conv": set_standard_conv,
    "drop_strides": set_drop_strides,
}
_FLAGS = ("shallow", "se", "linear_bottleneck", "standard_conv")
_FIELDS = ("padding", "bn_epsilon", "bn_momentum", "dropout", "se_gate")
# Listed so that a misspelling of theirs finds them.
_ARGUMENTS = ("num_classes", "alpha", "activation", "activation_everywhere", "rule")


def build_spec(
    name: str,
    num_classes: int = 1000,
    alpha: float = 1.0,
    activation: str | None = None,
    *,
    activation_everywhere: bool = False,
    rule: str = "keras",
    **switches: Any,
) -> Spec:
    """Builds a network: the paper's table, then the switches, then the width multiplier.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier.
        alpha: width multiplier.
        activation: replaces the paper's own; None keeps it.
        activation_everywhere: also after linear bottlenecks.
        rule: rounding rule of `specs.scale`.
        **switches: keys of `SWITCHES`, or the spec's fields padding, bn_epsilon, bn_momentum,
            dropout and se_gate. None keeps the paper's own.

    Raises:
        InputError: for an unknown name, switch or value, with the nearest valid one.
    """
    spec = table(name)
    for key, value in switches.items():
        choose("model switch", key, (*SWITCHES, *_FIELDS, *_ARGUMENTS))
        if key in _FLAGS and not (value is None or isinstance(value, bool)):
            raise InputError(f"{key} must be True, False or None, not {value!r}.")
    for key, switch in SWITCHES.items():
        if switches.get(key) is not None:
            spec = switch(spec, switches[key])
    if activation is not None:
        spec = set_activation(spec, activation, activation_everywhere)
    elif activation_everywhere:
        raise InputError("activation_everywhere=True needs an activation, e.g. activation='relu6'.")
    fields = {key: switches.get(key) for key in _FIELDS}
    return scale(with_overrides(spec, num_classes=num_classes, **fields), alpha, rule)
