"""What Linux tells of this machine and of this process.

Owns the reading of /proc and /sys.
"""

import os
import platform
import re
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def memory(key: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    return _kilobytes(Path("/proc/self/status"), key)


def available_bytes() -> int:
    """Returns the memory that programs may still take without swapping."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _kilobytes(path: Path, key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", path.read_text())
    assert found
    return int(found[1]) * 1024


def cache_bytes(caches: Path = CACHES) -> int:
    """Returns the size of the largest cache that the first processor uses, 0 if none is told."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [0]
    for path in caches.glob("index*/size"):
        if size := re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()):
            found.append(int(size[1]) * units[size[2]])
    return max(found)


def processor() -> str:
    """Returns the processor's name, family and model, its last cache and the number of its cores.

    A virtual machine tells a brand for a name, which processors of several generations have.
    """
    text = Path("/proc/cpuinfo").read_text()
    told = dict(re.findall(r"^(\S[^\t:]*)\s*:\s*(.+)", text, re.MULTILINE))  # of the last core
    name = told.get("model name", platform.machine())
    if {"cpu family", "model"} <= told.keys():
        name += f" (family {told['cpu family']}, model {told['model']})"
    return f"{name}, {cache_bytes() >> 20} MiB of cache, {os.cpu_count()} cores"
