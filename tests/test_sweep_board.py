"""What a sweep shows: progress, remaining time, the table and the lines."""

import io
import json
import re
import time

import pytest

from experiments import sweep_board
from experiments.launchers import Task


def test_progress(tmp_path):
    task = Task("x/a", (), tmp_path, tmp_path / "result.json")
    assert sweep_board.progress(task) == (0, None)
    lines = [
        {"step": 10, "split": "train", "accuracy": [0.1, 0.2]},
        {"step": 20, "split": "test_ema", "accuracy": [0.5, 0.75]},
        {"step": 30, "split": "train", "accuracy": [0.9, 0.9]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4')
    assert sweep_board.progress(task) == (30, 0.625)
    text += '{"step": 40, "split": "train", "accuracy": [0.9, 0.9]}\n' * (sweep_board.TAIL // 50)
    (tmp_path / "metrics.jsonl").write_text(text)  # of which the beginning is not read
    assert sweep_board.progress(task) == (40, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (3723, "1:02:03"), (2 * 86400 + 3 * 3600, "2 d 03:00:00")],
)
def test_clock(seconds, text):
    assert sweep_board.clock(seconds) == text


def test_estimates_are_slower_until_a_run_has_ended(tmp_path):
    task = Task("x/a", (), tmp_path, tmp_path / "result.json", seconds=60.0)
    assert sweep_board.pace([task], 2.0) == sweep_board.Pace(2.0, 0)
    (tmp_path / "result.json").write_text('{"train_seconds": 90}')
    assert sweep_board.pace([task], 2.0) == sweep_board.Pace(1.5, 1)


def test_remaining_time(tmp_path):
    tasks = [
        Task(name, (), tmp_path / name, tmp_path / name / "result.json", seconds=seconds)
        for name, seconds in (("a", 10.0), ("b", 20.0), ("c", 40.0), ("m", None))
    ]
    status = sweep_board.Status(tasks, 2)
    assert status.left(0.0) == 35.0
    status.queued.remove(tasks[0])
    status.running[tasks[0]] = 0.0
    assert status.left(4.0) == (6 + 20 + 40) / 2
    assert status.left(99.0) == (20 + 40) / 2
    status.pace = sweep_board.Pace(2.0, 1)
    assert status.left(4.0) == (16 + 40 + 80) / 2
    assert status.line(4.0) == "3 queued, 1 running, 0 done, 0 failed, about 0:01:08 left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_table_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    task = Task("x/a", (), tmp_path, tmp_path / "result.json", steps=88, seconds=60.0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 22, "split": "test_ema", "accuracy": 0.5}\n')
    status = sweep_board.Status([task], 1)
    status.queued.clear()
    status.running[task] = time.monotonic() - 15
    file = Terminal()
    with sweep_board.Board(file) as board:
        board._shown = -1e9
        board.show(status)
        board.say("done [x]")
    text = file.getvalue()
    assert re.search(r"x/a +│ +22/88 │ +0\.5000 │ 0:00:15", text)
    assert "0 queued, 1 running, 0 done, 0 failed, about 0:00:45 left" in text
    assert "done [x]" in text


def test_lines_elsewhere(tmp_path):
    task = Task("x/a", (), tmp_path, tmp_path / "result.json", steps=88)
    status = sweep_board.Status([task], 1)
    status.queued.clear()
    status.running[task] = time.monotonic() - 15
    file = io.StringIO()
    with sweep_board.Board(file) as board:
        board.show(status)
        assert file.getvalue() == ""  # the last line was less than a minute ago
        board._shown = -1e9
        board.show(status)
    assert file.getvalue().splitlines() == [
        "0 queued, 1 running, 0 done, 0 failed",
        "  x/a: step 0/88, 0:00:15",
    ]
