"""What a program sets for itself: its memory, then how JAX runs and compiles.

Owns the process's environment. Knows nothing of networks or configs, and must import neither JAX
nor NumPy before it is asked to: glibc reads its settings once, when a process starts.
"""

import contextlib
import gc
import os
import sys
from pathlib import Path

# Large arrays from huge pages, and their memory kept when they are freed: otherwise every training
# step on CPU gets its temporaries anew from the kernel, as zeros. Needs glibc 2.35; elsewhere this
# does nothing.
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 2**40,
    "glibc.malloc.trim_threshold": 2**40,
}

_RESTARTED = "MOBILENETS_JAX_RESTARTED"

# By default, Python looks for cycles whenever there are 700 objects more than before (2,000 from
# 3.13 on). Imports and tracing make hundreds of thousands that stay: collecting took a seventh of
# the time from a start with cached programs to its first step. Memory stays as it was, over 40
# saves and evaluations.
_NEW_OBJECTS = 10_000


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

    Only for a program's first line: nothing of the old one is left. Once at most; and never where
    the program could not be read again, as from standard input or in a notebook.
    """
    missing, arguments = environment(), sys.orig_argv[1:]
    again = (
        bool(sys.executable) and arguments[:1] not in ([], ["-"]) and "ipykernel" not in sys.modules
    )
    if not missing or not again or _RESTARTED in os.environ or hasattr(sys, "ps1"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # the program runs without it, too
        os.execve(
            sys.executable, [sys.executable, *arguments], {**os.environ, **missing, _RESTARTED: "1"}
        )


def collect_garbage_seldom() -> None:
    """Lets Python look for cycles of garbage less often; for a program's first lines."""
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def cores() -> int:
    """Returns how many processor cores the process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def configure_jax() -> None:
    """Sets JAX up; only before the first computation.

    Compiled programs are kept between runs, where JAX is told to keep them
    (`JAX_COMPILATION_CACHE_DIR`), by default in the user's cache folder,
    `~/.cache/mobilenets_jax`. On CPU a computation runs on the thread that asks for it: memory that
    other threads free goes back to the kernel.
    """
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        with contextlib.suppress(RuntimeError):  # a user without a home has no cache
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            jax.config.update("jax_compilation_cache_dir", str(Path(base) / "mobilenets_jax"))
    jax.config.update("jax_cpu_enable_async_dispatch", False)


# Of XLA:CPU. Loops that load more than they compute take fewer loads with vectors of 512 bits,
# where the processor has them; XLA's choice is 256.
_TRAINING: dict[str, int | str] = {"xla_cpu_prefer_vector_width": 512}

# By default, products are calls of YNNPACK, as sums are: Eigen's are faster for the long arrays of
# feature maps, and slower for a single image in V1 (a tenth). In training they gain nothing, and
# lose where feature maps are small.
_INFERENCE: dict[str, int | str] = {
    **_TRAINING,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def training_options() -> dict[str, int | str] | None:
    """Returns XLA's options for a jitted training step (`jax.jit(..., compiler_options=…)`).

    On CPU, the width of vectors, if `XLA_FLAGS` does not set it. None elsewhere. Such a function
    cannot be called within another `jit`.
    """
    return _not_given(_TRAINING)


def inference_options() -> dict[str, int | str] | None:
    """Returns XLA's options for a jitted inference (`jax.jit(..., compiler_options=…)`).

    On CPU, those of training and the library of matrix products, each if `XLA_FLAGS` does not set
    it. None elsewhere. Such a function cannot be called within another `jit`.
    """
    return _not_given(_INFERENCE)


def _not_given(options: dict[str, int | str]) -> dict[str, int | str] | None:
    import jax

    if jax.default_backend() != "cpu":
        return None
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in given} or None
