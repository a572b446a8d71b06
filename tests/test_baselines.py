"""The README's table is what the stored results say, and they hold what a result needs."""

import json

from experiments import baselines, documents


def test_readme_shows_the_stored_results():
    readme = baselines.README.read_text(encoding="utf-8")
    assert documents.replaced(readme, "baselines", baselines.table()) == readme


def test_stored_results_are_of_the_baselines():
    names = {f"{b.name}-seed{seed}" for b in baselines.BASELINES for seed in b.seeds}
    assert {path.stem for path in baselines.RESULTS.glob("*-seed*.json")} == names
    for baseline in baselines.BASELINES:
        for seed in baseline.seeds:
            path = baselines.RESULTS / f"{baseline.name}-seed{seed}.json"
            result = json.loads(path.read_text())
            assert result["seed"] == result["config"]["seed"] == seed
            assert {"versions", "device", "git_revision", "config"} <= result.keys()
            for field in baseline.fields:
                key, _, value = field.partition("=")
                section, _, leaf = key.rpartition(".")
                assert str(result["config"][section][leaf]) == value
