"""How much longer a core takes for what another core has just written than for its own.

On a processor with several last caches, as AMD's are, a virtual machine's cores may be moved while
it runs: to the same cache, or to different ones, from which data come several times as slowly.

Owns this measurement, and from where on cores count as far from each other. Knows nothing of what
runs on them.
"""

import os
import statistics
import time

import numpy as np

_BYTES = 1 << 18  # A half or a quarter of what a core's own cache holds.
_HOPS = 25
# Two cores of an AMD EPYC of family 26 had 1.3 or 3.6 to 5, and steps of two durations with them.
FAR = 2.0


def handover() -> float:
    """Measures a core's time for an array that another has just written, over that for its own.

    One thread hops between the first two processors that it may use, and on each adds to 256 KiB
    twice: once as the other core left it, once more as it is then. Takes some milliseconds, more if
    other programs use the processors.

    Returns:
        The ratio of the medians.
    """
    allowed = os.sched_getaffinity(0)
    cores = sorted(allowed)[:2]
    array, one = np.zeros(_BYTES // 4, np.float32), np.float32(1)
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        for hop in range(_HOPS):
            os.sched_setaffinity(0, {cores[hop % 2]})
            for times in seconds:
                start = time.perf_counter()
                np.add(array, one, out=array)
                times.append(time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, allowed)
    # Nobody had written the first.
    handed, own = (statistics.median(times[1:]) for times in seconds)
    return handed / own
