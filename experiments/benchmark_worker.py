"""A contender's process: builds, compiles, warms up, and runs steps when it is told to.

    python -m experiments.benchmark_worker THREADS

Orders come in and answers go out as lines of JSON; `benchmark_rounds` asks. Owns what is timed and
whose memory is looked at. Knows nothing of any library (`peers`) nor of other contenders.
"""

import ctypes
import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import linux, peers


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


if __name__ == "__main__":
    work(int(sys.argv[1]))
