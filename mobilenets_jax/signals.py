"""Signals that ask a program to stop.

Owns what the first and the second of them do. Knows nothing of what is to be stopped, and imports
nothing that takes time.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM or ^C into a request to stop, which the yielded function reports.

    The second one ends the process at once. The previous handlers return on leaving. For the main
    thread only, as Python has it for signal handlers.
    """
    requested = False
    signals = (signal.SIGTERM, signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        for each in signals:
            signal.signal(each, signal.SIG_DFL)

    previous = [signal.signal(each, handler) for each in signals]
    try:
        yield lambda: requested
    finally:
        for each, before in zip(signals, previous, strict=True):
            signal.signal(each, before)
