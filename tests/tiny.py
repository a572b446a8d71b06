"""A training that takes seconds: its config, and its processes as seen from outside."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import default
from mobilenets_jax import checkpoint, steps
from mobilenets_jax import config as config_lib
from mobilenets_jax.model import DTYPES, MobileNet
from mobilenets_jax.state import init_state

ROOT = Path(__file__).resolve().parents[1]
ARGUMENT = "model=mobilenet_v1,dataset=digits"
# 44 steps of 16 images of 8 × 8 pixels, with all that is random switched on.
FIELDS = {
    "model.alpha": 0.25,
    "model.shallow": True,
    "model.dropout": 0.3,
    "beta": 0.25,
    "batch_size": 16,
    "eval_batch_size": 64,
    "epochs": 0.5,
    "log_every": 3,
    "eval_every": 0.25,  # 22 steps
    "checkpoint_every": 0.05,  # 4 steps
    "augment.mixup": 0.2,
    "augment.erasing": 0.2,
    "schedule.learning_rate": 0.1,
    "schedule.warmup_epochs": 0.1,
    "dataset.eval_split": "test[:100]",
}


def config(**fields):
    """Returns the config, `fields` set; "__" stands for ".", as in model__alpha=0.5."""
    result = default.get_config(ARGUMENT)
    for name, value in {**FIELDS, **_dotted(fields)}.items():
        section, _, leaf = name.rpartition(".")
        (result[section] if section else result)[leaf] = value
    return result


def flags(workdir, **fields):
    """Returns the same as arguments of the command line."""
    named = {**FIELDS, **_dotted(fields)}
    return [
        f"--config={ROOT}/configs/default.py:{ARGUMENT}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in named.items()),
    ]


def _dotted(fields):
    return {name.replace("__", "."): value for name, value in fields.items()}


def small_model(config, num_classes):
    """Stands in for `steps.build_model`: the network's first block only, which compiles fast."""
    spec = _build_model(config, num_classes).spec
    return MobileNet(dataclasses.replace(spec, blocks=spec.blocks[:1]), DTYPES[config.model.dtype])


_build_model = steps.build_model  # before a test replaces it


class Training:
    """A training in a process of its own, which leads a session of its own."""

    def __init__(self, workdir, environment, name="", **fields):
        self.log = Path(f"{workdir}{name}.log")
        self.start = self.log.stat().st_size if self.log.exists() else 0
        self.shared = shared_memory()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mobilenets_jax.main",
                    *flags(workdir, **fields),
                ],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self):
        """What it has printed."""
        return self.log.read_bytes()[self.start :].decode()

    def step(self):
        """The last step that it has reported."""
        lines = [line for line in self.output().splitlines() if line.startswith("step ")]
        return int(lines[-1].split()[1].partition("/")[0].rstrip(":")) if lines else 0

    def wait_until(self, condition, seconds=300):
        """Waits for `condition()`; False if the process ends before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.output()
            time.sleep(0.002)
        return True

    def wait(self, seconds):
        """Waits for some seconds; False if the process ends before."""
        end = time.monotonic() + seconds
        return self.wait_until(lambda: time.monotonic() >= end)

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, seconds=300):
        """Waits for the end, after which no process or shared memory stays; returns the code."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        end = time.monotonic() + 30
        while left := session(self.process.pid):
            assert time.monotonic() < end, f"processes {left} are left behind"
            time.sleep(0.05)
        # Other programs' blocks come and go, so only those seen now have to go.
        mine = shared_memory() - self.shared
        while left := mine & shared_memory():
            assert time.monotonic() < end, f"shared memory {left} is left behind"
            time.sleep(0.05)
        return code


def start_two(workdir, environment, **fields):
    """Starts a training in two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        Training(
            workdir,
            {**environment, **cluster, "JAX_PROCESS_ID": str(i)},
            name=f"-{i}",
            distributed=True,
            **fields,
        )
        for i in range(2)
    ]


def environment(cache, devices=1):
    """Variables for a training on fake CPU devices; compiled programs are kept in `cache`."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def session(leader):
    """Returns the command lines of the processes in a session, by process number."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found[int(directory.name)] = (directory / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def shared_memory():
    """Returns the names of all blocks of shared memory, semaphores included."""
    return set(os.listdir("/dev/shm"))


def saving(workdir):
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in (Path(workdir) / "checkpoints").glob("*"))


def arrays(workdir, config, step=None):
    """Returns every array of a checkpoint by its path, with the metadata."""
    experiment = steps.build(config)
    template = jax.eval_shape(
        lambda: init_state(
            experiment.model,
            experiment.optimizer,
            experiment.resolution,
            jax.random.key(0),
            config.freeze,
        )
    )
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        state, meta = checkpoint.restore(manager, template, step)
    return named(state), meta


def named(tree):
    """Returns an own copy of every array of a tree, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys): np.array(leaf) for keys, leaf in leaves}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].shape == value.shape, name
        assert actual[name].tobytes() == value.tobytes(), name


def metrics(workdir):
    """Returns the lines of metrics.jsonl without speed and time."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    times = ("images_per_second", "seconds")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def result(workdir):
    """Returns what does not depend on time or on where data are read from and by whom."""
    values = json.loads((Path(workdir) / "result.json").read_text())
    for name in ("train_seconds", "images_per_second", "git_revision"):  # a commit may come between
        del values[name]
    return {**values, "config": config_lib.identity(values["config"])}


@contextlib.contextmanager
def fast(directory):
    """A network of one block, and compiled programs kept for when they are needed again."""
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "build_model", small_model)
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
