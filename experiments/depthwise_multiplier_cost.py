"""Are depthwise separable convolutions as much cheaper in time as in MACs (V1, section 3.1)?

    python -m experiments.sweep experiments/depthwise_multiplier_cost.py --workdir=DIR

A depthwise k × k convolution and a 1×1 behind it cost 1/N + 1/k² of a standard one with N output
channels: 8 to 9 times less for k = 3. Measured are such layers alone, without BatchNorm and
activation, and the two networks of V1's Table 4 as wholes; forward (of networks: inference with
BatchNorm folded), and training: the loss and every gradient, without the optimizer. The two of a
pair take turns, so that whatever else the machine does meets both alike.

Estimated time on two CPU cores: 1 min at smoke scale, 5 min at small scale.

Finding: at small scale on two CPU cores, of V1 as a whole, with 8.6 times the MACs, standard
convolutions take 7.8 times as long forward and 10.3 times in training: about what the paper's ratio
says. Of single layers the ratio of times is smaller than that of MACs, the more so the fewer
channels.
"""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mobilenets_jax import costs, logs
from mobilenets_jax.switches import build_spec

SOURCE = "MobileNetV1 (arXiv:1704.04861v1), section 3.1 and Table 4"
TASKS = ("forward", "training")
PAIR = ("depthwise", "standard")
KERNELS = (3, 5)
ROUND_SECONDS = 0.05  # at least, of each of the two in each round


class Size(NamedTuple):
    """What is measured at a scale.

    Attributes:
        channels: N, of layers with as many inputs.
        pixels: side of the layers' feature maps.
        batch: images of the layers.
        alpha: of the networks.
        resolution: of the networks.
        network_batch: images of the networks.
        rounds: in which the two of a pair take turns.
    """

    channels: tuple[int, ...]
    pixels: int
    batch: int
    alpha: float
    resolution: int
    network_batch: int
    rounds: int


SIZES = {
    "smoke": Size((16, 64), 14, 8, 0.25, 64, 4, 5),
    "small": Size((16, 32, 64, 128, 256, 512), 14, 16, 1.0, 224, 8, 15),
    "full": Size((16, 32, 64, 128, 256, 512, 1024), 14, 64, 1.0, 224, 32, 30),
}


def formula(channels: int, kernel: int) -> float:
    """Returns the MACs of the depthwise separable layer as a share of the standard one's."""
    return 1 / channels + 1 / kernel**2


def layer(name: str, channels: int, kernel: int, size: Size) -> dict[str, Callable[[], Any]]:
    """Returns what computes a layer once, compiled, for each of `TASKS`."""
    import jax
    import jax.numpy as jnp

    from mobilenets_jax.depthwise import depthwise_conv

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (size.batch, size.pixels, size.pixels, channels))
    shapes: dict[str, list[tuple[int, ...]]] = {
        "depthwise": [(kernel, kernel, channels), (1, 1, channels, channels)],
        "standard": [(kernel, kernel, channels, channels)],
    }
    weights = [
        jax.random.normal(key, shape) / channels
        for key, shape in zip(keys[1:], shapes[name], strict=False)
    ]

    def convolve(x: Any, weight: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=numbers)

    def forward(weights: Any, x: Any) -> Any:
        if name == "depthwise":
            x = depthwise_conv(x, weights[0], 1, "same")
        return convolve(x, weights[-1])

    def loss(weights: Any, x: Any) -> Any:
        return jnp.sum(forward(weights, x) ** 2)  # whose gradient needs the output

    return _compiled(forward, jax.value_and_grad(loss, (0, 1)), (weights, x), (weights, x))


def network(name: str, size: Size) -> dict[str, Callable[[], Any]]:
    """Returns what computes a V1 once, compiled, for each of `TASKS`."""
    import jax
    import jax.numpy as jnp

    from experiments.peers.jax_nets import random_variables
    from mobilenets_jax import create_model
    from mobilenets_jax.fold import fold_batch_norm

    model = create_model(
        "mobilenet_v1", alpha=size.alpha, standard_conv=name == "standard", dropout=0.0
    )
    variables = jax.tree.map(jnp.asarray, random_variables(model))
    folded, folded_variables = fold_batch_norm(model, variables)
    shape = (size.network_batch, size.resolution, size.resolution, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.arange(size.network_batch)

    def loss(params: Any, batch_stats: Any, images: Any) -> Any:
        tree = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(tree, images, train=True, mutable=["batch_stats"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -jnp.mean(chosen), new

    return _compiled(
        folded.apply,
        jax.value_and_grad(loss, has_aux=True),
        (folded_variables, images),
        (variables["params"], variables["batch_stats"], images),
    )


def _compiled(forward: Any, training: Any, given: Any, trained: Any) -> dict[str, Any]:
    import jax

    calls = {}
    for task, function, arguments in zip(TASKS, (forward, training), (given, trained), strict=True):
        step = jax.jit(function).lower(*arguments).compile()
        calls[task] = functools.partial(_wait, step, arguments)
    return calls


def _wait(step: Any, arguments: Any) -> None:
    import jax

    jax.block_until_ready(step(*arguments))


def times(pair: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of one call in each round, A B A B …, after one that is not timed."""
    repeats = {}
    for name, call in pair.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = 1 + int(ROUND_SECONDS / (time.perf_counter() - began))
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(rounds):
        for name, call in pair.items():
            call()  # finds the caches as the other left them
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - began) / repeats[name])
    return seconds


def _row(calls: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Median seconds, and how many times as long the standard one takes, round by round."""
    row: dict[str, Any] = {}
    for task in TASKS:
        seconds = times({name: calls[name][task] for name in PAIR}, rounds)
        ratios = [b / a for a, b in zip(*(seconds[name] for name in PAIR), strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row[task] = {
            **{f"{name}_seconds": statistics.median(seconds[name]) for name in PAIR},
            "times_as_long": median,
            "quartiles": [low, high],
        }
    return row


def measure(scale: str, directory: Path) -> dict[str, Any]:
    """Measures layers and networks, and draws cost.png into the directory."""
    from mobilenets_jax import runtime

    runtime.configure_jax()
    size = SIZES[scale]
    layers = []
    for kernel in KERNELS:
        for channels in size.channels:
            calls = {name: layer(name, channels, kernel, size) for name in PAIR}
            ratio = 1 / formula(channels, kernel)
            row = _row(calls, size.rounds)
            layers.append({"kernel": kernel, "channels": channels, "times_the_macs": ratio, **row})
    specs = [build_spec("mobilenet_v1", alpha=size.alpha, standard_conv=on) for on in (False, True)]
    macs = dict(zip(PAIR, (costs.macs(spec, size.resolution) for spec in specs), strict=True))
    calls = {name: network(name, size) for name in PAIR}
    networks = {
        "alpha": size.alpha,
        "resolution": size.resolution,
        "batch": size.network_batch,
        "macs": macs,
        "times_the_macs": macs["standard"] / macs["depthwise"],
        **_row(calls, size.rounds),
    }
    _draw(layers, networks, size, directory / "cost.png")
    return {
        "source": SOURCE,
        "pixels": size.pixels,
        "batch": size.batch,
        "rounds": size.rounds,
        "layers": layers,
        "networks": networks,
        **logs.environment(),
    }


def _draw(layers: list[dict[str, Any]], networks: dict[str, Any], size: Size, path: Path) -> None:
    """MACs' ratio as a line, measured ratios as points, against N; the networks at the right."""
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(KERNELS), sharey=True)
    colours = dict(zip(TASKS, ("#0072b2", "#d55e00"), strict=True))  # Okabe and Ito's
    for axes, kernel in zip(panels, KERNELS, strict=True):
        rows = [row for row in layers if row["kernel"] == kernel]
        n = [row["channels"] for row in rows]
        macs = [row["times_the_macs"] for row in rows]
        axes.plot(n, macs, color="#7f7f7f", label="MACs: 1 / (1/N + 1/k²)")
        for task, colour in colours.items():
            ratio = [row[task]["times_as_long"] for row in rows]
            axes.plot(n, ratio, "o-", color=colour, label=f"time, {task}")
        axes.axhline(1, color="#cccccc", linewidth=1, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="channels N", title=f"{kernel} × {kernel}")
        axes.set_xticks(n, [str(value) for value in n])
        axes.set_yticks((0.5, 1, 2, 4, 8, 16, 32), ("½", "1", "2", "4", "8", "16", "32"))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("standard ÷ depthwise separable")
    panels[0].legend(frameon=False)
    whole = ", ".join(f"{task} {networks[task]['times_as_long']:.1f}" for task in TASKS)
    figure.suptitle(
        f"Layers of {size.pixels} × {size.pixels}, batch {size.batch}. "
        f"Whole V1, α = {size.alpha}, {size.resolution} pixels, batch {size.network_batch}: "
        f"MACs {networks['times_the_macs']:.1f}, {whole}",
        fontsize=10,
    )
    figure.savefig(path)
