"""Tests of mobilenets_jax/signals.py."""

import os
import signal
import subprocess
import sys

import pytest
import tiny

from mobilenets_jax import signals


def test_sigterm_asks_to_stop_and_the_handler_before_returns():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        ours = signal.getsignal(signal.SIGTERM)
        with signals.preemption() as stop_requested:
            assert not stop_requested()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested()
            assert stop_requested()
        assert signal.getsignal(signal.SIGTERM) is ours
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handler_before_returns_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), signals.preemption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


TERMINATED = """
import time
from mobilenets_jax import signals
with signals.preemption() as stop_requested:
    print("ready", flush=True)
    while not stop_requested():
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills(first, second):
    command = [sys.executable, "-c", TERMINATED]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(10) == -second
