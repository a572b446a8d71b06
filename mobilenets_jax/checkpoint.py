"""Checkpoints by Orbax: a training state and its metadata, written together, read back strictly.

Owns the directory `<workdir>/checkpoints`, what is kept in it, and how a checkpoint is verified.
Must not know what is in a state or how it is trained: a state is a pytree of arrays, metadata is
JSON.

Orbax writes a step into a temporary directory and renames it when complete, so a kill at any moment
leaves the steps before it whole. Orbax alone neither compares data types nor notices a flipped bit
in an array file, so checksums of every array and of the metadata are stored beside them.
"""

import contextlib
import gc
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mobilenets_jax.errors import InputError

_T = TypeVar("_T")
_KEPT = 2  # Latest checkpoints, besides the best: one more than needed, should one get damaged.


def open_manager(workdir: str | Path, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens `<workdir>/checkpoints`, which keeps the latest two steps and the most accurate one.

    Saving is asynchronous: use the manager in a `with` statement, or call its `close`, so that the
    last save is complete before the process ends.

    Args:
        workdir: directory of the training; created if missing, unless `read_only`.
        read_only: for readers beside a running training. Opening creates nothing and deletes
            nothing, since what looks like the leftovers of a save may be a save in progress.

    Raises:
        InputError: the directory cannot be created, or the metrics of a checkpoint are damaged.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    for path in directory.glob("*/metrics/metrics"):
        step = path.parents[1].name
        if not step.isdigit():
            continue  # A save in progress or interrupted.
        try:
            with contextlib.suppress(FileNotFoundError):  # Deleted by a training meanwhile.
                json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(_damaged(directory, step, error)) from error
    options = ocp.CheckpointManagerOptions(
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        # The policy decides what is kept; `best_step` needs `best_fn` all the same.
        best_fn=_accuracy,
        best_mode="max",
        preservation_policy=AnyPreservationPolicy(
            [
                LatestN(_KEPT),
                BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
            ]
        ),
    )
    try:
        return ocp.CheckpointManager(
            directory,
            options=options,
            item_names=("state", "meta"),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
    except OSError as error:
        raise InputError(
            f"Checkpoints cannot be kept in {directory} ({_reason(error)}): choose a workdir that "
            "is a writable directory."
        ) from error


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
    force: bool = False,
) -> bool:
    """Starts saving `state` and `meta` as one atomic checkpoint of `step`.

    Returns as soon as the arrays are copied: `state` may be donated or deleted at once. An error
    while writing is raised by the next call of a method of the manager. Every process must call it.

    Args:
        manager: from `open_manager`.
        step: number of completed training steps; a step that exists already is left as it is.
        state: pytree of arrays.
        meta: JSON-serializable: config, class names, ...
        metrics: its `accuracy` decides which checkpoint is the best; None if not evaluated.
        force: save even if a later step exists.

    Returns:
        Whether a save was started.

    Raises:
        TypeError: `meta` is not JSON-serializable.
    """
    if step in manager.all_steps():
        return False
    meta = json.loads(json.dumps(dict(meta)))
    checksums = {"meta": _checksum_of_json(meta), "state": _checksums(state)}
    return manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"meta": meta, "crc32": checksums}),
        ),
        # Empty rather than None, which Orbax warns of.
        metrics={name: float(value) for name, value in (metrics or {}).items()},
        force=force,
    )


def exists(workdir: str | Path) -> bool:
    """Says whether a workdir holds a complete checkpoint. Opens and creates nothing."""
    return any(path.name.isdigit() for path in (Path(workdir) / "checkpoints").glob("*"))


def restore(
    manager: ocp.CheckpointManager, template: Any, step: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint, bit for bit, onto the devices that `template` asks for.

    Args:
        manager: from `open_manager`.
        template: a state, or `jax.ShapeDtypeStruct`s in its structure, whose structure, shapes,
            dtypes and shardings are required. A leaf without sharding goes to the first device.
        step: which checkpoint; the latest by default.

    Returns:
        The state, in the structure of `template`, and the metadata.

    Raises:
        InputError: there is no such checkpoint, it belongs to another model or optimizer, or it is
            damaged. The message names the checkpoint and the mend.
    """
    step = _existing(manager, step)
    meta, checksums = _read_meta(manager, step)
    found = _reading(manager, step, lambda: _shapes(manager.item_metadata(step)["state"].tree))
    _check_shapes(f"{manager.directory / str(step)}", found, _shapes(template))
    abstract = jax.tree.map(_abstract, template)

    def read() -> Any:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = manager.restore(step, args=args)["state"]
        for path, checksum in _checksums(state).items():
            # None: spread over several processes, on either side.
            if None not in (checksum, checksums[path]) and checksum != checksums[path]:
                raise ValueError(f"the bits of {path} have changed")
        return state

    return _reading(manager, step, read), meta


def restore_arrays(
    manager: ocp.CheckpointManager, step: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint without knowing the state: its arrays as nested dicts, and the metadata.

    Args:
        manager: from `open_manager`.
        step: which checkpoint; the latest by default.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
    """
    step = _existing(manager, step)

    def structure() -> Any:
        tree = manager.item_metadata(step)["state"].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    return restore(manager, _reading(manager, step, structure), step)


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Returns the metadata that was saved with `step`.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
    """
    return _read_meta(manager, _existing(manager, step))[0]


def latest_step(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step of the latest checkpoint, or None if there is none."""
    return manager.latest_step()


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step of the highest accuracy (the later one of equals), or None if unknown."""
    manager.wait_until_finished()
    step = manager.best_step()
    known = step is not None and _accuracy(manager.metrics(step) or {}) > -math.inf
    return step if known else None


def _accuracy(metrics: Mapping[str, float]) -> float:
    return metrics.get("accuracy", -math.inf)


def _path(keys: tuple[Any, ...]) -> str:
    # Orbax describes dataclasses and named tuples as dicts, so only the names can be compared.
    return "/".join(
        str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))
        for key in keys
    )


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path(keys): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for keys, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_shapes(name: str, found: dict[str, str], required: dict[str, str]) -> None:
    """Raises InputError at the first array that differs between the two."""
    for path in sorted(found.keys() | required.keys()):
        there, here = found.get(path, "missing"), required.get(path, "missing")
        if there != here:
            raise InputError(
                f"Checkpoint {name} is of another model or optimizer ({path} is {there} there and "
                f"{here} here): give the config that it was trained with, or another workdir."
            )


def _checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _checksums(tree: Any) -> dict[str, int | None]:
    """CRC-32 of every array's bytes by path; None for one spread over several processes."""
    result: dict[str, int | None] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            if leaf.is_fully_replicated:
                # A new view: NumPy's hold on the leaf itself would get in the way of its donation.
                leaf = leaf.addressable_data(0)
            elif not leaf.is_fully_addressable:
                result[_path(keys)] = None
                continue
        result[_path(keys)] = zlib.crc32(np.asarray(leaf).tobytes())
    return result


def _existing(manager: ocp.CheckpointManager, step: int | None) -> int:
    """Returns `step`, or the latest if None, once complete; raises InputError if not there."""
    manager.wait_until_finished()
    steps = list(manager.all_steps())
    if not steps:
        raise InputError(
            f"There is no checkpoint in {manager.directory}: train first, or check the workdir."
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        raise InputError(
            f"There is no step {step} in {manager.directory}: choose one of "
            f"{', '.join(map(str, steps))}."
        )
    return step


def _read_meta(
    manager: ocp.CheckpointManager, step: int
) -> tuple[dict[str, Any], dict[str, int | None]]:
    """Returns the metadata of `step` and its arrays' checksums."""

    def read() -> tuple[dict[str, Any], dict[str, int | None]]:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        item = manager.restore(step, args=args)["meta"]
        if _checksum_of_json(item["meta"]) != item["crc32"]["meta"]:
            raise ValueError("the metadata has changed")
        return item["meta"], item["crc32"]["state"]

    return _reading(manager, step, read)


def _reading(manager: ocp.CheckpointManager, step: int, read: Callable[[], _T]) -> _T:
    """Returns `read()`; turns whatever a damaged file makes Orbax raise into an InputError."""
    report_unraisable = sys.unraisablehook
    # After one array fails, those that read the others complain, a page each, when they come back
    # or are collected, and the one sentence would drown.
    sys.unraisablehook = lambda unraisable: None
    try:
        try:
            return read()
        except Exception as error:
            message = _damaged(Path(manager.directory), str(step), error)
        time.sleep(0.2)
        gc.collect()
    finally:
        sys.unraisablehook = report_unraisable
    raise InputError(message)


def _damaged(directory: Path, step: str, error: Exception) -> str:
    others = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
    before = [other for other in others if other < int(step)]
    then = f"go on from step {before[-1]}" if before else "start anew"
    return (
        f"Checkpoint {directory / step} is damaged or unreadable ({_reason(error)}): delete this "
        f"directory to {then}."
    )


def _reason(error: Exception) -> str:
    """The beginning of an error's first sentence, on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {text[:100]}{'...' if len(text) > 100 else ''}"
