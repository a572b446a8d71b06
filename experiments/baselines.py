"""Do the four networks learn the small data sets from the README's commands, and how fast?

    python -m experiments.baselines run [--only=NAME] [--workdir=DIR]   train, store the results
    python -m experiments.baselines table                               render README's table

`run` trains every baseline with every seed, one process after the other, and copies each
result.json to experiments/results/. `table` rewrites the table in README.md from these files.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from experiments import documents

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"


class Baseline(NamedTuple):
    """A row of the table: a config argument, fields to set, and seeds to repeat it with."""

    name: str
    config: str
    fields: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)


BASELINES = (
    Baseline("v1_digits", "configs/v1.py"),
    Baseline("v2_digits", "configs/v2.py"),
    Baseline("v3_large_digits", "configs/v3.py"),
    Baseline("v3_small_digits", "configs/v3.py:variant=small"),
    Baseline(
        "v2_050_fashion_mnist",
        "configs/v2.py:dataset=fashion_mnist",
        ("model.alpha=0.5",),
        seeds=(0,),
    ),
)


def run(only: str | None, workdir: Path) -> None:
    """Trains the baselines; one that is finished in `workdir` is not trained again."""
    RESULTS.mkdir(exist_ok=True)
    for baseline in BASELINES:
        if only not in (None, baseline.name):
            continue
        for seed in baseline.seeds:
            name = f"{baseline.name}-seed{seed}"
            fields = (*baseline.fields, f"seed={seed}")
            command = [sys.executable, "-m", "mobilenets_jax.main", f"--config={baseline.config}"]
            command += [f"--config.{field}" for field in fields]
            subprocess.run([*command, f"--workdir={workdir / name}"], check=True, cwd=ROOT)
            shutil.copy(workdir / name / "result.json", RESULTS / f"{name}.json")


def table() -> str:
    """Returns the Markdown table of the stored results."""
    lines = [
        "| command: `python -m mobilenets_jax.main …` | parameters | MACs | test accuracy "
        "| averaged weights | training time |",
        "| --- | ---: | ---: | --- | --- | ---: |",
    ]
    revisions: dict[str, None] = {}  # in the order of the table
    for baseline in BASELINES:
        results = [
            json.loads((RESULTS / f"{baseline.name}-seed{seed}.json").read_text())
            for seed in baseline.seeds
        ]

        def percent(key: str, results: list[dict] = results) -> str:
            values = [100 * result[key] for result in results]
            listed = f" ({', '.join(f'{value:.2f}' for value in values)})" * (len(values) > 1)
            return f"{statistics.median(values):.2f} %{listed}"

        flags = " ".join((baseline.config, *(f"--config.{field}" for field in baseline.fields)))
        seconds = statistics.median(result["train_seconds"] for result in results)
        lines.append(
            f"| `--config={flags}` | {results[0]['params']:,} | {results[0]['macs']:,} "
            f"| {percent('test_accuracy')}, n = {results[0]['test_examples']:,} "
            f"| {percent('test_accuracy_ema')} | {seconds:.0f} s |"
        )
        revisions |= {result["git_revision"][:7]: None for result in results}
    first = results[0]
    device, versions = first["device"], first["versions"]
    lines += [
        "",
        "Median over the seeds 0, 1 and 2 (each one's value in brackets; one value: seed 0 only), "
        f"n test images, on {device['host_cores']} {device['platform'].upper()} cores, "
        f"Python {versions['python']}, JAX {versions['jax']}, Flax {versions['flax']}; code of "
        f"revisions {', '.join(revisions)}, not measured again since. "
        "Training time is wall time with compilation and evaluation; other programs ran on the "
        "same cores during those on digits, which are upper bounds. Config, seed, versions and "
        "device of each run are in `experiments/results/`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--only", choices=[baseline.name for baseline in BASELINES])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "baselines")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.only, arguments.workdir.absolute())
    else:
        documents.rewrite(README, "baselines", table())


if __name__ == "__main__":
    main()
