"""How fast is the code, against its naive twin, PyTorch, Keras, LiteRT, ONNX Runtime and the floor?

    python -m experiments.benchmark networks --out=FILE.json   whole networks
    python -m experiments.benchmark layers --out=FILE.json     every depthwise and pointwise layer
    python -m experiments.benchmark render                     docs/benchmarks.md and .png

Every contender runs in a process of its own with the same environment, cores and threads. It
builds, compiles, warms up and waits; then rounds are interleaved, A B C A B C …, and a contender
that waits does not compute. A cell's results are written when it is finished; the same command
goes on with the cells that --out lacks. A cell that lacks a contender is measured anew with all of
its contenders, since only times of the same rounds make a ratio; with --retry also a cell in which
a contender failed or was not installed. `render` reads experiments/results/benchmark/*.json.

Owns processes, rounds and what is stored; needs Linux. Knows nothing of any library (`peers`), of
the floor (`benchmark_floor`) and of tables (`benchmark_report`).
"""

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from experiments import benchmark_report, linux, peers
from mobilenets_jax import costs, runtime, specs
from mobilenets_jax.errors import InputError, choose

ROOT = Path(__file__).parents[1]
TASKS, DTYPES = ("training", "inference"), ("float32", "bfloat16")
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "timm", "keras"),
    *("onnx", "onnxruntime", "ai-edge-litert", "litert-converter"),
)
# A slow contender stops early: after these rounds, once its steps have taken this long.
ENOUGH_ROUNDS, ENOUGH_SECONDS = 3, 20.0
PAUSE = 0.02  # Seconds between contenders, in which the last one's threads stop spinning.


class Worker(NamedTuple):
    """A contender's process, asked and answering in lines of JSON."""

    process: subprocess.Popen

    def ask(self, **order: Any) -> dict[str, Any]:
        """Returns the answer; "failed" is in it if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"failed": f"ended with code {self.process.wait()}"}


@contextmanager
def workers(
    names: Sequence[str], threads: int, log: Path, **variables: str
) -> Iterator[dict[str, Worker]]:
    """Starts a process for each contender, with more environment variables, and ends them."""
    started: dict[str, Worker] = {}
    with log.open("a") as errors:
        try:
            for name in names:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "experiments.benchmark",
                        "worker",
                        f"--threads={threads}",
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=ROOT,
                    env={**os.environ, **environment(threads), **variables},
                    text=True,
                )
                started[name] = Worker(process)
            yield started
        finally:
            for worker in started.values():
                worker.process.communicate()


def environment(threads: int) -> dict[str, str]:
    """Returns the variables that every contender gets, ours and peers alike.

    Those of the user's that change how libraries compute are among them, and so are stored.
    """
    theirs = ("GLIBC_", "JAX_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "TORCH", "XLA_")
    return {
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(theirs)},
        **runtime.environment(),
        "OMP_NUM_THREADS": str(threads),
        # Compile time is that of a first start.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        # On a GPU, contenders share the memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def work(threads: int) -> None:
    """Is a worker: carries out the orders of its standard input, until it ends."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Libraries print; that goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        if "build" in order:
            contender = None
            contender, answer = _prepare(order)
        elif "run" in order:
            contender.step()  # finds caches and memory as others left them, and is not timed
            start = time.perf_counter()
            for _ in range(order["run"]):
                contender.step()
            answer = {"seconds": (time.perf_counter() - start) / order["run"]}
        elif "machine" in order:
            from experiments.peers.machine import peaks

            answer = peaks(order["machine"])
        else:
            on_device = contender.peak_bytes
            answer = {"peak_bytes": on_device() if on_device else linux.memory("VmHWM")}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _prepare(order: dict[str, Any]) -> tuple[peers.Contender | None, dict[str, Any]]:
    """Builds, compiles and warms up a contender, and sets its high-water mark of memory back."""
    cell = (peers.Cell if "task" in order["cell"] else peers.LayerCell)(**order["cell"])
    try:
        build = peers.load(order["build"], cell)
        before, start = linux.memory("VmRSS"), time.perf_counter()
        contender = build(order["build"], cell)
        built = time.perf_counter()
        contender.step()
        compiled = time.perf_counter()
        if contender.outputs:
            np.savez(order["outputs"], **contender.outputs())
        with_compiler = linux.memory("VmHWM")
        # What the compiler freed is given back before the steps that warm up.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        warm, end = math.inf, time.perf_counter() + order["warm_up"]
        while math.isinf(warm) or time.perf_counter() < end:
            began = time.perf_counter()
            contender.step()
            warm = time.perf_counter() - began
    except ImportError as error:
        return None, {"left_out": f"not installed ({error})"}
    except peers.Unsupported as error:
        return None, {"left_out": str(error), "unsupported": True}
    except Exception as error:  # One contender's failure is a result, not the end.
        reason = " ".join(str(error).split())[:300]
        return None, {"failed": f"{type(error).__name__}: {reason}"}
    if contender.reset_peak:
        contender.reset_peak()
    Path("/proc/self/clear_refs").write_text("5")
    return contender, {
        "device": contender.device,
        "settings": contender.settings,
        "build_seconds": built - start,
        "compile_seconds": compiled - built,
        "warm_seconds": warm,
        "bytes_before": before,
        "peak_bytes_with_compiler": with_compiler,
    }


def measure(
    started: dict[str, Worker],
    cell: peers.Cell | peers.LayerCell,
    rounds: int,
    round_seconds: float,
    outputs: Path,
) -> dict[str, dict[str, Any]]:
    """Builds a cell's contenders one by one, then runs interleaved rounds.

    Args:
        started: contender -> its process.
        cell: what to run.
        rounds: of each contender; fewer for a slow one.
        round_seconds: a round is as many steps as fill this.
        outputs: folder, to which NAME.npz is written for each contender that has outputs.

    Returns:
        Contender -> what is stored: "left_out" or "failed" with the reason ("unsupported" if that
        will not change), or what its worker said
        with `steps_per_round`, `round_seconds` (of a step, by round), `spread` and `peak_bytes`.
    """
    records: dict[str, dict[str, Any]] = {}
    for name, worker in started.items():
        # At rest a contender holds little, and only one at a time compiles or runs.
        peaks = [record.get("peak_bytes_with_compiler", 0) for record in records.values()]
        if linux.available_bytes() < max(peaks, default=0) + (1 << 30):
            records[name] = {"left_out": "not enough memory is left beside the other contenders"}
            continue
        records[name] = worker.ask(
            build=name,
            cell=cell._asdict(),
            warm_up=round_seconds / 2,
            outputs=str(outputs / f"{name}.npz"),
        )
    live = [name for name, record in records.items() if "device" in record]
    for name in live:
        record = records[name]
        record["steps_per_round"] = max(1, round(round_seconds / record.pop("warm_seconds")))
        record["round_seconds"] = []
    for number in range(rounds):
        for name in live:
            record = records[name]
            spent = sum(record.get("round_seconds", [])) * record.get("steps_per_round", 0)
            if "failed" in record or (number >= ENOUGH_ROUNDS and spent > ENOUGH_SECONDS):
                continue
            time.sleep(PAUSE)
            answer = started[name].ask(run=record["steps_per_round"])
            if "failed" in answer:
                records[name] = answer
            else:
                record["round_seconds"].append(answer["seconds"])
    for name in live:
        if "failed" not in records[name]:
            records[name] |= spread(records[name]["round_seconds"], cell.batch)
            records[name] |= started[name].ask(finish=True)
    return records


def spread(seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """Returns median and quartiles of a step's seconds, and images per second at the median."""
    median = statistics.median(seconds)
    low, high = seconds[0], seconds[0]
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median_seconds": median,
        "quartile_seconds": [low, high],
        "images_per_second": batch / median,
    }


def agreement(ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns how far two contenders' outputs of the first step are apart.

    Outputs are named GROUP or GROUP/NAME. A group's `norm` is the norm of the difference over the
    norm of the values, and `worst` the largest difference over the largest value.

    Raises:
        KeyError: the names differ.
    """
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if ours.keys() != other.keys():
        raise KeyError(f"outputs differ: {sorted(ours.keys() ^ other.keys())}")
    for name, values in other.items():
        groups.setdefault(name.partition("/")[0], []).append((ours[name].ravel(), values.ravel()))
    tiny = np.finfo(np.float64).tiny
    result = {}
    for group, pairs in groups.items():
        apart = math.sqrt(sum(float(np.sum((a - b.astype(float)) ** 2)) for a, b in pairs))
        size = math.sqrt(sum(float(np.sum(b.astype(float) ** 2)) for _, b in pairs))
        worst = max(float(np.max(abs(a - b))) for a, b in pairs)
        largest = max(float(np.max(abs(b))) for _, b in pairs)
        result[group] = {"norm": apart / max(size, tiny), "worst": worst / max(largest, tiny)}
    return result


def _agreements(directory: Path) -> dict[str, Any]:
    """Compares with ours whatever outputs there are."""
    if not (directory / "ours.npz").exists():
        return {}
    ours = dict(np.load(directory / "ours.npz"))
    others = {path.stem: path for path in directory.glob("*.npz") if path.stem != "ours"}
    return {name: agreement(ours, dict(np.load(path))) for name, path in sorted(others.items())}


def layer_cells(
    models: Sequence[str], batch: int, dtype: str, threads: int
) -> list[peers.LayerCell]:
    """Returns every distinct depthwise and pointwise layer at 224 × 224, in all directions."""
    found = set()
    for model in models:
        for layer in costs.layers(specs.table(peers.MODELS[model]), 224):
            words = layer.operator.split()
            if layer.kind in ("expand", "depthwise", "project", "last"):
                kind = "depthwise" if words[0] == "dw" else "pointwise"
                strides = layer.input[0] // layer.output[0]
                shape = (layer.input[0], layer.input[2], layer.output[2], int(words[1][0]), strides)
                found.add((kind, *shape))
    directions = ("forward", "input gradient", "weight gradient")
    return [
        peers.LayerCell(kind, direction, *shape, batch, dtype, threads)
        for kind, *shape in sorted(found, key=lambda key: (key[0], -key[1], *key[2:]))
        for direction in directions
    ]


def contenders(chosen: Sequence[str]) -> list[str]:
    """Returns the contenders of the peers that were asked for, in the order of `CONTENDERS`.

    Raises:
        InputError: there is no such peer.
    """
    names = {name.split()[0] for name in peers.CONTENDERS} | set(peers.CONTENDERS)
    for name in chosen:
        choose("peer", name, sorted(names))
    return [name for name in peers.CONTENDERS if {name, name.split()[0]} & set(chosen)]


def open_results(path: Path, kind: str) -> dict[str, Any]:
    """Returns the results of a file, or none yet.

    Raises:
        InputError: the file holds something else.
    """
    if not path.exists():
        return {"kind": kind, "runs": [], "cells": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["kind"] == kind:
            return results
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} does not hold results of '{kind}': choose another --out.")


def _store(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # A line for each run and cell.
    lists = (
        f'"{key}": [\n' + ",\n".join(json.dumps(_rounded(row)) for row in results[key]) + "\n]"
        for key in ("runs", "cells")
    )
    kind = f'"kind": "{results["kind"]}"'
    partial.write_text("{" + ",\n".join((kind, *lists)) + "}\n", encoding="utf-8")
    partial.replace(path)


def _rounded(value: Any) -> Any:
    """Returns the value with five digits of every float, which is more than is measured."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _circumstances(threads: int) -> dict[str, Any]:
    """Returns what a run's numbers depend on: date, processor, versions, environment."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": linux.processor(),
        "versions": versions,
        "environment": environment(threads),
    }


def _say(cell: NamedTuple, records: dict[str, Any]) -> None:
    print(" ".join(str(value) for value in cell))
    for name, record in records.items():
        told = record.get("left_out") or record.get("failed")
        if not told:
            milliseconds = record["median_seconds"] * 1e3
            told = f"{milliseconds:.4g} ms, first step {record['compile_seconds']:.1f} s"
        print(f"    {name}: {told}", flush=True)


def exactness(model: str, threads: int, log: Path) -> dict[str, Any]:
    """Returns how far the twin's first training step is from ours in float64, as `agreement`.

    Rounding, which hides differences of the gradient in float32, is out of the way here. Or
    "failed" with the reason.
    """
    cell = peers.Cell("training", model, 2, 64, "float64", threads)
    names = ("ours", "naive")
    with (
        tempfile.TemporaryDirectory() as directory,
        workers(names, threads, log, JAX_ENABLE_X64="true") as started,
    ):
        for name in names:
            path = str(Path(directory, f"{name}.npz"))
            answer = started[name].ask(build=name, cell=cell._asdict(), warm_up=0, outputs=path)
            if "device" not in answer:
                return {"failed": f"{name}: {answer}"}
        return _agreements(Path(directory))["naive"]


def find(results: dict[str, Any], cell: peers.Cell | peers.LayerCell) -> dict[str, Any] | None:
    """Returns what is stored of a cell, None if nothing is."""
    return next((row for row in results["cells"] if row["cell"] == cell._asdict()), None)


def missing(row: dict[str, Any] | None, names: Sequence[str], retry: bool) -> list[str]:
    """Returns the contenders with which a cell is measured (anew), none if it is finished.

    Ours is always among them, and so are all that the cell has.

    Args:
        row: what is stored of the cell.
        names: the contenders that are asked for.
        retry: whether those that failed or were left out count as missing, unless unsupported.
    """
    old = row["contenders"] if row else {}

    def lacks(name: str) -> bool:
        record = old.get(name)
        again = retry and record and "device" not in record and "unsupported" not in record
        return record is None or bool(again)

    return list(dict.fromkeys(("ours", *names, *old))) if any(map(lacks, names)) else []


def _keep(
    results: dict[str, Any],
    cell: peers.Cell | peers.LayerCell,
    records: dict[str, Any],
    directory: Path,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Puts a cell of the latest run in place of an older one, with `directory`'s outputs."""
    row = find(results, cell)
    if row is None:
        results["cells"].append(row := {})
    row.clear()
    row |= {
        "cell": cell._asdict(),
        "run": len(results["runs"]) - 1,
        "contenders": records,
        "agreement": _agreements(directory),
        "machine": machine,
    }
    return row


def networks(options: argparse.Namespace) -> None:
    """Measures whole networks, and stores each cell."""
    results = open_results(options.out, "networks")
    results["runs"].append(_circumstances(options.threads))
    exact: dict[str, dict[str, Any]] = {}
    sizes = (options.batch, options.resolution, options.dtype, [options.threads])
    for values in itertools.product(options.task, options.models, *sizes):
        cell = peers.Cell(*values)
        names = missing(find(results, cell), contenders(options.peers), options.retry)
        if not names:
            continue
        with (
            tempfile.TemporaryDirectory() as directory,
            workers(names, cell.threads, options.log) as started,
        ):
            records = measure(started, cell, options.rounds, 1.0, Path(directory))
            machine = started["ours"].ask(machine=cell.dtype)
            row = _keep(results, cell, records, Path(directory), machine)
        if cell.task == "training":
            if cell.model not in exact:
                exact[cell.model] = exactness(cell.model, cell.threads, options.log)
            row["float64"] = exact[cell.model]
        _store(results, options.out)
        _say(cell, records)


def layers(options: argparse.Namespace) -> None:
    """Measures single layers, and stores each cell. A library's process serves all of them."""
    from mobilenets_jax.depthwise import IMPLEMENTATIONS

    results = open_results(options.out, "layers")
    results["runs"].append(_circumstances(options.threads))
    named = {
        "depthwise": ("ours", *(f"ours {name}" for name in IMPLEMENTATIONS), *peers.LAYERS_TORCH),
        "pointwise": ("ours", "nn.Conv", *peers.LAYERS_TORCH),
    }
    for kind, names in named.items():
        cells = layer_cells(options.models, options.batch, options.dtype, options.threads)
        todo = {cell: missing(find(results, cell), names, options.retry) for cell in cells}
        left = {cell: chosen for cell, chosen in todo.items() if chosen and cell.kind == kind}
        needed = dict.fromkeys(itertools.chain(*left.values()))
        with workers(list(needed), options.threads, options.log) as started:
            # Before the others hold memory.
            machine = started["ours"].ask(machine=options.dtype) if left else {}
            for cell, chosen in left.items():
                some = {name: started[name] for name in chosen}
                with tempfile.TemporaryDirectory() as directory:
                    records = measure(some, cell, options.rounds, 0.05, Path(directory))
                    _keep(results, cell, records, Path(directory), machine)
                _store(results, options.out)
                _say(cell, records)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}; see --help.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Raises:
        InputError: with one sentence that says what is wrong.
    """
    cores = len(os.sched_getaffinity(0))
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("render")
    for name in ("worker", "layers", "networks"):
        action = actions.add_parser(name)
        action.add_argument("--threads", type=_positive, default=cores)
        if name == "worker":
            continue
        action.add_argument("--out", type=Path, required=True)
        action.add_argument("--rounds", type=_positive, default=7)
        action.add_argument("--models", nargs="+", default=list(peers.MODELS))
        action.add_argument("--retry", action="store_true")
        if name == "layers":
            action.add_argument("--batch", type=_positive, default=16)
            action.add_argument("--dtype", choices=DTYPES, default="float32")
            continue
        action.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
        action.add_argument("--batch", nargs="+", type=_positive, default=[16])
        action.add_argument("--resolution", nargs="+", type=_positive, default=[224])
        action.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
        action.add_argument("--peers", nargs="+", default=list(peers.CONTENDERS))
    options = parser.parse_args(arguments)
    for model in getattr(options, "models", ()):
        choose("model", model, peers.MODELS)
    contenders(getattr(options, "peers", ()))
    if options.action != "render" and options.threads > cores:
        raise InputError(f"--threads={options.threads}, but this process may use {cores} cores.")
    if options.action in ("layers", "networks"):
        if options.out.suffix != ".json":
            raise InputError(f"--out={shlex.quote(str(options.out))} must end in .json.")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.log = options.out.with_suffix(".log")
    return options


def main() -> int:
    """Runs the command line; returns the exit code, 2 for bad input."""
    try:
        options = parse()
        if options.action == "worker":
            work(options.threads)
        elif options.action == "render":
            benchmark_report.write(ROOT)
        else:
            {"networks": networks, "layers": layers}[options.action](options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
