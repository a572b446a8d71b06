"""Stands in for `mobilenets_jax.main` where scheduling is what is tested: it trains nothing.

It keeps main's promises: one at a time in a workdir, a checkpoint now and then, SIGTERM saves and
ends with 143, the same command goes on. Its result holds a chain of hashes over all steps, which is
right only if each was taken once, in order. Variables: FAKE_STEPS, FAKE_SECONDS (of a step),
FAKE_FAIL (part of the workdir's path; such a run says an error and ends with code 2).
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

SAVE_EVERY = 4


def write(path, value):
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def main(arguments):
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    workdir = Path(values["workdir"])
    steps, seconds = int(os.environ["FAKE_STEPS"]), float(os.environ["FAKE_SECONDS"])
    workdir.mkdir(parents=True, exist_ok=True)
    lock = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: Another training is running in {workdir}.", file=sys.stderr)
        return 2
    failing = os.environ.get("FAKE_FAIL")
    if failing and failing in str(workdir):
        print("a warning", file=sys.stderr)
        print("error: The learning rate is wrong: lower it.", file=sys.stderr)
        return 2
    requested = []
    signal.signal(signal.SIGTERM, lambda *_: requested.append(True))
    state = {"step": 0, "chain": ""}
    if (workdir / "state.json").exists():
        state = json.loads((workdir / "state.json").read_text())
    with (workdir / "starts.txt").open("a") as file:
        cores = len(os.sched_getaffinity(0))
        file.write(f"{state['step']} {cores} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    began = time.time()
    while state["step"] < steps:
        time.sleep(seconds)
        chain = hashlib.sha256(f"{state['chain']}{state['step']}".encode()).hexdigest()
        state = {"step": state["step"] + 1, "chain": chain}
        with (workdir / "metrics.jsonl").open("a") as file:
            line = {"step": state["step"], "split": "test_ema", "accuracy": 0.5}
            file.write(json.dumps(line) + "\n")
        if state["step"] % SAVE_EVERY == 0 or requested:
            write(workdir / "state.json", state)
        if requested:
            return 143
    times = {"began": began, "ended": time.time(), "train_seconds": time.time() - began}
    config = {key: value for key, value in values.items() if key != "workdir"}
    write(workdir / "result.json", {**state, **times, "config": config})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
