"""What is kept of sweeps: one small JSON file for each experiment, from which documents are made.

Owns the files' form, and what a newer sweep changes in them. Knows nothing of words and pictures.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from experiments import report_data
from experiments.report_data import Record
from mobilenets_jax.errors import InputError

_SOURCES = ("test_examples", "device", "versions", "git_revision")
_FIELDS = (
    *report_data.PLAN,
    "settings",
    *_SOURCES,
    "runs",
    "latency",
    "measure",
    "errors",
    "pictures",
)


def store(directory: Path, out: Path) -> list[Path]:
    """Keeps the records of a sweep's experiments, and the pictures they measured beside them.

    An experiment of which nothing was run leaves what is kept of it as it is, and one of which a
    part was run leaves the rest.

    Args:
        directory: the sweep's folder.
        out: a .json file, for a single experiment; or a folder, for one file each.

    Returns:
        The files that were written.

    Raises:
        InputError: several experiments and one file, nothing to keep, a file is damaged, or one
            experiment is there twice.
    """
    folders = report_data.experiments_in(directory)
    if out.suffix == ".json" and len(folders) > 1:
        raise InputError(
            f"{directory} holds {len(folders)} experiments: give --out a folder, or the folder of "
            "one experiment as DIR."
        )
    records = only_once(map(report_data.gather, folders), directory)
    written = []
    for folder, record in zip(folders, records, strict=True):
        if not holds_results(record):
            continue
        path = out if out.suffix == ".json" else out / f"{record['experiment']}.json"
        kept = read(path) if path.exists() else record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stored(merged(kept, record)), encoding="utf-8")
        for name in record["pictures"]:
            target = path.parent / f"{record['experiment']}-{name}"
            shutil.copyfile(folder / "measure" / name, target)
        written.append(path)
    if not written:
        raise InputError(f"{directory} holds no results yet: store it when a run has ended.")
    return written


def only_once(records: Iterable[Record], where: Path) -> list[Record]:
    """Returns the records, of which no two may be of one experiment."""
    found = list(records)
    names = [record["experiment"] for record in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where} holds the experiment {name} twice: move one away.")
    return found


def stored(record: Record) -> str:
    """Returns a record as JSON of which lists of numbers and texts take one line."""

    def line(found: re.Match[str]) -> str:
        return "[" + re.sub(r"\n *", " ", found[1]) + "]"

    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # JSON has no line breaks within texts, and so texts stay as they are.
    return re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", line, text) + "\n"


def load(results: Path) -> list[Record]:
    """Returns the stored records, by file name.

    Raises:
        InputError: there are none, one is damaged, or two are of one experiment.
    """
    paths = sorted(results.glob("*.json"))
    if not paths:
        raise InputError(f"{results} holds no stored results: run `experiments.report store`.")
    return only_once(map(read, paths), results)


def read(path: Path) -> Record:
    """Returns a stored record.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The stored result {path} cannot be read ({error}): move it away, and store it again."
        ) from error
    absent = [name for name in _FIELDS if not isinstance(record, dict) or name not in record]
    if absent:
        raise InputError(f"{path} is no stored result, it has no '{absent[0]}': move it away.")
    return record


def holds_results(record: Record) -> bool:
    """Whether anything was measured."""
    return any((record["measure"], record["latency"], *(run["seed"] for run in record["runs"])))


def merged(kept: Record, new: Record) -> Record:
    """Returns a record with what it lacks and a kept one of the same plan has.

    A part of a sweep, as of --only, thereby renews what it is of and leaves the rest.
    """
    if any(kept[name] != new[name] for name in report_data.PLAN):
        return new
    before = {run["name"]: run for run in kept["runs"]}
    runs = [_fuller(before.get(run["name"], run), run) for run in new["runs"]]
    found = {**new, "runs": runs, "latency": new["latency"] or kept["latency"]}
    if new["measure"] is None:
        found |= {name: kept[name] for name in ("measure", "pictures")}
    if runs != new["runs"]:
        names = dict.fromkeys((*new["settings"], *kept["settings"]))
        both = [one["settings"] for one in (new, kept)]
        found["settings"] = {
            name: report_data.distinct(value for one in both for value in one.get(name, []))
            for name in names
        }
        found |= {name: report_data.distinct([*new[name], *kept[name]]) for name in _SOURCES}
    return found


def _fuller(kept: Record, new: Record) -> Record:
    """Returns the kept one of two records of a run if it has more seeds."""
    same = all(kept[name] == new[name] for name in ("config", "overrides"))
    return kept if same and len(kept["seed"]) > len(new["seed"]) else new
