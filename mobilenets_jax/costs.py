"""What a network costs: parameters, multiply-accumulates and activation bytes, layer by layer.

Owns the counting, from a spec alone. Knows nothing of JAX: a cost is known before anything is
compiled. Conventions: a MAC is one multiply-accumulate of a convolution or a linear layer;
BatchNorm, activations, pooling, additions and biases are not counted. Parameters are the trainable
ones: BatchNorm has 2 per channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mobilenets_jax.errors import InputError
from mobilenets_jax.specs import Block, Spec, output_size

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer's cost.

    Attributes:
        name: path of the layer, e.g. "blocks_3/depthwise".
        operator: as a paper's table prints it, e.g. "dw 3x3 s2".
        kind: "stem", "expand", "depthwise", "full", "se", "project", "last", "pool", "head" or
            "classifier".
        input: height, width, channels.
        output: height, width, channels.
        weights: kernel elements.
        biases: bias elements.
        bn_channels: channels that carry a BatchNorm.
        macs: multiply-accumulates for one image.
    """

    name: str
    operator: str
    kind: str
    input: Shape
    output: Shape
    weights: int = 0
    biases: int = 0
    bn_channels: int = 0
    macs: int = 0

    @property
    def params(self) -> int:
        """Trainable parameters: weights, biases, BatchNorm scale and bias."""
        return self.weights + self.biases + 2 * self.bn_channels

    def activation_bytes(self, bytes_per_element: int = 4) -> int:
        """Bytes of the layer's output for one image."""
        height, width, channels = self.output
        return height * width * channels * bytes_per_element


def _conv(
    spec: Spec, name: str, kind: str, shape: Shape, kernel: int, out: int, strides: int = 1
) -> Layer:
    """A full convolution without bias, with BatchNorm. The stem pads "same" for "bottom_right"."""
    padding = "same" if spec.padding == "bottom_right" else spec.padding
    height, width = (output_size(s, kernel, strides, padding) for s in shape[:2])
    weights = kernel * kernel * shape[2] * out
    return Layer(
        name,
        f"conv {kernel}x{kernel}" + (f" s{strides}" if strides > 1 else ""),
        kind,
        shape,
        (height, width, out),
        weights=weights,
        bn_channels=out,
        macs=height * width * weights,
    )


def _block(spec: Spec, block: Block, name: str, shape: Shape) -> Iterator[Layer]:
    if block.expansion != shape[2]:
        yield _conv(spec, f"{name}/expand", "expand", shape, 1, block.expansion)
        shape = (*shape[:2], block.expansion)
    squeeze = spec.squeeze(block)
    se_weights = 2 * block.expansion * squeeze

    def excite(shape: Shape) -> Layer:
        return Layer(
            f"{name}/se",
            f"SE {squeeze}",
            "se",
            shape,
            shape,
            weights=se_weights,
            biases=squeeze + block.expansion,
            macs=se_weights,
        )

    if block.convolution == "standard":
        if block.se:
            yield excite(shape)
        yield _conv(spec, f"{name}/full", "full", shape, block.kernel, block.out, block.strides)
        return
    height, width = (output_size(s, block.kernel, block.strides, spec.padding) for s in shape[:2])
    weights = block.kernel**2 * block.expansion
    strides = f" s{block.strides}" if block.strides > 1 else ""
    depthwise = Layer(
        f"{name}/depthwise",
        f"dw {block.kernel}x{block.kernel}{strides}",
        "depthwise",
        shape,
        (height, width, block.expansion),
        weights=weights,
        bn_channels=block.expansion,
        macs=height * width * weights,
    )
    yield depthwise
    if block.se:
        yield excite(depthwise.output)
    yield _conv(spec, f"{name}/project", "project", depthwise.output, 1, block.out)


def layers(
    spec: Spec, resolution: int = 224, channels: int = 3, width: int | None = None
) -> list[Layer]:
    """Returns every layer of the network with its cost for one image.

    Args:
        spec: the network, scaled.
        resolution: height and width of the input in pixels.
        channels: input channels.
        width: of the input in pixels, if it is not its height.

    Raises:
        InputError: if the resolution is not a positive integer.
    """
    if not isinstance(resolution, int) or resolution < 1:
        raise InputError(f"The resolution must be a positive integer, not {resolution!r}.")
    shape: Shape = (resolution, resolution if width is None else width, channels)
    found = [_conv(spec, "stem", "stem", shape, spec.stem.kernel, spec.stem.out, spec.stem.strides)]
    for i, block in enumerate(spec.blocks):
        found.extend(_block(spec, block, f"blocks_{i}", found[-1].output))
    if spec.last is not None:
        found.append(_conv(spec, "last", "last", found[-1].output, 1, spec.last.out))
    shape = found[-1].output
    found.append(Layer("pool", f"avgpool {shape[0]}x{shape[1]}", "pool", shape, (1, 1, shape[2])))

    def dense(name: str, operator: str, inputs: int, outputs: int, bias: bool = True) -> Layer:
        return Layer(
            name,
            operator,
            name,
            (1, 1, inputs),
            (1, 1, outputs),
            weights=inputs * outputs,
            biases=outputs * bias,
            macs=inputs * outputs,
        )

    features = shape[2]
    if spec.head is not None:
        found.append(dense("head", "conv 1x1, NBN", features, spec.head.out, spec.head_bias))
        features = spec.head.out
    found.append(dense("classifier", "fc", features, spec.num_classes))
    return found


def params(spec: Spec) -> int:
    """Trainable parameters of the network; they do not depend on the resolution."""
    return sum(layer.params for layer in layers(spec))


def macs(spec: Spec, resolution: int = 224) -> int:
    """Multiply-accumulates for one image."""
    return sum(layer.macs for layer in layers(spec, resolution))


def summary(spec: Spec, resolution: int = 224) -> str:
    """The layer table as text: operator, input, output, parameters, MACs; last row `total`."""
    rows: list[tuple[str, ...]] = [("layer", "operator", "input", "output", "parameters", "MACs")]
    found = layers(spec, resolution)
    for layer in found:
        shapes = ("x".join(str(n) for n in s) for s in (layer.input, layer.output))
        rows.append((layer.name, layer.operator, *shapes, f"{layer.params:,}", f"{layer.macs:,}"))
    total_params, total_macs = sum(x.params for x in found), sum(x.macs for x in found)
    rows.append(("total", "", "", "", f"{total_params:,}", f"{total_macs:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        left = [cell.ljust(w) for cell, w in zip(row[:4], widths[:4], strict=True)]
        right = [cell.rjust(w) for cell, w in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
