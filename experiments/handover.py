"""How much longer a core takes for what another core has just written than for its own.

Cores that share a cache hand data over fast; cores on different caches of one processor do not, and
a virtual machine's may change from one to the other while it runs. XLA's threads take any part of
any array, so such a change slows a step; a library whose threads keep their parts hardly notices.

Owns that measurement and how rounds are told apart by it. Knows nothing of contenders.
"""

import os
import statistics
import time
from collections.abc import Sequence

import numpy as np

_BYTES = 1 << 20  # Not larger than a core's own cache, nor than another's.
_HOPS = 24
# Times the shortest that was measured: what is further apart than this is "far".
_FAR = 1.6


def handover() -> float:
    """Measures one core's time for 1 MiB that another has just written, over that for its own.

    One thread hops between the first two cores that the process may use, and adds to an array
    twice on each: what the other core left, then what it has itself. Takes some milliseconds.

    Returns:
        The ratio of the medians; 1 where the process may use one core alone.
    """
    allowed = os.sched_getaffinity(0)
    cores = sorted(allowed)[:2]
    if len(cores) == 1:
        return 1.0
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
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def sides(handovers: Sequence[Sequence[float]], shortest: float) -> list[str]:
    """Returns of each round whether the cores were "near", "far", or "changing" in it.

    Args:
        handovers: of each round, before and after it.
        shortest: handover that was ever measured on the processor.
    """
    far = [[value > _FAR * shortest for value in pair] for pair in handovers]
    return ["far" if all(pair) else "changing" if any(pair) else "near" for pair in far]
