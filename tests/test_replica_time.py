"""Programs timed alone and together: what is summed and said, a script in the programs' place."""

import json

import pytest

from experiments import documents, replica_time
from mobilenets_jax.errors import InputError

RESULT = {"versions": {"jax": "0.10.2"}, "device": {"kind": "cpu"}}


def row(singles, replicas=8, together=50.0):
    return {
        "flags": ["--config=configs/v2.py"],
        "replicas": replicas,
        "single_seconds": singles,
        "together_seconds": together,
        "date": "2026-11-27T02:00:00+00:00",
        "processor": "P, 2 cores",
        **RESULT,
    }


def test_missing_singles_are_those_that_found_a_cache():
    assert replica_time.all_singles(row([40.0, 10.0, 12.0, 11.0])) == 73.0 + 4 * 11.0
    assert replica_time.all_singles(row([40.0, 10.0], replicas=2)) == 50.0


def test_table_says_how_many_ran():
    table = replica_time.table([row([40.0] + 7 * [10.0]), row([40.0, 10.0, 10.0])])
    assert "| 8 | 110 | 50 | 0.45 | P, 2 cores, 2026-11-27, jax 0.10.2 |" in table
    assert "| 8 | 110 (of 3 runs) | 50 | 0.45 |" in table


def test_readme_is_of_the_stored_files():
    rows = [json.loads(path.read_text()) for path in sorted(replica_time.STORED.glob("*.json"))]
    assert rows
    readme = replica_time.README.read_text(encoding="utf-8")
    assert documents.replaced(readme, "replicas", replica_time.table(rows)) == readme


def test_all_seeds_run_between_the_single_ones(tmp_path, program):
    log = tmp_path / "log"
    result = json.dumps(RESULT)
    program(
        f'echo "$3 $4 $JAX_COMPILATION_CACHE_DIR" >> {log}; for last; do :; done\n'
        f"folder=${{last#--workdir=}}; mkdir $folder; echo '{result}' > $folder/result.json"
    )
    found = replica_time.measure(["--config=configs/v2.py"], replicas=8, singles=3)
    lines = [line.split() for line in log.read_text().splitlines()]
    seeds = [f"--config.seed={seed}" for seed in (0, 1, 2)]
    assert [line[1] for line in lines] == [*seeds[:2], "--config.replicas=8", seeds[2]]
    caches = [line[2] for line in lines]
    assert caches[0] == caches[1] == caches[3] != caches[2]
    assert len(found["single_seconds"]) == 3
    assert found["versions"] == RESULT["versions"]


def test_a_failure_is_told_with_what_was_printed(tmp_path, program):
    program('echo "error: no config: $3" >&2; exit 2')
    with pytest.raises(InputError, match="does not train: error: no config: --config=x"):
        replica_time.seconds(["--config=x"], tmp_path / "work", tmp_path / "cache")


@pytest.mark.parametrize("wrong", [["measure", "--out=x", "--singles=1"], ["render", "--config=x"]])
def test_wrong_command_lines_end_at_once(wrong):
    with pytest.raises(SystemExit):
        replica_time.main(wrong)
