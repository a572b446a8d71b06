"""The shortest time in which a machine can do a step: its operations or its bytes, at the peaks.

Owns what is counted. Measures nothing (`peers.machine` does) and imports no JAX.
"""

import math
from typing import NamedTuple

from experiments import peers
from mobilenets_jax import costs, specs

BYTES = {"float32": 4, "bfloat16": 2}


class Floor(NamedTuple):
    """A step's least work and time.

    Attributes:
        flops: floating-point operations, 2 for a multiply-accumulate.
        bytes: that must be moved, see `network_work` and `layer_work`.
        seconds: the larger of the two's times.
        bound: "operations", "memory" or "cache", whose time that is.
    """

    flops: int
    bytes: int
    seconds: float
    bound: str


def floor(cell: peers.Cell | peers.LayerCell, machine: dict[str, float]) -> Floor:
    """Returns the floor of a network's or a layer's step.

    Bytes are moved at the bandwidth of main memory. If all of them together fit the last cache,
    they may have stayed there since the step before, and move at the cache's.

    Args:
        cell: a network or a layer.
        machine: what `peers.machine.peaks` returns.
    """
    count = network_work if isinstance(cell, peers.Cell) else layer_work
    flops, moved = count(cell)  # type: ignore[operator]
    cached = moved <= machine["cache_bytes"]
    bandwidth = machine["cache_copy_bytes" if cached else "copy_bytes"]
    computing, moving = flops / machine["flops"], moved / bandwidth
    bound = "operations" if computing >= moving else "cache" if cached else "memory"
    return Floor(flops, moved, max(computing, moving), bound)


def network_work(cell: peers.Cell) -> tuple[int, int]:
    """Returns operations and bytes of a network's step.

    Training has three times the operations: forward, input gradient, weight gradient. Bytes are
    those of a program in which everything between two convolutions (BatchNorm, activation, gate,
    addition, pooling) is fused into them, I, O and W being the bytes of a convolution's input,
    output and weights, each moved once:

    - inference: I + O + W.
    - training: forward reads I and W and writes O, before BatchNorm; backward reads the gradient of
      O, O again for BatchNorm's and the activation's gradients, I for the weight gradient and W for
      the input gradient, and writes the gradients of I and W: 3 (I + O) + 3 W. SGD with momentum
      reads parameter, gradient and momentum and writes two of them: 5 W more.

    Squeeze-and-excite moves its weights only: its mean and its product are fused. Activations are
    in the cell's dtype; weights too in inference, and float32 in training.
    """
    spec = specs.table(peers.MODELS[cell.model])
    training = cell.task == "training"
    element = BYTES[cell.dtype]
    flops = moved = 0
    for layer in costs.layers(spec, cell.resolution):
        flops += 2 * layer.macs * cell.batch
        if layer.weights:
            both = math.prod(layer.input) + math.prod(layer.output)
            activations = 0 if layer.kind == "se" else both * cell.batch * element
            weights = layer.weights * (4 if training else element)
            moved += 3 * activations + 8 * weights if training else activations + weights
    return flops * (3 if training else 1), moved


def layer_work(cell: peers.LayerCell) -> tuple[int, int]:
    """Returns operations and bytes of a layer in one direction.

    The three directions multiply the same numbers, and each reads two of input, output and kernel,
    or their gradients, and writes the third: in all, each is moved once.
    """
    after = -(-cell.size // cell.strides)
    weights = cell.kernel**2 * cell.channels * (1 if cell.kind == "depthwise" else cell.out)
    activations = cell.size**2 * cell.channels + after**2 * cell.out
    moved = (cell.batch * activations + weights) * BYTES[cell.dtype]
    return 2 * cell.batch * after**2 * weights, moved
