import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mobilenets_jax import logs
from mobilenets_jax.errors import InputError

FIELDS = ["step", "epoch", "split", "loss", "accuracy", "images_per_second", "seconds"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps):
    for step in steps:
        logs.append_metrics(path, step=step, epoch=step / 10, split="train", loss=1 / step)


def test_one_line_of_exactly_these_fields(path):
    logs.append_metrics(
        path,
        step=np.int64(20),
        epoch=np.float32(0.5),
        split="train",
        loss=np.float32(1.25),
        accuracy=0.75,
        images_per_second=512.0,
        seconds=12.34567,
    )
    logs.append_metrics(path, step=40, epoch=1, split="test_ema", loss=1.0, accuracy=1)
    first, second = path.read_text().splitlines()
    assert list(json.loads(first)) == FIELDS
    assert first == (
        '{"step": 20, "epoch": 0.5, "split": "train", "loss": 1.25, "accuracy": 0.75, '
        '"images_per_second": 512.0, "seconds": 12.346}'
    )
    assert json.loads(second) == {
        "step": 40,
        "epoch": 1.0,
        "split": "test_ema",
        "loss": 1.0,
        "accuracy": 1.0,
        "images_per_second": None,
        "seconds": None,
    }
    assert logs.read_metrics(path) == [json.loads(first), json.loads(second)]


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_is_null(path, loss):
    logs.append_metrics(path, step=1, epoch=0.1, split="train", loss=loss)
    assert logs.read_metrics(path)[0]["loss"] is None
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()


def test_makes_the_workdir(tmp_path):
    write(tmp_path / "new" / "metrics.jsonl", [1])
    assert len(logs.read_metrics(tmp_path / "new" / "metrics.jsonl")) == 1


def test_reading_leaves_out_a_half_written_last_line(path):
    write(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3, "ep')
    assert [m["step"] for m in logs.read_metrics(path)] == [1, 2]


def test_reading_refuses_a_missing_or_damaged_file(path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        logs.read_metrics(path)
    write(path, [1])
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(InputError, match=r"Line 1 of .*metrics\.jsonl"):
        logs.read_metrics(path)


def test_truncation_drops_later_steps_and_the_half_written_line(path):
    write(path, [1, 2, 3, 4])
    kept = path.read_text().splitlines(keepends=True)[:2]
    with path.open("a") as file:
        file.write('{"step": 2')
    logs.truncate_metrics(path, 2)
    assert path.read_text() == "".join(kept)
    write(path, [3])
    assert [m["step"] for m in logs.read_metrics(path)] == [1, 2, 3]
    assert sorted(p.name for p in path.parent.iterdir()) == ["metrics.jsonl"]


def test_truncation_drops_a_last_line_that_lacks_only_its_end(path):
    write(path, [1, 2])
    path.write_text(path.read_text()[:-1])
    logs.truncate_metrics(path, 5)
    write(path, [3])
    assert [m["step"] for m in logs.read_metrics(path)] == [1, 3]


def test_truncation_to_the_start_or_of_a_missing_file(path):
    logs.truncate_metrics(path, 0)
    assert not path.exists()
    write(path, [1, 2])
    logs.truncate_metrics(path, 0)
    assert logs.read_metrics(path) == []


def test_truncation_is_atomic(path, monkeypatch):
    write(path, [1, 2])
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logs.truncate_metrics(path, 1)
    assert path.read_bytes() == before


def test_a_line_is_on_disk_before_the_process_dies(path):
    code = (
        "import os, sys\nfrom mobilenets_jax import logs\n"
        "logs.append_metrics(sys.argv[1], step=1, epoch=1, split='train', loss=1)\n"
        "os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=False)
    assert process.returncode == -9
    assert [m["step"] for m in logs.read_metrics(path)] == [1]


def test_logs_and_plots_do_not_import_jax():
    code = (
        "import sys\nimport mobilenets_jax.logs, mobilenets_jax.plots\n"
        "print('jax' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    output = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert output.split() == ["False", "False"]


def events(directory):
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:  # TFRecord: length, its checksum, data, its checksum
            length = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(directory):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(directory)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_scalars_and_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    with logs.tensorboard(tmp_path) as board:
        board.scalars(3, {"train/loss": np.float32(0.5), "learning_rate": 0.25})
        board.image(3, "inputs", image)
    directory = tmp_path / "tensorboard"
    assert scalars(directory) == [(3, "train/loss", 0.5), (3, "learning_rate", 0.25)]
    (value,) = [
        v for event in events(directory) for v in event.summary.value if v.HasField("image")
    ]
    assert value.tag == "inputs"
    assert (value.image.height, value.image.width, value.image.colorspace) == (6, 9, 3)
    from PIL import Image

    decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), image)


def test_tensorboard_purges_what_a_resumed_run_repeats(tmp_path):
    for start in (0, 20):
        with logs.tensorboard(tmp_path, start) as board:
            board.scalars(start + 10, {"loss": 1.0})
    marks = [
        (event.step, event.session_log.status)
        for event in events(tmp_path / "tensorboard")
        if event.HasField("session_log")
    ]
    # TensorBoard hides events of this step and later that came before.
    assert marks == [(1, SessionLog.START), (21, SessionLog.START)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_tensorboard_disabled_writes_nothing(tmp_path):
    with logs.tensorboard(tmp_path, enabled=False) as board:
        board.scalars(1, {"loss": 1.0})
        board.image(1, "inputs", np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(logs.time, "monotonic", lambda: self.now)


def test_plain_lines_off_a_terminal(monkeypatch):
    clock = Clock(monkeypatch)
    out = io.StringIO()
    with logs.progress(7, start=0, every=3, file=out) as report:
        for step in range(1, 8):
            clock.now += 20
            report(step, loss=1 / step, accuracy=step / 10, images_per_second=512.4)
    assert out.getvalue().splitlines() == [
        "step 3/7, loss 0.3333, accuracy 0.300, 512 images/s, 01:20 left",
        "step 6/7, loss 0.1667, accuracy 0.600, 512 images/s, 00:20 left",
        "step 7/7, loss 0.1429, accuracy 0.700, 512 images/s, 00:00 left",
    ]


def test_plain_lines_keep_the_last_facts_and_flush_each_line():
    flushed = []

    class Pipe(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue())

    out = Pipe()
    with logs.progress(4, every=2, file=out) as report:
        report(1, loss=2.0)
        report(2)
        assert flushed[-1].startswith("step 2/4, loss 2.0000")
        report(3, accuracy=0.5)
        report.write("epoch 1: test accuracy 0.9")
        report(4, loss=1.0)
    assert [re.sub(", [0-9:]+ left", "", line) for line in out.getvalue().splitlines()] == [
        "step 2/4, loss 2.0000",
        "epoch 1: test accuracy 0.9",
        "step 4/4, loss 1.0000, accuracy 0.500",
    ]


def test_resumed_progress_counts_from_its_start(monkeypatch):
    clock = Clock(monkeypatch)
    out = io.StringIO()
    with logs.progress(1000, start=500, every=100, file=out) as report:
        for step in range(501, 601):
            # The first step compiles, which says nothing of the rest.
            clock.now += 60 if step == 501 else 1
            report(step, loss=1.0)
    assert out.getvalue() == "step 600/1000, loss 1.0000, 06:40 left\n"


def test_no_remaining_time_is_made_up(monkeypatch):
    Clock(monkeypatch)
    out = io.StringIO()
    with logs.progress(9, every=1, file=out) as report:
        report(1, loss=1.0)
    assert out.getvalue() == "step 1/9, loss 1.0000\n"


def test_long_times_have_hours(monkeypatch):
    clock = Clock(monkeypatch)
    out = io.StringIO()
    with logs.progress(1002, every=2, file=out) as report:
        for step in (1, 2):
            clock.now += 3.7
            report(step)
    assert out.getvalue() == "step 2/1002, 1:01:40 left\n"


def test_a_bar_on_a_terminal():
    out = Terminal()
    with logs.progress(10, start=4, every=5, file=out) as report:
        for step in range(5, 11):
            report(step, loss=0.25, accuracy=0.875, images_per_second=99.6)
        report.write("test accuracy 0.9")
    text = out.getvalue()
    assert text.startswith("\rstep 4/10 |")
    last = text.replace("\r", "\n").rstrip().splitlines()[-1]
    assert "10/10" in last
    assert last.endswith("| loss 0.2500, accuracy 0.875, 100 images/s, 00:00 left")
    assert "test accuracy 0.9\n" in text


def test_disabled_progress_is_silent(capsys):
    for out in (io.StringIO(), Terminal()):
        with logs.progress(2, every=1, enabled=False, file=out) as report:
            report(1, loss=1.0)
            report.write("text")
        assert out.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_facts_are_looked_at_only_when_shown():
    """A device array may be handed over at each step without waiting for the device."""

    class Device:
        looked = 0

        def __float__(self):
            self.looked += 1
            return 1.0

    loss = Device()
    with logs.progress(100, every=50, file=io.StringIO()) as report:
        for step in range(1, 101):
            report(step, loss=loss)
    assert loss.looked == 2


def test_progress_ends_after_an_error():
    out = Terminal()
    with pytest.raises(TypeError), logs.progress(2, file=out) as report:
        report(1, loss=None)
    assert out.getvalue().endswith("\n")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "result.json"
    logs.write_json(path, {"b": 1, "a": {"d": (1, 2), "c": np.float32(0.5)}, "z": float("nan")})
    assert path.read_text() == (
        '{\n  "b": 1,\n  "a": {\n    "d": [\n      1,\n      2\n    ],\n    "c": 0.5\n  },\n'
        '  "z": null\n}\n'
    )
    before = path.read_bytes()
    with pytest.raises(TypeError):
        logs.write_json(path, {"b": 2, "bad": object()})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_environment_names_versions_device_and_revision():
    import jax

    environment = logs.environment()
    assert list(environment) == ["versions", "git_revision", "device"]
    assert list(environment["versions"]) == [
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow_datasets",
        "numpy",
    ]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["numpy"] == np.__version__
    assert all(environment["versions"].values())
    assert environment["device"] == {
        "platform": "cpu",
        "kind": jax.devices()[0].device_kind,
        "count": 8,
        "host_cores": len(os.sched_getaffinity(0)),
    }
    json.dumps(environment, allow_nan=False)


def git(directory, *arguments):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", directory, *arguments]
    return subprocess.check_output(command, text=True).strip()


def test_git_revision(tmp_path, monkeypatch):
    assert logs.git_revision(tmp_path) is None  # no repository
    git(tmp_path, "init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("a = 1\n")
    assert logs.git_revision(package) is None  # no commit
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert len(revision) == 40
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    assert logs.git_revision(package) == revision
    (tmp_path / "untracked").write_text("")
    assert logs.git_revision(package) == revision
    (package / "a.py").write_text("a = 2\n")
    assert logs.git_revision(package) == revision + "-dirty"
    # Installed somewhere inside another project's checkout: not its revision.
    installed = tmp_path / "venv"
    installed.mkdir()
    (installed / "b.py").write_text("")
    assert logs.git_revision(installed) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert logs.git_revision(package) is None  # no git
