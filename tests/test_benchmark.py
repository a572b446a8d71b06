"""The benchmark's arithmetic, its command line, and docs/benchmarks.md."""

import contextlib
import functools
import itertools
import json
import os
import types

import numpy as np
import pytest

from experiments import (
    benchmark,
    benchmark_cells,
    benchmark_report,
    benchmark_rounds,
    benchmark_summary,
    documents,
    handover,
    linux,
    peers,
)
from experiments.benchmark_floor import floor, layer_work, network_work
from experiments.peers import machine
from mobilenets_jax.depthwise import IMPLEMENTATIONS, PLATFORMS
from mobilenets_jax.errors import InputError

CELL = peers.Cell("training", "v2", 16, 224, "float32", 2)
LAYER = peers.LayerCell("depthwise", "forward", 14, 512, 512, 3, 2, 16, "float32", 2)
MACHINE = {
    "flops": 1e11,
    "copy_bytes": 1e10,
    "copy_array_bytes": 4 << 20,
    "cache_bytes": 1 << 20,
    "cache_copy_bytes": 4e10,
}


def record(seconds, batch=16, **fields):
    return {
        "device": "cpu",
        "settings": "",
        "compile_seconds": 8.0,
        "round_seconds": seconds,
        "bytes_before": 2 << 20,
        "peak_bytes": 3 << 20,
        **benchmark_rounds.spread(seconds, batch),
        **fields,
    }


def groups(rest, gradient=None):
    """What `agreement` says of training, or of inference."""
    if gradient is None:
        return {"logits": {"norm": rest}}
    norms = {"loss": rest, "batch_stats": rest / 2, "gradient": gradient}
    return {name: {"norm": norm} for name, norm in norms.items()}


def answering(answer):
    """Returns a stand-in of `workers`, all of which give this answer."""

    @contextlib.contextmanager
    def workers(names, *_, **__):
        yield {name: types.SimpleNamespace(ask=lambda **_: dict(answer)) for name in names}

    return workers


def stored(**fields):
    return {
        "kind": "networks",
        "cell": CELL._asdict(),
        "run": {
            "date": "2026-11-24T10:00:00+00:00",
            "processor": "Some CPU, 2 cores",
            "versions": {"jax": "0.10.2"},
            "environment": {"A": "1"},
        },
        "contenders": {
            "ours": record([0.4, 0.5, 0.8]),
            "naive": record([5.0]),
            "torch eager NCHW": record([1.0]),
            "torch eager channels_last": record([0.45], compile_seconds=0.25),
            "torch compiled NCHW": {"failed": "RuntimeError: no compiler"},
            "keras": {"left_out": "not installed (No module named 'keras')"},
        },
        "agreement": {"naive": groups(1e-7, 2e-5)},
        "machine": MACHINE,
        **fields,
    }


def test_document_shows_the_stored_results():
    text = (benchmark_rounds.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert text == benchmark_report.render(benchmark_cells.load())


def test_readme_shows_the_stored_results():
    readme = (benchmark_rounds.ROOT / "README.md").read_text(encoding="utf-8")
    summary = benchmark_summary.render(benchmark_cells.load())
    assert readme == documents.replaced(readme, "speed", summary)


def test_summary():
    """Of the device that was measured last, in float32; of PyTorch the fastest.

    Bold where ours is slower, by however little; ~ where a round says otherwise.
    """
    run = stored()["run"]
    older = {**run, "date": "2026-11-23T23:00:00+00:00", "processor": "Another CPU, 2 cores"}
    seconds = {
        "ours": [0.4, 0.4, 0.4],
        "torch eager NCHW": [0.3, 0.3, 0.3],
        "litert": [0.399, 0.399, 0.5],
        "onnxruntime": [0.6, 0.6, 0.3],
    }
    cells = [
        stored(
            cell=CELL._replace(task="inference", batch=1, threads=1)._asdict(),
            contenders={name: record(value) for name, value in seconds.items()},
        ),
        stored(run=older),
        stored(cell=CELL._replace(dtype="bfloat16")._asdict()),
        stored(cell=CELL._replace(batch=32)._asdict()),
        stored(cell=CELL._replace(resolution=32)._asdict()),
        stored(),
        stored(cell=CELL._replace(model="v1")._asdict()),
    ]
    names = "V1 | V2 | V3-Large | V3-Small |"
    both = "10.00× / **0.90×**"
    assert benchmark_summary.render(cells).splitlines() == [
        "Of Some CPU, 2 cores, 2026-11-24:",
        "",
        f"| **Training step**: the naive twin / PyTorch's best | {names}",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| 224 × 224, batch 16 | {both} | {both} | – | – |",
        f"| 224 × 224, batch 32 | – | {both} | – | – |",
        f"| 32 × 32, batch 16 | – | {both} | – | – |",
        "",
        f"| **Inference**: PyTorch's best / LiteRT / ONNX Runtime | {names}",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 224 × 224, batch 1, 1 thread | – | **0.75×** / **~1.00×** / ~1.50× | – | – |",
    ]
    assert benchmark_summary.render([stored(kind="layers")]) == "Not measured."


def test_spread():
    assert benchmark_rounds.spread([0.4, 0.2, 0.1, 0.3, 0.5], 6) == {
        "median_seconds": 0.3,
        "quartile_seconds": [0.2, 0.4],
        "images_per_second": pytest.approx(20),
    }
    assert benchmark_rounds.spread([0.5], 2)["quartile_seconds"] == [0.5, 0.5]


def test_work_of_a_network():
    # V1's Table 4: 568,740,352 MACs and, bias and BatchNorm left out, 4,209,088 weights.
    cell = CELL._replace(model="v1", task="inference", batch=1)
    flops, one = network_work(cell)
    assert flops == 2 * 568_740_352
    activations = (network_work(cell._replace(batch=8))[1] - one) // 7
    assert one - activations == 4 * 4_209_088
    training = network_work(cell._replace(task="training"))
    assert training == (3 * flops, 3 * activations + 8 * 4 * 4_209_088)
    assert 2 * network_work(cell._replace(dtype="bfloat16"))[1] == one


def test_work_of_a_layer():
    activations = 16 * (14 * 14 + 7 * 7) * 512
    for direction in ("forward", "input gradient", "weight gradient"):
        cell = LAYER._replace(direction=direction)
        assert layer_work(cell) == (2 * 16 * 49 * 9 * 512, 4 * (activations + 9 * 512))
    pointwise = LAYER._replace(kind="pointwise", kernel=1, strides=1, out=24, dtype="bfloat16")
    moved = 2 * (16 * 196 * (512 + 24) + 512 * 24)
    assert layer_work(pointwise) == (2 * 16 * 196 * 512 * 24, moved)


def test_floor_is_the_larger_of_operations_and_bytes():
    flops, moved = layer_work(LAYER)
    for peaks, seconds, bound in (
        ({"flops": 1e3}, flops / 1e3, "operations"),
        ({"flops": 1e30}, moved / 1e10, "memory"),
        ({"flops": 1e30, "cache_bytes": moved}, moved / 4e10, "cache"),
        ({"flops": 1e30, "cache_bytes": 0, "cache_copy_bytes": 0.0}, moved / 1e10, "memory"),
    ):
        assert floor(LAYER, MACHINE | peaks) == (flops, moved, seconds, bound)
    assert floor(CELL, MACHINE)[:2] == network_work(CELL)


def test_cache_is_the_largest_that_the_system_tells(tmp_path):
    assert linux.cache_bytes(tmp_path) == 0
    for name, size in (("index0", "48K"), ("index2", "2048K"), ("index3", "491520K\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size)
    assert linux.cache_bytes(tmp_path) == 480 << 20


@pytest.mark.parametrize(
    ("cache", "available", "large", "small"),
    [
        (480, 20_000, 1920, [240, 120, 60, 30, 7.5, 1.875]),
        (480, 2_000, 1000, [240, 120, 60, 30, 7.5, 1.875]),
        (8, 20_000, 1024, [4, 2, 1]),
        (0, 20_000, 1024, []),
    ],
)
def test_copies_of_main_memory_are_larger_than_the_cache(cache, available, large, small):
    found = machine.copy_sizes(cache << 20, available << 20)
    assert found == (large << 20, [int(size * (1 << 20)) for size in small])


def test_agreement():
    ours = {"loss": np.array([3.0, 4.0]), "gradient/a": np.array([1.0]), "gradient/b": np.zeros(2)}
    other = {**ours, "loss": np.array([[3.0], [4.5]])}
    found = benchmark_rounds.agreement(ours, other)
    assert found["gradient"] == {"norm": 0.0, "worst": 0.0}
    assert found["loss"]["norm"] == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert found["loss"]["worst"] == pytest.approx(0.5 / 4.5)
    with pytest.raises(KeyError, match="gradient/b"):
        benchmark_rounds.agreement({"loss": ours["loss"]}, ours)
    with pytest.raises(KeyError, match="loss has 3 and 1 values"):
        benchmark_rounds.agreement({"loss": np.zeros(3)}, {"loss": np.zeros(1)})


def test_layers_are_those_of_the_papers():
    cells = benchmark.layer_cells(["v1"], 16, "float32", 2)
    depthwise = [c for c in cells if (c.kind, c.direction) == ("depthwise", "forward")]
    assert [(c.size, c.channels, c.strides) for c in depthwise] == [
        *((112, 32, 1), (112, 64, 2), (56, 128, 1), (56, 128, 2), (28, 256, 1), (28, 256, 2)),
        *((14, 512, 1), (14, 512, 2), (7, 1024, 1)),
    ]
    assert len(cells) == 3 * (9 + 9)
    assert len(benchmark.layer_cells(list(peers.MODELS), 16, "float32", 2)) == 306


def test_table_row():
    row = benchmark_report.render([stored()]).splitlines()[-1]
    assert [value.strip() for value in row.strip("|").split("|")] == [
        "V2",
        "16",
        "float32",
        "**32.0** (24.6–35.6)",
        "10.00×",
        "0.90× (1.12–1.12) eager NHWC",
        "not installed",
        "3 / 3",
        "1 / 1",
        "8.0 / 0.2",
        "58 % (operations)",
        "2e-05 / 1e-07",
    ]


def test_peaks_are_the_highest_and_bandwidths_those_of_cells_that_measured_main_memory():
    once = stored(machine={"flops": 4e11, "copy_bytes": 9e99})
    others = [stored(machine=MACHINE | {"flops": flops}) for flops in [3e11] * 100 + [1e11]]
    half = stored(cell=CELL._replace(dtype="bfloat16")._asdict())
    assert benchmark_report.peaks([once, *others, half]) == {
        ("Some CPU, 2 cores", "float32", 2): MACHINE | {"flops": 4e11},
        ("Some CPU, 2 cores", "bfloat16", 2): MACHINE,
    }
    text = benchmark_report.render([once, *others])
    assert (
        "- Peaks, float32, 2 threads: 400 GFLOP/s; copies in main memory, of an array of 4 MiB, "
        "10 GB/s read and written; within the last cache of 1 MiB, 40 GB/s.\n"
    ) in text
    text = benchmark_report.render([once])
    assert "Peaks" not in text
    assert text.splitlines()[-1].endswith("| – | 2e-05 / 1e-07 |")


def test_layers_row():
    seconds = {"ours": 0.004, "nn.Conv": 0.008}
    cell = stored(
        kind="layers",
        cell=LAYER._asdict(),
        contenders={name: record([value]) for name, value in seconds.items()},
        agreement={"nn.Conv": {"result": {"norm": 3e-7}}},
    )
    text = benchmark_report.render([cell])
    assert "result and ours, norm over norm, is 3e-07 in float32." in text
    wrong = {**cell, "agreement": {"nn.Conv": {"result": {"norm": float("nan")}}}}
    assert "is **nan in float32: not equal**." in benchmark_report.render([cell, wrong])
    half = {"cell": LAYER._replace(dtype="bfloat16")._asdict()}
    half["agreement"] = {"nn.Conv": {"result": {"norm": 2e-3}}}
    both = benchmark_report.render([cell, {**cell, **half}])
    assert "is 3e-07 in float32, 2e-03 in bfloat16." in both
    heading, _, row = text.splitlines()[-3:]
    assert heading == "| layer | ours | nn.Conv | floor | ours, of the floor |"
    # 8,047,616 bytes at 10 GB/s.
    assert row == "| 14×14×512, 3×3 s2 | **4** | 8 | 0.805 | 20 % (memory) |"


def test_table_says_what_is_missing_or_wrong():
    nan = float("nan")
    for agreement, shown in (
        (groups(nan, 0.1), "1e-01 / nan"),
        (groups(1e-7, 0.1), "1e-01 / 1e-07"),
        (groups(1e-7, 1e-5) | {"batch_stats": {"norm": nan}}, "1e-05 / nan"),
        ({"loss": {"norm": 0.0}, "batch_stats": {"norm": 0.0}}, "nan / 0e+00"),
        ({"gradient": {"norm": 0.0}}, "0e+00 / nan"),
        ({}, "nan / nan"),
    ):
        text = benchmark_report.render([stored(agreement={"naive": agreement})])
        assert f"| **{shown}: not equal** |" in text
    inference = CELL._replace(task="inference")._asdict()
    text = benchmark_report.render([stored(cell=inference, agreement={"naive": groups(1e-3)})])
    assert "| **1e-03: not equal** |" in text
    for float64, shown in (
        (groups(0.0, 3e-13), "| 2e-05 / 1e-07; 3e-13 |"),
        (groups(0.0, 2e-10), "; 2e-10: not equal** |"),
        ({"loss": {"norm": 0.0}}, "; nan: not equal** |"),
        ({"failed": "ours: no | memory"}, "| **not compared: ours: no / memory** |"),
    ):
        text = benchmark_report.render([stored(twin={"float64": float64})])
        assert text.splitlines()[-1].endswith(shown)
    text = benchmark_report.render([stored()])
    assert "Not measured on GPU" in text
    assert "- Not measured: torch compiled NCHW: RuntimeError: no compiler." in text
    measured = "eager NCHW, eager channels_last: training, 224 px, batch 16."
    assert f"- PyTorch {measured}" in text
    gpu = stored(contenders={"ours": record([0.1], device="NVIDIA H100")})
    text = benchmark_report.render([gpu])
    assert "Not measured on GPU" not in text
    assert "## NVIDIA H100" in text
    assert "| – | – |" in text.splitlines()[-1]


@pytest.fixture
def pinned(monkeypatch):
    """What the process is pinned to, one after the other; it may use processors 9, 3 and 5."""
    pinned: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 3, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: pinned.append(set(cores)))
    return pinned


def test_handover_is_the_time_for_what_another_core_wrote_over_that_for_its_own(
    pinned, monkeypatch
):
    # A clock that is read four times on each core.
    ticks = itertools.accumulate(itertools.cycle([1.0, 3.0, 1.0, 2.0]))
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(handover, "time", clock)
    assert handover.handover() == 1.5
    assert pinned == [*[{3}, {5}] * 12, {3}, {9, 3, 5}]


def test_a_process_is_never_left_pinned(pinned, monkeypatch):
    monkeypatch.setattr(handover.np, "add", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        handover.handover()
    assert pinned == [{3}, {9, 3, 5}]


def told_rounds(monkeypatch, tmp_path, cell, device="cpu"):
    """What three rounds of two contenders did, one of which fails in its second, and stored."""
    events, seconds = [], iter([0.1, 0.2, 0.3, None, 0.4])
    numbers = map(float, itertools.count(1))

    def ask(name, **order):
        if "run" not in order:
            return {"device": device, "warm_seconds": 0.5}
        events.append(name)
        second = next(seconds)
        return {"failed": "it"} if second is None else {"seconds": second}

    def probe():
        events.append("handover")
        return next(numbers)

    clock = types.SimpleNamespace(sleep=lambda _: events.append("rest"))
    monkeypatch.setattr(benchmark_rounds, "time", clock)
    monkeypatch.setattr(benchmark_rounds, "handover", probe)
    started = {
        name: types.SimpleNamespace(ask=functools.partial(ask, name)) for name in ("ours", "naive")
    }
    return events, benchmark_rounds.measure(started, cell, 3, 1.0, tmp_path)


def test_rounds_store_the_handovers_around_them(monkeypatch, tmp_path):
    events, records = told_rounds(monkeypatch, tmp_path, CELL)
    runs = ("ours", "naive", "ours", "naive", "ours")
    between = ("rest", "handover")
    assert events == [*between, *itertools.chain(*((name, *between) for name in runs))]
    assert records["ours"]["handovers"] == [[1, 2], [3, 4], [5, 6]]
    assert records["ours"]["round_seconds"] == [0.1, 0.3, 0.4]
    assert records["naive"] == {"failed": "it"}


@pytest.mark.parametrize(
    ("cell", "device"),
    [(CELL._replace(threads=1), "cpu"), (CELL, "NVIDIA H100"), (LAYER, "cpu")],
    ids=["one thread", "GPU", "layer"],
)
def test_handovers_are_of_networks_with_two_threads_of_a_cpu(cell, device, monkeypatch, tmp_path):
    events, records = told_rounds(monkeypatch, tmp_path, cell, device)
    assert events.count("rest") == 6
    assert "handover" not in events
    assert "handovers" not in records["ours"]


def test_near_and_far_rounds_are_told_apart():
    far, near, either = [3.0, 3.1], [1.1, 1.5], [1.1, 3.0]
    cell = stored()
    assert "far from each other" not in benchmark_report.render([cell])
    cell["contenders"] = {
        "ours": record([0.02, 0.04, 1.5, 1.0, 0.3], handovers=[near, far, far, far, either]),
        "torch eager NCHW": record([0.03] * 5, handovers=[near, near, far, far, either]),
        "torch compiled NCHW": record([0.5] * 5, handovers=[near, far, far, far, either]),
    }
    text = benchmark_report.render([cell])
    near_row, far_row = "1 | 20 | 30 | 1.50", "2 | 1,250 | 30 | 0.03"
    assert f"| V2 | training | 224 | 16 | float32 | {near_row} | {far_row} |" in text
    cell["contenders"]["ours"]["handovers"] = [far] * 5
    cell["contenders"]["torch eager NCHW"]["handovers"] = [far] * 5
    assert "| float32 | 0 | – | – | – | 5 |" in benchmark_report.render([cell])
    # Rounds in which one was near and the other far make no ratio.
    cell["contenders"]["ours"]["handovers"] = [near] * 5
    assert "| float32 | 0 | – | – | – | 0 | – | – | – |" in benchmark_report.render([cell])
    # Where only another contender met far rounds, there is no row.
    cell["contenders"]["torch eager NCHW"]["handovers"] = [near] * 5
    assert "far from each other" not in benchmark_report.render([cell])


def test_chart_takes_batch_16_of_the_largest_images():
    sizes = ((32, 224), (16, 224), (64, 32))
    cells = [
        stored(cell=CELL._replace(batch=batch, resolution=resolution)._asdict())
        for batch, resolution in sizes
    ]
    assert benchmark_report.shown(cells, "training", "v2") is cells[1]
    assert benchmark_report.shown(cells, "inference", "v2") is None


def test_chart_is_drawn(tmp_path):
    benchmark_report.chart([stored()], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("networks --out=a.json --models v4", "Unknown model 'v4'."),
        ("networks --out=a.json --peers torhc", "Did you mean 'torch'?"),
        ("networks --out=a.json --batch 0", "'0' is not a positive integer"),
        ("networks --out=a.txt", "--out=a.txt must end in .json."),
        ("layers --out=a.json --threads=4096", "--threads=4096, but this process may use"),
        ("layers", "The following arguments are required: --out; see --help."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        benchmark.parse(arguments.split())
    assert message in str(error.value)


def test_peers_are_chosen_by_library_or_setting():
    assert benchmark.contenders(["torch", "ours"]) == ["ours", *peers.TORCH]
    assert benchmark.contenders(["torch eager NCHW"]) == ["torch eager NCHW"]


def test_a_cell_without_a_contender_is_measured_anew_with_all():
    assert benchmark.missing(None, ["naive", "keras"], False) == ["ours", "naive", "keras"]
    row = stored()
    for record in row["contenders"].values():
        if "quartile_seconds" in record:
            assert "device" in record
    assert benchmark.missing(row, ["ours", "torch compiled NCHW", "keras"], False) == []
    assert benchmark.missing(row, ["naive", "litert"], False) == [
        *("ours", "naive", "litert", "torch eager NCHW", "torch eager channels_last"),
        *("torch compiled NCHW", "keras"),
    ]


def test_what_failed_is_retried_when_asked():
    row = stored()
    assert benchmark.missing(row, ["ours", "naive"], True) == []
    for name in ("torch compiled NCHW", "keras"):
        assert set(benchmark.missing(row, [name], True)) == set(row["contenders"])
    row["contenders"]["keras"]["unsupported"] = True
    assert benchmark.missing(row, ["keras"], True) == []


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "a.json"
    assert benchmark.open_results(path, "layers") == {"kind": "layers", "runs": [], "cells": []}
    path.write_text(json.dumps({"kind": "layers"}))
    with pytest.raises(InputError, match="does not hold results of 'networks'"):
        benchmark.open_results(path, "networks")


def test_table_compares_what_was_not_timed():
    later = {
        "date": "2026-11-26T10:00:00+00:00",
        "processor": "Another CPU, 4 cores",
        "versions": {"jax": "0.11.0", "flax": "0.13.0"},
    }
    inference = CELL._replace(task="inference")._asdict()
    row = stored(cell=inference, agreement={}, twin={"float32": groups(2e-6)}, compared=later)
    text = benchmark_report.render([row])
    assert text.splitlines()[-1].endswith("| 2e-06 |")
    assert (
        "later (2026-11-26, Another CPU, 4 cores, jax 0.11.0, flax 0.13.0): V2 inference, 224 px, "
        "batch 16, float32, 2 threads."
    ) in text
    assert benchmark_report.render([stored(agreement={})]).splitlines()[-1].endswith("| – |")


@pytest.mark.parametrize(
    ("ours", "naive", "end"),
    [
        (0.3, 0.2, "| 3e-01 (2e-01) / 4e-03 (4e-03) |"),  # less than twice as far
        (0.5, 0.2, "| **5e-01 (2e-01) / 4e-03 (4e-03): not equal** |"),
        (1.0, 0.6, ": not equal** |"),  # as far as no gradient at all
        (float("nan"), 0.2, ": not equal** |"),
        (0.2, float("nan"), ": not equal** |"),
    ],
)
def test_bfloat16_is_as_far_from_float32_as_the_twin(ours, naive, end):
    row = stored(
        cell=CELL._replace(dtype="bfloat16")._asdict(),
        agreement={"naive": groups(1.0, 1.0)},
        twin={"bfloat16": {"ours": groups(4e-3, ours), "naive": groups(4e-3, naive)}},
    )
    assert benchmark_report.render([row]).splitlines()[-1].endswith(end)


def test_what_a_row_lacks():
    def lacking(row, retry=False, **fields):
        return benchmark.lacking({"agreement": {}, **row}, CELL._replace(**fields), retry)

    assert lacking({}) == ["float32", "float64"]
    assert lacking({"agreement": {"naive": {}}}) == ["float64"]
    assert lacking({}, task="inference") == ["float32"]
    assert lacking({}, dtype="bfloat16") == lacking({}, dtype="bfloat16", task="inference")
    assert lacking({}, dtype="bfloat16") == ["bfloat16"]
    failed = {"twin": {"float32": {}, "float64": {"failed": "no memory"}}}
    assert lacking(failed) == []
    assert lacking(failed, retry=True) == ["float64"]


def test_float64_stands_for_small_steps_as_they_are():
    small = CELL._replace(resolution=32, batch=64)
    assert benchmark_rounds.exactly(small) == small._replace(batch=32, dtype="float64")
    assert benchmark_rounds.exactly(CELL) == CELL._replace(resolution=96, dtype="float64")


def test_a_comparison_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_rounds, "workers", answering({"failed": "no memory"}))
    found = benchmark_rounds.twin_in("float32", CELL, "cpu", tmp_path / "log")
    assert found == {"failed": "ours: {'failed': 'no memory'}"}
    monkeypatch.setattr(benchmark_rounds, "workers", answering({"device": "cpu"}))
    found = benchmark_rounds.twin_in("float32", CELL, "NVIDIA H100", tmp_path / "log")
    assert found == {"failed": "ours: on cpu, but timed on NVIDIA H100"}


@pytest.mark.slow
def test_two_contenders_are_measured_and_stored(tmp_path):
    out = tmp_path / "results.json"
    arguments = f"networks --out={out} --models v3_small --task inference --batch 2"
    options = benchmark.parse(
        f"{arguments} --resolution 32 --rounds 2 --peers ours naive --threads 1".split()
    )
    benchmark.networks(options)
    first = out.read_text()
    (cell,) = json.loads(first)["cells"]
    assert cell["agreement"]["naive"]["logits"]["norm"] < 1e-5
    for name in ("ours", "naive"):
        measured = cell["contenders"][name]
        assert len(measured["round_seconds"]) == 2
        assert measured["bytes_before"] < measured["peak_bytes"]
    assert cell["machine"]["flops"] > 0
    assert cell["machine"]["copy_bytes"] > 0
    # Finished cells are not measured again.
    benchmark.networks(options)
    assert out.read_text() == first
    # But compared, where the twin has no time and it was not done yet.
    results = json.loads(first)
    (cell,) = results["cells"]
    del cell["contenders"]["naive"], cell["agreement"]["naive"]
    out.write_text(json.dumps(results))
    options.peers = ["ours"]
    benchmark.networks(options)
    (compared,) = json.loads(out.read_text())["cells"]
    assert compared["twin"]["float32"]["logits"]["norm"] < 1e-5
    assert (compared["compared"], compared["run"]) == (1, 0)
    assert compared["contenders"] == cell["contenders"]
    out.write_text(first)
    # A new contender comes with a new measurement of the others, in the place of the old one.
    options.peers = ["torch eager NCHW"]
    benchmark.networks(options)
    again = json.loads(out.read_text())
    (cell,) = again["cells"]
    assert list(cell["contenders"]) == ["ours", "torch eager NCHW", "naive"]
    assert (cell["run"], len(again["runs"])) == (1, 2)
    assert json.loads(first)["cells"][0]["contenders"]["ours"] != cell["contenders"]["ours"]


@pytest.mark.slow
def test_layers_are_measured_and_stored(tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    some = [LAYER._replace(batch=2), LAYER._replace(batch=2, kind="pointwise", kernel=1, strides=1)]
    monkeypatch.setattr(benchmark, "layer_cells", lambda *_: [c._replace(threads=1) for c in some])
    benchmark.layers(benchmark.parse(f"layers --out={out} --rounds 2 --threads 1".split()))
    depthwise, pointwise = json.loads(out.read_text())["cells"]
    for cell in depthwise, pointwise:
        assert cell["machine"]["cache_bytes"] == linux.cache_bytes()
        for measured in cell["agreement"].values():
            assert measured["result"]["norm"] < 1e-5
    assert {"ours", "ours lax", "ours shift"} <= depthwise["agreement"].keys() | {"ours"}
    assert {"ours", "nn.Conv"} <= pointwise["contenders"].keys()


@pytest.mark.slow
def test_twin_is_exact_in_float64(tmp_path):
    cell = peers.Cell("training", "v3_small", 16, 32, "float32", 1)
    found = benchmark_rounds.twin_in("float64", cell, "cpu", tmp_path / "log")
    assert found.keys() == {"loss", "gradient", "batch_stats"}
    assert all(group["norm"] < 1e-12 for group in found.values())


def test_the_default_on_cpu_is_the_fastest_of_every_layer_that_was_measured():
    cells = [cell for cell in benchmark_cells.load() if cell["cell"].get("kind") == "depthwise"]
    # In float32 on two processors, in bfloat16 on one: forward and two gradients of V1's, V2's and
    # V3's layers.
    assert len(cells) == 3 * 3 * 38
    for cell in cells:
        times = {
            name: cell["contenders"][f"ours {name}"]["median_seconds"] for name in IMPLEMENTATIONS
        }
        assert min(times, key=times.__getitem__) == PLATFORMS["cpu"]
