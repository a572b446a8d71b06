"""What a program sets for itself: the allocator, before it starts, then how JAX runs.

Owns the process's environment. Knows nothing of networks or configs, and must import neither JAX
nor NumPy before it is asked to: glibc reads its settings once, when a process starts.
"""

import os
import sys
from pathlib import Path

# Large arrays from huge pages, and their memory kept when they are freed: otherwise a training step
# on CPU gets every temporary anew from the kernel, as zeros, which takes up to a third of its time.
# Needs glibc 2.35, and does nothing elsewhere.
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 2**40,
    "glibc.malloc.trim_threshold": 2**40,
}


def environment() -> dict[str, str]:
    """Returns the variables that a process should start with, and does not have yet.

    What a user has set stays as it is.
    """
    if not sys.platform.startswith("linux"):
        return {}
    present = os.environ.get("GLIBC_TUNABLES", "")
    missing = [f"{name}={value}" for name, value in _TUNABLES.items() if f"{name}=" not in present]
    return {"GLIBC_TUNABLES": ":".join(filter(None, (present, *missing)))} if missing else {}


def restart() -> None:
    """Starts the program anew, in the same process, if its environment lacks `environment()`.

    Only for a program's first line: nothing of the old one is left.
    """
    if missing := environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def configure_jax() -> None:
    """Sets JAX up; only before the first computation.

    Compiled programs are kept between runs, in `JAX_COMPILATION_CACHE_DIR` if that is set, by
    default in the user's cache folder, `~/.cache/mobilenets_jax`. On CPU a computation runs on the
    thread that asks for it: memory that other threads free goes back to the kernel.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "mobilenets_jax"))
    jax.config.update("jax_cpu_enable_async_dispatch", False)
