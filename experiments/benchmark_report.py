"""docs/benchmarks.md and docs/benchmarks.png, from the results that experiments.benchmark stored.

Owns tables, text and the chart. Must not measure or change a number: rendering the same files
gives the same text.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import benchmark_sides, peers
from experiments.benchmark_cells import (
    MODELS,
    best_torch,
    device_of,
    load,
    ratio,
    table_row,
    timed_in,
)
from experiments.benchmark_floor import Floor, floor
from mobilenets_jax.depthwise import PLATFORMS

# In float32, of the gradient and of the rest: ReLU6's kinks and BatchNorm let a rounding error grow
# backwards. A GPU multiplies with ten bits (TF32).
TOLERANCE = {"cpu": (3e-2, 1e-4), "gpu": (0.5, 1e-2)}
EXACT = 1e-10  # In float64, of everything.
LAYERS = {"float32": 1e-4, "bfloat16": 2e-2}  # Of single layers.
ROUNDING = 2.0  # In bfloat16, times the twin's own distance from itself in float32.
_PEERS = {"keras": "Keras", "litert": "LiteRT", "onnxruntime": "ONNX Runtime"}
_TITLES = {"training": "Training step", "inference": "Inference"}
_INTRO = """\
# Speed

<!-- Rendered by `python -m experiments.benchmark render`; change experiments/benchmark_report.py
instead. -->

Measured by `python -m experiments.benchmark networks --out=FILE.json` and
`python -m experiments.benchmark layers --out=FILE.json`, into `experiments/results/benchmark/`,
where every round, version and setting is stored. The peers are `pip install -e '.[bench]'`. All
times of a row are of the same rounds: a peer that is added later is measured together with the
others anew. A contender whose steps take seconds, as the naive twin's, leaves the later rounds out
(of V1's and V2's training at batch 32 on the processor of family 26 it has 4 and 3 of 15).

- **Conditions.** Each contender runs in a process of its own, with the same cores, threads and
  environment (ours included: the allocator's setting is given to all). Our steps alone are compiled
  with options of their own (`runtime.training_options` and `inference_options`; each row's are
  stored as its settings), of which the runs of 2026-11-24 had none, and those of 2026-11-27 no more
  than: in inference the width of vectors, on the Intel processor Eigen's products, too. PyTorch
  chooses both itself. Rounds are interleaved, A B C A B C …; a round is one step that is not timed,
  for the caches and the memory that others left cold, and as many as fill a second (0.05 s, of a
  layer), at least one. Images per second are at the median round; quartiles in brackets, of 3 to 15
  rounds (of 3 they say little). "–" was not run.
- **Training step**: forward with BatchNorm's statistics and dropout, cross entropy, backward, SGD
  with momentum; the state is carried on and the loss fetched in each step. **Inference**: logits
  fetched, BatchNorm folded for us, PyTorch, ONNX Runtime and LiteRT; Keras and the naive twin have
  no folding. Ours takes the batch in chunks (`mobilenets_jax/chunks.py`) in the rows of the AMD
  processor of family 26 at batch 16 and 32; all others are of before, or of single images. Inputs,
  labels and weights are random, and the inputs are in place before the clock starts, but for
  LiteRT, which copies them in.
- **Naive twin**: the same network in Flax as usually written, `nn.Conv` with `feature_group_count`.
  *Difference* is between its results and ours after the first step, norm of the difference over the
  norm: of the logits; or of the gradient / of loss and new BatchNorm statistics, whichever is
  larger. Rounding to float32 alone moves the gradient of V2 by a hundredth (PyTorch's and ours
  against float64: docs/weights.md). So the step can be taken in float64, too, with up to 32 images
  of up to 96 pixels: a last number, where there is one, is the largest difference of loss, gradient
  and statistics there. More than 1e-10 would be marked "not equal". Where the twin has no time, it
  took one step for this comparison alone. In bfloat16 both round; there the numbers are our
  distance from the twin in float32 and, in brackets, that of the twin in bfloat16. More than twice
  as far, or 0.9, is marked "not equal". That happened in training: to V1 and V2, whose gradient
  bfloat16 moves by as much as it is long, in the twin, too; and by the loss, one number whose
  distance is chance, to V1, V2 (the Intel processor) and V3-Large (family 26). Gradients and
  statistics are as far as the twin's. (Over 12 other inputs at 96 pixels, a single session, not
  stored, the medians are 0.24 % for ours and 0.23 % for the twin of V1, of V2 0.13 and 0.18 %.) "–"
  was not compared.
- **Ratios** are peer's time over ours: above 1, ours is faster. PyTorch (torchvision; timm for V1)
  is shown at the fastest setting that was measured, of eager and `torch.compile`, NCHW and
  channels_last (NHWC below); in brackets the lowest and highest ratio within a round.
- **Peak memory**: on a CPU the process's resident memory during the timed steps (the high-water
  mark is set back after compilation), and of it what was added since the libraries were loaded:
  PyTorch's are larger than JAX's, whose own start is in what it added. What the compiler took and
  freed was given back before (`malloc_trim`), which trainings don't do; with it the peaks are
  higher, and stored too. On a GPU the device's, ours with the first step in it, which cannot be set
  back there.
  **First step** is the time to the end of the first step, with compilation and without any cache.
- **Of the floor**: the floor over our time, with what bounds it in brackets. The floor is the
  larger of the step's operations over the measured peak of XLA's matrix products (other libraries
  may do better: in bfloat16, and in single layers, some of PyTorch's do) and its bytes over the
  measured bandwidth of copies, for a program that fuses everything between two convolutions
  (`experiments/benchmark_floor.py`). Where all of a step's bytes together fit the last cache, the
  bandwidth is that of copies within it; elsewhere it is main memory's. It is a mark, not what can
  be reached, as depthwise layers are no matrix products; nor is it a strict bound: where a step as
  a whole is larger than the cache but what one layer hands to the next is not (on a CPU with a
  large cache, training with 16 and 32 images; and our inference, which takes few images at a time),
  a part of the bytes never leaves the cache, and a program may pass a floor of memory.
"""


def write(root: Path) -> None:
    """Rewrites docs/benchmarks.md and docs/benchmarks.png from the stored results."""
    cells = load()
    (root / "docs" / "benchmarks.md").write_text(render(cells), encoding="utf-8")
    if any(cell["kind"] == "networks" for cell in cells):
        chart(cells, root / "docs" / "benchmarks.png")


def peaks(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Returns the machine's peaks by device, dtype and threads: the highest that any cell measured.

    What disturbs a measurement makes it lower, never higher. Bandwidths that were measured within
    the cache only, as once was done, have no say, and where there are no others there is no peak.
    """
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for cell in cells:
        machine = cell.get("machine", {})
        names = machine.keys() if "cache_bytes" in machine else machine.keys() & {"flops"}
        best = found.setdefault(_place(cell), {})
        best |= {name: max(machine[name], best.get(name, 0)) for name in machine if name in names}
    return {place: best for place, best in found.items() if "cache_bytes" in best}


def _place(cell: dict[str, Any]) -> tuple[str, str, int]:
    return device_of(cell), cell["cell"]["dtype"], cell["cell"]["threads"]


def _floor(cell: dict[str, Any], machine: dict[str, float] | None) -> Floor | None:
    kind = peers.Cell if "task" in cell["cell"] else peers.LayerCell
    return floor(kind(**cell["cell"]), machine) if machine else None


def _of_floor(cell: dict[str, Any], least: Floor | None) -> str:
    """The part of our time that the floor is, and what bounds it."""
    ours = timed_in(cell).get("ours")
    if not ours or not least:
        return "–"
    return f"{100 * least.seconds / ours['median_seconds']:.0f} % ({least.bound})"


def _on_gpu(cell: dict[str, Any]) -> bool:
    return device_of(cell) != cell["run"]["processor"]


def _spread(cell: dict[str, Any], name: str | None) -> str:
    """The lowest and the highest ratio of a contender's time to ours in one round."""
    timed = timed_in(cell)
    if name not in timed or "ours" not in timed:
        return ""
    rounds = zip(timed[name]["round_seconds"], timed["ours"]["round_seconds"], strict=False)
    ratios = [theirs / ours for theirs, ours in rounds]
    return f"({min(ratios):.2f}–{max(ratios):.2f})"


def _torch_settings(cells: list[dict[str, Any]]) -> list[str]:
    """Which of PyTorch's settings were measured where, if not all of them everywhere."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        settings = ", ".join(n.removeprefix("torch ") for n in timed_in(cell) if n in peers.TORCH)
        key = cell["cell"]
        where = f"{key['task']}, {key['resolution']} px, batch {key['batch']}"
        if settings and where not in found.setdefault(settings, []):
            found[settings].append(where)
    return [f"- PyTorch {settings}: {'; '.join(where)}." for settings, where in found.items()]


def _largest(values: Iterable[float]) -> float:
    """The largest value, NaN if there is one, which `max` may pass over."""
    return max(values, key=lambda value: (math.isnan(value), value))


def _apart(groups: dict[str, Any], task: str) -> tuple[float, float]:
    """Norms of a comparison: of the gradient, 0 in inference, and the largest of the rest.

    What was not compared is NaN.
    """
    names = ("loss", "batch_stats") if task == "training" else ("logits",)
    norms = {name: group["norm"] for name, group in groups.items()}
    rest = _largest(norms.get(name, math.nan) for name in names)
    return norms.get("gradient", math.nan) if task == "training" else 0.0, rest


def _difference(cell: dict[str, Any]) -> str:
    """How far ours is from the twin, and whether that is rounding."""
    twin, key = cell.get("twin", {}), cell["cell"]
    if failed := [groups["failed"] for groups in twin.values() if "failed" in groups]:
        return f"**not compared: {failed[0].replace('|', '/')}**"
    if "bfloat16" in twin:
        ours, naive = (_apart(twin["bfloat16"][name], key["task"]) for name in ("ours", "naive"))
        # No gradient at all is 1 away.
        allowed: tuple[float, ...] = tuple(min(ROUNDING * apart, 0.9) for apart in naive)
        texts = [f"{a:.0e} ({b:.0e})" for a, b in zip(ours, naive, strict=True)]
    elif key["dtype"] == "float32" and ("naive" in cell["agreement"] or "float32" in twin):
        groups = {**twin, "float32": cell["agreement"].get("naive", twin.get("float32"))}
        ours = _apart(groups["float32"], key["task"])
        allowed = TOLERANCE["gpu" if _on_gpu(cell) else "cpu"]
        texts = [f"{apart:.0e}" for apart in ours]
    else:
        return "–"
    text = " / ".join(texts if key["task"] == "training" else texts[1:])
    equal = all(a <= b for a, b in zip(ours, allowed, strict=True))  # False for NaN, too
    if "float64" in twin:
        worst = _largest(_apart(twin["float64"], key["task"]))
        text += f"; {worst:.0e}"
        equal = equal and worst <= EXACT
    return text if equal else f"**{text}: not equal**"


def _compared(cells: list[dict[str, Any]]) -> list[str]:
    """Which rows were compared with the twin in another run than they were measured in."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        run = cell.get("compared", cell["run"])
        if run != cell["run"]:
            key = cell["cell"]
            versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("jax", "flax"))
            where = f"{run['date'][:10]}, {run['processor']}, {versions}"
            size = f"{key['resolution']} px, batch {key['batch']}, {key['dtype']}"
            threads = f"{key['threads']} thread{'s' * (key['threads'] > 1)}"
            row = f"{MODELS[key['model']]} {key['task']}, {size}, {threads}"
            found.setdefault(where, []).append(row)
    return [
        f"- Compared with the twin, where it has no time, and in float64 and bfloat16, later "
        f"({where}): {'; '.join(rows)}."
        for where, rows in found.items()
    ]


def _network_row(cell: dict[str, Any], names: Sequence[str], least: Floor | None) -> str:
    key, timed, torch = cell["cell"], timed_in(cell), best_torch(cell)
    ours, peer = timed.get("ours"), timed.get(torch or "")

    def pair(value: Callable[[dict[str, Any]], float], digits: int) -> str:
        return " / ".join(f"{value(r):,.{digits}f}" if r else "–" for r in (ours, peer))

    rate = "–"
    if ours:
        low, high = (key["batch"] / seconds for seconds in reversed(ours["quartile_seconds"]))
        rate = f"**{ours['images_per_second']:.1f}** ({low:.1f}–{high:.1f})"
    setting = torch.removeprefix("torch ").replace("channels_last", "NHWC") if torch else ""
    return table_row(
        MODELS[key["model"]],
        key["batch"],
        key["dtype"],
        rate,
        ratio(cell, "naive"),
        " ".join(filter(None, (ratio(cell, torch), _spread(cell, torch), setting))),
        *(ratio(cell, name) for name in names),
        pair(lambda r: r["peak_bytes"] / 2**20, 0),
        pair(lambda r: (r["peak_bytes"] - r["bytes_before"]) / 2**20, 0),
        pair(lambda r: r["compile_seconds"], 1),
        _of_floor(cell, least),
        _difference(cell),
    )


def _network_tables(
    cells: list[dict[str, Any]], machines: dict[tuple[str, str, int], dict[str, float]]
) -> list[str]:
    lines: list[str] = []
    models = list(peers.MODELS)
    for task, title in _TITLES.items():
        names = [name for name in _PEERS if task == "inference" or name == "keras"]
        head = [
            *("model", "batch", "dtype", "images/s, ours", "naive twin", "PyTorch's best"),
            *(_PEERS[name] for name in names),
            *("peak MiB, ours / PyTorch", "of it added", "first step s, ours / PyTorch"),
            *("of the floor", "difference"),
        ]
        chosen = [cell for cell in cells if cell["cell"]["task"] == task]
        sizes = {(c["cell"]["resolution"], c["cell"]["threads"]) for c in chosen}
        for resolution, threads in sorted(sizes, reverse=True):
            cores = f"{threads} thread{'s' * (threads > 1)}"
            lines += ["", f"### {title}, {resolution} × {resolution}, {cores}", ""]
            lines += [table_row(*head), table_row("---", *("---:" for _ in head[1:]))]
            rows = [
                cell
                for cell in chosen
                if (cell["cell"]["resolution"], cell["cell"]["threads"]) == (resolution, threads)
            ]
            rows.sort(
                key=lambda cell: (
                    cell["cell"]["dtype"] != "float32",
                    models.index(cell["cell"]["model"]),
                    cell["cell"]["batch"],
                )
            )
            lines += [
                _network_row(cell, names, _floor(cell, machines.get(_place(cell)))) for cell in rows
            ]
    return lines


def _layer_tables(
    cells: list[dict[str, Any]], machines: dict[tuple[str, str, int], dict[str, float]]
) -> list[str]:
    lines: list[str] = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        key = cell["cell"]
        group = (key["kind"], key["direction"], key["batch"], key["dtype"], key["threads"])
        groups.setdefault(group, []).append(cell)
    apart: dict[str, list[float]] = {}
    for cell in cells:
        for groups_apart in cell["agreement"].values():
            norms = [group["norm"] for group in groups_apart.values()]
            apart.setdefault(cell["cell"]["dtype"], []).extend(norms)
    if apart:
        lines += ["", "### Layers", "", "In each row, the fastest is bold. The largest difference"]
        texts = []
        for dtype, norms in apart.items():
            worst = _largest(norms)
            allowed = max(LAYERS[dtype], TOLERANCE["gpu"][1] if _on_gpu(cells[0]) else 0)
            text = f"{worst:.0e} in {dtype}"
            texts.append(text if worst <= allowed else f"**{text}: not equal**")
        lines[-1] += (
            f" between a contender's result and ours, norm over norm, is {', '.join(texts)}."
        )
    if noise := _noise(cells):
        lines[-1] += noise
    for (kind, direction, batch, dtype, threads), members in groups.items():
        names = list(dict.fromkeys(name for cell in members for name in timed_in(cell)))
        lines += [
            "",
            f"#### {kind.capitalize()}, {direction}: milliseconds, batch {batch}, {dtype}, "
            f"{threads} thread{'s' * (threads > 1)}",
            "",
            table_row("layer", *names, "floor", "ours, of the floor"),
            table_row("---", *("---:" for _ in (*names, "", ""))),
        ]
        for cell in members:
            key, timed = cell["cell"], timed_in(cell)
            shape = f"{key['size']}×{key['size']}×{key['channels']}"
            if kind == "depthwise":
                layer = f"{shape}, {key['kernel']}×{key['kernel']}" + " s2" * (key["strides"] == 2)
            else:
                layer = f"{shape} → {key['out']}"
            best = min((r["median_seconds"] for r in timed.values()), default=None)
            values = []
            for name in names:
                seconds = timed.get(name, {}).get("median_seconds")
                text = "–" if seconds is None else f"{seconds * 1e3:.3g}"
                values.append(f"**{text}**" if seconds is not None and seconds == best else text)
            least = _floor(cell, machines.get(_place(cell)))
            bare = f"{least.seconds * 1e3:.3g}" if least else "–"
            lines.append(table_row(layer, *values, bare, _of_floor(cell, least)))
    return lines


def _noise(cells: list[dict[str, Any]]) -> str:
    """By how much two processes with the same program differ: what the tables cannot tell apart."""
    same = f"ours {PLATFORMS['cpu']}"
    pairs = [
        (timed[same]["median_seconds"], timed["ours"]["median_seconds"])
        for timed in map(timed_in, cells)
        if {"ours", same} <= timed.keys() and timed["ours"]["device"] == "cpu"
    ]
    if not pairs:
        return ""
    factors = [max(pair) / min(pair) for pair in pairs]
    return (
        f' On a CPU "ours" and "{same}" are one program in two processes: they differ by a factor '
        f"of {statistics.median(factors):.2f} in the median and of {max(factors):.2f} at most, "
        "which is the noise of these short times."
    )


def _left_out(cells: list[dict[str, Any]]) -> list[str]:
    """One line for each contender that was not measured somewhere, with the reasons."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for name, record in cell["contenders"].items():
            reason = record.get("left_out") or record.get("failed")
            if reason and reason not in reasons.setdefault(name, []):
                reasons[name].append(reason)
    return [f"- Not measured: {n}: {'; '.join(r)}." for n, r in sorted(reasons.items()) if r]


def told(machine: dict[str, float]) -> str:
    """Returns a machine's peaks in words, with the memory that the copies ran in."""
    text = (
        f"{machine['flops'] / 1e9:,.0f} GFLOP/s; copies in main memory, of an array of "
        f"{machine['copy_array_bytes'] / 2**20:,.0f} MiB, "
        f"{machine['copy_bytes'] / 1e9:,.0f} GB/s read and written"
    )
    if machine["cache_bytes"]:
        text += (
            f"; within the last cache of {machine['cache_bytes'] / 2**20:,.0f} MiB, "
            f"{machine['cache_copy_bytes'] / 1e9:,.0f} GB/s"
        )
    return text + "."


def render(cells: list[dict[str, Any]]) -> str:
    """Returns the text of docs/benchmarks.md.

    Args:
        cells: as `load` returns them.
    """
    lines = [_INTRO.rstrip("\n")]
    if not any(map(_on_gpu, cells)):
        lines += ["", "Not measured on GPU: the same commands run there, and results appear here."]
    for device in sorted({device_of(cell) for cell in cells}):
        here = [cell for cell in cells if device_of(cell) == device]
        lines += ["", f"## {device}", ""]
        runs = [cell["run"] for cell in here]
        days = sorted({run["date"][:10] for run in runs})
        revisions = ", ".join(dict.fromkeys(run.get("git_revision") or "" for run in runs))
        lines.append(
            f"- Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}; code of "
            f"{f'revision {revisions}' if revisions.strip(', ') else 'an unknown revision'}."
        )
        for field, join in (("versions", " "), ("environment", "=")):
            texts = {
                ", ".join(f"{key}{join}{value}" for key, value in run[field].items()): None
                for run in runs
            }
            lines += [f"- {field.capitalize()}: {text}." for text in texts]
        machines = peaks(here)
        for (_, dtype, threads), machine in machines.items():
            lines.append(
                f"- Peaks, {dtype}, {threads} thread{'s' * (threads > 1)}: {told(machine)}"
            )
        lines += _left_out(here)
        networks = [cell for cell in here if cell["kind"] == "networks"]
        lines += [*_torch_settings(networks), *_compared(networks)]
        lines += _network_tables(networks, machines)
        lines += benchmark_sides.table(networks)
        lines += _layer_tables([cell for cell in here if cell["kind"] == "layers"], machines)
    return "\n".join(lines) + "\n"


def shown(cells: list[dict[str, Any]], task: str, model: str) -> dict[str, Any] | None:
    """Returns the chart's cell: float32, the largest images, most threads, batch 16 or largest."""
    found = [
        cell
        for cell in cells
        if (cell["cell"]["task"], cell["cell"]["model"]) == (task, model)
        and cell["cell"]["dtype"] == "float32"
        and timed_in(cell)
    ]

    def preference(cell: dict[str, Any]) -> tuple[Any, ...]:
        key = cell["cell"]
        return key["resolution"], key["threads"], key["batch"] == 16, key["batch"]

    return max(found, key=preference, default=None)


def chart(cells: list[dict[str, Any]], path: Path) -> None:
    """Draws images per second: a row for each device and task, a panel for each model."""
    from matplotlib.figure import Figure

    networks = [cell for cell in cells if cell["kind"] == "networks"]
    rows = []
    for device in sorted({device_of(cell) for cell in networks}):
        here = [cell for cell in networks if device_of(cell) == device]
        rows += [
            (device, task, here) for task in _TITLES if any(shown(here, task, m) for m in MODELS)
        ]
    figure = Figure(figsize=(14.5, 0.4 + 2.5 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(MODELS), squeeze=False)
    for (device, task, here), line in zip(rows, panels, strict=True):
        for model, panel in zip(MODELS, line, strict=True):
            _panel(panel, shown(here, task, model), f"{MODELS[model]} {task}")
        line[0].set_ylabel(device.replace(", ", "\n"), fontsize=6.5, color="#777777")
    figure.suptitle("Images per second (longer is faster)", color="#333333")
    figure.savefig(path, metadata={"Software": None})


def _panel(panel: Any, cell: dict[str, Any] | None, title: str) -> None:
    panel.spines[:].set_visible(False)
    panel.set_xticks([])
    panel.tick_params(length=0, labelcolor="#333333", labelsize=8)
    if cell is None:
        panel.set_yticks([])
        panel.set_title(f"{title}: not measured", fontsize=9, color="#333333", loc="left")
        return
    torch = best_torch(cell)
    labels = {"ours": "ours", "naive": "naive twin", torch: "PyTorch, best", **_PEERS}
    timed = timed_in(cell)
    names = [name for name in labels if name in timed][::-1]
    rates = [timed[name]["images_per_second"] for name in names]
    colours = ["#0072b2" if name == "ours" else "#b8b8b8" for name in names]
    bars = panel.barh([labels[name] for name in names], rates, color=colours, height=0.7)
    texts = [f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" for rate in rates]
    panel.bar_label(bars, texts, padding=3, fontsize=8, color="#333333")
    panel.set_xlim(0, 1.2 * max(rates))
    key = cell["cell"]
    panel.set_title(
        f"{title}, {key['resolution']} px, batch {key['batch']}",
        fontsize=9,
        color="#333333",
        loc="left",
    )
