"""Eight fake CPU devices for every test, and absl flags that Grain's workers may read."""

import os
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test may depend on what another, or another day's, compiled.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def unoptimized():
    """Compiles a module's programs without LLVM's optimization: sooner, the same up to rounding."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With several processes (pytest-xdist) a file's tests stay in one, and so do its fixtures.

    Those that start workers, or watch /dev/shm for what these leave, are one group.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in the place of Python: it gets the command line of a training."""

    def write(text):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write
