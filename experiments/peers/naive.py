"""The naive Flax twin: the same networks as everybody writes them, and our weights in its layout.

Owns the twin that speed is compared with and results are checked against. Uses nothing of our
layers: `nn.Conv` with `feature_group_count`, `nn.Conv` 1×1, `nn.BatchNorm`, `nn.Dense`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mobilenets_jax.specs import Block, Spec, pad_amounts

Array = jax.Array
ACTIVATIONS: dict[str, Any] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hswish": nn.hard_swish,
    "linear": lambda x: x,
}


class ConvBN(nn.Module):
    """Convolution → BatchNorm → activation; `groups` is 1, or the channels for a depthwise one."""

    spec: Spec
    out: int
    dtype: Any
    activation: str = "linear"
    kernel: int = 1
    strides: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[N, H, W, I]` to `[N, H', W', O]`."""
        padding = self.spec.padding
        x = nn.Conv(
            self.out,
            (self.kernel, self.kernel),
            self.strides,
            [pad_amounts(size, self.kernel, self.strides, padding) for size in x.shape[1:3]],
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = nn.BatchNorm(
            not train,
            momentum=self.spec.bn_momentum,
            epsilon=self.spec.bn_epsilon,
            dtype=self.dtype,
            name="bn",
        )(x)
        return ACTIVATIONS[self.activation](x)


class SqueezeExcite(nn.Module):
    """Global mean → squeeze → ReLU → excite → hard sigmoid → scale."""

    squeeze: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C]`."""
        scale = nn.Dense(self.squeeze, dtype=self.dtype, name="reduce")(jnp.mean(x, (1, 2)))
        scale = nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(nn.relu(scale))
        return x * nn.hard_sigmoid(scale)[:, None, None, :]


class NaiveBlock(nn.Module):
    """V1's separable layer, or the inverted residual of V2 and V3."""

    spec: Spec
    row: Block
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[N, H, W, I]` to `[N, H', W', O]`."""
        spec, row, dtype, before = self.spec, self.row, self.dtype, x
        width, act = row.expansion, row.activation
        if width != x.shape[-1]:
            x = ConvBN(spec, width, dtype, act, name="expand")(x, train)
        x = ConvBN(
            spec, width, dtype, act, row.kernel, row.strides, groups=width, name="depthwise"
        )(x, train)
        if row.se:
            x = SqueezeExcite(spec.squeeze(row), dtype, name="se")(x)
        x = ConvBN(spec, row.out, dtype, row.projection_activation, name="project")(x, train)
        joined = row.shortcut == "bottleneck" and row.strides == 1 and x.shape == before.shape
        return x + before if joined else x


class NaiveNet(nn.Module):
    """The network of a spec without ablations."""

    spec: Spec
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images `[N, H, W, 3]` to logits `[N, num_classes]`, float32."""
        spec, stem = self.spec, self.spec.stem
        x = ConvBN(
            spec, stem.out, self.dtype, stem.activation, stem.kernel, stem.strides, name="stem"
        )(x, train)
        for i, row in enumerate(spec.blocks):
            x = NaiveBlock(spec, row, self.dtype, name=f"blocks_{i}")(x, train)
        if spec.last is not None:
            last = spec.last
            x = ConvBN(spec, last.out, self.dtype, last.activation, name="last")(x, train)
        x = jnp.mean(x, (1, 2))
        if spec.head is not None:
            x = nn.Dense(spec.head.out, dtype=self.dtype, name="head")(x)
            x = ACTIVATIONS[spec.head.activation](x)
        x = nn.Dropout(spec.dropout, deterministic=not train, name="dropout")(x)
        x = nn.Dense(spec.num_classes, dtype=self.dtype, name="classifier")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def to_naive(tree: Any) -> Any:
    """Returns our variables in the twin's layout: the same numbers in the same order.

    A convolution's kernel `[k, k, C]`, `[I, O]` or `[k, k, I, O]` becomes `conv/kernel`,
    `[k, k, 1, C]`, `[1, 1, I, O]` or the same.
    """
    if not isinstance(tree, Mapping):
        return tree
    result = {key: to_naive(value) for key, value in tree.items()}
    if "kernel" in tree and "bias" not in tree:
        kernel = result.pop("kernel")
        shape = {2: (1, 1, *kernel.shape), 3: (*kernel.shape[:2], 1, kernel.shape[-1])}
        result["conv"] = {"kernel": kernel.reshape(shape.get(kernel.ndim, kernel.shape))}
    return result
