"""Where the time of a training or inference step goes, by kind of operation.

    python -m experiments.step_profile measure --out=FILE.json   runs our benchmark steps, traced
    python -m experiments.step_profile measure --out=FILE.json --contender=naive   those of the twin
    python -m experiments.step_profile render                    docs/profile.md

JAX's profiler says how long each operation of the compiled step took, the compiled text to which
layer it belongs. A fusion counts as what its last operation is, or as a matrix product if there is
one in it. On a CPU only: a GPU's trace has other names.

Owns the trace, the kinds and the table. Knows nothing of other libraries.
"""

import argparse
import collections
import datetime
import gzip
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobilenets_jax import runtime

if __name__ == "__main__" and sys.argv[1:2] == ["measure"]:
    runtime.restart()

from experiments import linux, peers
from mobilenets_jax import costs, logs, specs
from mobilenets_jax.errors import InputError
from mobilenets_jax.pointwise import FEW_CHANNELS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "profile"
STARTS = ROOT / "experiments" / "results" / "start"
TASKS = ("training", "inference")
STEPS = 5
# Kind -> what is in an operation's name; the first that matches counts.
KINDS = {
    "stem": r"/stem/(?!bn/)",
    "squeeze-and-excite": r"/se/",
    "depthwise gradients": r"transpose\(.*/depthwise/(?!bn/)",
    "depthwise": r"/depthwise/(?!bn/)",
    "BatchNorm, activation": r"/bn/|clip|relu|hswish|hard_",
    "optimizer": r"^jit\(\w+\)/\w+$",
    "matrix products": (
        r"dot_general|conv_general_dilated|/(expand|project|last|head|pointwise|conv)/transpose$"
    ),
}
# What may be fused into a product, which it then counts as.
AROUND = ("BatchNorm, activation", "optimizer")
OTHER = "all else"
_INTRO = """\
# Where the time goes

<!-- Rendered by `python -m experiments.step_profile render`; change experiments/step_profile.py
instead. -->

Measured by `python -m experiments.step_profile measure --out=FILE.json` into
`experiments/results/profile/`: the benchmark's own steps (docs/benchmarks.md says what they are)
at 224 × 224 in float32. *ms* is the median step without the profiler; the shares are of the sum
over the profiler's operations. A fusion counts as what its last operation is (an activation fused
into the padding of the depthwise convolution that reads it, as depthwise, and so an expansion of up
to 16 channels in inference), or as a product if there is one in it (an optimizer's update fused
into the product that makes the gradient). Where the code has a revision, a product lasts at least
until the next operation starts: of Eigen's the profiler tells how long it takes to hand them out.
*Products, GFLOP/s* is what the 1×1 convolutions and the classifier reach in their share of the
time.

What the tables here and in docs/benchmarks.md say about the places where we are behind:

- **Four processors** of two cores each: two AMD EPYC, "the first AMD" (2026-11-27, products at up
  to 220 GFLOP/s) and "the second" (family 26, 2026-11-28, 518), and two Intel Xeon, "the first
  Intel" (2026-11-24, 383) and "the second" (300 MiB of cache, 2026-11-27, 201 to 296). On the
  second Intel the same step took up to twice as long from one minute to the next, and on an AMD one
  of the first's generation V3-Large's inference took 53 or 95 ms for seconds at a time while
  PyTorch's took 61 or 69 (single sessions, not stored): other tenants of the host use its memory
  and caches, and on those we depend more.
- **Inference at batch 16 and 32.** PyTorch compiled takes 0.75 (V1), 1.24 (V2), 1.13 (V3-Large) and
  1.07 (V3-Small) of our time at batch 16 on the second AMD processor, 0.89, 1.25, 1.13 and 1.05 at
  batch 32. In the rounds in which the two cores were near to each other, see below, it takes 1.05
  (V1, batch 32; there is none at 16), 1.24 and 1.27 (V2), 1.16 and 1.16 (V3-Large), 1.06 and 1.08
  (V3-Small); in those in which they were far (six at most, of V3-Large one), 0.75 and 0.74 (V1),
  0.67 (V3-Large, batch 32), 0.66 (one round) and 0.61 (V3-Small). On the others, of code before the
  last item below (and on the first AMD before the last two, on the first Intel before all), it took
  0.85 (V3-Small) to 0.98 (V2) at batch 16 and 0.75 to 0.95 at batch 32 (the second Intel), 0.93
  (V1) to 1.03 (V2) and 0.85 to 0.93 (the first AMD), two thirds to three quarters (the first
  Intel). Found, in comparisons of alternating steps (single sessions, not stored; the first three
  on the first AMD processor), batch 16 and 32:
  - The depthwise convolution read its input twice, padded and, for the windows without padding,
    not; and what makes it (an activation, in V1 the whole stem) was computed twice. Once now: 1.01
    to 1.11 times as fast (V2's first comparison of four said 0.91, the others 1.09).
  - An expansion of up to 16 channels is a sum of products that fuses with activation and padding,
    as fewer and larger fusions: 1.02 to 1.09 times as fast (at batch 1 1.02 to 1.07).
  - Vectors of 512 bits: 1.02 to 1.06 times (at batch 1 1.00 to 1.06). XLA's loop loads k² inputs
    and k² weights for every vector of outputs, and keeps none in registers.
  - Products by Eigen instead of YNNPACK, which is XLA's choice, on the second Intel processor: V1
    1.15 to 1.25 times as fast, V2 1.03 to 1.11, V3 1.03 to 1.08; at batch 1 1.01 (V1) to 1.14; in
    bfloat16 1.02 to 1.13 (V1, V2, V3-Small). On an AMD one of the first's generation V1 1.03 to
    1.06, V2 1.05 to 1.07, V3 1.03 to 1.07; at batch 1 V2 and V3 1.05 to 1.16, V1 0.93 to 0.95. On
    the second AMD, with the next item, V1 0.97 and 0.98, V2 1.08, V3 1.09 to 1.15; at batch 1 V2
    and V3 1.09 to 1.35, V1 0.90, so that V1 is only level with PyTorch there.
  - The batch in chunks of two images, one for each core, until many fit the cache at once
    (`mobilenets_jax/chunks.py`), on the second AMD: V2 1.26 to 1.46 times as fast at batch 16 to
    64, V3-Large 1.12 to 1.33, V3-Small 1.06 to 1.25, V1 1.12 to 1.20 but 0.81 to 0.90 in some
    minutes, see below; in others all but V3-Small at batch 16 were 1.8 to 2.3 times as fast, since
    whole batches took twice as long. At batch 8 0.99 to 1.21, at 4 0.96 to 1.06; in bfloat16 0.97
    to 1.20; 256 images of 32 × 32 pixels 0.96 (V3-Small) to 1.12. Limits of 2 to 14 MB for a
    chunk's widest feature map, and another loop where 2, 4 or 8 times as many images fit: 3 MB (1.5
    for each core) and 4 were never far from the best, and the best for V2 and V3. Chunks of the
    whole network are slower (V3-Small 0.88 with two images). Not measured with more than two cores.

  **Near and far.** The second AMD is a virtual machine, whose two cores are near to each other for
  some seconds or minutes and then far: for 1 MiB that one has just written the other takes 10 to 12
  or 24 to 29 µs, for its own 7 or 8 (two threads of a C program that wait for each other); as cores
  would that share their last cache, and cores of different ones: such processors have one for every
  few cores. The machine itself tells nothing of it. The benchmark measures it around every round
  (docs/benchmarks.md, "Rounds with the cores near to and far from each other"): no near round of
  our inference was slow, and those that took 1.3 to 1.5 (V1) or 1.6 to 1.8 times as long (V2 and
  V3) were far ones, or it changed in them, while PyTorch's far ones took 0.94 to 1.08 times its
  near ones at batch 16 and 32 (at batch 1, V1's only far round 1.16). XLA hands any part of any
  array to any thread, and what reads a product's output then takes three times as long, a product
  1.3 times (V3-Large at batch 16, JAX's profiler); PyTorch's threads keep their part of each array.
  Nothing of the process changed it: small pages, addresses of arrays, a core for each thread,
  Eigen's products or YNNPACK's, a program of the lowest priority that kept the cores from idling.
  Tried as a way out: a CPU device of one thread for each core (`jax_num_cpu_devices`,
  `xla_cpu_multi_thread_eigen=false`, the batch sharded): 0.92 to 1.06 times as fast as chunks on
  near cores, 1.4 (V1) to 1.7 times on far ones; but V1's training on such devices is 0.66 to 0.91
  times as fast, and a process has its devices from its start. (Two processes, each with a core and
  half of the images, are 1.03 to 1.13 times as fast as one on near cores.) Not a way out: two loops
  in one program, each over half of the batch (0.64 to 1.06 times as fast); one, three, four and
  eight threads. (All single sessions, not stored.)

  What is left is, above all, products: at the peak of matrix products (docs/benchmarks.md) those of
  V1 alone would take 33 ms at batch 16 on the second AMD processor, where PyTorch's whole inference
  takes 52 (51 in its one near round), LiteRT's 49 and ours 51 on near cores, 70 on far ones (in the
  table 51, of it 42 in products; with whole batches 36, not stored any more, but 17 instead of 8 in
  what is depthwise): 1.2 times PyTorch's speed would be 42 to 44. XLA computes each as a call of a
  library, and what follows is fused with the padding behind it, not with the product: one more pass
  over each expansion. That pass is vectorized and sets the padding by `memset` (XLA's dump says
  so). The limit that we believe in for V1, with XLA's CPU code as it is, is PyTorch's speed. Tried
  in single sessions, not stored, without gain: the `+dot` and `+eltwise` kinds of XLA's own library
  fusion and its oneDNN calls, XLA's `FAST_RUNTIME` preset, fast minima and maxima, weights as
  constants of the program (0.99 to 1.04 times), JAX 0.11.2 and 0.12.0.1 (0.97 to 1.04 times as fast
  as 0.10.2, training of V1 and V2 included). Tried on layers, and not built: feature maps as `[C,
  H, W, N]` (depthwise with padding 0.9 to 1.4 times as fast at batch 16, slower at batch 1,
  products 1.05 times), and maps that carry their padding from layer to layer (the depthwise part
  1.3 to 1.5 times as fast, but products of 1.15 to 1.3 times as many rows where maps are small).
- **Inference at batch 1**, with two threads: PyTorch takes 0.99 (V1), 1.34 (V2), 1.46 (V3-Large)
  and 2.41 times (V3-Small) as long on the second AMD processor, nearly all rounds on near cores (in
  the run before, of the same code and unknown cores, 0.97, 1.29, 0.96 and 2.00), LiteRT and ONNX
  Runtime 0.55 to 0.74; on the second Intel 1.05 (V1), 1.20 (V3-Large), 1.57 (V2) and 2.09
  (V3-Small), LiteRT and ONNX Runtime 0.60 to 0.89; on the other two, of older code, PyTorch 0.76 to
  1.25. Operations are so short that a second thread makes ours only 1.08 (V3-Small) to 1.36 times
  (V1) as fast. With one thread, PyTorch takes 1.16 (V1) to 2.09 times (V3-Small) as long on the
  second AMD, the faster of LiteRT and ONNX Runtime 0.84 to 0.90, where 0.83, 1.2 times our time,
  was the goal (on the first Intel, of older code, PyTorch 0.90 to 1.68, the faster 0.66 to 0.70).
- **Training.** PyTorch takes 0.99 (V1), 1.26 (V2), 1.25 (V3-Large) and 1.36 (V3-Small) of our time
  on the second AMD processor at batch 16, 0.97, 1.23, 1.25 and 1.26 at batch 32. V1's rounds were
  mostly far ones, see above: PyTorch takes 0.99 of our time in those at batch 16, 0.95 in those at
  32 and 1.07 in the two near ones there; of V2 at batch 32 1.24 near and 1.10 far. Unlike in
  inference it is PyTorch that has two speeds: its training of V1 and V2 at batch 32 takes 0.87 and
  0.90 times as long on far cores as on near ones, ours 0.96 and 1.01 (2 near and 8 far rounds of
  V1, 12 and 2 of V2). (Our guess: of arrays that are larger than a cache, two caches hold more.) In
  the same day's run before, of code whose step was the same, it was 1.10 (V1), 1.26, 1.24 and 1.30
  at batch 16 and 0.95, 1.21, 1.26 and 1.27 at batch 32, of cores that nobody knows of; in another
  at batch 32 five far rounds each had 0.95 (V1) and 1.02 (V2). Elsewhere, of older code, ours is
  ahead but for V1 at batch 16, where PyTorch takes 0.98 of our time on the first AMD processor and
  0.83 on the second Intel one (there three rounds of each, PyTorch's 0.498 to 0.617 s, ours 0.561
  to 0.680; at batch 32 it takes 1.01 and 1.06 times as long, on the first Intel one 1.15 and 1.14).
  Vectors of 512 bits are new on the second AMD: V2 1.03 to 1.06 times as fast there, V1 1.03, V3
  1.01 to 1.03 (alternating steps, single sessions, not stored; on the second Intel 0.99 to 1.07 in
  eight comparisons, on an AMD one of the first's generation 1.00 to 1.01). So are the slopes of
  ReLU6 and h-swish, which divide nothing: V3-Small 1.04 to 1.05 times as fast at batch 16, the
  others 1.00 to 1.02. Products are the largest part of V1's step, BatchNorm the next, a third on
  every processor, in passes over arrays that are larger than the cache. Alone, on the second Intel
  processor (a single session, not stored), those of the weights' gradients reach 75 to 208 GFLOP/s
  by XLA's two libraries, 102 to 299 by PyTorch's; the forward ones 95 to 238 by YNNPACK, 110 to 298
  by Eigen, 131 to 306 by PyTorch's. Tried for the weights' gradients: the transposed product (1.0
  to 1.3 times as fast, alone), transposed copies, chunks of the rows, a loop over them (slower, but
  for a few of the widest). Tried for the whole step, without a gain that could be told from noise:
  Eigen's products (0.96 to 1.09 on the second Intel, 0.99 to 1.03 on the AMD ones; on the second of
  them 0.83 to 0.87 for V1 at batch 1 and at 32 × 32), the stem's patches as one fusion (0.96 to
  1.00). The sums of BatchNorm cost one pass over the widest arrays for each: an expansion's are
  taken from its inputs now (V2 1.05 to 1.10 times as fast, V3 1.01 to 1.05, single sessions on the
  first AMD). Not worth it: both sums in one loop over chunks of rows (alone 0.5 to 1.4 times as
  fast), the same for V1's products, whose inputs are half as many as their outputs (0.99 to 1.00),
  expansions computed again for the gradient (0.90 to 0.99), and V1's layers in chunks of the batch,
  forward and backward, with all sums in the same loop (written anew for the purpose: 0.81 to 0.97),
  or the stem's weights' gradient alone (0.995 to 1.01). In the table of the first Intel processor,
  products that BatchNorm's arithmetic is fused with count as BatchNorm.
- **12 times the naive twin**, in float32 training of 224 × 224 at batch 16 and 32 (at batch 1 and
  of 32 × 32 it is 5.7 to 12.0 times), is missed by V1 at batch 16 (8.6, 10.8, 11.2 and 10.95 times
  on the first AMD, the first and second Intel and the second AMD, there 11.8 in the run before),
  and at batch 32 on the first AMD (10.4; on the second 12.2, or 12.05 in those rounds that the twin
  had), and was by V3-Small at batch 16 in older code. For V1 it would be 241 ms on the second AMD
  (ours takes 264, and took 244 in the run before) and 365 ms on the first, of which products take
  100 and 235 at their peak; PyTorch's step takes 262 and 500. The twin loses most where it is
  depthwise (its table: V3-Small more than V1), and V1 has the largest part of products, which gain
  least. Tried for V3-Small in single sessions, not stored, without gain: seven other stems
  (patches, rows, space to depth, banded blocks), 16 images unrolled in the weight gradient, a
  hard-swish by clipping, accumulators by rows.
- **In blocks with squeeze-and-excite and ReLU** (V3), XLA computed the depthwise convolution twice,
  once for the mean and once for the product with the gate; since ReLU is a selection there, which
  it does not duplicate, once (tests/test_fusion.py): the same bits 1.01 to 1.05 times as fast (a
  single session, not stored). The first Intel processor's table of V3's inference is of before.
- **A second start**, with what the first one compiled, takes 4.5 s to its first step on the second
  AMD processor, where it took 5.5 before two changes of 2026-11-28 (8 starts each, alternating, not
  stored): Python collects garbage less often (5.5 to 4.7 s in single starts), and the program that
  makes the first state is loaded while the training step is traced (4.5 to 4.05 s in starts of a
  profiled program; a first start 15.7 to 14.5). It took 13 to 14 s on the first AMD and the second
  Intel before them; not measured there since. What is left is Python: imports, tracing, lowering
  (about 2.9 s), and loading compiled programs (1.4 s). Done earlier: blocks of one shape are traced
  once, and so are the initial weights. Tried: keeping programs of under a second of compilation,
  too (nothing).
"""


def kind(operation: str, name: str) -> str:
    """Returns the kind of an operation of the compiled step.

    Args:
        operation: what it is, e.g. "copy", "fusion", or "dot" also for a fusion with one in it.
        name: its op_name, the path of the module and primitive that it comes from.
    """
    for found, pattern in KINDS.items():
        if re.search(pattern, name) and not (operation == "dot" and found in AROUND):
            return found
    return "matrix products" if operation == "dot" else OTHER


def operations(compiled: str) -> dict[str, tuple[str, str]]:
    """Reads a compiled module's text: operation's name -> (what it is, its op_name).

    A fusion with a matrix product in it is a "dot". What runs a computation (while, conditional,
    call) is left out: its parts have times.
    """
    found = {}
    computation, products = "", set()
    pattern = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(")
    for line in compiled.splitlines():
        if line.endswith("{"):
            computation = line.removeprefix("ENTRY").split()[0].lstrip("%")
        match = pattern.match(line)
        if not match or match[2] in ("while", "conditional", "call"):
            continue
        name, operation = match.groups()
        called = re.search(r"calls=%?([\w.\-]+)", line)
        if operation == "dot" or (called and called[1] in products):
            products.add(computation)
            operation = "dot"
        path = re.search(r'op_name="([^"]*)"', line)
        found[name] = (operation, path[1] if path else "")
    return found


def by_kind(events: Iterable[dict[str, Any]], compiled: dict[str, str]) -> dict[str, float]:
    """Sums a trace's microseconds by kind.

    A matrix product lasts at least until the next operation starts: Eigen's, which other threads
    compute, are told as long as it takes to hand them out.

    Args:
        events: of a trace; those of other modules than the largest are left out.
        compiled: module -> its text.
    """
    traced = sorted(
        (event for event in events if "hlo_op" in event.get("args", {})),
        key=lambda event: event["ts"],
    )
    totals: collections.Counter[str] = collections.Counter()
    for event in traced:
        totals[event["args"]["hlo_module"]] += event["dur"]
    module = max(totals, key=lambda name: totals[name])
    known = operations(compiled[module])
    sums: collections.Counter[str] = collections.Counter()
    for event, after in itertools.zip_longest(traced, traced[1:]):
        arguments, microseconds = event["args"], event["dur"]
        if arguments["hlo_module"] != module or arguments["hlo_op"] not in known:
            continue
        operation, name = known[arguments["hlo_op"]]
        if operation == "dot" and after:
            microseconds = max(microseconds, after["ts"] - event["ts"])
        sums[kind(operation, name)] += microseconds
    return dict(sums.most_common())


def measure(cell: peers.Cell, contender: str, dump: Path) -> dict[str, Any]:
    """Runs a cell of the benchmark, then traces it.

    Args:
        cell: the network and task.
        contender: "ours" or "naive".
        dump: where XLA writes what it compiles.

    Returns:
        seconds of a step without the trace, its FLOPs, and the share of each kind in the trace.
    """
    import jax

    step = peers.load(contender, cell)(contender, cell).step
    for _ in range(3):
        step()
    times = []
    for _ in range(STEPS if contender == "naive" else 4 * STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(STEPS):
                step()
        (path,) = Path(directory).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    compiled = {}
    for path in sorted(dump.glob("*after_optimizations.txt")):  # the newest of a name is kept
        compiled[path.name.split(".")[1]] = path.read_text(encoding="utf-8")
    sums = by_kind(events, compiled)
    products = sum(
        layer.macs
        for layer in costs.layers(specs.table(peers.MODELS[cell.model]), cell.resolution)
        if layer.kind in ("project", "last", "head", "classifier")
        or (layer.kind == "expand" and not _fused(layer, cell, contender))
    )
    return {
        "cell": cell._asdict(),
        "contender": contender,
        "seconds": statistics.median(times),
        "product_flops": 2 * products * cell.batch * (3 if cell.task == "training" else 1),
        "shares": {name: value / sum(sums.values()) for name, value in sums.items()},
    }


def _fused(layer: costs.Layer, cell: peers.Cell, contender: str) -> bool:
    """Whether an expansion is no matrix product but a part of the depthwise fusions."""
    return (contender, cell.task) == ("ours", "inference") and layer.input[-1] <= FEW_CHANNELS


def rows(records: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table of stored records: percent of the time of a step, by kind."""
    kinds = [*KINDS, OTHER]
    lines = [
        f"| network | task | batch | ms | {' | '.join(kinds)} | products, GFLOP/s |",
        f"| --- | --- | ---: | ---: | {' | '.join(['---:'] * len(kinds))} | ---: |",
    ]
    for record in records:
        cell, shares = record["cell"], record["shares"]
        twin = ", naive twin" * (record.get("contender") == "naive")
        spent = record["seconds"] * shares["matrix products"]
        percent = [f"{100 * shares[name]:.0f} %" if name in shares else "–" for name in kinds]
        lines.append(
            f"| {peers.MODELS[cell['model']]}{twin} | {cell['task']} | {cell['batch']} | "
            f"{1e3 * record['seconds']:.1f} | {' | '.join(percent)} | "
            f"{record['product_flops'] / spent / 1e9:.0f} |"
        )
    return lines


def render(profiles: list[dict[str, Any]], starts: list[dict[str, Any]]) -> str:
    """Returns docs/profile.md from the stored files' contents."""
    parts = [_INTRO.rstrip()]
    for result in profiles:
        where = result["circumstances"]
        parts += [
            f"## {where['processor']}",
            f"Measured {where['date'][:10]}, {where['threads']} threads; {_versions(where)}; "
            f"code of {_revision(where)}.",
            "\n".join(rows(result["records"])),
        ]
    if starts:
        parts += [
            "## From the program's start to its first step",
            "Measured by `python -m experiments.start_time --out=FILE.json`: first with an empty "
            "compilation cache, then with the one that it left.",
            "\n".join(start_rows(starts)),
        ]
    return "\n\n".join(parts) + "\n"


def _versions(where: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in where["versions"].items())


def _revision(where: dict[str, Any]) -> str:
    revision = where.get("git_revision")
    return f"revision {revision}" if revision else "an unknown revision"


def start_rows(starts: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table of what `start_time` stored."""
    lines = [
        "| config | processor | first start, s | again, s: median (lowest–highest) | measured |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for start in starts:
        again = start["again_seconds"]
        lines.append(
            f"| {start['config']} | {start['processor']} | {start['first_seconds']:.1f} | "
            f"{statistics.median(again):.1f} ({min(again):.1f}–{max(again):.1f}), n = {len(again)} "
            f"| {start['date'][:10]}; {_versions(start)}; code of {_revision(start)} |"
        )
    return lines


def read(path: Path, fields: set[str]) -> dict[str, Any]:
    """Reads a stored file that must have these fields.

    Raises:
        InputError: it is not one that this script wrote.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not fields <= result.keys():
            raise ValueError("fields are missing")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a result for docs/profile.md: remove it.") from error
    return result


def document() -> str:
    """Returns docs/profile.md from all stored files.

    Raises:
        InputError: as `read`.
    """
    profiles = [read(path, {"circumstances", "records"}) for path in sorted(RESULTS.glob("*.json"))]
    starts = [read(path, {"again_seconds", "versions"}) for path in sorted(STARTS.glob("*.json"))]
    return render(profiles, starts)


def main(arguments: list[str] | None = None) -> None:
    """Measures, or renders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("measure")
    action.add_argument("--out", type=Path, required=True)
    action.add_argument("--models", nargs="+", default=list(peers.MODELS), choices=peers.MODELS)
    action.add_argument("--task", nargs="+", default=TASKS, choices=TASKS)
    action.add_argument("--batch", nargs="+", type=int, default=[16])
    action.add_argument("--threads", type=int, default=2)
    action.add_argument("--contender", choices=("ours", "naive"), default="ours")
    actions.add_parser("render")
    options = parser.parse_args(arguments)
    if options.action == "render":
        (ROOT / "docs" / "profile.md").write_text(document(), encoding="utf-8")
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    given = {name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    records = []
    with tempfile.TemporaryDirectory() as dump:
        # Read by XLA when JAX starts.
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # what comes from it is not written
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        for task, batch, model in itertools.product(options.task, options.batch, options.models):
            cell = peers.Cell(task, model, batch, 224, "float32", options.threads)
            records.append(measure(cell, options.contender, Path(dump)))
            print("\n".join(rows(records[-1:])[2:]), flush=True)
    circumstances = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": linux.processor(),
        "git_revision": logs.git_revision(Path(__file__).parent),
        "threads": options.threads,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
        "environment": given,
    }
    logs.write_json(options.out, {"circumstances": circumstances, "records": records})


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
