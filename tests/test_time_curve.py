"""The accuracy-against-time curve: what is kept of a training, and what is said of it."""

import json

from experiments import ablation, documents, time_curve
from experiments.ablation import Run


def line(step, split, accuracy, seconds):
    return {
        "step": step,
        "epoch": step / 10,
        "split": split,
        "loss": 1.0,
        "accuracy": accuracy,
        "images_per_second": None,
        "seconds": seconds,
    }


def stored(tmp_path):
    lines = [line(5, "train", 0.5, 1.0)]
    for step, seconds in ((10, 1800.0), (20, 3599.0), (30, 5400.0)):
        lines.append(line(step, "test", 0.9 + step / 1000, seconds))
        lines.append(line(step, "test_ema", 0.91 + step / 1000, seconds + 1))
    text = "".join(json.dumps(each) + "\n" for each in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "result.json").write_text('{"steps": 30}')
    return time_curve.collect(tmp_path)


def test_collect_keeps_each_test_with_its_time(tmp_path):
    found = stored(tmp_path)
    assert found["tests"][0] == {
        "epoch": 1.0,
        "seconds": 1801.0,
        "accuracy": 0.91,
        "averaged": 0.92,
    }
    assert [test["epoch"] for test in found["tests"]] == [1.0, 2.0, 3.0]
    assert found["result"] == {"steps": 30}


def test_the_hours_end_is_the_last_test_before_it(tmp_path):
    found = stored(tmp_path)
    found["tests"][1]["seconds"] = 3600.0
    assert time_curve.reached(found)["epoch"] == 2.0
    text = time_curve.text(found)
    assert "93.00 % of the 10,000 test images after 60 minutes (2 epochs), 94.00 % at its" in text


def test_an_end_within_the_hour_is_told_once(tmp_path):
    found = stored(tmp_path)
    del found["tests"][2]
    text = time_curve.text(found)
    assert (
        "93.00 % of the 10,000 test images after 60 minutes (2 epochs), averaged weights." in text
    )


def test_picture_shows_both_weights_and_the_table(tmp_path):
    time_curve.draw(stored(tmp_path), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_readme_is_of_the_stored_training():
    stored = json.loads(time_curve.STORED.read_text(encoding="utf-8"))
    readme = time_curve.README.read_text(encoding="utf-8")
    assert documents.replaced(readme, "time", time_curve.text(stored)) == readme
    config = stored["result"]["config"]
    assert (config["epochs"], config["batch_size"], config["model"]["alpha"]) == (34.0, 64, 0.5)


def test_recipe_is_a_config():
    fields = dict(field.split("=") for field in time_curve.FIELDS)
    values = {key: value if value == "pad" else float(value) for key, value in fields.items()}
    for key in ("batch_size", "augment.padding"):
        values[key] = int(values[key])
    config = ablation.config(Run("x", time_curve.CONFIG, values, {}))
    assert (config.epochs, config.batch_size, config.model.alpha) == (34.0, 64, 0.5)
