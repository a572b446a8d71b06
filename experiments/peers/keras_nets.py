"""Keras: keras.applications on the JAX backend.

Owns the settings under which Keras runs. It has no folding of BatchNorm to switch on.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

from experiments import peers
from mobilenets_jax import runtime

NAMES = {
    "v1": "MobileNet",
    "v2": "MobileNetV2",
    "v3_large": "MobileNetV3Large",
    "v3_small": "MobileNetV3Small",
}
_KINDS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def build(name: str, cell: peers.Cell) -> peers.Contender:
    """Builds "keras"."""
    runtime.configure_jax()
    half = cell.dtype != "float32"
    keras.config.set_dtype_policy("mixed_bfloat16" if half else "float32")
    preprocessing = {} if cell.model in ("v1", "v2") else {"include_preprocessing": False}
    model = getattr(keras.applications, NAMES[cell.model])(
        input_shape=(cell.resolution, cell.resolution, 3),
        weights=None,
        classes=peers.CLASSES,
        classifier_activation=None,
        **preprocessing,
    )
    rng = np.random.default_rng(1)
    for layer in model.layers:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        for variable in layer.variables:
            if variable.dtype.startswith("float"):  # not a seed
                fan_in = int(np.prod(variable.shape[: 2 if depthwise else -1]))
                kind = _KINDS.get(variable.name, variable.name)
                variable.assign(peers.random_weight(kind, variable.shape, max(1, fan_in), rng))
    images, labels = map(jnp.asarray, peers.inputs(cell))
    if cell.task == "training":
        model.compile(
            keras.optimizers.SGD(peers.LEARNING_RATE, peers.MOMENTUM),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )

    def step() -> np.ndarray:
        if cell.task == "training":
            return np.asarray(model.train_on_batch(images, labels))
        return np.asarray(model.predict_on_batch(images))

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    call = "train_on_batch" if cell.task == "training" else "predict_on_batch, BatchNorm not folded"
    return peers.Contender(
        step,
        device.device_kind,
        f"JAX backend, {call}",
        reset_peak=None if on_cpu else lambda: None,
        peak_bytes=None if on_cpu else lambda: device.memory_stats()["peak_bytes_in_use"],
    )
