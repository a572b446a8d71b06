"""What is measured rather than trained: an experiment's measure(), and its networks' latency.

    python -m experiments.measure experiment FILE --scale=SCALE --directory=DIR
    python -m experiments.measure latency FILE --scale=SCALE --directory=DIR

`sweep` runs these, each in a process of its own. The first writes DIR/result.json, the second
DIR/latency.json: of every run's network at the resolution it is trained at, the time of one image's
inference, jitted, BatchNorm folded. All networks wait in one process and take turns, A B C A B C …,
so that whatever else the machine does meets all alike. Weights are random: time does not depend on
them.
"""

from mobilenets_jax import runtime

if __name__ == "__main__":
    runtime.restart()  # before the imports that take time

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import ablation
from mobilenets_jax import config as config_lib
from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

ROUNDS, ROUND_SECONDS = 15, 0.1
BATCH = 1


class Network(NamedTuple):
    """A network that waits for its turn."""

    resolution: int
    call: Callable[[], Any]
    calls: int  # that fill a round


def experiment(file: str, scale: str, directory: Path) -> None:
    """Runs an experiment's measure(), whose pictures and result.json go into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    result = ablation.load(file).measure(scale, directory)
    logs.write_json(directory / "result.json", result)


def prepare(run: ablation.Run) -> Network:
    """Compiles a run's network, folded, and warms it up."""
    import jax
    import jax.numpy as jnp

    from experiments.peers.jax_nets import random_variables
    from mobilenets_jax.fold import fold_batch_norm
    from mobilenets_jax.steps import build_model

    config = ablation.config(run)
    resolution = config_lib.effective_resolution(config.resolution, config.beta)
    model = build_model(config, config.dataset.num_classes)
    folded, variables = fold_batch_norm(model, random_variables(model))
    variables = jax.tree.map(jnp.asarray, variables)
    images = jnp.asarray(
        jax.random.normal(jax.random.key(0), (BATCH, resolution, resolution, 3), jnp.float32)
    )
    apply = jax.jit(
        lambda variables, images: folded.apply(variables, images),
        compiler_options=runtime.inference_options(),
    )

    def call() -> Any:
        return apply(variables, images).block_until_ready()

    for _ in range(3):
        call()
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    return Network(resolution, call, max(1, round(ROUND_SECONDS / seconds)))


def rounds(networks: Mapping[str, Network], number: int) -> dict[str, list[float]]:
    """Returns the seconds of one call in every round, by name. All take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(number):
        for name, network in networks.items():
            network.call()  # finds the caches as others left them, and is not timed
            began = time.perf_counter()
            for _ in range(network.calls):
                network.call()
            seconds[name].append((time.perf_counter() - began) / network.calls)
    return seconds


def latency(file: str, scale: str, directory: Path) -> None:
    """Measures every run's network; runs of the same network share a measurement."""
    runtime.configure_jax()
    runs = {run.name: run for run in ablation.load(file).runs(scale)}
    same: dict[str, str] = {}  # network and resolution -> the first run that has it
    first = {}
    for name, run in runs.items():
        config = config_lib.plain(ablation.config(run))
        keys = ("model", "dataset", "resolution", "beta")
        first[name] = same.setdefault(json.dumps([config[key] for key in keys]), name)
    networks = {name: prepare(runs[name]) for name in same.values()}
    seconds = rounds(networks, ROUNDS)
    result: dict[str, Any] = {}
    for name in runs:
        network, measured = networks[first[name]], seconds[first[name]]
        low, median, high = statistics.quantiles(measured, n=4, method="inclusive")
        result[name] = {
            "batch": BATCH,
            "resolution": network.resolution,
            "median_seconds": median,
            "quartile_seconds": [low, high],
            "rounds": len(measured),
            "round_seconds": measured,
            "calls_per_round": network.calls,
        }
    logs.write_json(directory / "latency.json", {**result, **logs.environment()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("experiment", "latency"))
    parser.add_argument("file")
    parser.add_argument("--scale", choices=ablation.SCALES, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args(arguments)
    action = experiment if options.action == "experiment" else latency
    try:
        action(options.file, options.scale, options.directory)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
