"""Plain numpy in float64: padding rules, layers, and a whole network walked from a spec's rows.

Shares no arithmetic with the package: paddings are the frameworks' own formulas, convolutions are
contractions of sliding windows, BatchNorm is its textbook form.
"""

import math

import jax
import numpy as np

from mobilenets_jax.specs import Block, Conv, Spec

# A network with a block of each kind, which compiles soon.
TINY = Spec(
    name="tiny",
    family="v3",
    num_classes=5,
    dropout=0.5,
    stem=Conv(3, 16, "hswish", 2),
    blocks=(
        #     k  exp out  SE     NL        s
        Block(3, 16, 16, True, "relu", 1),
        Block(3, 32, 24, False, "relu6", 2),
        Block(5, 48, 24, True, "hswish", 1),
        Block(3, 48, 24, False, "relu6", 1),
    ),
    last=Conv(1, 48, "hswish"),
    head=Conv(1, 32, "hswish"),
)


def pads(size, kernel, strides, padding):
    """Zeros before and after, by the formulas of TensorFlow, PyTorch and Keras."""
    if padding == "symmetric":
        return (kernel - 1) // 2, (kernel - 1) // 2
    if padding == "bottom_right" and strides == 2:
        return kernel // 2 - 1, kernel // 2
    last = size % strides or strides
    total = max(kernel - last, 0)
    return total // 2, total - total // 2


def _windows(x, kernel, strides, padding):
    """`[N, H', W', C, k, k]` windows of the padded `[N, H, W, C]`."""
    around = [pads(size, kernel, strides, padding) for size in x.shape[1:3]]
    padded = np.pad(x, ((0, 0), *around, (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return view[:, ::strides, ::strides]


def depthwise(x, kernel, strides, padding):
    windows = _windows(x, kernel.shape[0], strides, padding)
    return np.einsum("nhwcij,ijc->nhwc", windows, kernel)


def convolution(x, kernel, strides, padding):
    windows = _windows(x, kernel.shape[0], strides, padding)
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel)


def batch_norm(x, params, stats, epsilon):
    scaled = (x - stats["mean"]) / np.sqrt(stats["var"] + epsilon)
    return scaled * params["scale"] + params["bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _hard_sigmoid(x):
    return np.minimum(np.maximum(x + 3, 0), 6) / 6


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "hswish": lambda x: x * _hard_sigmoid(x),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "linear": lambda x: x,
}
GATES = {"hard_sigmoid": _hard_sigmoid, "sigmoid": _sigmoid}


def squeeze_excite(x, params, gate):
    scale = x.mean((1, 2), keepdims=True)
    scale = np.maximum(scale @ params["reduce"]["kernel"] + params["reduce"]["bias"], 0)
    scale = scale @ params["expand"]["kernel"] + params["expand"]["bias"]
    return x * GATES[gate](scale)


def network(spec: Spec, variables, x):
    """Evaluates a spec: logits, and the last feature map at each total stride.

    Args:
        spec: depthwise blocks with shortcuts between bottlenecks or none.
        variables: {"params": ..., "batch_stats": ...} of float64 numpy arrays.
        x: `[N, H, W, 3]`.
    """
    params, stats = variables["params"], variables["batch_stats"]

    def bn(x, *path):
        p, s = params, stats
        for name in path:
            p, s = p[name], s[name]
        return batch_norm(x, p["bn"], s["bn"], spec.bn_epsilon)

    full = "same" if spec.padding == "bottom_right" else spec.padding
    x = convolution(x, params["stem"]["kernel"], spec.stem.strides, full)
    x = ACTIVATIONS[spec.stem.activation](bn(x, "stem"))
    stride = spec.stem.strides
    features = {stride: x}
    for i, row in enumerate(spec.blocks):
        name = f"blocks_{i}"
        block, act, before = params[name], ACTIVATIONS[row.activation], x
        if row.expansion != x.shape[-1]:
            x = act(bn(x @ block["expand"]["kernel"], name, "expand"))
        x = depthwise(x, block["depthwise"]["kernel"], row.strides, spec.padding)
        x = act(bn(x, name, "depthwise"))
        if row.se:
            x = squeeze_excite(x, block["se"], spec.se_gate)
        x = bn(x @ block["project"]["kernel"], name, "project")
        x = ACTIVATIONS[row.projection_activation](x)
        equal = before.shape[-1] == x.shape[-1] and row.strides == 1
        if row.shortcut == "bottleneck" and equal:
            x = x + before
        stride *= row.strides
        features[stride] = x
    if spec.last is not None:
        x = ACTIVATIONS[spec.last.activation](bn(x @ params["last"]["kernel"], "last"))
    x = x.mean((1, 2))
    if spec.head is not None:
        x = x @ params["head"]["kernel"] + params["head"]["bias"]
        x = ACTIVATIONS[spec.head.activation](x)
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"], features


def random_variables(model, seed=0):
    """Variables of the shapes that the model initialises, every one of them random.

    Kernels keep the scale of what passes through; BatchNorm's affine parameters and statistics
    differ from channel to channel, so that a wrong order or a forgotten one changes the output.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape)
        if name in ("bias", "mean"):
            return rng.normal(0, 0.2, shape)
        depthwise = path[-2].key == "depthwise"
        fan_in = math.prod(shape[:2]) if depthwise else math.prod(shape[:-1])
        return rng.normal(0, math.sqrt(2 / fan_in), shape)

    return jax.tree_util.tree_map_with_path(fill, shapes)
