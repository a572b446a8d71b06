"""What the benchmark's contenders share: the cell to run, its inputs and weights, what they return.

Owns the contract between a worker and the libraries, one module for each. Must not import anything
that computes: a library that is not installed is found out when its own module is imported.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MODELS = {
    "v1": "mobilenet_v1",
    "v2": "mobilenet_v2",
    "v3_large": "mobilenet_v3_large",
    "v3_small": "mobilenet_v3_small",
}
TORCH = tuple(f"torch {m} {f}" for m in ("eager", "compiled") for f in ("NCHW", "channels_last"))
# Of single layers. Compiled, a forward pass has its kernel packed; a gradient is the same call.
LAYERS_TORCH = (*TORCH[:2], TORCH[3])
# Contender -> module. The first word names the library.
CONTENDERS = {
    "ours": "jax_nets",
    "naive": "jax_nets",
    **dict.fromkeys(TORCH, "torch_nets"),
    "keras": "keras_nets",
    "onnxruntime": "onnx_nets",
    "litert": "litert_nets",
}
CLASSES = 1000
LEARNING_RATE, MOMENTUM = 0.01, 0.9


class Cell(NamedTuple):
    """One row of a table.

    Attributes:
        task: "training" or "inference".
        model: a key of `MODELS`.
        batch: images in a step.
        resolution: side of the images in pixels.
        dtype: "float32" or "bfloat16", of the computation; "float64" for our own networks and
            their twins, where JAX has it switched on.
        threads: processor cores, and threads that compute.
    """

    task: str
    model: str
    batch: int
    resolution: int
    dtype: str
    threads: int


class LayerCell(NamedTuple):
    """One layer in one direction. Padding is (kernel - 1) // 2 on every side, for everybody.

    Attributes:
        kind: "depthwise" or "pointwise".
        direction: "forward", "input gradient" or "weight gradient".
        size: height and width of the input in pixels.
        channels: of the input.
        out: channels of the output.
        kernel: side of the kernel in pixels.
        strides: 1 or 2.
        batch: images.
        dtype: as of `Cell`.
        threads: as of `Cell`.
    """

    kind: str
    direction: str
    size: int
    channels: int
    out: int
    kernel: int
    strides: int
    batch: int
    dtype: str
    threads: int


class Contender(NamedTuple):
    """A network or layer that is ready to run.

    Attributes:
        step: runs one step to its end; what it returns is on the host (networks only).
        device: that it runs on.
        settings: what was chosen for this library, in words.
        outputs: arrays by name, to compare with others'; called after the first step.
        reset_peak: starts the device's high-water mark anew; None for a CPU.
        peak_bytes: the device's high-water mark; None for a CPU.
    """

    step: Callable[[], Any]
    device: str
    settings: str
    outputs: Callable[[], dict[str, np.ndarray]] | None = None
    reset_peak: Callable[[], None] | None = None
    peak_bytes: Callable[[], int] | None = None


class Unsupported(Exception):
    """The library does not do what the cell asks for."""


def load(name: str, cell: Cell | LayerCell) -> Callable[[str, Any], Contender]:
    """Imports a contender's library; returns `build(name, cell)`, which compiles nothing yet.

    `build` raises `Unsupported` where the library cannot do what the cell asks for.

    Raises:
        ImportError: the library is not installed.
    """
    module = "layers" if isinstance(cell, LayerCell) else CONTENDERS[name]
    return importlib.import_module(f"experiments.peers.{module}").build


def inputs(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float32 `[B, R, R, 3]`, standard normal, and labels int32 `[B]`."""
    rng = np.random.default_rng(0)
    shape = (cell.batch, cell.resolution, cell.resolution, 3)
    images = rng.standard_normal(shape, np.float32)
    return images, rng.integers(0, CLASSES, cell.batch, np.int32)


def random_weight(kind: str, shape: tuple[int, ...], fan_in: int, rng: Any) -> np.ndarray:
    """Returns a weight at which activations neither vanish nor grow, whatever the library.

    Args:
        kind: "kernel", "bias" (also BatchNorm's), "scale", "mean" or "var".
        shape: of the weight.
        fan_in: multiply-accumulates for one output of a kernel.
        rng: a `numpy.random.Generator`.
    """
    if kind in ("scale", "var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    deviation = (1.5 / fan_in) ** 0.5 if kind == "kernel" else 0.1
    return (rng.standard_normal(shape) * deviation).astype(np.float32)
