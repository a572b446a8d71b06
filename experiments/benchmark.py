"""How fast is the code, against its naive twin, PyTorch, Keras, LiteRT, ONNX Runtime and the floor?

    python -m experiments.benchmark networks --out=FILE.json   whole networks
    python -m experiments.benchmark layers --out=FILE.json     every depthwise and pointwise layer
    python -m experiments.benchmark render   docs/benchmarks.md and .png, README's tables

Every contender runs in a process of its own with the same environment, cores and threads. It
builds, compiles, warms up and waits; then rounds are interleaved, A B C A B C …, and a contender
that waits does not compute. A cell's results are written when it is finished; the same command
goes on with the cells that --out lacks. A cell that lacks a contender is measured anew with all of
its contenders, since only times of the same rounds make a ratio; with --retry also a cell in which
a contender failed or was not installed. `render` reads experiments/results/benchmark/*.json.
On a GPU the contenders of a cell keep their memory while they wait: name fewer --peers where a
large batch does not fit beside the others.

Owns which cells there are, what is stored, and the command line; needs Linux. Knows nothing of any
library (`peers`), of processes and rounds (`benchmark_rounds`, `benchmark_worker`), of the floor
(`benchmark_floor`) and of tables (`benchmark_report`, `benchmark_summary`).
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    benchmark_cells,
    benchmark_report,
    benchmark_summary,
    documents,
    linux,
    peers,
)
from experiments.arguments import Parser, positive
from experiments.benchmark_rounds import (
    ROOT,
    agreements,
    environment,
    exactly,
    measure,
    twin_in,
    workers,
)
from mobilenets_jax import costs, logs, specs
from mobilenets_jax.errors import InputError, choose

TASKS, DTYPES = ("training", "inference"), ("float32", "bfloat16")
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "timm", "keras"),
    *("onnx", "onnxruntime", "ai-edge-litert", "litert-converter"),
)


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
        "git_revision": logs.git_revision(Path(__file__).parent),
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
        "agreement": agreements(directory),
        "machine": machine,
    }
    return row


def lacking(row: dict[str, Any], cell: peers.Cell, retry: bool) -> list[str]:
    """Returns the dtypes in which a row is still to be compared with its twin.

    Args:
        row: what is stored of the cell. A timed twin was compared in the cell's own dtype.
        cell: the row of a table.
        retry: whether comparisons that failed are tried again.
    """
    dtypes = ["float32", "float64"] if cell.task == "training" else ["float32"]
    if cell.dtype == "bfloat16":
        dtypes = ["bfloat16"]
    found = row.get("twin", {})
    timed = {"float32"} if "naive" in row["agreement"] else set()
    return [
        dtype
        for dtype in dtypes
        if dtype not in found.keys() | timed or (retry and "failed" in found.get(dtype, {}))
    ]


def networks(options: argparse.Namespace) -> None:
    """Measures whole networks, compares them with their twins, and stores each cell.

    A cell that is finished but lacks a comparison gets it without being measured anew.
    """
    results = open_results(options.out, "networks")
    results["runs"].append(_circumstances(options.threads))
    exact: dict[peers.Cell, dict[str, Any]] = {}
    sizes = (options.batch, options.resolution, options.dtype, [options.threads])
    for values in itertools.product(options.task, options.models, *sizes):
        cell = peers.Cell(*values)
        row = find(results, cell)
        if names := missing(row, contenders(options.peers), options.retry):
            with (
                tempfile.TemporaryDirectory() as directory,
                workers(names, cell.threads, options.log) as started,
            ):
                records = measure(started, cell, options.rounds, 1.0, Path(directory))
                machine = started["ours"].ask(machine=cell.dtype)
                row = _keep(results, cell, records, Path(directory), machine)
            _store(results, options.out)
            _say(cell, records)
        assert row is not None
        device = row["contenders"]["ours"].get("device")
        for dtype in lacking(row, cell, options.retry) if device else ():
            same = exactly(cell) if dtype == "float64" else cell
            found = exact.get(same) or twin_in(dtype, cell, device, options.log)
            if dtype == "float64" and "failed" not in found:
                exact[same] = found
            row.setdefault("twin", {})[dtype] = found
            row["compared"] = len(results["runs"]) - 1
            _store(results, options.out)


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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Raises:
        InputError: with one sentence that says what is wrong.
    """
    cores = len(os.sched_getaffinity(0))
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("render")
    for name in ("layers", "networks"):
        action = actions.add_parser(name)
        action.add_argument("--threads", type=positive, default=cores)
        action.add_argument("--out", type=Path, required=True)
        action.add_argument("--rounds", type=positive, default=7)
        action.add_argument("--models", nargs="+", default=list(peers.MODELS))
        action.add_argument("--retry", action="store_true")
        if name == "layers":
            action.add_argument("--batch", type=positive, default=16)
            action.add_argument("--dtype", choices=DTYPES, default="float32")
            continue
        action.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
        action.add_argument("--batch", nargs="+", type=positive, default=[16])
        action.add_argument("--resolution", nargs="+", type=positive, default=[224])
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
        if options.action == "render":
            benchmark_report.write(ROOT)
            summary = benchmark_summary.render(benchmark_cells.load())
            documents.rewrite(ROOT / "README.md", "speed", summary)
        else:
            {"networks": networks, "layers": layers}[options.action](options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
