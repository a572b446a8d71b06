"""How long a training takes from its start to its first step, the first time and again.

    python -m experiments.start_time --out=FILE.json [--config=configs/v2.py] [--again=5]

The program is started in an empty folder and with an empty compilation cache, then again in other
empty folders with the cache that the first start left. The clock stops when metrics.jsonl has the
first step. `step_profile render` writes the table into docs/profile.md.

Owns the starts and what is stored. Knows nothing of the program but its command line.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import linux
from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).parents[1]
POLL = 0.01  # seconds


def seconds_to_first_step(config: str, workdir: Path, cache: Path) -> float:
    """Returns the seconds until a training has written its first step, and ends it then.

    Args:
        config: as for `mobilenets_jax.main`.
        workdir: empty.
        cache: of compiled programs.

    Raises:
        InputError: the program ended before; what it printed is in the text.
    """
    program = [sys.executable, "-m", "mobilenets_jax.main", f"--config={config}"]
    flags = ["--config.log_every=1", f"--workdir={workdir}"]
    metrics = workdir / "metrics.jsonl"
    began = time.perf_counter()
    with subprocess.Popen(
        [*program, *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_ENABLE_COMPILATION_CACHE": "true",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                printed = process.stdout.read().strip()
                raise InputError(f"--config={config} does not train: {printed[-300:]}")
            time.sleep(POLL)
        seconds = time.perf_counter() - began
        os.killpg(process.pid, signal.SIGKILL)  # workers that load data, too
    return seconds


def measure(config: str, again: int) -> dict[str, Any]:
    """Returns what is stored: seconds of the first start and of those after it."""
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory, "cache")
        seconds = [
            seconds_to_first_step(config, Path(directory, str(number)), cache)
            for number in range(1 + again)
        ]
    return {
        "config": config,
        "first_seconds": seconds[0],
        "again_seconds": seconds[1:],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": linux.processor(),
        "git_revision": logs.git_revision(Path(__file__).parent),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures and stores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/v2.py")
    parser.add_argument("--again", type=int, default=5)
    options = parser.parse_args(arguments)
    result = measure(options.config, options.again)
    logs.write_json(options.out, result)
    texts = ", ".join(f"{seconds:.1f}" for seconds in result["again_seconds"])
    print(f"{options.config}: {result['first_seconds']:.1f} s, then {texts} s")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
