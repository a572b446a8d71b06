"""What several seeds cost in one program, against a program for each.

    python -m experiments.replica_time measure --out=FILE.json [--replicas=8] [--singles=8] [FLAG …]
    python -m experiments.replica_time render     README's table, from experiments/results/replicas/

FLAGs are the training's. Whole programs are timed, from their start to their end. The single ones
share a compilation cache, which the first finds empty; the one with all seeds has its own, empty
too. Half of the single ones run before it, half after. With fewer single ones than replicas those
that found a cache stand for the missing ones by their median, and the table says so.

Owns what is timed, what is stored and the table. Knows nothing of the program but its command line.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import documents, linux
from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).parent / "results" / "replicas"
README = ROOT / "README.md"


def seconds(flags: list[str], workdir: Path, cache: Path) -> float:
    """Returns what a training takes, from the program's start to its end.

    Args:
        flags: of `mobilenets_jax.main`.
        workdir: empty.
        cache: of compiled programs.

    Raises:
        InputError: the program failed; the end of what it printed is in the text.
    """
    program = [sys.executable, "-m", "mobilenets_jax.main", *flags, f"--workdir={workdir}"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    began = time.perf_counter()
    done = subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    taken = time.perf_counter() - began
    if done.returncode:
        raise InputError(f"{' '.join(flags)} does not train: {done.stderr.strip()[-300:]}")
    return taken


def measure(flags: list[str], replicas: int, singles: int) -> dict[str, Any]:
    """Returns what is stored: the seconds of the single programs and of the one with all seeds."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)

        def single(seed: int) -> float:
            own = [*flags, f"--config.seed={seed}"]
            return seconds(own, root / f"seed{seed}", root / "cache")

        before = [single(seed) for seed in range((singles + 1) // 2)]
        together = seconds(
            [*flags, f"--config.replicas={replicas}"], root / "together", root / "other"
        )
        after = [single(seed) for seed in range((singles + 1) // 2, singles)]
        result = json.loads((root / "together" / "result.json").read_text(encoding="utf-8"))
    return {
        "flags": flags,
        "replicas": replicas,
        "single_seconds": before + after,
        "together_seconds": together,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": linux.processor(),
        "device": result["device"],
        "versions": result["versions"],
    }


def all_singles(row: dict[str, Any]) -> float:
    """Returns the seconds of as many single programs as there are replicas."""
    first, *again = row["single_seconds"]
    missing = row["replicas"] - 1 - len(again)
    return first + sum(again) + missing * statistics.median(again)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns README's table."""
    lines = [
        "| `python -m mobilenets_jax.main` | seeds | a program each, s | one program, s | ratio "
        "| measured |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        versions = row["versions"]
        single, runs = all_singles(row), len(row["single_seconds"])
        of_runs = "" if runs == row["replicas"] else f" (of {runs} runs)"
        lines.append(
            f"| `{' '.join(row['flags'])}` | {row['replicas']} | {single:.0f}{of_runs} | "
            f"{row['together_seconds']:.0f} | {row['together_seconds'] / single:.2f} | "
            f"{row['processor']}, {row['date'][:10]}, jax {versions['jax']} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    measuring = actions.add_parser("measure", allow_abbrev=False)
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--replicas", type=int, default=8)
    measuring.add_argument("--singles", type=int, default=8, help="at least 2")
    actions.add_parser("render")
    options, flags = parser.parse_known_args(arguments)
    if options.action == "render":
        if flags:
            parser.error(f"render takes no {flags[0]}")
        files = sorted(STORED.glob("*.json"))
        rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        documents.rewrite(README, "replicas", table(rows))
        return
    if not 2 <= options.singles <= options.replicas:
        parser.error("--singles must be 2 or more, and no more than --replicas")
    row = measure(flags, options.replicas, options.singles)
    logs.write_json(options.out, row)
    print(table([row]))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
