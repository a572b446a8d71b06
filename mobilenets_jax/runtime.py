"""What a program sets for itself: the allocator, before it starts, and the compilation cache.

Owns the process's environment. Knows nothing of networks or configs, and must import neither JAX
nor NumPy: glibc reads its settings once, when a process starts.
"""

import os
import sys
from pathlib import Path

# Large arrays from huge pages: without them a training step on CPU spends a fifth of its time on
# page faults. Needs glibc 2.35, and does nothing elsewhere.
_TUNABLE = "glibc.malloc.hugetlb"


def environment() -> dict[str, str]:
    """Returns the variables that a process should start with, and does not have yet.

    What a user has set stays as it is.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or _TUNABLE in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}


def restart() -> None:
    """Starts the program anew, in the same process, if its environment lacks `environment()`.

    Only for a program's first line: nothing of the old one is left.
    """
    if missing := environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def cache_compilations() -> None:
    """Keeps compiled programs between runs, in `JAX_COMPILATION_CACHE_DIR` if that is set.

    By default in the user's cache folder, `~/.cache/mobilenets_jax`.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "mobilenets_jax"))
