"""The benchmark's arithmetic, its command line, its twin, and docs/benchmarks.md."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, benchmark_report, peers
from experiments.peers import naive
from experiments.peers.jax_nets import random_variables
from mobilenets_jax import create_model
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet

CELL = peers.Cell("training", "v2", 16, 224, "float32", 2)


def record(seconds, batch=16, **fields):
    return {
        "device": "cpu",
        "settings": "",
        "compile_seconds": 8.0,
        "round_seconds": seconds,
        "bytes_before": 2 << 20,
        "peak_bytes": 3 << 20,
        **benchmark.spread(seconds, batch),
        **fields,
    }


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
        "agreement": {"naive": {"loss": {"norm": 1e-7}, "gradient": {"norm": 2e-5}}},
        "machine": {"flops": 1e11, "copy_bytes": 1e10},
        "floor": {"flops": 2e10, "bytes": 1e9, "seconds": 0.2},
        **fields,
    }


def test_document_shows_the_stored_results():
    text = (benchmark.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert text == benchmark_report.render(benchmark_report.load())


def test_spread():
    assert benchmark.spread([0.4, 0.2, 0.1, 0.3, 0.5], 6) == {
        "median_seconds": 0.3,
        "quartile_seconds": [0.2, 0.4],
        "images_per_second": pytest.approx(20),
    }
    assert benchmark.spread([0.5], 2)["quartile_seconds"] == [0.5, 0.5]


def test_floor_is_the_larger_of_operations_and_bytes():
    # V1's Table 4: 568,740,352 MACs and, bias and BatchNorm left out, 4,209,088 weights.
    machine = {"flops": 1e11, "copy_bytes": 1e30}
    cell = CELL._replace(model="v1", task="inference", batch=1)
    one = benchmark.floor(cell, machine)
    assert one["flops"] == 2 * 568_740_352
    assert one["seconds"] == one["flops"] / 1e11
    eight = benchmark.floor(cell._replace(batch=8), {"flops": 1e30, "copy_bytes": 1e10})
    activations = (eight["bytes"] - one["bytes"]) / 7
    assert one["bytes"] - activations == 4 * 4_209_088
    assert eight["seconds"] == eight["bytes"] / 1e10
    training = benchmark.floor(cell._replace(task="training"), machine)
    assert training["flops"] == 3 * one["flops"]
    assert training["bytes"] == 3 * activations + 8 * 4 * 4_209_088
    half = benchmark.floor(cell._replace(dtype="bfloat16"), machine)
    assert 2 * half["bytes"] == one["bytes"]


def test_agreement():
    ours = {"loss": np.array([3.0, 4.0]), "gradient/a": np.array([1.0]), "gradient/b": np.zeros(2)}
    other = {**ours, "loss": np.array([[3.0], [4.5]])}
    found = benchmark.agreement(ours, other)
    assert found["gradient"] == {"norm": 0.0, "worst": 0.0}
    assert found["loss"]["norm"] == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert found["loss"]["worst"] == pytest.approx(0.5 / 4.5)
    with pytest.raises(KeyError, match="gradient/b"):
        benchmark.agreement({"loss": ours["loss"]}, ours)


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
        "40 % (operations)",
        "2e-05 / 1e-07",
    ]


def test_table_says_what_is_missing_or_wrong():
    for agreement, shown in (
        ({"loss": float("nan"), "gradient": 0.1}, "1e-01 / nan"),
        ({"loss": 1e-7, "gradient": 0.1}, "1e-01 / 1e-07"),
        ({"logits": 1e-3}, "1e-03"),
    ):
        naive_agreement = {"naive": {name: {"norm": n} for name, n in agreement.items()}}
        text = benchmark_report.render([stored(agreement=naive_agreement)])
        assert f"**{shown}: not equal**" in text
    assert "Not measured on GPU" in text
    assert "- Not measured: torch compiled NCHW: RuntimeError: no compiler." in text
    measured = "eager NCHW, eager channels_last: training, 224 px, batch 16."
    assert f"- PyTorch {measured}" in text
    gpu = stored(contenders={"ours": record([0.1], device="NVIDIA H100")})
    text = benchmark_report.render([gpu])
    assert "Not measured on GPU" not in text
    assert "## NVIDIA H100" in text
    assert "| – | – |" in text.splitlines()[-1]


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


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "a.json"
    assert benchmark.open_results(path, "layers") == {"kind": "layers", "runs": [], "cells": []}
    path.write_text(json.dumps({"kind": "layers"}))
    with pytest.raises(InputError, match="does not hold results of 'networks'"):
        benchmark.open_results(path, "networks")


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=[pytest.mark.slow] * (m in ("v1", "v3_large"))) for m in peers.MODELS],
)
def test_naive_twin_is_the_same_network(name):
    """Outputs, statistics and gradients in float64; a ReLU6's kink does not blur them there."""
    # The first blocks of each kind: expansion or none, both strides, SE or none, a shortcut.
    whole = create_model(peers.MODELS[name], num_classes=10).spec
    spec = dataclasses.replace(whole, blocks=whole.blocks[:5])
    with jax.enable_x64(True):
        model, twin = MobileNet(spec, jnp.float64), naive.NaiveNet(spec, jnp.float64)
        variables = jax.tree.map(jnp.float64, random_variables(model))
        images = jnp.float64(peers.inputs(CELL)[0][:2, :32, :32])

        def results(model, variables):
            def loss(params):
                logits, updated = model.apply(
                    {**variables, "params": params},
                    images,
                    train=True,
                    rngs={"dropout": jax.random.key(3)},
                    mutable=["batch_stats"],
                )
                return jnp.sum(logits**2), (logits, dict(updated)["batch_stats"])

            (_, (logits, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(
                variables["params"]
            )
            return model.apply(variables, images), logits, statistics, gradient

        ours = jax.jit(lambda v: results(model, v))(variables)
        theirs = jax.jit(lambda v: results(twin, v))(naive.to_naive(variables))
        for mine, other in zip(ours, theirs, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
                naive.to_naive(mine),
                other,
            )


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
    assert cell["floor"]["seconds"] > 0
    # Finished cells are not measured again.
    benchmark.networks(options)
    assert out.read_text() == first
