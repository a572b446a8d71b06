"""A workdir: whose it is, whether it is finished, and who may write into it.

Owns config.json and result.json as signs of a training's identity and end. Knows nothing of what
is trained.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mobilenets_jax import config as config_lib
from mobilenets_jax import logs
from mobilenets_jax.errors import InputError


def finished(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Returns a finished workdir's result.json, and says so; None if there is something to do.

    Raises:
        InputError: if the workdir is of another config, or unreadable.
    """
    path = workdir / "result.json"
    try:
        is_finished = path.exists()
        if is_finished or (workdir / "config.json").exists():
            check_workdir(config_lib.plain(config), workdir)
    except OSError as error:
        raise _unusable(workdir, error) from error
    if not is_finished:
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        accuracy, averaged = (np.mean(result[k]) for k in ("test_accuracy", "test_accuracy_ema"))
        several = logs.means(config.replicas)
        logs.say(
            f"{workdir} is finished: test accuracy {accuracy:.4f} (averaged weights "
            f"{averaged:.4f}){several}. Give another --workdir to train again."
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it, and the same command "
            "writes it again."
        ) from error
    return result


def check_workdir(config: dict[str, Any], workdir: Path) -> None:
    """Raises InputError if the workdir was started with another config."""
    difference = config_lib.difference(config_lib.read(workdir), config)
    if difference:
        raise InputError(
            f"The workdir {workdir} is of another config ({difference}): choose another --workdir "
            "or the same config."
        )


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Writes config.json into a new workdir, and keeps a second training out of it meanwhile.

    The lock is the system's, so it ends with the process however that ends.

    Raises:
        InputError: if the workdir is not writable, or another training runs in it.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        directory = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise _unusable(workdir, error) from error
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another training is running in {workdir}: wait for it, stop it, or choose "
                "another --workdir."
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            if not (workdir / "config.json").exists():
                logs.write_json(workdir / "config.json", config_lib.plain(config))
        except OSError as error:
            raise _unusable(workdir, error) from error
        yield
    finally:
        os.close(directory)


def _unusable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"The workdir {workdir} cannot be used ({error.strerror}): choose another --workdir."
    )
