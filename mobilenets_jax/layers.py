"""The layers: convolution with BatchNorm, squeeze-and-excite, the block, activations.

Owns how one row of a spec is computed. Widths arrive explicit, and padding, BatchNorm constants
and gates come from the spec. Knows nothing of whole networks, of width multipliers or of training.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mobilenets_jax.depthwise import depthwise_conv
from mobilenets_jax.norm import BatchNorm
from mobilenets_jax.pointwise import expand_conv, pointwise_conv
from mobilenets_jax.specs import Block, Spec, pad_amounts
from mobilenets_jax.stem import stem_conv

Array = jax.Array


# JAX's gradients divide twice for each element: of minima and maxima, to share out ties; of
# hard_swish, by its 6. These divide nothing. At a kink, the slope is that of the outer side.
@jax.custom_jvp
def _relu6(x: Array) -> Array:
    # Compilers and exporters fuse this spelling; jax.nn.relu6 becomes Max and Min.
    return jnp.clip(x, 0, 6)


@_relu6.defjvp
def _relu6_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _relu6(x), jnp.where((x > 0) & (x < 6), dx, jnp.zeros((), dx.dtype))


@jax.custom_jvp
def _hswish(x: Array) -> Array:
    return jax.nn.hard_swish(x)


@_hswish.defjvp
def _hswish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    zero, one = (jnp.full((), value, x.dtype) for value in (0, 1))
    slope = jnp.where(x <= -3, zero, jnp.where(x >= 3, one, x * (1 / 3) + 1 / 2))
    return _hswish(x), slope * dx


def _relu_by_selection(x: Array) -> Array:
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def _relu6_by_selection(x: Array) -> Array:
    return _relu_by_selection(jnp.where(x >= 6, jnp.full((), 6, x.dtype), x))


def _linear(x: Array) -> Array:
    return x


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": _relu6,
    "hswish": _hswish,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "mish": jax.nn.mish,
    "linear": _linear,
}
# XLA:CPU fuses what has one large operand, as a maximum has, into each of its users, with it the
# depthwise convolution before: squeeze-and-excite, with two users, would have it computed twice.
BY_SELECTION = {"relu": _relu_by_selection, "relu6": _relu6_by_selection}
SE_GATES: dict[str, Callable[[Array], Array]] = {
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "sigmoid": jax.nn.sigmoid,
}

# He et al., arXiv:1502.01852, with the fan of the outputs. For a depthwise kernel both fans are k²,
# whatever the number of channels.
_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
_depthwise_init = nn.initializers.variance_scaling(
    2.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=(), batch_axis=2
)


class ConvBN(nn.Module):
    """Convolution without bias → BatchNorm → activation; folded, convolution with bias instead.

    Attributes:
        spec: gives padding and BatchNorm constants.
        out: output channels; for a depthwise convolution, those of the input.
        kernel: side of the kernel in pixels.
        strides: 1 or 2.
        activation: one of `specs.ACTIVATIONS`.
        depthwise: one kernel per channel.
        dtype: of the computation; parameters and statistics are float32.
        folded: a bias stands for BatchNorm, see `fold.fold_batch_norm`.
        depthwise_implementation: see `depthwise.depthwise_conv`; "lax" keeps inference as exporters
            understand it.
        used_twice: the output has two users, see `BY_SELECTION`.
        expand: a 1×1 convolution whose output has one reader, an elementwise one: see
            `pointwise.expand_conv` and `norm.product_batch_norm`.

    The kernel is `[k, k, C]` (depthwise), `[I, O]` (1×1) or `[k, k, I, O]`.
    """

    spec: Spec
    out: int
    kernel: int = 1
    strides: int = 1
    activation: str = "linear"
    depthwise: bool = False
    dtype: Any = jnp.float32
    folded: bool = False
    depthwise_implementation: str | None = None
    used_twice: bool = False
    expand: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[N, H, W, I]` to `[N, H', W', O]`."""
        k, channels = self.kernel, x.shape[-1]
        fuses = self.depthwise_implementation != "lax" and not train
        normalised_kernel = None  # of a convolution that is left to BatchNorm
        x = x.astype(self.dtype)
        if self.depthwise:
            kernel = self.param("kernel", _depthwise_init, (k, k, channels), jnp.float32)
            x = depthwise_conv(
                x,
                kernel.astype(self.dtype),
                self.strides,
                self.spec.padding,
                self.depthwise_implementation,
            )
        elif k == 1 and self.strides == 1:
            kernel = self.param("kernel", _fan_out, (channels, self.out), jnp.float32)
            kernel = kernel.astype(self.dtype)
            if self.expand and train:
                normalised_kernel = kernel
            else:
                x = (expand_conv if self.expand and fuses else pointwise_conv)(x, kernel)
        else:
            kernel = self.param("kernel", _fan_out, (k, k, channels, self.out), jnp.float32)
            # Keras V1's fixed padding is that of its depthwise layers; its stem pads "same".
            fixed = self.spec.padding == "bottom_right"
            padding = "same" if fixed else self.spec.padding
            pads = tuple(pad_amounts(size, k, self.strides, padding) for size in x.shape[1:3])
            if channels <= 4:
                x = stem_conv(x, kernel.astype(self.dtype), self.strides, pads)
            else:
                x = lax.conv_general_dilated(
                    x,
                    kernel.astype(self.dtype),
                    (self.strides, self.strides),
                    pads,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
        activation = ACTIVATIONS[self.activation]
        if self.used_twice and fuses:
            activation = BY_SELECTION.get(self.activation, activation)
        if self.folded:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
            return activation(x + bias).astype(self.dtype)
        return BatchNorm(self.spec.bn_momentum, self.spec.bn_epsilon, activation, name="bn")(
            x, train, normalised_kernel
        )


class SqueezeExcite(nn.Module):
    """Global mean → squeeze → activation → excite → gate → scale (V3, section 5.3).

    Attributes:
        squeeze: channels between the two layers, which have biases and no BatchNorm.
        gate: one of `specs.SE_GATES`.
        activation: one of `specs.ACTIVATIONS`, between the two layers.
        dtype: of the computation.
    """

    squeeze: int
    gate: str
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[N, H, W, C]` to `[N, H, W, C]`."""
        scale = jnp.mean(x, (1, 2), keepdims=True)
        scale = nn.Dense(self.squeeze, dtype=self.dtype, kernel_init=_fan_out, name="reduce")(scale)
        scale = ACTIVATIONS[self.activation](scale)
        scale = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=_fan_out, name="expand")(scale)
        return x * SE_GATES[self.gate](scale)


class MobileBlock(nn.Module):
    """One row of a spec: V1's separable layer, V2's and V3's inverted residual, and ablations.

    Attributes:
        spec: the network the row belongs to.
        row: the block's numbers.
        dtype, folded, depthwise_implementation: see `ConvBN`.
    """

    spec: Spec
    row: Block
    dtype: Any = jnp.float32
    folded: bool = False
    depthwise_implementation: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool, expanded_before: Array | None = None
    ) -> tuple[Array, Array]:
        """Computes the block.

        Args:
            x: `[N, H, W, I]`.
            train: use and update batch statistics.
            expanded_before: `[N, H, W, E]`, the expanded tensor of the block before; added to this
                one's where shapes are equal and the row's shortcut is "expansion".

        Returns:
            The output `[N, H', W', O]` and the expanded tensor `[N, H, W, E]`.
        """
        row = self.row
        common = {"spec": self.spec, "dtype": self.dtype, "folded": self.folded}
        block_input = x
        if row.expansion != x.shape[-1]:
            x = ConvBN(
                out=row.expansion,
                activation=row.activation,
                depthwise_implementation=self.depthwise_implementation,
                # A full convolution is not elementwise; a shortcut between expansions reads them.
                expand=row.expansion > x.shape[-1]
                and row.convolution == "depthwise"
                and row.shortcut != "expansion",
                name="expand",
                **common,
            )(x, train)
        before = expanded_before if row.shortcut == "expansion" else None
        if before is not None and before.shape == x.shape:
            x = x + before
        expanded = x
        own = self.spec.se_activation == "block"
        squeeze_excite = SqueezeExcite(
            self.spec.squeeze(row),
            self.spec.se_gate,
            row.activation if own else self.spec.se_activation,
            self.dtype,
            name="se",
        )
        if row.convolution == "standard":
            if row.se:
                x = squeeze_excite(x)
            x = ConvBN(
                out=row.out,
                kernel=row.kernel,
                strides=row.strides,
                activation=row.projection_activation,
                name="full",
                **common,
            )(x, train)
        else:
            x = ConvBN(
                out=row.expansion,
                kernel=row.kernel,
                strides=row.strides,
                activation=row.activation,
                depthwise=True,
                depthwise_implementation=self.depthwise_implementation,
                used_twice=row.se,
                name="depthwise",
                **common,
            )(x, train)
            if row.se:
                x = squeeze_excite(x)
            x = ConvBN(out=row.out, activation=row.projection_activation, name="project", **common)(
                x, train
            )
        if row.shortcut == "bottleneck" and row.strides == 1 and x.shape == block_input.shape:
            x = x + block_input
        return x, expanded
