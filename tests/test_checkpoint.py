import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mobilenets_jax import checkpoint
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@flax.struct.dataclass
class State:
    """What a training state looks like: scalars, nested dicts, namedtuples, empty nodes."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict
    ema_batch_stats: dict


def make_state(seed=0, channels=8, ema=True, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "stem": {"kernel": jax.random.normal(keys[0], (3, 3, 3, channels), dtype)},
        "head": {"bias": jax.random.normal(keys[1], (10,)).astype(jnp.bfloat16)},
    }
    stats = {"stem": {"mean": jax.random.normal(keys[2], (channels,))}}
    decayed = {"stem": {"kernel": True}, "head": {"bias": False}}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.1), decayed),
        optax.sgd(0.1, momentum=0.9),
    )
    return State(
        step=jnp.int32(seed),
        params=params,
        batch_stats=stats,
        opt_state=tx.init(params),
        ema_params=params if ema else {},
        ema_batch_stats=stats if ema else {},
    )


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def to_numpy(state):
    """An own copy of every array, so that what happens to `state` afterwards cannot reach it."""
    return jax.tree.map(lambda x: np.array(x, copy=True), state)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        assert a.tobytes() == e.tobytes()


@pytest.fixture
def manager(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        yield manager


def saved(workdir, steps=(1,), **kwargs):
    """Writes a checkpoint of `make_state(step)` per step and returns the directory of the last."""
    with checkpoint.open_manager(workdir) as manager:
        for step in steps:
            checkpoint.save(manager, step, make_state(step, **kwargs), {"step": step}, None)
    return workdir / "checkpoints" / str(steps[-1])


def test_restores_every_bit_and_the_meta(tmp_path):
    state = make_state(7)
    odd = state.params["stem"]["kernel"].at[0, 0, 0, :3].set(jnp.array([np.nan, -0.0, 1e-42]))
    state = state.replace(params={**state.params, "stem": {"kernel": odd}})
    meta = {"config": {"model": {"alpha": 0.75}}, "classes": ["0", "ü"], "train_seconds": 1.5}
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.save(manager, 7, state, meta, {"accuracy": 0.5})
    with checkpoint.open_manager(tmp_path) as manager:
        restored, restored_meta = checkpoint.restore(manager, make_state(0))
        assert checkpoint.read_meta(manager, 7) == meta
    assert_same(restored, state)
    assert isinstance(restored, State)
    assert restored_meta == meta
    assert (tmp_path / "checkpoints" / "7").is_dir()


def test_a_relative_workdir_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(Path("run"))
    with checkpoint.open_manager("run") as manager:
        assert_same(checkpoint.restore(manager, make_state(0))[0], make_state(1))


def test_state_and_meta_of_a_chosen_step(tmp_path):
    saved(tmp_path, steps=(1, 2))
    with checkpoint.open_manager(tmp_path) as manager:
        state, meta = checkpoint.restore(manager, make_state(0), step=1)
        assert_same(state, make_state(1))
        assert meta == {"step": 1}
        assert checkpoint.restore(manager, make_state(0))[1] == {"step": 2}


def test_keeps_the_latest_two_and_the_best(manager):
    state = make_state()
    accuracies = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.7, 6: None, 7: 0.8}
    for step, accuracy in accuracies.items():
        metrics = None if accuracy is None else {"accuracy": accuracy, "loss": 1.0}
        checkpoint.save(manager, step, state, {}, metrics)
    manager.wait_until_finished()
    # Steps 2 and 4 tie: the later one is the better trained.
    assert list(manager.all_steps(read=True)) == [4, 6, 7]
    assert checkpoint.latest_step(manager) == 7
    assert checkpoint.best_step(manager) == 4


def test_the_best_survives_a_restart(tmp_path):
    for step, accuracy in {1: 0.9, 2: 0.5, 3: 0.6, 4: 0.7}.items():
        with checkpoint.open_manager(tmp_path) as manager:
            checkpoint.save(manager, step, make_state(step), {}, {"accuracy": accuracy})
    with checkpoint.open_manager(tmp_path) as manager:
        assert list(manager.all_steps()) == [1, 3, 4]
        assert checkpoint.best_step(manager) == 1
        assert_same(checkpoint.restore(manager, make_state(0), step=1)[0], make_state(1))


def test_no_best_without_accuracy_and_no_latest_without_checkpoints(manager):
    assert checkpoint.latest_step(manager) is None
    assert checkpoint.best_step(manager) is None
    for step in (1, 2, 3):
        checkpoint.save(manager, step, make_state(), {}, None)
    assert checkpoint.best_step(manager) is None
    assert list(manager.all_steps()) == [2, 3]


def test_saving_an_existing_step_changes_nothing(manager):
    assert checkpoint.save(manager, 1, make_state(1), {"first": True}, None)
    for force in (False, True):
        assert not checkpoint.save(manager, 1, make_state(2), {"first": False}, None, force=force)
    manager.wait_until_finished()
    for force in (False, True):
        assert not checkpoint.save(manager, 1, make_state(2), {"first": False}, None, force=force)
    state, meta = checkpoint.restore(manager, make_state(0))
    assert_same(state, make_state(1))
    assert meta == {"first": True}


def test_a_step_older_than_the_latest_is_saved_only_by_force(manager):
    checkpoint.save(manager, 5, make_state(5), {}, None)
    assert checkpoint.save(manager, 3, make_state(3), {}, None, force=True)
    assert_same(checkpoint.restore(manager, make_state(0), step=3)[0], make_state(3))


def scramble(state):
    return jax.tree.map(lambda x: x * 3 + 1, state)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("donate", [True, False])
def test_an_async_save_is_not_reached_by_what_happens_to_the_state_after(tmp_path, donate, devices):
    advance = jax.jit(scramble, donate_argnums=0)
    state = {"w": jnp.arange(4_000_000, dtype=jnp.float32), "step": jnp.int32(0)}
    state = jax.device_put(state, NamedSharding(mesh_of(devices), PartitionSpec()))
    state = advance(state)
    unsaved, state = state, advance(state)
    assert unsaved["w"].is_deleted()  # Donation does happen on this backend.
    with checkpoint.open_manager(tmp_path) as manager:
        expected = {}
        for step in (1, 2):
            expected[step] = to_numpy(state)
            checkpoint.save(manager, step, state, {}, None)
            if donate:
                for _ in range(5):
                    state = advance(state)
            else:
                for leaf in jax.tree.leaves(state):
                    leaf.delete()
                state = jax.tree.map(jnp.zeros_like, expected[step])
                state = advance(jax.device_put(state, NamedSharding(mesh_of(1), PartitionSpec())))
        manager.wait_until_finished()
        for step in (1, 2):
            assert_same(checkpoint.restore(manager, state, step=step)[0], expected[step])


def test_a_restored_state_may_be_donated(tmp_path):
    saved(tmp_path)
    advance = jax.jit(scramble, donate_argnums=0)
    with checkpoint.open_manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, make_state(0))[0]
    # `make_state` has some buffers twice, which cannot be donated.
    expected = jax.tree.map(jnp.copy, make_state(1))
    for _ in range(3):
        restored, expected = advance(restored), advance(expected)
    assert_same(restored, expected)


def place(state, count, spec_of_kernel):
    """Replicates over `count` devices, the stem kernel sharded as `spec_of_kernel`."""
    mesh = mesh_of(count)
    specs = jax.tree.map(lambda _: PartitionSpec(), state)
    specs.params["stem"]["kernel"] = spec_of_kernel
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), state, specs)


@pytest.mark.parametrize("before", [1, 8])
@pytest.mark.parametrize("after", [1, 2, 8])
def test_restores_onto_another_number_of_devices(tmp_path, before, after):
    last_axis = PartitionSpec(None, None, None, "data")
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, place(make_state(1), before, last_axis), {}, None)
    template = place(make_state(0), after, last_axis)
    with checkpoint.open_manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, template)[0]
    assert_same(restored, make_state(1))
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert got.sharding == want.sharding
        assert len(got.sharding.device_set) == after


def test_a_template_of_shapes_alone_is_enough(tmp_path):
    saved(tmp_path)
    template = jax.eval_shape(lambda: make_state(0))
    with checkpoint.open_manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, template)[0]
    assert_same(restored, make_state(1))
    assert {leaf.sharding.device_set.pop() for leaf in jax.tree.leaves(restored)} == {
        jax.devices()[0]
    }


READER = """
import sys, jax, numpy as np
from mobilenets_jax import checkpoint
assert jax.device_count() == 1
shape = jax.ShapeDtypeStruct
template = {"w": shape((16, 4), np.float32), "step": shape((), np.int32)}
with checkpoint.open_manager(sys.argv[1], read_only=True) as manager:
    state, meta = checkpoint.restore(manager, template)
assert np.asarray(state["w"]).tobytes() == np.arange(64, dtype=np.float32).tobytes()
assert int(state["step"]) == 5 and meta == {"devices": 8}
print("same")
"""


def child(code, *arguments, **kwargs):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, **kwargs)


def test_a_process_with_one_device_reads_what_eight_devices_wrote(tmp_path):
    sharding = NamedSharding(mesh_of(8), PartitionSpec("data"))
    w = jax.device_put(np.arange(64, dtype=np.float32).reshape(16, 4), sharding)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 5, {"w": w, "step": jnp.int32(5)}, {"devices": 8}, None)
    with child(READER, tmp_path) as process:
        assert process.communicate()[0].split() == ["same"]
    assert process.returncode == 0


def refused(workdir, template=None, **kwargs):
    """The one sentence that refuses the checkpoint in `workdir`."""
    with (
        pytest.raises(InputError) as caught,
        checkpoint.open_manager(workdir, read_only=True) as manager,
    ):
        checkpoint.restore(manager, make_state(0) if template is None else template, **kwargs)
    message = str(caught.value)
    assert str(workdir) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_refuses_an_empty_or_missing_workdir(tmp_path):
    assert "no checkpoint" in refused(tmp_path)
    assert "no checkpoint" in refused(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_refuses_a_missing_step_and_lists_those_there(tmp_path):
    saved(tmp_path, steps=(1, 2))
    assert "1, 2" in refused(tmp_path, step=3)


def test_refuses_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        checkpoint.open_manager(tmp_path / "file")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"channels": 16}, ["batch_stats/stem/mean", "float32[8]", "float32[16]"]),
        ({"dtype": jnp.bfloat16}, ["stem/kernel", "float32", "bfloat16"]),
        ({"ema": False}, ["ema_batch_stats/stem/mean"]),
    ],
)
def test_refuses_another_model(tmp_path, other, named):
    saved(tmp_path / "a")
    message = refused(tmp_path / "a", make_state(0, **other))
    assert all(word in message for word in named), message
    saved(tmp_path / "b", **other)
    message = refused(tmp_path / "b")
    assert all(word in message for word in named), message


def test_refuses_another_optimizer(tmp_path):
    saved(tmp_path)
    template = make_state(0)
    template = template.replace(opt_state=optax.adamw(0.1).init(template.params))
    assert "opt_state/" in refused(tmp_path, template)


def damage(path, how):
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 0x55
        path.write_bytes(flipped)


@pytest.mark.parametrize("how", ["delete", "truncate", "empty", "flip"])
def test_a_damaged_file_is_refused_or_harmless(tmp_path, how):
    """Whatever happens to any one file: the right bits and meta, or one sentence."""
    saved(tmp_path)
    root = tmp_path / "checkpoints"
    shutil.copytree(root, tmp_path / "sound")
    names = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    refusals = {}
    for name in names:
        damage(root / name, how)
        try:
            with checkpoint.open_manager(tmp_path, read_only=True) as manager:
                state, meta = checkpoint.restore(manager, make_state(0))
            assert_same(state, make_state(1))
            assert meta == {"step": 1}
        except InputError as error:
            refusals[str(name)] = str(error)
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "sound", root)
    assert all(str(root) in message and "\n" not in message for message in refusals.values())
    assert "1/meta/metadata" in refusals
    assert "1/state/_METADATA" in refusals
    assert "1/state/manifest.ocdbt" in refusals
    # The arrays themselves, wherever they lie.
    assert any("/d/" in name for name in refusals)


@pytest.mark.parametrize("item", ["state", "meta"])
def test_refuses_a_missing_part_and_names_the_mend(tmp_path, item):
    step_directory = saved(tmp_path, steps=(1, 2))
    shutil.rmtree(step_directory / item)
    message = refused(tmp_path)
    assert str(step_directory) in message
    assert "step 1" in message
    shutil.rmtree(step_directory)
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore(manager, make_state(0))[1] == {"step": 1}


def test_refuses_an_empty_step_directory(tmp_path):
    saved(tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir()
    assert "checkpoints/2" in refused(tmp_path)


def test_read_meta_refuses_damage(tmp_path):
    step_directory = saved(tmp_path)
    text = (step_directory / "meta" / "metadata").read_text()
    (step_directory / "meta" / "metadata").write_text(text.replace('"step"', '"stop"'))
    with (
        checkpoint.open_manager(tmp_path, read_only=True) as manager,
        pytest.raises(InputError, match="checkpoints/1"),
    ):
        checkpoint.read_meta(manager, 1)
    with (
        checkpoint.open_manager(tmp_path, read_only=True) as manager,
        pytest.raises(InputError, match="no step 2"),
    ):
        checkpoint.read_meta(manager, 2)


def test_read_only_leaves_a_save_in_progress_alone(tmp_path):
    saved(tmp_path)
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (leftover / "metrics").mkdir(parents=True)
    (leftover / "metrics" / "metrics").touch()  # not yet written
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert checkpoint.latest_step(manager) == 1
    assert leftover.is_dir()
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.latest_step(manager) == 1
        checkpoint.save(manager, 2, make_state(2), {}, None)
        manager.wait_until_finished()
    assert not leftover.exists()


# Saves step after step and says which are complete; arrays are a function of the step.
WRITER = """
import sys, jax, jax.numpy as jnp
from mobilenets_jax import checkpoint
make = jax.jit(lambda step: {f"w{i}": jnp.full((500_000,), i, jnp.float32) + step
                             for i in range(10)} | {"step": step})
with checkpoint.open_manager(sys.argv[1]) as manager:
    for step in range(1, 1000):
        state = make(step)
        checkpoint.save(manager, step, state, {"step": step}, {"accuracy": step / 1000})
        print("saving", step, flush=True)
        manager.wait_until_finished()
        print("saved", step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [0, 10, 30, 60, 100, 150, 250, 400])
def test_kill_9_during_a_save_leaves_a_whole_checkpoint(tmp_path, delay_ms):
    with child(WRITER, tmp_path) as process:
        for line in process.stdout:
            if line.split() == ["saving", "4"]:
                break
        time.sleep(delay_ms / 1000)
        os.kill(process.pid, signal.SIGKILL)
        lines = [line.split() for line in process.stdout.read().splitlines()]
    assert process.returncode == -signal.SIGKILL
    complete = max([3, *(int(words[1]) for words in lines if words[0] == "saved")])

    template = {f"w{i}": jax.ShapeDtypeStruct((500_000,), np.float32) for i in range(10)}
    template["step"] = jax.ShapeDtypeStruct((), np.int32)
    with checkpoint.open_manager(tmp_path) as manager:
        latest = checkpoint.latest_step(manager)
        assert latest in (complete, complete + 1)
        steps = list(manager.all_steps())
        # At least the one before is whole, too; a third may be left where its deletion was cut.
        assert latest - 1 in steps
        for step in (latest, latest - 1):
            state, meta = checkpoint.restore(manager, template, step=step)
            assert int(state["step"]) == step
            assert meta == {"step": step}
            for i in range(10):
                assert np.all(np.asarray(state[f"w{i}"]) == np.float32(i + step))
        # And training goes on from there.
        checkpoint.save(manager, latest + 1, state, {}, None)
        manager.wait_until_finished()
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_meta_must_be_json(manager):
    with pytest.raises(TypeError):
        checkpoint.save(manager, 1, make_state(), {"x": object()}, None)
    assert checkpoint.latest_step(manager) is None
