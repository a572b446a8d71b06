"""The clock of a training's start, with programs that take no time in its place."""

import pytest

from experiments import start_time
from mobilenets_jax.errors import InputError


def test_the_clock_stops_at_the_first_step(tmp_path, program):
    folder = 'for last; do :; done; folder=${last#--workdir=}; mkdir "$folder"'
    program(f'{folder}; sleep 0.3; echo "{{}}" > "$folder/metrics.jsonl"; exec sleep 60')
    cache = tmp_path / "cache"
    seconds = start_time.seconds_to_first_step("configs/v2.py", tmp_path / "work", cache)
    assert 0.3 < seconds < 30


def test_a_program_that_ends_is_told_with_what_it_printed(tmp_path, program):
    program('echo "error: no such config: $3"; exit 2')
    with pytest.raises(InputError, match="does not train: error: no such config: --config="):
        start_time.seconds_to_first_step("x.py", tmp_path / "work", tmp_path / "cache")


@pytest.mark.slow
def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    result = start_time.measure("configs/v2.py", 1)
    (again,) = result["again_seconds"]
    assert 0 < again < result["first_seconds"]
