"""The network: one `nn.Module` that walks a spec.

Owns the public constructor and the order of the layers. Knows nothing of how a layer is computed,
of widths' arithmetic, or of training.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mobilenets_jax import chunks
from mobilenets_jax.depthwise import IMPLEMENTATIONS
from mobilenets_jax.errors import InputError, choose
from mobilenets_jax.layers import ACTIVATIONS, ConvBN, MobileBlock
from mobilenets_jax.specs import Spec
from mobilenets_jax.switches import build_spec

Array = jax.Array
# A layer's output, and a block's expanded tensor where the next one's shortcut adds it.
Carried = tuple[Array, Array | None]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class MobileNet(nn.Module):
    """A MobileNet.

    Attributes:
        spec: the network's numbers.
        dtype: of the computation. Parameters, BatchNorm statistics and logits are float32 (float64
            logits for float64).
        folded: a bias stands for each BatchNorm, see `fold.fold_batch_norm`; for inference alone.
        depthwise_implementation: see `depthwise.depthwise_conv`.

    `init` makes the collections "params" and "batch_stats". Training with dropout needs
    `rngs={"dropout": key}` and `mutable=["batch_stats"]`. Under `jit` with a sharded batch,
    BatchNorm statistics are those of the global batch.
    """

    spec: Spec
    dtype: Any = jnp.float32
    folded: bool = False
    depthwise_implementation: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, features: bool = False, frozen: bool = False
    ) -> Any:
        """Computes logits, or the stages' features.

        Args:
            x: images `[N, H, W, 3]`, normalised.
            train: use and update batch statistics, and drop out.
            features: return what a backbone gives.
            frozen: with `train`, use running statistics and leave them: only the dropout is then
                as in training.

        Returns:
            Logits `[N, num_classes]`; or, with `features`, a dict from the total stride (2, 4, 8,
            16, 32) to the last feature map `[N, H/stride, W/stride, C]` of the blocks at it.
        """
        spec, normalize = self.spec, train and not frozen
        stages: dict[int, Array] = {}
        carried: Carried = (x, None)
        start = 0
        if not (train or features):
            for stop, chunk in self._chunks(x):
                carried = self._in_chunks(carried, start, stop, chunk)
                start = stop
        x, _ = self._layers(carried, start, len(spec.blocks) + 1, normalize, stages)
        if features:
            return stages
        if spec.last is not None:
            x = ConvBN(
                spec,
                out=spec.last.out,
                activation=spec.last.activation,
                dtype=self.dtype,
                folded=self.folded,
                name="last",
            )(x, normalize)
        x = jnp.mean(x, (1, 2), keepdims=True).reshape(x.shape[0], -1)
        if spec.head is not None:
            x = nn.Dense(
                spec.head.out,
                use_bias=spec.head_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
                name="head",
            )(x)
            x = ACTIVATIONS[spec.head.activation](x)
        x = nn.Dropout(spec.dropout, deterministic=not train, name="dropout")(x)
        x = nn.Dense(
            spec.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="classifier",
        )(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _layers(
        self, carried: Carried, start: int, stop: int, normalize: bool, stages: dict[int, Array]
    ) -> Carried:
        """Walks through the layers from `start` on: 0 is the stem, block i is i + 1.

        Args:
            carried: what the layer before gave.
            start: the first layer.
            stop: the layer after the last one.
            normalize: use and update batch statistics.
            stages: given, by total stride, the last feature map at each.
        """
        spec = self.spec
        common = {
            "dtype": self.dtype,
            "folded": self.folded,
            "depthwise_implementation": self.depthwise_implementation,
        }
        strides = (spec.stem.strides, *(row.strides for row in spec.blocks))
        x, expanded = carried
        for layer in range(start, stop):
            if layer == 0:
                first = spec.blocks[0]
                x = ConvBN(
                    spec,
                    out=spec.stem.out,
                    kernel=spec.stem.kernel,
                    strides=spec.stem.strides,
                    activation=spec.stem.activation,
                    used_twice=(first.shortcut, first.strides, first.out)
                    == ("bottleneck", 1, spec.stem.out),
                    name="stem",
                    **common,
                )(x, normalize)
            else:
                row, block = spec.blocks[layer - 1], f"blocks_{layer - 1}"
                before = expanded if strides[layer - 1] == 1 else None
                x, expanded = MobileBlock(spec, row, name=block, **common)(x, normalize, before)
            stages[math.prod(strides[: layer + 1])] = x
        # An expansion that nothing reads would be written.
        read = stop <= len(spec.blocks) and spec.blocks[stop - 1].shortcut == "expansion"
        return x, expanded if read else None

    def _chunks(self, x: Array) -> list[tuple[int, int]]:
        """Returns `chunks.plan` where it is the faster one: compiled, on CPU, with a known batch.

        Not where every layer's output is asked for, nor for exporters.
        """
        batch, devices = x.shape[0], jax.device_count()
        if (
            jax.default_backend() != "cpu"
            or not isinstance(x, jax.core.Tracer)
            or not isinstance(batch, int)
            or batch % devices
            or self.depthwise_implementation == "lax"
            or self.is_initializing()
            or self.is_mutable_collection("intermediates")
        ):
            return []
        itemsize = jnp.dtype(self.dtype).itemsize
        return chunks.plan(self.spec, batch // devices, x.shape[1], x.shape[2], itemsize)

    def _in_chunks(self, carried: Carried, start: int, stop: int, chunk: int) -> Carried:
        """As `_layers` in inference, by chunks of the batch."""
        batch, devices = carried[0].shape[0], jax.device_count()

        def body(
            module: MobileNet, nothing: tuple[()], chunk: Carried
        ) -> tuple[tuple[()], Carried]:
            return nothing, module._layers(chunk, start, stop, False, {})

        loop = nn.scan(body, variable_broadcast=("params", "batch_stats"), split_rngs={})
        split = jax.tree.map(lambda x: chunks.split(x, chunk, devices), carried)
        _, joined = loop(self, (), split)
        return jax.tree.map(lambda x: chunks.join(x, batch, devices), joined)


def create_model(
    name: str,
    num_classes: int = 1000,
    alpha: float = 1.0,
    activation: str | None = None,
    *,
    dtype: str = "float32",
    depthwise_implementation: str | None = None,
    **switches: Any,
) -> MobileNet:
    """Creates a network.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier.
        alpha: width multiplier.
        activation: replaces the paper's own non-linearity; None keeps it.
        dtype: "float32", "bfloat16" or "float64", of the computation.
        depthwise_implementation: one of `depthwise.IMPLEMENTATIONS`; None takes the platform's.
        **switches: ablations and spec fields, see `switches.build_spec`.

    Raises:
        InputError: for an unknown name, switch or value, with the nearest valid one.
    """
    choose("dtype", dtype, DTYPES)
    if dtype == "float64" and jnp.ones(()).dtype != jnp.float64:
        raise InputError("dtype 'float64' needs jax.config.update('jax_enable_x64', True).")
    if depthwise_implementation is not None:
        choose("depthwise_implementation", depthwise_implementation, IMPLEMENTATIONS)
    spec = build_spec(name, num_classes, alpha, activation, **switches)
    return MobileNet(spec, DTYPES[dtype], depthwise_implementation=depthwise_implementation)
