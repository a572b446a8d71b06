"""The report of made-up sweeps: every number by hand, whatever state the runs are in."""

import html.parser
import json
import os
import re
import shutil
import types

import pytest
import sweep_folders as fake

from experiments import (
    ablation,
    report,
    report_blocks,
    report_data,
    report_figures,
    report_html,
    report_plots,
    report_sections,
    report_store,
)
from experiments.ablation import Comparison, PaperPoint
from experiments.report_blocks import Cell, Heading, Items, Picture, Table, Text
from mobilenets_jax.errors import InputError

WIDE, NARROW = "v2,alpha=1.0", "v2,alpha=0.5"
DOCSTRING = """What does half the width cost (V1, Table 6)?

    python -m experiments.sweep fake --workdir=DIR

The paper finds `alpha` to cost 6.6 points <of> accuracy.

- one finding,
- another.
"""


@pytest.fixture
def module(monkeypatch):
    """The file of the experiment "fake"."""
    module = types.ModuleType("fake", DOCSTRING)
    module.PAPER = [PaperPoint({"alpha": 1.0}, 0.706, 569_000_000, 4_200_000, "V1, Table 6")]
    claims = [Comparison("Half the width is worse", NARROW, WIDE, -6.6, "V1, Table 6")]
    module.comparisons = lambda scale: claims
    module.claims = claims

    def load(name):
        if name != "fake":
            raise InputError(f"There is no experiment '{name}'.")
        return module

    monkeypatch.setattr(ablation, "load", load)
    return module


@pytest.fixture
def folder(tmp_path):
    """A finished sweep of two runs and three seeds, differences −1, −2 and −3 points."""
    folder = tmp_path / "sweep" / "fake"
    runs = [
        fake.planned(WIDE, {"model": "v2", "alpha": 1.0}, 2_236_682, 24_461_312),
        fake.planned(NARROW, {"model": "v2", "alpha": 0.5}, 700_490, 7_837_440),
    ]
    fake.sweep(folder, runs)
    fake.result(folder / WIDE, [0.91, 0.93, 0.92])
    fake.result(folder / NARROW, [0.90, 0.91, 0.89])
    for name in (WIDE, NARROW):
        fake.metrics(folder / name, [0.9, 0.9, 0.9])
    return folder


def shown(folder):
    return report_sections.view(report_data.gather(folder))


def tables(view, paper=False):
    """Returns the tables of an experiment's section as lists of {title: text}."""
    found = []
    for block in report_sections.sections([view], paper, {}):
        if isinstance(block, Table):
            found.append(
                [dict(zip(block.head, (c.text for c in row), strict=True)) for row in block.rows]
            )
    return found


def texts(view):
    """Returns the paragraphs of an experiment's section."""
    return [
        block.text
        for block in report_sections.sections([view], False, {})
        if isinstance(block, Text)
    ]


def written(tmp_path, *flags):
    """Returns report.md and report.html of the sweep."""
    out = tmp_path / "out"
    report.run([str(tmp_path / "sweep"), f"--out={out}", *flags])
    return (out / "report.md").read_text("utf-8"), (out / "report.html").read_text("utf-8")


def test_runs_have_mean_interval_and_n(module, folder):
    _, runs = tables(shown(folder))
    # Mean 92, standard error 1 / sqrt(3), t = 4.30265: 2.48414.
    assert runs[0] == {
        "α": "1.0",
        "pixels": "32",
        "parameters": "2,236,682",
        "MACs": "24,461,312",
        "averaged weights, %": "92.00 ± 2.48",
        "n": "3",
        "last weights, %": "91.90 ± 2.48",
        "front": "◆",
        "training, s": "100",
    }
    assert runs[1]["averaged weights, %"] == "90.00 ± 2.48"
    assert runs[1]["front"] == "◆"


def test_comparisons_are_paired_by_seed(module, folder):
    (row,), _ = tables(shown(folder))
    assert row == {
        "statement": "Half the width is worse (V1, Table 6)",
        "a − b": "alpha=0.5 − alpha=1.0",
        "measured by": "averaged weights, %",
        "the paper's difference": "−6.6",
        "ours": "−2.00 ± 2.48",
        "n": "3",
        "resolved?": "not resolved at n = 3",
        "direction": "agrees (not resolved)",
    }


def test_a_resolved_comparison_disagrees(module, folder):
    fake.result(folder / NARROW, [0.92, 0.941, 0.929])  # differences 1.0, 1.1, 0.9
    view = shown(folder)
    (row,), _ = tables(view)
    assert row["ours"] == "+1.00 ± 0.25"
    assert row["resolved?"] == "**resolved**"
    assert row["direction"] == "disagrees"
    summary = "1 comparison: 1 resolved (1 disagrees with the paper), 0 not resolved."
    assert summary in texts(view)
    table = report_sections.overview([view])[0]
    assert [cell.text for cell in table.rows[0]][2:] == ["2 of 2 done", "1 of 1", "1 disagrees"]


@pytest.mark.parametrize(
    ("paper", "sign", "accuracies", "stated", "direction"),
    [
        (0.0, None, [0.90, 0.919, 0.911], "0", "disagrees"),  # about −1.0
        (0.0, None, [0.91, 0.92, 0.94], "0", "–"),  # not resolved
        (None, 0, [0.90, 0.919, 0.911], "≈ 0", "disagrees"),
        (None, 0, [0.91, 0.92, 0.94], "≈ 0", "–"),
        (None, 1, [0.90, 0.919, 0.911], r"\> 0", "disagrees"),
        (None, -1, [0.90, 0.919, 0.911], r"\< 0", "agrees"),
        (None, None, [0.90, 0.919, 0.911], "–", "–"),
        # Differences that are 0 on average, but for what rounding makes of them.
        (1.0, None, [0.9201, 0.9199, 0.92], "+1", "–"),
        (-1.0, None, [0.9201, 0.9199, 0.92], "−1", "–"),
    ],
)
def test_agreement_with_what_the_paper_says(
    module, folder, paper, sign, accuracies, stated, direction
):
    fake.result(folder / NARROW, accuracies)
    claim = Comparison("Half the width", NARROW, WIDE, paper, "V1", sign=sign)
    module.claims[:] = [claim]
    (row,), _ = tables(shown(folder))
    assert row["the paper's difference"] == stated
    assert row["direction"] == direction


def test_equal_differences_are_not_resolved(module, folder):
    fake.result(folder / NARROW, [0.90, 0.92, 0.91])
    (row,), _ = tables(shown(folder))
    assert row["ours"] == "−1.00 ± 0.00"
    assert row["resolved?"] == "not resolved at n = 3 (all differences are equal)"


def test_unpaired_seeds_are_left_out_and_named(module, folder):
    fake.result(folder / NARROW, [0.90, 0.91], seeds=[0, 2])
    (row,), runs = tables(shown(folder))
    assert row["ours"] == "−1.00 ± 0.00"
    assert row["n"] == "2"
    assert row["resolved?"].endswith("; seed 1 in one run only")
    assert runs[1]["state"] == "partial: no result of seed 1"
    assert runs[1]["n"] == "2"
    fake.write(folder / NARROW / "seed_1" / "error.json", {"code": 1, "message": "NaN"})
    _, runs = tables(shown(folder))
    assert runs[1]["state"] == "failed: no result of seed 1: NaN"


def test_a_single_seed_has_no_interval(module, folder):
    fake.sweep(folder, json.loads((folder / "sweep.json").read_text())["runs"], seeds=[0])
    for name, accuracy in ((WIDE, 0.92), (NARROW, 0.9)):
        fake.result(folder / name, [accuracy])
    (row,), runs = tables(shown(folder))
    assert (runs[0]["averaged weights, %"], runs[0]["n"]) == ("92.00 ± –", "1")
    assert (row["ours"], row["resolved?"]) == ("−2.00 ± –", "not resolved at n = 1")


def test_seeds_of_folders_of_their_own_are_put_together(module, folder):
    (folder / WIDE / "result.json").unlink()
    for seed, accuracy in enumerate([0.91, 0.93, 0.92]):
        fake.result(folder / WIDE / f"seed_{seed}", [accuracy], seeds=[seed])
    _, runs = tables(shown(folder))
    assert runs[0]["averaged weights, %"] == "92.00 ± 2.48"
    assert runs[0]["training, s"] == "300"
    fake.result(folder / WIDE, [0.9], seeds=[1])
    with pytest.raises(InputError, match="seed 1 twice"):
        report_data.gather(folder)


def test_every_run_is_shown_whatever_its_state(module, folder):
    names = [WIDE, NARROW, "failed", "unfinished", "missing", "begun"]
    fake.sweep(folder, [fake.planned(name) for name in names])
    fake.write(folder / "failed" / "error.json", {"code": 1, "message": "NaN | at step 40"})
    fake.metrics(folder / "unfinished", [0.9], steps=120)
    fake.write(folder / "begun" / "config.json", {})
    module.claims.append(Comparison("Failed", "failed", WIDE, None, "nobody"))
    module.claims.append(Comparison("Not planned", WIDE, "elsewhere", None, "nobody"))
    view = shown(folder)
    comparisons, runs = tables(view)
    assert [run["name"] for run in runs] == [name for name in names if name != "missing"]
    assert [run["state"] for run in runs] == [
        "done",
        "done",
        r"failed: NaN \| at step 40",
        "unfinished: running or interrupted, at step 120 of 200",
        "unfinished: running or interrupted, at step 0 of 200",
    ]
    assert (
        "6 runs (2 done, 2 unfinished, 1 failed, 1 missing), seeds 0, 1, 2 of each. Those not "
        "listed were not run."
    ) in texts(view)
    assert [run["averaged weights, %"] for run in runs[2:]] == ["–"] * 3
    assert comparisons[1]["resolved?"] == "not measured (failed: failed)"
    assert comparisons[2]["resolved?"] == "not measured (no run elsewhere in this sweep)"
    assert comparisons[1]["ours"] == comparisons[1]["direction"] == "–"


def test_a_seed_without_a_value_is_left_out(module, folder):
    path = folder / WIDE / "result.json"
    result = json.loads(path.read_text())
    result["test_accuracy_ema"][1] = None
    fake.write(path, result)
    _, runs = tables(shown(folder))
    assert (runs[0]["averaged weights, %"], runs[0]["n"]) == ("91.50 ± 6.35", "2")
    # The last weights have an n of their own.
    assert runs[0]["last weights, %"] == "91.90 ± 2.48 (n = 3)"
    assert runs[1]["last weights, %"] == "89.90 ± 2.48"


def test_what_was_not_run_is_counted_rather_than_listed(module, folder):
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    others = [f"v1,alpha={alpha}" for alpha in (1.0, 0.75, 0.5)]
    fake.sweep(folder, [*runs, *(fake.planned(name, {"model": "v1"}) for name in others)])
    module.claims += [Comparison("Other", name, WIDE, None, "V1") for name in others]
    timed = Comparison("Slow", NARROW, WIDE, None, "V1", "latency_seconds")
    module.claims.append(timed)
    view = shown(folder)
    comparisons, listed = tables(view)
    assert [row["statement"] for row in comparisons] == ["Half the width is worse (V1, Table 6)"]
    assert len(listed) == 2
    assert (
        "5 comparisons: 0 resolved, 1 not resolved, 4 not measured (not listed: what they compare "
        "was not run)."
    ) in texts(view)
    overview, guide = report_sections.overview([view])
    assert [cell.text for cell in overview.rows[0]][2:4] == ["2 of 5 done, 3 missing", "0 of 1"]
    assert guide.texts[2].startswith("1 comparison is made here")


def test_a_latency_that_could_not_be_measured_is_listed(module, folder):
    fake.write(folder / "latency" / "error.json", {"code": 1, "message": "no memory"})
    module.claims[:] = [Comparison("Slow", NARROW, WIDE, None, "V1", "latency_seconds")]
    (row,), _ = tables(shown(folder))
    assert row["resolved?"] == "not measured (no latency was measured)"


def test_only_files_of_runs_and_seeds_are_looked_for(module, folder, monkeypatch):
    """A training removes checkpoints meanwhile, and a folder that is gone cannot be listed."""
    (folder / WIDE / "checkpoints" / "3.tmp" / "d").mkdir(parents=True)
    real = os.scandir

    def scandir(path):
        assert "checkpoints" not in str(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    record = report_data.gather(folder)
    report_data.curves(folder, record)
    assert [run["state"] for run in record["runs"]] == ["done", "done"]


def test_front_has_ties():
    runs = [
        {**fake.planned(str(i), macs=macs), "seed": [0, 1, 2], "test_accuracy_ema": accuracies}
        for i, (macs, accuracies) in enumerate(
            [
                (10, [0.1, 0.2, 0.3]),
                (10, [0.3, 0.1, 0.2]),  # the same mean, summed in another order
                (10, [0.1, 0.2, 0.2]),
                (20, [0.3, 0.2, 0.1]),
                (20, [0.3, 0.2, 0.2]),
            ]
        )
    ]
    assert report_data.front(runs) == {"0", "1", "4"}


def test_a_run_of_fewer_seeds_is_not_on_the_front(module, folder):
    fake.result(folder / NARROW, [0.99], seeds=[1])
    _, runs = tables(shown(folder))
    assert [run["front"] for run in runs] == ["◆", ""]


def test_latency_is_joined_and_compared_by_round(module, folder):
    rounds = {WIDE: [0.004, 0.005, 0.003], NARROW: [0.002, 0.004, 0.003]}
    fake.write(
        folder / "latency.json",
        {
            name: {
                "batch": 1,
                "median_seconds": sorted(seconds)[1],
                "quartile_seconds": [min(seconds), max(seconds)],
                "round_seconds": seconds,
            }
            for name, seconds in rounds.items()
        },
    )
    module.claims.append(Comparison("Wide is slow", WIDE, NARROW, None, "V1", "latency_seconds"))
    comparisons, runs = tables(shown(folder))
    assert runs[0]["latency, ms (quartiles)"] == "4.000 (3.000–5.000)"
    # Differences 2, 1 and 0 ms: 1 ± 2.48414, of 3 ms.
    assert comparisons[1]["ours"] == "+1.000 ± 2.484 ms (+33.3 %)"
    assert comparisons[1]["n"] == "3"


def test_the_papers_points_are_beside_ours(module, folder):
    _, runs, _ = tables(shown(folder), paper=True)
    assert [run["paper's accuracy, %"] for run in runs] == ["70.6", "–"]
    assert [run["paper's MACs"] for run in runs] == ["569,000,000", "–"]
    assert "paper's MACs" not in tables(shown(folder))[1][0]


def test_the_papers_numbers_have_a_table(module, folder):
    """Also those that no run of ours is of, as of another width."""
    module.PAPER += [
        PaperPoint({"alpha": 1.0}, 0.706, 568_740_352, 4_231_976, "V1, Fig. 4"),
        PaperPoint({"alpha": 0.75, "model": "v2"}, 0.684, None, None, "V1 [a], Table 6"),
        PaperPoint({"alpha": 0.75, "model": "v3"}, 0.7, None, None, "of no model of ours"),
    ]
    *_, papers = tables(shown(folder), paper=True)
    rows = [
        ("–", "1.0", "70.6", "569,000,000", "4,200,000", "V1, Table 6"),  # the first of equal ones
        ("v2", "0.75", "68.4", "–", "–", r"V1 \[a\], Table 6"),
    ]
    head = ("model", "α", "top-1, %", "MACs", "parameters", "source")
    assert papers == [dict(zip(head, row, strict=True)) for row in rows]
    assert len(tables(shown(folder))) == 2


def test_settings_name_what_the_numbers_depend_on(module, folder):
    settings = report_sections.sections([shown(folder)], False, {})[-1]
    assert isinstance(settings, Items)
    text = "\n".join(settings.texts)
    for line in (
        "Scale: small.",
        "Data set: fashion_mnist.",
        "Test images: 10,000; one of them is 0.01 points of accuracy.",
        "Steps: 200.",
        "Device: platform cpu, kind cpu, count 1, host_cores 2.",
        "Versions: python 3.11.7, jax 0.10.2, flax 0.12.8.",  # not that something is missing
        "Git revision: abc123.",
    ):
        assert line in text.split("\n")


def test_the_number_of_comparisons_is_stated(module, folder):
    guide = report_sections.overview([shown(folder)])[1].texts
    assert guide[2].startswith("1 comparison is made here, and the intervals are not corrected")
    assert "Latencies are paired by round instead" in guide[1]
    assert guide[3].startswith("The intervals of accuracies say what other seeds would change")


def test_docstrings_become_text_code_and_lists(module, folder):
    blocks = report_sections.sections([shown(folder)], False, {})[:6]
    assert blocks[:5] == [
        Heading(2, "fake"),
        Text("**What does half the width cost (V1, Table 6)?**"),
        report_blocks.Code("python -m experiments.sweep fake --workdir=DIR"),
        Text(r"The paper finds `alpha` to cost 6.6 points \<of\> accuracy."),
        Items(("one finding,", "another.")),
    ]


def test_measured_experiments_have_tables_and_pictures(module, tmp_path):
    folder = tmp_path / "sweep" / "elsewhere"
    measured = folder / "measure"
    rows = [{"activation": "relu", "dimensions": 2, "error": 0.51234567, "exact": False}]
    rows.append({"activation": "linear", "dimensions": 30, "error": 0.0, "rank": None})
    fake.write(measured / "result.json", {"points": 1000, "rows": rows, "versions": {"jax": "1"}})
    (measured / "spiral.png").write_bytes(b"picture")
    text, page = written(tmp_path)
    assert "There is no experiment 'elsewhere'" in text
    assert "- points: 1,000\n" in text
    assert "| activation | dimensions | error | exact | rank |" in text
    assert "| relu | 2 | 0.5123 | no | – |\n| linear | 30 | 0 | – | – |" in text
    assert "![spiral](elsewhere-spiral.png)" in text
    assert "Versions: jax 1." in text
    assert (tmp_path / "out" / "elsewhere-spiral.png").read_bytes() == b"picture"
    assert '<img src="data:image/png;base64,cGljdHVyZQ=="' in page


def test_what_is_measured_within_rows_has_columns(module, tmp_path):
    layers = [
        {"kernel": 3, "forward": {"a_seconds": 0.00123456789, "quartiles": [8.123456, 9.1]}},
        {"kernel": 5, "forward": {"a_seconds": 0.5, "quartiles": [1.0, 2.0]}},
    ]
    measured = {
        "source": "a*b, c_d_ and _e_",
        "layers": layers,
        "networks": {"alpha": 1.0, "macs": {"depthwise": 1000, "standard": 2000}},
    }
    fake.write(tmp_path / "sweep" / "fake" / "measure" / "result.json", measured)
    assert report.main([str(tmp_path / "sweep")]) == 0
    text, page = (
        (tmp_path / "sweep" / f"report.{kind}").read_text("utf-8") for kind in ("md", "html")
    )
    assert (
        "| kernel | forward a seconds | forward quartiles |\n| ---: | ---: | --- |\n"
        "| 3 | 0.001235 | 8.123, 9.1 |\n| 5 | 0.5 | 1, 2 |\n"
    ) in text
    assert "| alpha | macs depthwise | macs standard |" in text
    assert "| 1 | 1,000 | 2,000 |\n" in text
    assert r"- source: a\*b, c_d\_ and \_e\_" in text
    assert "<li>source: a*b, c_d_ and _e_</li>" in page


def test_a_failed_measurement_is_shown(module, folder):
    fake.write(folder / "latency" / "error.json", {"code": -9, "message": ""})
    assert "**Failed: latency.** exit code -9" in texts(shown(folder))


def test_equal_folders_give_equal_bytes(module, folder, tmp_path):
    before = {}
    for out in ("one", "two"):
        report.run([str(folder.parent), f"--out={tmp_path / out}", "--paper"])
        files = {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
        assert set(files) == {
            "report.md",
            "report.html",
            "fake-differences.png",
            "fake-tradeoff.png",
            "fake-curves.png",
        }
        assert before in ({}, files)
        before = files


HOSTILE = '</script><script src="https://example.org/x.js">|`*[a](https://example.org)'


class Page(html.parser.HTMLParser):
    """Collects tags, with what scripts and texts hold."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.scripts, self.inside = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.texts).append(data)


def parse(page):
    parsed = Page()
    parsed.feed(page)
    return parsed


def test_hostile_names_stay_text(module, folder, tmp_path):
    name = "v2,alpha=0.5"
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    runs[1]["factors"] = {"model": HOSTILE, "alpha": 0.5}
    fake.sweep(folder, runs)
    module.claims[:] = [Comparison(HOSTILE, name, WIDE, None, HOSTILE)]
    text, page = written(tmp_path, "--paper")
    parsed = parse(page)
    assert HOSTILE in "".join(parsed.texts)
    assert [tag for tag, _ in parsed.tags].count("script") == 5  # three plots, Plotly, ours
    assert not any("src" in attrs for tag, attrs in parsed.tags if tag != "img")
    cells = [re.split(r"(?<!\\)\|", line) for line in text.split("\n") if "script" in line]
    assert {len(row) for row in cells} == {10, 14}  # no cell was broken up
    assert "<script" not in re.sub(r"\\<", "", text)
    figures = [json.loads(data) for data in parsed.scripts[:3]]
    assert HOSTILE in figures[1]["data"][1]["name"].replace("&lt;", "<").replace("&gt;", ">")
    assert "<script" not in json.dumps(figures)


def test_the_page_loads_nothing(module, folder, tmp_path):
    _, page = written(tmp_path, "--paper")
    parsed = parse(page)
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name, value in attrs.items():
            if name in ("src", "href", "action", "data", "srcset"):
                assert value.startswith(("data:", "#"))
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    # All but Plotly itself, which is longer than all the rest.
    ours = sorted(parsed.scripts, key=len)[:-1]
    assert not any("://" in part for part in (*ours, *parsed.texts))
    assert "url(" not in report_html._STYLE


def test_cells_sort_by_their_numbers(module, folder, tmp_path):
    _, page = written(tmp_path)
    assert '<td class="number" data-value="7837440.0">7,837,440</td>' in page
    assert '<td class="number" data-value="90.0">90.00 ± 2.48</td>' in page
    assert '<th scope="col" class="number"><button type="button">MACs</button></th>' in page


def test_figures_are_plotlys(module, folder):
    from plotly import graph_objects

    view = shown(folder)
    curves = report_data.curves(folder, view.record)
    for figure in (
        report_figures.tradeoff(view.record, view.paper),
        report_figures.differences(view.judgements),
        report_figures.curves(view.record, curves),
    ):
        graph_objects.Figure(figure)  # refuses what Plotly doesn't know
    trace = report_figures.tradeoff(view.record, ())["data"][0]
    assert trace["x"] == [7_837_440, 24_461_312]
    assert trace["y"] == [pytest.approx(90), pytest.approx(92)]
    assert trace["error_y"]["array"] == [pytest.approx(2.48414, abs=1e-5)] * 2


def looks(figure, axis):
    """Returns how the markers of each of a picture's traces look."""
    return [
        (trace["marker"]["color"], *trace["marker"]["symbol"])
        for trace in figure["data"]
        if trace.get("xaxis", "x") == axis and trace["name"] != "Pareto front"
    ]


def test_every_group_has_a_look_of_its_own():
    names = [f"group {i}" for i in range(report_plots.LOOKS)]
    runs = [
        {
            **fake.planned(name, {"kind": name}, macs=1000 + i),
            "seed": [0, 1],
            "test_accuracy_ema": [0.5, 0.51],
        }
        for i, name in enumerate(names)
    ]
    record = {"runs": runs, "settings": {}}
    paper = [PaperPoint({"kind": name}, 0.7, 10**6, 10**5, "nobody") for name in names]
    figure = report_figures.tradeoff(record, paper)
    ours = looks(figure, "x")
    assert len(set(ours)) == len(runs) == 24
    assert looks(figure, "x2") == ours  # the paper's look like ours
    drawn = report_plots.tradeoff(record, paper)
    for axes in drawn.axes:
        markers = [line for line in axes.lines if line.get_marker() == "o"]
        found = {
            (line.get_color(), str(line.get_markerfacecolor()), line.get_fillstyle())
            for line in markers
            if line.get_markersize() < 10
        }
        assert len(found) == len(runs)
    named = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert named == [*names, "Pareto front"]


def test_groups_of_which_the_paper_alone_has_points_have_their_colour():
    runs = [
        {
            **fake.planned(model, {"model": model}),
            "seed": [0] * (model == "v2"),
            "test_accuracy_ema": [0.5] * (model == "v2"),
        }
        for model in ("v1", "v2")
    ]
    record = {"runs": runs, "settings": {}}
    paper = [PaperPoint({"model": "v1"}, 0.7, 10**6, 10**5, "nobody")]
    (theirs,) = [
        trace
        for trace in report_figures.tradeoff(record, paper)["data"]
        if trace.get("xaxis") == "x2"
    ]
    assert theirs["marker"]["color"] == report_plots.COLOURS[0]
    assert theirs["showlegend"]
    legend = report_plots.tradeoff(record, paper).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["v1", "v2", "Pareto front"]


def test_a_network_of_two_tables_is_drawn_once():
    points = [
        PaperPoint({"alpha": 1.0}, 0.706, 569, 4, "Table 6"),
        PaperPoint({"alpha": 0.5}, 0.637, 149, 1, "Table 6"),
        PaperPoint({"alpha": 1.0}, 0.706, 568, 4, "Fig. 4"),
        PaperPoint({"alpha": 0.25}, 0.506, None, None, "Table 6"),
    ]
    assert report_plots.drawable(points) == points[:2]


def test_lines_follow_alpha_and_markers_show_beta():
    runs = [
        {
            **fake.planned(f"{a} {b} {act}", macs=int(100 * a * b)),
            "factors": {"model": "v2", "alpha": a, "beta": b, "activation": act},
            "seed": [0],
            "test_accuracy_ema": [0.5],
        }
        for act in ("relu", "hswish")
        for b in (1.0, 0.5)
        for a in (1.0, 0.75, 0.5)
    ]
    shown = report_data.axes(runs)
    assert shown == ("alpha", "beta", ("activation",))
    lines = report_data.lines(runs, shown)
    assert [(line.group, line.colour) for line in lines] == [
        *(("relu", 0), ("relu", 0), ("hswish", 1), ("hswish", 1))
    ]
    assert [run["name"] for run in lines[1].runs] == [
        "0.5 0.5 relu",
        "0.75 0.5 relu",
        "1.0 0.5 relu",
    ]


def test_curves_are_means_over_seeds_at_epochs_that_all_have(tmp_path):
    run = fake.planned("run")
    for seed, accuracies in enumerate(([0.5, 0.7], [0.6])):
        lines = [
            {"step": i, "epoch": float(i), "split": "test_ema", "loss": 1.0, "accuracy": a}
            for i, a in enumerate(accuracies, 1)
        ]
        path = tmp_path / "run" / f"seed_{seed}" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report_data.curves(tmp_path, {"runs": [run]})["run"]
    assert found == {"train": [], "test_ema": [(1.0, pytest.approx(0.55))]}


def test_stored_records_render_the_same_tables(module, folder, tmp_path):
    out = tmp_path / "results"
    report.run(["store", str(folder.parent), f"--out={out}"])
    (record,) = report_store.load(out)
    assert record == report_data.gather(folder)
    assert (out / "fake.json").read_text() == report_store.stored(record)
    assert '"test_accuracy_ema": [0.91, 0.93, 0.92]' in report_store.stored(record)
    report.run(["render", f"--results={out}", f"--out={tmp_path / 'docs' / 'ablations.md'}"])
    text = (tmp_path / "docs" / "ablations.md").read_text("utf-8")
    report_md, _ = written(tmp_path, "--paper")
    tables = [line for line in report_md.split("\n") if line.startswith("|")]
    assert [line for line in text.split("\n") if line.startswith("|")] == tables
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (tmp_path / "docs" / picture).is_file()
    assert "ablations/fake-tradeoff.png" in text


def test_what_was_not_run_leaves_what_is_stored(module, folder, tmp_path):
    out = tmp_path / "results"
    report.run(["store", str(folder.parent), f"--out={out}"])
    before = (out / "fake.json").read_text()
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    later = tmp_path / "later"
    fake.sweep(later / "fake", runs)
    with pytest.raises(InputError, match="holds no results yet"):
        report.run(["store", str(later), f"--out={out}"])
    assert (out / "fake.json").read_text() == before
    # Others are stored.
    fake.sweep(later / "other", runs, experiment="other")
    fake.result(later / "other" / WIDE, [0.9, 0.9, 0.9])
    report.run(["store", str(later), f"--out={out}"])
    assert (out / "fake.json").read_text() == before
    assert (out / "other.json").exists()


def test_a_part_of_a_sweep_renews_its_part(module, folder, tmp_path):
    out = tmp_path / "results"
    one = {"median_seconds": 0.15, "quartile_seconds": [0.1, 0.2], "round_seconds": [0.1, 0.2]}
    timed = dict.fromkeys((WIDE, NARROW), one)
    fake.write(folder / "latency.json", timed)
    report.run(["store", str(folder.parent), f"--out={out}"])
    (first,) = report_store.load(out)
    plan = json.loads((folder / "sweep.json").read_text())
    later = tmp_path / "later" / "fake"
    fake.sweep(later, plan["runs"])
    fake.result(later / NARROW, [0.8, 0.81, 0.82])
    path = later / NARROW / "result.json"
    fake.write(path, json.loads(path.read_text()) | {"git_revision": "def456"})
    report.run(["store", str(later), f"--out={out}"])
    (record,) = report_store.load(out)
    wide, narrow = record["runs"]
    assert wide == first["runs"][0]
    assert narrow["test_accuracy_ema"] == [0.8, 0.81, 0.82]
    assert record["latency"] == timed
    assert record["git_revision"] == ["def456", "abc123"]
    assert record["settings"] == first["settings"]
    # What is of another plan is not mixed.
    for changed in ({"seeds": [0, 1, 2, 3]}, {"scale": "full"}):
        other = {**report_data.gather(later), **changed}
        assert report_store.merged(first, other) == other
    renamed = report_data.gather(later)
    renamed["runs"][0]["overrides"] = {"epochs": 9.0}
    assert report_store.merged(first, renamed)["runs"] == renamed["runs"]


@pytest.mark.parametrize("command", ["report", "store", "render"])
def test_an_experiment_that_is_there_twice_is_refused(module, folder, tmp_path, command):
    shutil.copytree(folder, folder.parent / "again")
    out = tmp_path / "results"
    arguments = {
        "report": [str(folder.parent)],
        "store": ["store", str(folder.parent), f"--out={out}"],
        "render": ["render", f"--results={out}", f"--out={tmp_path / 'a.md'}"],
    }
    if command == "render":
        for name in ("one", "two"):
            report.run(["store", str(folder), f"--out={out / name}.json"])
    with pytest.raises(InputError, match="holds the experiment fake twice"):
        report.run(arguments[command])


@pytest.mark.parametrize(
    "record",
    [
        {"note": "shapes [ 1  2 ] and [ x ]", "list": ["a  b", "c\u00a0d", " e\n f"]},
        {"lists": [[1, 2], [], [[3.5], "]"]], "text": "[\n 1,\n 2\n]", "none": [None, True]},
    ],
)
def test_what_is_stored_is_what_was_there(record):
    text = report_store.stored(record)
    assert json.loads(text) == record


def test_measured_pictures_are_stored_beside_the_record(module, tmp_path):
    measured = tmp_path / "sweep" / "fake" / "measure"
    fake.write(measured / "result.json", {"points": 1})
    (measured / "spiral.png").write_bytes(b"picture")
    out = tmp_path / "results" / "fake.json"
    report.run(["store", str(tmp_path / "sweep"), f"--out={out}"])
    assert (out.parent / "fake-spiral.png").read_bytes() == b"picture"
    report.run(["render", f"--results={out.parent}", f"--out={tmp_path / 'docs' / 'a.md'}"])
    text = (tmp_path / "docs" / "a.md").read_text("utf-8")
    assert "](../results/fake-spiral.png)" in text


STORED = sorted(report.RESULTS.glob("*.json"))


def test_what_is_stored_has_its_finding_told():
    names = [report_store.read(path)["experiment"] for path in STORED]
    untold = [name for name in names if "Finding: not measured" in ablation.load(name).__doc__]
    assert untold == []


def test_the_document_is_of_what_is_stored(tmp_path):
    assert report.DOCUMENT.exists() == bool(STORED)
    if STORED:
        # As far from the document as the real ones.
        results, document = (
            tmp_path / path.relative_to(report.ROOT) for path in (report.RESULTS, report.DOCUMENT)
        )
        shutil.copytree(report.RESULTS, results)
        report.render(results, document)
        text = report.DOCUMENT.read_text(encoding="utf-8")
        assert text == document.read_text(encoding="utf-8")
        for picture in re.findall(r"!\[.*\]\((.*)\)", text):
            assert (report.DOCUMENT.parent / picture).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no directory nowhere"),
        (["."], "holds no experiment"),
        (["render", "--results=."], "holds no stored results"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        report.run(arguments)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sweep.json", "{", r"sweep\.json cannot be read"),
        ("sweep.json", "[1]", r"sweep\.json is damaged \(TypeError"),
        ("sweep.json", '{"runs": [{}]}', r"sweep\.json is damaged \(KeyError\('name'\)\)"),
        (f"{WIDE}/result.json", "{}", r"result\.json is damaged \(KeyError\('seed'\)\)"),
        (f"{WIDE}/result.json", "[]", r"result\.json is damaged \(TypeError"),
        ("latency.json", "1", r"latency\.json is damaged \(TypeError"),
        ("latency.json", f'{{"{WIDE}": {{}}}}', r"latency\.json is damaged \(KeyError"),
    ],
)
def test_a_damaged_file_is_named(module, folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=message):
        report_data.gather(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json cannot be read"),
        ("[]", "x.json is no stored result, it has no 'experiment'"),
        ('{"experiment": "fake"}', "x.json is no stored result, it has no 'scale'"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message):
        report_store.load(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        [],
        ["store", ".", "--paper"],
        ["render", "--results=nowhere"],
        ["sweep", "--out=file/below"],
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    module, folder, tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert report.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: [^\n]+\.\n", printed.err)


def test_several_experiments_do_not_fit_one_file(module, folder):
    fake.sweep(folder.parent / "other", [])
    with pytest.raises(InputError, match="holds 2 experiments"):
        report.run(["store", str(folder.parent), "--out=x.json"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.284, "+0.28"), (-0.15, "−0.15"), (0.0, "0.00"), (-0.001, "0.00")]
)
def test_signed(value, text):
    assert report_sections.signed(value) == text


def test_markdown_and_page_show_data_as_it_is():
    text = report_blocks.plain("a|b *c* `d` <e> [f](g) \\h\ni_j & ~k~ _l_")
    assert text == r"a\|b \*c\* \`d\` \<e\> \[f\](g) \\h i_j \& \~k\~ \_l\_"
    assert report_html.inline(text) == "a|b *c* `d` &lt;e&gt; [f](g) \\h i_j &amp; ~k~ _l_"
    assert report_blocks.plain("Net.__init__()") == r"Net.\_\_init\_\_()"
    assert report_html.inline(r"**a\*b** `c<d`") == "<strong>a*b</strong> <code>c&lt;d</code>"
    table = Table(("x", "y"), (False, True), ((Cell("a"), Cell("1", 1.0)),))
    picture = Picture("a b.png", "c")
    assert report_blocks.markdown([Heading(1, "T"), table, picture]) == (
        "# T\n\n| x | y |\n| --- | ---: |\n| a | 1 |\n\n![c](a%20b.png)\n"
    )


def test_code_in_prose_is_shown_as_it_is():
    text = report_blocks.prose("Is `x[0] < 3 | y` <less> than **a** `_b_ or _c_?")
    assert text == r"Is `x[0] < 3 | y` \<less\> than **a** \`\_b\_ or \_c\_?"
    assert report_html.inline(text) == (
        "Is <code>x[0] &lt; 3 | y</code> &lt;less&gt; than <strong>a</strong> `_b_ or _c_?"
    )
    # In Markdown's tables a | ends a cell even in code.
    table = Table(("x",), (False,), ((Cell(text),), (Cell(report_blocks.plain("a|b")),)))
    lines = report_blocks.markdown([table]).split("\n")
    assert lines[2].startswith(r"| Is `x[0] < 3 \| y` \<less\>")
    assert lines[3] == r"| a\|b |"


def test_ids_of_the_page_are_unique_and_linked(module, folder, tmp_path):
    fake.sweep(folder.parent / "other", [], experiment="other")
    _, page = written(tmp_path)
    tags = parse(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert ids == ["fake", "other"]
    assert [attrs["href"] for tag, attrs in tags if tag == "a"] == ["#fake", "#other"]


def test_the_papers_points_have_the_colour_of_the_first_group_that_they_allow():
    runs = [
        {"factors": {"model": model, "alpha": alpha, "activation": activation}}
        for model in ("v1", "v2")
        for alpha in (1.0, 0.5)
        for activation in ("relu6", "hswish")
    ]
    shown = report_data.axes(runs)
    for factors, group in (
        ({"model": "v2", "alpha": 0.35}, "v2, relu6"),
        ({"model": "v2", "activation": "hswish"}, "v2, hswish"),
        ({"model": "v3", "alpha": 1.0}, "v3"),
    ):
        point = PaperPoint(factors, 0.7, 1, 1, "nobody")
        assert report_data.paper_group(point, runs, shown) == group


def test_runs_of_equal_cost_are_drawn_side_by_side():
    runs = [fake.planned(name, macs=macs) for name, macs in (("a", 10), ("b", 10), ("c", 1000))]
    x = report_plots.beside(runs, "macs")
    assert x["a"] < 10 < x["b"]
    assert x["a"] * x["b"] == pytest.approx(100)
    assert x["c"] == 1000
    # Many take no more room than three.
    many = [fake.planned(str(i), macs=10) for i in range(30)]
    beside = report_plots.beside([*many, runs[-1]], "macs")
    assert len({beside[run["name"]] for run in many}) == 30
    three = report_plots.beside([*many[:3], runs[-1]], "macs")
    assert beside["0"] == pytest.approx(three["0"])
    assert beside["29"] == pytest.approx(three["2"])
