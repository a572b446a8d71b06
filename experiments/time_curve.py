"""How far do two cores get on Fashion-MNIST in an hour? Its own table gives MobileNet 95.0 %.

    python -m experiments.time_curve run --workdir=DIR   trains, then stores the tested accuracies
    python -m experiments.time_curve draw                docs/fashion_mnist_time.png, README's lines

`run` trains for about an hour on two slow cores, goes on where it was if it is started again, and
writes experiments/results/fashion_mnist_time.json. It should have the cores for itself: the time
of each test is that of the training, with compilation and evaluations, from when the data set is
open (the stored ones: and the weights are drawn).

Finding: 93.7 % after 56 minutes on two cores of an AMD EPYC, 1.3 points below the table's; other
programs ran beside it at the lowest priority, so that the minutes are an upper bound.

Owns the recipe, what is stored and how it is drawn.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import documents, linux
from mobilenets_jax import logs

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).parent / "results" / "fashion_mnist_time.json"
PICTURE, README = ROOT / "docs" / "fashion_mnist_time.png", ROOT / "README.md"
CONFIG = "configs/v2.py:dataset=fashion_mnist"
# Longer than the config's own 2.5 epochs, so with more augmentation and regularization.
FIELDS = (
    "model.alpha=0.5",
    "epochs=34",
    "eval_every=1",
    "batch_size=64",
    "schedule.learning_rate=0.06",
    "schedule.warmup_epochs=1",
    "augment.crop=pad",
    "augment.padding=2",
    "label_smoothing=0.1",
    "optimizer.weight_decay=5e-4",
)
TABLE = 0.950  # MobileNet in github.com/zalandoresearch/fashion-mnist, README, "Benchmark"
HOUR = 3600.0
COLOURS = {"accuracy": "#56b4e9", "averaged": "#0072b2"}  # Okabe and Ito's
LABELS = {"accuracy": "weights", "averaged": "averaged weights"}


def collect(workdir: Path) -> dict[str, Any]:
    """Returns what is stored of a finished training: the result, and each test with its time."""
    tests: dict[int, dict[str, Any]] = {}
    for line in logs.read_metrics(workdir / "metrics.jsonl"):
        if line["split"] != "train":
            name = "accuracy" if line["split"] == "test" else "averaged"
            test = tests.setdefault(line["step"], {"epoch": line["epoch"]})
            test |= {"seconds": line["seconds"], name: line["accuracy"]}
    result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    return {"tests": list(tests.values()), "processor": linux.processor(), "result": result}


def reached(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns the last test within the first hour."""
    return [test for test in stored["tests"] if test["seconds"] <= HOUR][-1]


def text(stored: dict[str, Any]) -> str:
    """Returns README's lines."""
    hour, last = reached(stored), stored["tests"][-1]
    flags = " ".join(f"--config.{field}" for field in FIELDS)
    end = ""
    if last is not hour:
        end = (
            f", {100 * last['averaged']:.2f} % at its end after {last['seconds'] / 60:.0f} minutes "
            f"({last['epoch']:.0f} epochs)"
        )
    return (
        f"`python -m mobilenets_jax.main --config={CONFIG} {flags}`, seed 0, on "
        f"{stored['processor']}: {100 * hour['averaged']:.2f} % of the 10,000 test images after "
        f"{hour['seconds'] / 60:.0f} minutes ({hour['epoch']:.0f} epochs){end}, averaged weights. "
        f"The data set's own table gives MobileNet {100 * TABLE:.1f} %, without saying how long it "
        "was trained.\n\n"
        f"![Accuracy against time](docs/{PICTURE.name})"
    )


def draw(stored: dict[str, Any], path: Path) -> None:
    """Draws the error of both weights against minutes, and the table's."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    minutes = [test["seconds"] / 60 for test in stored["tests"]]
    for name, colour in COLOURS.items():
        values = [100 * test[name] for test in stored["tests"]]
        axes.plot(minutes, values, "o-", markersize=3, color=colour, label=LABELS[name])
    axes.axhline(100 * TABLE, color="#d55e00", linewidth=1)
    axes.annotate(
        f"{100 * TABLE:.1f} %: MobileNet in the data set's table",
        (minutes[0], 100 * TABLE),
        (0, 4),
        textcoords="offset points",
        color="#d55e00",
        fontsize=9,
    )
    axes.axvline(HOUR / 60, color="#cccccc", linewidth=1, zorder=0)
    axes.set(xlabel="minutes of training", ylabel="test accuracy, %", xlim=(0, None))
    axes.set_title(
        f"MobileNetV2, α = 0.5, Fashion-MNIST, seed 0, {stored['processor']}", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("run").add_argument("--workdir", type=Path, required=True)
    actions.add_parser("draw")
    options = parser.parse_args(arguments)
    if options.action == "run":
        workdir = options.workdir.absolute()
        command = [sys.executable, "-m", "mobilenets_jax.main", f"--config={CONFIG}"]
        command += [f"--config.{field}" for field in FIELDS]
        done = subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        logs.write_json(STORED, collect(workdir))
        return
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    draw(stored, PICTURE)
    documents.rewrite(README, "time", text(stored))


if __name__ == "__main__":
    main()
