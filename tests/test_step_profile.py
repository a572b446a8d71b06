"""Tests of experiments/step_profile.py, on the text of a small compiled module."""

import itertools
import json
from pathlib import Path

import pytest

from experiments import step_profile
from mobilenets_jax.errors import InputError

STEP = "jit(update)/transpose(jvp(MobileNet))/blocks_1"
COMPILED = """\
HloModule jit_update
body {
  ROOT %sum.1 = f32[4,8]{1,0} fusion(%x), kind=kLoop, \
metadata={op_name="STEP/depthwise/cond/branch_0_fun/while/add" source_file="a.py"}
}
fused.2 (p: f32[8,4]) -> f32[8,4] {
  %dot.7 = f32[8,4]{1,0} dot(%a, %b), metadata={op_name="STEP/project/transpose"}
  ROOT %add.8 = f32[8,4]{1,0} add(%dot.7, %m)
}
ENTRY main {
  %grown.9 = f32[8,4]{1,0} fusion(%a), calls=%fused.2, metadata={op_name="jit(update)/add"}
  %dot.1 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}
  %ynn.2 = (f32[8,4]{1,0}, u8[8]{0}) fusion(%a), kind=kCustom, \
metadata={op_name="jit(update)/jvp(MobileNet)/blocks_1/expand/dot_general"}
  %clip.3 = f32[8,4]{1,0} fusion(%ynn.2), metadata={op_name="STEP/expand/bn/jit(clip)/mul"}
  while.4 = (f32[4,8]{1,0}) while(%init), body=body, \
metadata={op_name="STEP/depthwise/cond/branch_0_fun/while"}
  %add.5 = f32[8]{0} fusion(%p), metadata={op_name="jit(update)/add"}
  ROOT copy.6 = f32[8]{0} copy(%add.5)
}
""".replace("STEP", STEP)


@pytest.mark.parametrize(
    ("operation", "name", "kind"),
    [
        ("fusion", "jit(f)/MobileNet/stem/cond/branch_0_fun/dot_general", "stem"),
        ("fusion", "jit(f)/MobileNet/stem/bn/mul", "BatchNorm, activation"),
        ("fusion", "jit(f)/MobileNet/blocks_3/se/reduce/dot_general", "squeeze-and-excite"),
        ("fusion", "jit(f)/jvp(MobileNet)/blocks_1/depthwise/cond/branch_0_fun/add", "depthwise"),
        ("fusion", f"{STEP}/depthwise/cond/branch_0_fun/pad", "depthwise gradients"),
        ("fusion", f"{STEP}/depthwise/bn/reduce_sum", "BatchNorm, activation"),
        ("dot", f"{STEP}/project/transpose", "matrix products"),
        ("fusion", "jit(f)/MobileNet/classifier/dot_general", "matrix products"),
        ("fusion", "jit(f)/NaiveNet/blocks_3/expand/conv/conv_general_dilated", "matrix products"),
        ("fusion", "jit(f)/NaiveNet/blocks_3/depthwise/conv/conv_general_dilated", "depthwise"),
        ("dot", "", "matrix products"),
        ("dot", "jit(update)/add", "matrix products"),
        ("dot", "jit(f)/MobileNet/blocks_3/se/reduce/dot_general", "squeeze-and-excite"),
        ("fusion", "jit(update)/add", "optimizer"),
        ("copy", "", "all else"),
    ],
)
def test_kind(operation, name, kind):
    assert step_profile.kind(operation, name) == kind


def test_operations_leave_out_what_runs_others():
    found = step_profile.operations(COMPILED)
    names = ["sum.1", "dot.7", "add.8", "grown.9", "dot.1", "ynn.2", "clip.3", "add.5", "copy.6"]
    assert list(found) == names
    assert found["grown.9"] == ("dot", "jit(update)/add")
    assert found["sum.1"] == ("fusion", f"{STEP}/depthwise/cond/branch_0_fun/while/add")
    assert found["copy.6"] == ("copy", "")


def test_microseconds_are_summed_by_kind_over_the_largest_module():
    ends = itertools.count(step=100)

    def event(name, microseconds, module="jit_update"):
        arguments = {"hlo_op": name, "hlo_module": module}
        return {"ts": next(ends) - microseconds, "dur": microseconds, "args": arguments}

    events = [
        {"dur": 900.0},
        {"dur": 900.0, "args": {}},
        event("copy.6", 2.0, "jit_other"),
        *(event(name, 10.0) for name in ("ynn.2", "clip.3", "while.4", "sum.1", "sum.1")),
        event("add.5", 1.0),
        event("grown.9", 5.0),
        event("copy.6", 105.0),  # begins with grown.9
        event("dot.1", 10.0),
        event("copy.6", 40.0),
    ]
    assert step_profile.by_kind(events, {"jit_update": COMPILED, "jit_other": ""}) == {
        "all else": 145.0,
        "matrix products": 10.0 + 5.0 + 70.0,  # dot.1 until the last copy begins
        "depthwise gradients": 20.0,
        "BatchNorm, activation": 10.0,
        "optimizer": 1.0,
    }


def test_a_row_says_shares_and_what_the_products_reach():
    record = {
        "cell": {"task": "inference", "model": "v2", "batch": 16},
        "seconds": 0.08,
        "product_flops": 9e9,
        "shares": {"matrix products": 0.5, "depthwise": 0.25, "all else": 0.25},
    }
    row = step_profile.rows([record])[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    header = [cell.strip() for cell in step_profile.rows([])[0].strip("|").split("|")]
    told = dict(zip(header, cells, strict=True))
    assert told["network"] == "mobilenet_v2"
    assert told["ms"] == "80.0"
    assert (told["matrix products"], told["depthwise"], told["stem"]) == ("50 %", "25 %", "–")
    assert told["products, GFLOP/s"] == "225"  # 9e9 in half of 80 ms


def test_the_twins_row_says_so():
    record = {
        "cell": {"task": "training", "model": "v1", "batch": 1},
        "contender": "naive",
        "seconds": 1.0,
        "product_flops": 1e9,
        "shares": {"matrix products": 1.0},
    }
    assert step_profile.rows([record])[2].startswith("| mobilenet_v1, naive twin | training | 1 |")


def test_a_start_is_a_row():
    start = {
        "config": "configs/v2.py",
        "processor": "Some CPU, 2 cores",
        "first_seconds": 40.04,
        "again_seconds": [7.0, 6.0, 8.0],
        "date": "2026-11-26T10:00:00+00:00",
        "versions": {"jax": "0.10.2"},
    }
    assert step_profile.start_rows([start])[2:] == [
        "| configs/v2.py | Some CPU, 2 cores | 40.0 | 7.0 (6.0–8.0), n = 3 "
        "| 2026-11-26; jax 0.10.2; code of an unknown revision |"
    ]


def test_the_document_is_rendered_from_the_stored_results():
    assert list(step_profile.RESULTS.glob("*.json"))
    assert step_profile.document() == Path("docs/profile.md").read_text(encoding="utf-8")


def test_a_foreign_file_is_one_sentence(tmp_path):
    for text in ("{", "[]", json.dumps({"records": []})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=r"x\.json is not a result for docs/profile"):
            step_profile.read(tmp_path / "x.json", {"circumstances", "records"})
