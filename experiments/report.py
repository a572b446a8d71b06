"""From a sweep's folder to the answer: report.md, report.html and pictures; docs/ablations.md.

    python -m experiments.report DIR [--paper] [--out=FOLDER]     of a sweep, finished or not
    python -m experiments.report store DIR [--out=PATH]           keep what its tables need, as JSON
    python -m experiments.report render [--results=FOLDER] [--out=FILE]   docs/ablations.md of these

DIR is the --workdir of `experiments.sweep`, or the folder of one experiment in it. `--paper` puts
the paper's points beside ours. What `store` finds of a part of a sweep, as of --only, it puts to
what is kept of the same sweep. Exit codes: 0, and 2 for bad input.

Owns the commands and where documents and pictures go; equal folders give equal bytes. Words are
in report_sections.py, the page is in report_html.py.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import (
    report_data,
    report_figures,
    report_html,
    report_plots,
    report_store,
)
from experiments.arguments import Parser
from experiments.report_blocks import Heading, Picture, Text, markdown
from experiments.report_sections import View, overview, sections, view
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "ablations"
DOCUMENT = ROOT / "docs" / "ablations.md"


def report(directory: Path, out: Path, paper: bool) -> list[View]:
    """Writes report.md, report.html and pictures of a sweep's folder into `out`.

    Raises:
        InputError: there is no experiment, or a file is damaged.
    """
    folders = report_data.experiments_in(directory)
    views = [
        view(record)
        for record in report_store.only_once(map(report_data.gather, folders), directory)
    ]
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[Picture]] = {}
    for folder, shown in zip(folders, views, strict=True):
        curves = report_data.curves(folder, shown.record)
        drawn = _drawn(shown, out, "", paper, curves)
        for name in shown.record["pictures"]:
            file = f"{shown.name}-{name}"
            shutil.copyfile(folder / "measure" / name, out / file)
            drawn.append(Picture(file, Path(name).stem.replace("_", " ")))
        pictures[shown.name] = drawn
    blocks = [Heading(1, "Report"), *overview(views), *sections(views, paper, pictures)]
    (out / "report.md").write_text(markdown(blocks), encoding="utf-8")
    (out / "report.html").write_text(report_html.page(blocks, out), encoding="utf-8")
    return views


def _drawn(
    shown: View, folder: Path, prefix: str, paper: bool, curves: dict[str, Any]
) -> list[Picture]:
    """Draws an experiment's pictures into `folder`; `prefix` leads there from the document."""
    points = shown.paper if paper else ()
    drawn = []
    for kind, alt, arguments in (
        ("differences", "Differences with their intervals", (shown.judgements,)),
        ("tradeoff", "Accuracy against MACs and parameters", (shown.record, points)),
        ("curves", "Training loss and test accuracy against epochs", (shown.record, curves)),
    ):
        file = f"{shown.name}-{kind}.png"
        static = getattr(report_plots, kind)(*arguments)
        if static is None:
            (folder / file).unlink(missing_ok=True)
            continue
        report_plots.save(static, folder / file)
        figure = getattr(report_figures, kind)(*arguments)
        drawn.append(Picture(prefix + file, f"{alt}: {shown.name}", figure))
    return drawn


def document(views: Sequence[View], results: str, pictures: dict[str, list[Picture]]) -> str:
    """Returns the text of docs/ablations.md.

    Args:
        views: of what `report_store.load` returns.
        results: path from the document to the folder of the records.
        pictures: of each experiment.
    """
    shown = {
        one.name: [
            *pictures.get(one.name, []),
            *(
                Picture(f"{results}/{one.name}-{name}", Path(name).stem.replace("_", " "))
                for name in one.record["pictures"]
            ),
        ]
        for one in views
    }
    first = [
        Heading(1, "Ablations"),
        Text(
            "What the papers' choices cost and buy here, beside what the papers say. Rendered by "
            "`python -m experiments.report render` from the results that `python -m "
            "experiments.report store` kept of sweeps; change `experiments/report_sections.py` "
            "or an experiment's file instead of this one."
        ),
    ]
    return markdown([*first, *overview(views), *sections(views, True, shown)])


def render(results: Path, out: Path) -> None:
    """Writes docs/ablations.md and the pictures beside it.

    Raises:
        InputError: there are no stored results.
    """
    views = [view(record) for record in report_store.load(results)]
    folder = out.parent / out.stem
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {shown.name: _drawn(shown, folder, f"{out.stem}/", True, {}) for shown in views}
    relative = Path(os.path.relpath(results, out.parent)).as_posix()
    out.write_text(document(views, relative, pictures), encoding="utf-8")


def run(arguments: Sequence[str]) -> None:
    """Does what the command line says.

    Args:
        arguments: those behind the program's name.

    Raises:
        InputError: for bad input.
    """
    command = arguments[0] if arguments and arguments[0] in ("store", "render") else ""
    parser = Parser(
        prog=f"python -m experiments.report {command}".rstrip(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if command == "render":
        parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
        parser.add_argument("--out", type=Path, default=DOCUMENT, metavar="FILE")
        options = parser.parse_args(arguments[1:])
        render(options.results, options.out)
        print(options.out)
        return
    parser.add_argument("directory", type=Path, metavar="DIR", help="a sweep's --workdir")
    parser.add_argument("--out", type=Path, metavar="PATH")
    if command == "store":
        options = parser.parse_args(arguments[1:])
        print(*report_store.store(options.directory, options.out or RESULTS), sep="\n")
        return
    parser.add_argument("--paper", action="store_true", help="the paper's points beside ours")
    options = parser.parse_args(arguments)
    out = options.out or options.directory
    report(options.directory, out, options.paper)
    print(out / "report.md", out / "report.html", sep="\n")


def main(arguments: Sequence[str]) -> int:
    """Runs the command line, turning bad input into one sentence and an exit code."""
    try:
        run(arguments)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
