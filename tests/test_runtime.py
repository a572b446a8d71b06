"""What a program sets for itself: once, nothing that its user has set, and no result changes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenets_jax import runtime
from mobilenets_jax.depthwise import depthwise_conv

ROOT = Path(__file__).parents[1]


HUGE = "glibc.malloc.hugetlb=1"
KEEP = "glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776"
ALL = f"{HUGE}:{KEEP}"


@pytest.mark.parametrize(
    ("platform", "tunables", "expected"),
    [
        ("linux", None, {"GLIBC_TUNABLES": ALL}),
        ("linux", "", {"GLIBC_TUNABLES": ALL}),
        ("linux", "a.b=2", {"GLIBC_TUNABLES": f"a.b=2:{ALL}"}),
        (
            "linux",
            "glibc.malloc.hugetlb=0",
            {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=0:{KEEP}"},
        ),
        ("linux", f"{KEEP}:glibc.malloc.hugetlb=0", {}),
        ("darwin", None, {}),
    ],
)
def test_environment(monkeypatch, platform, tunables, expected):
    monkeypatch.setattr(sys, "platform", platform)
    if tunables is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert runtime.environment() == expected


def test_the_program_collects_garbage_seldom():
    code = (
        "import gc, runpy, sys; print(gc.get_threshold()); sys.argv = ['main', '--help']\n"
        "try: runpy.run_module('mobilenets_jax.main', run_name='__main__')\n"
        "except SystemExit: print(gc.isenabled(), gc.get_threshold())"
    )
    lines = run_python("-c", code).splitlines()
    before = json.loads(lines[0].replace("(", "[").replace(")", "]"))
    assert lines[-1] == f"True {(10_000, *before[1:])}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_restart_keeps_process_arguments_and_environment():
    code = (
        "import os, sys; print('start', flush=True); from mobilenets_jax import runtime; "
        "runtime.restart(); print(os.getpid(), sys.argv[1:], os.environ['GLIBC_TUNABLES'], "
        "os.environ['KEPT'])"
    )
    environment = {**os.environ, "KEPT": "a b"}
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", code, "--x=1 2", ""]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    restarted = f"{process.pid} ['--x=1 2', ''] {ALL} a b"
    assert lines == ["start", "start", restarted]


def run_python(*arguments, **options):
    environment = {**os.environ, **options.pop("env", {})}
    environment.pop("GLIBC_TUNABLES", None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        timeout=60,
        check=True,
        capture_output=True,
        text=True,
        **options,
    ).stdout


def test_a_program_that_cannot_be_read_again_is_not_restarted():
    code = "from mobilenets_jax import runtime; runtime.restart()\nprint('ran')\n"
    assert run_python("-", input=code) == "ran\n"
    assert run_python(input=code) == "ran\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_a_program_restarts_once_even_if_its_environment_is_taken_away(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os; os.environ.pop('GLIBC_TUNABLES', None); print('start', flush=True)"
    )
    code = "from mobilenets_jax import runtime; runtime.restart()"
    assert run_python("-c", code, env={"PYTHONPATH": str(tmp_path)}) == "start\nstart\n"


def test_restart_does_nothing_where_all_is_set(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", ALL)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    runtime.restart()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/mobilenets_jax"),
        ({"HOME": "/d"}, "/d/.cache/mobilenets_jax"),
    ],
)
def test_compilation_cache_folder(variables, expected):
    code = (
        "from mobilenets_jax import runtime; runtime.configure_jax(); "
        "import jax; print(jax.config.jax_compilation_cache_dir)"
    )
    environment = dict(os.environ)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output == f"{expected}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_memory_of_a_computation_stays_with_the_process():
    code = """
import resource, jax, jax.numpy as jnp
from mobilenets_jax import runtime

runtime.configure_jax()
x = jnp.ones((32, 1 << 20))  # 128 MiB
compute = jax.jit(lambda x: jnp.sum(jax.lax.optimization_barrier(x + 1)))
faults = []
for _ in range(8):
    compute(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(b - a for a, b in zip(faults[2:], faults[3:])))
"""
    environment = {**os.environ, **runtime.environment(), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(output) < 20  # 64 huge pages, or 32,768 small ones, if it went back


def test_options_are_the_platforms(monkeypatch):
    width, library = "xla_cpu_prefer_vector_width", "xla_cpu_experimental_ynn_fusion_type"
    both = {width: 512, library: "LIBRARY_FUSION_TYPE_REDUCE"}
    jax.devices()  # with the flags of all tests
    monkeypatch.delenv("XLA_FLAGS")
    assert runtime.inference_options() == both
    assert runtime.training_options() == {width: 512}
    monkeypatch.setenv("XLA_FLAGS", f"--{width}=256")
    assert runtime.inference_options() == {library: both[library]}
    assert runtime.training_options() is None
    monkeypatch.setenv("XLA_FLAGS", f"--{width}=256 --{library}=")
    assert runtime.inference_options() is None
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert runtime.inference_options() is None
    assert runtime.training_options() is None


def test_options_change_no_result_but_by_rounding(monkeypatch):
    jax.devices()  # with the flags of all tests
    monkeypatch.delenv("XLA_FLAGS")
    x, kernel = jnp.linspace(0, 1, 2 * 9 * 9 * 48).reshape(2, 9, 9, 48), jnp.ones((3, 3, 48))
    options = runtime.inference_options()

    def depthwise(x):
        return jnp.clip(depthwise_conv(x, kernel, 1, "same"), 0, 6)

    found = jax.jit(depthwise, compiler_options=options)(x)
    np.testing.assert_array_equal(found, jax.jit(depthwise)(x))

    def product(x):
        return x.reshape(-1, 48) @ jnp.sin(jnp.arange(48.0 * 64)).reshape(48, 64)

    compiled = jax.jit(product, compiler_options=options).lower(x).compile()
    assert "ynn" not in compiled.as_text()
    np.testing.assert_allclose(compiled(x), jax.jit(product)(x), atol=1e-5)


@pytest.mark.slow
def test_second_start_compiles_nothing_and_trains_to_the_same_bits(tmp_path):
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_DEBUG_LOG_MODULES": "jax._src.compiler",
    }

    def train(name):
        command = [sys.executable, "-m", "mobilenets_jax.main", f"--workdir={tmp_path / name}"]
        command += ["--config=configs/v3.py:variant=small", "--config.epochs=0.2"]
        command += ["--config.schedule.warmup_epochs=0", "--config.log_every=1"]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
        )
        hits = re.findall(r"Persistent compilation cache hit for '(\w+)'", done.stderr)
        misses = re.findall(r"PERSISTENT COMPILATION CACHE MISS for '(\w+)'", done.stderr)
        assert "Error reading persistent" not in done.stderr
        metrics = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in metrics], set(hits), set(misses)

    losses, _, compiled = train("first")
    again, found, _ = train("second")
    assert again == losses
    slow = {"jit_init_state", "jit_train_step", "jit_eval_step"}
    assert slow <= compiled
    assert slow <= found
