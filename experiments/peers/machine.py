"""What this machine reaches, by JAX: operations of a matrix product, bytes of a copy.

Owns the sizes at which these are measured, of which the caches' are the reason.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import linux

MEBIBYTE = 1 << 20


def copy_sizes(cache: int, available: int) -> tuple[int, list[int]]:
    """Returns the sizes of the arrays that are copied, for main memory and for the cache, in bytes.

    Main memory's is four times the cache, so that a copy finds next to nothing of the last one
    there, and 1 GiB at least, but half of what is available at most. The cache's are half of the
    cache and less.
    """
    large = min(max(4 * cache, 1 << 30), available // 2)
    return large, [cache // part for part in (2, 4, 8, 16, 64, 256) if cache // part >= MEBIBYTE]


def _best_rate(run: Callable[[], Any], amount: float, repeats: int = 5) -> tuple[float, float]:
    """Returns the highest amount per second over a few runs, and the shortest time."""
    run().block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return amount / min(seconds), min(seconds)


def peaks(dtype: str) -> dict[str, float]:
    """Measures what this device reaches: the best of a few runs, and of a few sizes.

    A copy is an in-place scaling of float32: no fresh memory is touched, so nothing that allocates
    its output is faster. An accelerator's caches are not asked for: 1 GiB does not fit one.

    Returns:
        flops: floating-point operations per second of a square matrix product in `dtype`.
        copy_bytes: bytes read and written per second in main memory (an accelerator's in its own).
        copy_array_bytes: the size of the array that this was measured with.
        cache_bytes: the size of the last cache; 0 on an accelerator.
        cache_copy_bytes: as copy_bytes, within that cache; 0 without one.
    """
    flops = []
    multiply = jax.jit(jnp.matmul)
    for size in (512, 1024, 2048, 4096, 8192, 16384):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rate, seconds = _best_rate(lambda a=a: multiply(a, a), 2 * size**3)
        flops.append(rate)
        if seconds > 0.05:
            break
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)

    def copy_rate(size: int) -> float:
        held = [jnp.ones((size // 4,), jnp.float32)]

        def run() -> Any:
            held[0] = scale(held[0])
            return held[0]

        return _best_rate(run, 2 * size)[0]

    on_cpu = jax.devices()[0].platform == "cpu"
    cache = linux.cache_bytes() if on_cpu else 0
    large, small = copy_sizes(cache, linux.available_bytes() if on_cpu else 1 << 40)
    return {
        "flops": max(flops),
        "copy_bytes": copy_rate(large),
        "copy_array_bytes": large,
        "cache_bytes": cache,
        "cache_copy_bytes": max(map(copy_rate, small), default=0.0),
    }
