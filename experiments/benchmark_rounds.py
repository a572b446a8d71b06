"""Contenders side by side: a process for each, interleaved rounds, and how far results are apart.

Owns the processes' environment, the rounds, what is measured between them, and the comparison of
outputs. Knows nothing of any library (`peers`), of what a process does when it is asked
(`benchmark_worker`), nor of files.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import linux, peers
from experiments.handover import handover
from mobilenets_jax import runtime

ROOT = Path(__file__).parents[1]
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
                        "experiments.benchmark_worker",
                        str(threads),
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
        with `steps_per_round`, `round_seconds` (of a step, by round), `handovers` (before and after
        each round, of networks with two threads of a CPU), `spread` and `peak_bytes`.
    """
    records: dict[str, dict[str, Any]] = {}
    for name, worker in started.items():
        # On a CPU a contender holds little at rest, and only one at a time compiles or runs.
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
    on_cpu = any(records[name]["device"] == "cpu" for name in live)
    probed = isinstance(cell, peers.Cell) and cell.threads == 2 and on_cpu
    before = _rest(probed)
    for number in range(rounds):
        for name in live:
            record = records[name]
            spent = sum(record.get("round_seconds", [])) * record.get("steps_per_round", 0)
            if "failed" in record or (number >= ENOUGH_ROUNDS and spent > ENOUGH_SECONDS):
                continue
            answer = started[name].ask(run=record["steps_per_round"])
            after = _rest(probed)
            if "failed" in answer:
                records[name] = answer
            else:
                record["round_seconds"].append(answer["seconds"])
                if probed:
                    record.setdefault("handovers", []).append([before, after])
            before = after
    for name in live:
        if "failed" not in records[name]:
            records[name] |= spread(records[name]["round_seconds"], cell.batch)
            records[name] |= started[name].ask(finish=True)
    return records


def _rest(probed: bool) -> float | None:
    """Waits while most libraries' threads stop spinning; then measures the handover, if asked."""
    time.sleep(PAUSE)
    return handover() if probed else None


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
        KeyError: the names or sizes differ.
    """
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if ours.keys() != other.keys():
        raise KeyError(f"outputs differ: {sorted(ours.keys() ^ other.keys())}")
    for name, values in other.items():
        if ours[name].size != values.size:
            raise KeyError(f"{name} has {ours[name].size} and {values.size} values")
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


def agreements(directory: Path) -> dict[str, Any]:
    """Compares with ours whatever outputs there are."""
    if not (directory / "ours.npz").exists():
        return {}
    ours = dict(np.load(directory / "ours.npz"))
    others = {path.stem: path for path in directory.glob("*.npz") if path.stem != "ours"}
    return {name: agreement(ours, dict(np.load(path))) for name, path in sorted(others.items())}


def first_steps(
    cells: Mapping[str, peers.Cell], device: str, log: Path, **variables: str
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of first steps, each in a process of its own, without timing any.

    Args:
        cells: name -> what to run; a name's first word is the contender.
        device: that they must run on.
        log: gets what the processes say.
        **variables: more environment variables.

    Raises:
        RuntimeError: one did not run, or on another device; the text names it.
    """
    outputs = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, cell in cells.items():
            path = Path(directory, f"{name}.npz")
            with workers([name], cell.threads, log, **variables) as started:
                order = {"build": name.split()[0], "cell": cell._asdict(), "outputs": str(path)}
                answer = started[name].ask(**order, warm_up=0)
            if "device" not in answer:
                raise RuntimeError(f"{name}: {answer}")
            if answer["device"] != device:
                raise RuntimeError(f"{name}: on {answer['device']}, but timed on {device}")
            outputs[name] = dict(np.load(path))
    return outputs


def exactly(cell: peers.Cell) -> peers.Cell:
    """Returns the step in float64 that stands for a cell's.

    Larger images only add rows. Of a few images more are unrolled in the weight gradient than of
    one; of 64 it is as many as of 32.
    """
    batch, resolution = min(cell.batch, 32), min(cell.resolution, 96)
    return cell._replace(batch=batch, resolution=resolution, dtype="float64")


def twin_in(dtype: str, cell: peers.Cell, device: str, log: Path) -> dict[str, Any]:
    """Returns how far a cell's first step is from its twin's, each run once, untimed.

    Args:
        dtype: "float32": `agreement` with the twin in the cell's dtype. "float64": the same for
            `exactly` this cell, where rounding is out of the way that hides differences of the
            gradient in float32. "bfloat16": how far "ours" and the "naive" one, both in bfloat16,
            are from the twin in float32, since rounding moves both.
        cell: the row of a table.
        device: that it was timed on.
        log: gets what the processes say.

    Returns:
        The agreement or agreements, or "failed" with the reason.
    """
    variables = {}
    cells = {"ours": cell, "naive": cell}
    if dtype == "float64":
        cells = dict.fromkeys(cells, exactly(cell))
        variables = {"JAX_ENABLE_X64": "true"}
    elif dtype == "bfloat16":
        cells["naive float32"] = cell._replace(dtype="float32")
    try:
        outputs = first_steps(cells, device, log, **variables)
        if dtype == "bfloat16":
            reference = outputs["naive float32"]
            return {name: agreement(outputs[name], reference) for name in ("ours", "naive")}
        return agreement(outputs["ours"], outputs["naive"])
    except (RuntimeError, KeyError, OSError) as error:
        return {"failed": str(error)}
