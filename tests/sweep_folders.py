"""Writes folders as experiments.sweep leaves them, with results made up."""

import json

VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8", "tensorflow_datasets": None}
DEVICE = {"platform": "cpu", "kind": "cpu", "count": 1, "host_cores": 2}
CONFIG = {
    "dataset": {"name": "fashion_mnist", "num_classes": 10, "train_split": "train"},
    "epochs": 2.0,
    "batch_size": 64,
    "resolution": 32,
    "label_smoothing": 0.1,
    "ema_decay": 0.99,
    "model": {"drop_strides": 1},
    "optimizer": {"name": "sgd", "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "learning_rate": 0.03},
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def planned(name, factors=None, params=1000, macs=10_000, overrides=None):
    return {
        "name": name,
        "config": "configs/v2.py:dataset=fashion_mnist",
        "overrides": overrides or {},
        "factors": {"name": name} if factors is None else factors,
        "params": params,
        "macs": macs,
        "resolution": 32,
        "steps": 200,
    }


def sweep(folder, runs, seeds=(0, 1, 2), experiment="fake", scale="small"):
    """Writes sweep.json of runs as `planned` returns them."""
    plan = {"experiment": experiment, "scale": scale, "seeds": list(seeds), "runs": runs}
    write(folder / "sweep.json", plan)


def result(folder, accuracies, seeds=None):
    """Writes result.json of replicas with these accuracies, a fraction each."""
    seeds = list(range(len(accuracies))) if seeds is None else list(seeds)
    fields = {
        "seed": seeds,
        "test_accuracy": [round(value - 0.001, 6) for value in accuracies],
        "test_accuracy_ema": list(accuracies),
        "test_loss": [1 - value for value in accuracies],
    }
    if len(seeds) == 1:  # Of a single training these are numbers.
        fields = {name: values[0] for name, values in fields.items()}
    else:
        fields["replicas"] = len(seeds)
    write(
        folder / "result.json",
        {
            **fields,
            "test_examples": 10_000,
            "params": 1000,
            "macs": 10_000,
            "steps": 200,
            "resolution": 32,
            "train_seconds": 100.0,
            "images_per_second": 400.0,
            "config": CONFIG,
            "versions": VERSIONS,
            "git_revision": "abc123",
            "device": DEVICE,
        },
    )


def metrics(folder, accuracies, steps=200, every=10):
    """Writes metrics.jsonl of replicas that end with these accuracies."""
    lines = []
    for step in range(every, steps + 1, every):
        done = step / steps
        line = {"step": step, "epoch": 2 * done, "images_per_second": 400.0}
        losses = [0.5 + 2 / (1 + 8 * done) + 0.02 * (step % 3) for _ in accuracies]
        rising = [a * done / (0.1 + 0.9 * done) for a in accuracies]
        lines.append({**line, "split": "train", "loss": losses, "accuracy": rising})
        if step % (steps // 4) == 0:
            for split in ("test", "test_ema"):
                lines.append({**line, "split": split, "loss": losses, "accuracy": rising})
    if len(accuracies) == 1:
        lines = [
            {key: v[0] if isinstance(v, list) else v for key, v in line.items()} for line in lines
        ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
