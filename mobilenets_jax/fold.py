"""BatchNorm folded into the convolution before it, for inference.

Owns the arithmetic of folding. Knows nothing of how layers are computed, nor of training.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet

Tree = dict[str, Any]


def fold_batch_norm(model: MobileNet, variables: Mapping[str, Any]) -> tuple[MobileNet, Tree]:
    """Returns a network without BatchNorm that gives the same logits, and its variables.

    Each `{"kernel": w, "bn": {"scale": γ, "bias": β}}` with statistics μ, σ² becomes
    `{"kernel": w·γ/√(σ² + ε), "bias": β - μ·γ/√(σ² + ε)}`, computed in float64.

    Args:
        model: a network with BatchNorm.
        variables: its "params" and "batch_stats".

    Returns:
        The network, for inference alone, and `{"params": …}` of the given dtypes; JAX's arrays for
        JAX's, placed as those are, NumPy's for NumPy's.

    Raises:
        InputError: if the network is folded already.
    """
    if model.folded:
        raise InputError("The network's BatchNorm is folded already: fold one that has it.")
    params = _fold(variables["params"], variables["batch_stats"], model.spec.bn_epsilon)
    return model.clone(folded=True), {"params": params}


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any], epsilon: float) -> Tree:
    if "bn" not in params:
        return {
            name: _fold(value, stats.get(name, {}), epsilon)
            if isinstance(value, Mapping)
            else value
            for name, value in params.items()
        }
    kernel = np.asarray(params["kernel"])
    arrays = (params["bn"]["scale"], params["bn"]["bias"], stats["bn"]["mean"], stats["bn"]["var"])
    scale, bias, mean, var = (np.asarray(array, np.float64) for array in arrays)
    multiplier = scale / np.sqrt(var + epsilon)
    return {
        # Every kernel has its output channels last.
        "kernel": _like((kernel * multiplier).astype(kernel.dtype), params["kernel"]),
        "bias": _like((bias - mean * multiplier).astype(kernel.dtype), params["bn"]["bias"]),
    }


def _like(value: np.ndarray, array: Any) -> Any:
    """Returns a value as the kind of array that another is, placed as that is.

    What is not on the device, or not where its partners are, would be copied by every call.
    """
    if not isinstance(array, jax.Array):
        return value
    return jax.device_put(value, array.sharding if array.committed else None)
