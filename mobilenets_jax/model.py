"""The network: one `nn.Module` that walks a spec.

Owns the public constructor and the order of the layers. Knows nothing of how a layer is computed,
of widths' arithmetic, or of training.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import DynamicJaxprTracer

from mobilenets_jax import chunks, runtime
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

    Inference in a `jit` that is traced where JAX's default backend is a CPU takes the batch in
    chunks, see `chunks`. Other platforms would run these loops, too: what is exported from a CPU
    for another platform should have `depthwise_implementation="lax"`, which has none.
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
        carried: Carried = (x, None)
        done = 0
        for stop, images in () if train or features else _loops(self, x):
            carried = _in_chunks(self, carried, done, stop, images)
            done = stop
        (x, _), stages = _walk(self, carried, done, len(spec.blocks) + 1, normalize)
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


def _walk(
    network: MobileNet, carried: Carried, start: int, stop: int, normalize: bool
) -> tuple[Carried, dict[int, Array]]:
    """Walks through layers; 0 is the stem, block i is i + 1.

    Args:
        network: whose layers they are.
        carried: what the layer before gave.
        start: the first layer.
        stop: the layer after the last one.
        normalize: use and update batch statistics.

    Returns:
        What the last layer gave, and a dict from total stride to the last feature map at it.
    """
    spec = network.spec
    common = {
        "dtype": network.dtype,
        "folded": network.folded,
        "depthwise_implementation": network.depthwise_implementation,
        "parent": network,
    }
    strides = [spec.stem.strides, *(row.strides for row in spec.blocks)]
    stages = {}
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
            block = MobileBlock(spec, spec.blocks[layer - 1], name=f"blocks_{layer - 1}", **common)
            x, expanded = block(x, normalize, expanded if strides[layer - 1] == 1 else None)
        stages[math.prod(strides[: layer + 1])] = x
    # An expansion that nothing reads would be written.
    read = stop < len(strides) and (spec.blocks[stop - 1].shortcut, strides[stop - 1])
    return (x, expanded if read == ("expansion", 1) else None), stages


def _loops(network: MobileNet, x: Array) -> list[tuple[int, int]]:
    """Returns `chunks.plan` where chunks of images x are the faster way.

    That is in what is compiled for a CPU, with an equal and known part of the batch on each device;
    not for exporters, nor where variables are written: what a loop writes would be lost.
    """
    batch, height, width = x.shape[:3]
    devices = jax.device_count()
    if (
        jax.default_backend() != "cpu"
        # Operation by operation, every call would compile the loop anew.
        or not isinstance(x, DynamicJaxprTracer)
        or not all(isinstance(size, int) for size in x.shape)
        or batch % devices
        or network.depthwise_implementation == "lax"
        or (network.scope is not None and network.scope.mutable)
    ):
        return []
    itemsize, cores = jnp.dtype(network.dtype).itemsize, max(runtime.cores() // devices, 1)
    return chunks.plan(network.spec, batch // devices, height, width, itemsize, cores)


def _in_chunks(network: MobileNet, carried: Carried, start: int, stop: int, images: int) -> Carried:
    """As `_walk` in inference, by chunks of so many images on each device."""
    batch, devices = carried[0].shape[0], jax.device_count()

    def body(network: MobileNet, nothing: tuple[()], chunk: Carried) -> tuple[tuple[()], Carried]:
        return nothing, _walk(network, chunk, start, stop, False)[0]

    loop = nn.scan(
        body,
        variable_broadcast=("params", "batch_stats"),
        split_rngs={},
        check_constancy_invariants=False,
    )
    split = jax.tree.map(lambda x: chunks.split(x, images, devices), carried)
    _, joined = loop(network, (), split)
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
