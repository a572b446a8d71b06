"""The networks as data: the papers' tables, and the width multiplier that scales them.

Owns the layer tables of MobileNet V1, V2 and V3, the rules by which `alpha` changes their widths,
and the padding arithmetic that costs and layers share. This is the single place where widths are
rounded. Knows nothing of JAX, of training, or of how a layer is computed.
"""

import dataclasses
import itertools
from dataclasses import dataclass, replace

from mobilenets_jax.errors import InputError, choose

ACTIVATIONS = (
    "relu",
    "relu6",
    "hswish",
    "silu",
    "gelu",
    "leaky_relu",
    "elu",
    "mish",
    "linear",
)
PADDINGS = ("same", "symmetric", "bottom_right")
RULES = ("keras", "timm", "slim", "torchvision")
SE_GATES = ("hard_sigmoid", "sigmoid")


@dataclass(frozen=True)
class Conv:
    """A full convolution, followed by its activation: the stem, the last 1×1, the pooled head.

    Attributes:
        kernel: side of the square kernel in pixels.
        out: output channels.
        activation: one of `ACTIVATIONS`.
        strides: 1 or 2.
    """

    kernel: int
    out: int
    activation: str
    strides: int = 1


@dataclass(frozen=True)
class Block:
    """One row of a paper's table: (1×1 expand) → k×k depthwise → (SE) → 1×1 project.

    The columns are those of V3's Tables 1 and 2. V1's separable layer and V2's bottleneck are the
    same chain: V1 has no expansion and an activation after its 1×1, V2 has a linear one.

    Attributes:
        kernel: side of the depthwise kernel in pixels.
        expansion: channels of the depthwise convolution. There is no expand layer where they equal
            the block's input channels (t = 1).
        out: output channels.
        se: squeeze-and-excite after the depthwise activation.
        activation: non-linearity after the expand and the depthwise convolution.
        strides: 1 or 2, at the depthwise convolution.
        projection_activation: after the last 1×1; "linear" in V2 and V3.
        convolution: "depthwise", or "standard": the depthwise convolution and the 1×1 behind it
            are one full k×k convolution (V1, Table 4).
        shortcut: "bottleneck" adds the input to the output, "expansion" adds the expanded tensor
            of the block before to this one's (V2, Fig. 6b), "none" adds nothing. Either is taken
            only where the strides between the two are 1 and their shapes are equal.
    """

    kernel: int
    expansion: int
    out: int
    se: bool
    activation: str
    strides: int
    projection_activation: str = "linear"
    convolution: str = "depthwise"
    shortcut: str = "bottleneck"


@dataclass(frozen=True)
class Spec:
    """A whole network. Every number a layer needs is here; a layer has no constants of its own.

    Attributes:
        name: public name, e.g. "mobilenet_v2".
        family: "v1", "v2" or "v3"; the width rules differ by it.
        stem: first convolution.
        blocks: the table's rows.
        last: 1×1 convolution with BatchNorm before the pooling; None in V1.
        head: 1×1 layer with bias and without BatchNorm after the pooling (V3); None otherwise.
        dropout: rate before the classifier.
        num_classes: outputs of the classifier.
        alpha: width multiplier that was applied.
        rule: rounding rule that was applied, one of `RULES`.
        padding: "same" (TensorFlow), "symmetric" (PyTorch: k // 2 on both sides) or
            "bottom_right" (Keras V1: stride-2 depthwise layers pad as if the input were even).
        bn_epsilon: added to the variance in BatchNorm.
        bn_momentum: decay of BatchNorm's running statistics (new = m·old + (1 - m)·batch).
        se_ratio: squeeze channels per expanded channel, rounded to a multiple of `se_divisor`.
        se_gate: one of `SE_GATES`.
        se_divisor: of the squeeze channels; 8 in the papers.
        se_activation: between the two layers of squeeze-and-excite; "block" is the block's own.
        head_bias: whether the pooled head has a bias, as in V3.
        fixed_ends: alpha leaves the stem and the last 1×1 alone (timm's deeper V2).
        stages: blocks in each run of equal width at alpha = 1; filled in by `scale`, which can
            make neighbours equal. Libraries name blocks by them.
    """

    name: str
    family: str
    stem: Conv
    blocks: tuple[Block, ...]
    last: Conv | None = None
    head: Conv | None = None
    dropout: float = 0.2
    num_classes: int = 1000
    alpha: float = 1.0
    rule: str = "keras"
    padding: str = "same"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99
    se_ratio: float = 0.25
    se_gate: str = "hard_sigmoid"
    se_divisor: int = 8
    se_activation: str = "relu"
    head_bias: bool = True
    fixed_ends: bool = False
    stages: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def squeeze(self, block: Block) -> int:
        """Channels between the two layers of the block's squeeze-and-excite."""
        return make_divisible(block.expansion * self.se_ratio, self.se_divisor)


# MobileNetV1, arXiv:1704.04861, Table 1. The table prints s2 for the last depthwise layer, but its
# input and output are both 7×7. TF-slim and Keras use ReLU6 where the paper's text says ReLU.
# fmt: off
_V1 = Spec(
    name="mobilenet_v1", family="v1", dropout=0.001, bn_momentum=0.99,
    stem=Conv(3, 32, "relu6", 2),
    blocks=tuple(
        Block(3, dw, pw, False, "relu6", s, projection_activation="relu6", shortcut="none")
        for dw, pw, s in (
            # dw    pw    s
            (32,    64,   1),
            (64,    128,  2),
            (128,   128,  1),
            (128,   256,  2),
            (256,   256,  1),
            (256,   512,  2),
            (512,   512,  1),
            (512,   512,  1),
            (512,   512,  1),
            (512,   512,  1),
            (512,   512,  1),
            (512,   1024, 2),
            (1024,  1024, 1),
        )
    ),
)


def _v2_rows() -> tuple[Block, ...]:
    rows, width = [], 32
    for t, c, n, s in (
        # t  c    n  s      arXiv:1801.04381, Table 2
        (1,  16,  1, 1),
        (6,  24,  2, 2),
        (6,  32,  3, 2),
        (6,  64,  4, 2),
        (6,  96,  3, 1),
        (6,  160, 3, 2),
        (6,  320, 1, 1),
    ):
        for i in range(n):
            rows.append(Block(3, t * width, c, False, "relu6", s if i == 0 else 1))
            width = c
    return tuple(rows)


_V2 = Spec(
    name="mobilenet_v2", family="v2", bn_momentum=0.999,
    stem=Conv(3, 32, "relu6", 2),
    blocks=_v2_rows(),
    last=Conv(1, 1280, "relu6"),
)

# MobileNetV3-Large, arXiv:1905.02244v5, Table 1.
_V3_LARGE = Spec(
    name="mobilenet_v3_large", family="v3", bn_momentum=0.999,
    stem=Conv(3, 16, "hswish", 2),
    blocks=(
        #     k  exp  out  SE     NL        s
        Block(3, 16,  16,  False, "relu",   1),
        Block(3, 64,  24,  False, "relu",   2),
        Block(3, 72,  24,  False, "relu",   1),
        Block(5, 72,  40,  True,  "relu",   2),
        Block(5, 120, 40,  True,  "relu",   1),
        Block(5, 120, 40,  True,  "relu",   1),
        Block(3, 240, 80,  False, "hswish", 2),
        Block(3, 200, 80,  False, "hswish", 1),
        Block(3, 184, 80,  False, "hswish", 1),
        Block(3, 184, 80,  False, "hswish", 1),
        Block(3, 480, 112, True,  "hswish", 1),
        Block(3, 672, 112, True,  "hswish", 1),
        Block(5, 672, 160, True,  "hswish", 2),
        Block(5, 960, 160, True,  "hswish", 1),
        Block(5, 960, 160, True,  "hswish", 1),
    ),
    last=Conv(1, 960, "hswish"),
    head=Conv(1, 1280, "hswish"),
)

# MobileNetV3-Small, Table 2. The table ticks SE on the last 1×1 convolution too; no reference
# implementation has it.
_V3_SMALL = Spec(
    name="mobilenet_v3_small", family="v3", bn_momentum=0.999,
    stem=Conv(3, 16, "hswish", 2),
    blocks=(
        #     k  exp  out  SE     NL        s
        Block(3, 16,  16,  True,  "relu",   2),
        Block(3, 72,  24,  False, "relu",   2),
        Block(3, 88,  24,  False, "relu",   1),
        Block(5, 96,  40,  True,  "hswish", 2),
        Block(5, 240, 40,  True,  "hswish", 1),
        Block(5, 240, 40,  True,  "hswish", 1),
        Block(5, 120, 48,  True,  "hswish", 1),
        Block(5, 144, 48,  True,  "hswish", 1),
        Block(5, 288, 96,  True,  "hswish", 2),
        Block(5, 576, 96,  True,  "hswish", 1),
        Block(5, 576, 96,  True,  "hswish", 1),
    ),
    last=Conv(1, 576, "hswish"),
    head=Conv(1, 1024, "hswish"),
)
# fmt: on


def _minimalistic(spec: Spec) -> Spec:
    """V3 without the layers that some hardware dislikes: 3×3 kernels, ReLU, no SE (TF-slim)."""
    assert spec.last is not None
    assert spec.head is not None
    return replace(
        spec,
        name=f"{spec.name}_minimalistic",
        stem=replace(spec.stem, activation="relu"),
        blocks=tuple(replace(b, kernel=3, se=False, activation="relu") for b in spec.blocks),
        last=replace(spec.last, activation="relu"),
        head=replace(spec.head, activation="relu"),
    )


_TABLES = {
    spec.name: spec
    for spec in (
        _V1,
        _V2,
        _V3_LARGE,
        _V3_SMALL,
        _minimalistic(_V3_LARGE),
        _minimalistic(_V3_SMALL),
    )
}


def list_models() -> list[str]:
    """Returns the names of all networks, in the order of the papers."""
    return list(_TABLES)


def table(name: str) -> Spec:
    """Returns the paper's network at alpha = 1.

    Raises:
        InputError: if there is no network of that name.
    """
    choose("model", name, _TABLES)
    return _TABLES[name]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds channels to a multiple of `divisor`, never losing more than 10 % (TF-slim)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def scale(spec: Spec, alpha: float, rule: str = "keras") -> Spec:
    """Applies the width multiplier alpha to every layer.

    The rules agree at alpha = 1 and on every published V1 and V2; they differ in V3's stem,
    expansions and last layers:

    | rule | stem | expansion | last 1×1 | pooled head |
    | --- | --- | --- | --- | --- |
    | keras | not scaled | ratio · input | 6 · last block | scaled for alpha > 1 |
    | timm | not scaled for alpha < 0.75 | ratio · input | scaled | not scaled |
    | slim | scaled | ratio · input | scaled | not scaled |
    | torchvision | scaled | alpha · expansion | 6 · last block | scaled |

    `slim` is TF-slim with `finegrain_classification_mode`, which the published networks need. V2's
    1280 channels grow with alpha > 1 and never shrink, under every rule.

    Args:
        spec: a network at alpha = 1.
        alpha: width multiplier, > 0.
        rule: one of `RULES`.

    Returns:
        The network with every width explicit.

    Raises:
        InputError: for an alpha that is not positive, an unknown rule, a network that is scaled
            already, or V1 under `torchvision`, which has no V1.
    """
    choose("rounding rule", rule, RULES)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 100:
        raise InputError(f"alpha must be a positive number up to 100, not {alpha!r}.")
    if spec.alpha != 1.0:
        raise InputError(f"{spec.name} is already scaled by alpha = {spec.alpha}: scale it once.")
    if rule == "torchvision" and spec.family == "v1":
        raise InputError("torchvision has no MobileNetV1: choose the rule keras, timm or slim.")

    def width(channels: int) -> int:
        if spec.family == "v1" and rule == "keras":
            return max(1, int(channels * alpha))
        if spec.family == "v1" and rule == "slim":
            return max(8, int(channels * alpha))
        if spec.family == "v2" and rule == "keras":
            return make_divisible(int(channels * alpha))
        return make_divisible(channels * alpha)

    stem_is_fixed = spec.fixed_ends or (
        spec.family == "v3" and (rule == "keras" or (rule == "timm" and alpha < 0.75))
    )
    stem = spec.stem if stem_is_fixed else replace(spec.stem, out=width(spec.stem.out))

    blocks = []
    before, now = spec.stem.out, stem.out
    for block in spec.blocks:
        if block.expansion == before:
            expansion = now
        elif rule == "torchvision" and spec.family == "v3":
            expansion = make_divisible(block.expansion * alpha)
        else:
            expansion = make_divisible(now * (block.expansion / before))
        before, now = block.out, width(block.out)
        blocks.append(replace(block, expansion=expansion, out=now))

    last, head = spec.last, spec.head
    if last is not None and not spec.fixed_ends:
        if head is None:
            last = replace(last, out=max(last.out, width(last.out)))
        elif rule in ("keras", "torchvision") and last.out == 6 * before:
            last = replace(last, out=make_divisible(6 * now))
        else:
            last = replace(last, out=width(last.out))
    if head is not None and (rule == "torchvision" or (rule == "keras" and alpha > 1)):
        head = replace(head, out=width(head.out))
    return replace(
        spec,
        stem=stem,
        blocks=tuple(blocks),
        last=last,
        head=head,
        alpha=float(alpha),
        rule=rule,
        stages=tuple(len(list(run)) for _, run in itertools.groupby(b.out for b in spec.blocks)),
    )


def pad_amounts(size: int, kernel: int, strides: int, padding: str) -> tuple[int, int]:
    """Zeros before and after one spatial axis of `size` pixels.

    "same" is TensorFlow's: as little as gives ceil(size / strides) outputs, the odd one at the
    end. "symmetric" is PyTorch's (kernel - 1) // 2. "bottom_right" is Keras V1's fixed (0, 1) for
    a 3×3 kernel at stride 2: "same" for an even size, whatever the size is.

    Raises:
        InputError: if "bottom_right" would leave nothing of a single pixel.
    """
    if padding == "symmetric":
        return (kernel - 1) // 2, (kernel - 1) // 2
    if padding == "bottom_right" and strides == 2:
        if size == 1:
            raise InputError(
                "padding 'bottom_right' leaves nothing of a feature map of 1 pixel: take a larger "
                "image, drop_strides, or padding='same'."
            )
        size = 2 * ((size + 1) // 2)
    total = max((-(-size // strides) - 1) * strides + kernel - size, 0)
    return total // 2, total - total // 2


def output_size(size: int, kernel: int, strides: int, padding: str) -> int:
    """Pixels along one axis after a convolution."""
    before, after = pad_amounts(size, kernel, strides, padding)
    return (size + before + after - kernel) // strides + 1


def with_overrides(spec: Spec, **fields: object) -> Spec:
    """Replaces fields of the spec by those that are not None, checking names and values.

    Raises:
        InputError: for an unknown padding or SE gate, or a number outside its range.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    if "padding" in given:
        choose("padding", given["padding"], PADDINGS)
    if "se_gate" in given:
        choose("SE gate", given["se_gate"], SE_GATES)
    for key, low, high in (
        ("dropout", 0.0, 1.0),
        ("bn_momentum", 0.0, 1.0),
        ("bn_epsilon", 0.0, 1.0),
    ):
        value = given.get(key, low)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
            raise InputError(f"{key} must be a number in [{low}, {high}), not {value!r}.")
    classes = given.get("num_classes", 1)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise InputError(f"num_classes must be a positive integer, not {classes!r}.")
    return dataclasses.replace(spec, **given)  # type: ignore[arg-type]
