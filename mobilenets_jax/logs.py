"""What a training writes down: metrics.jsonl, TensorBoard, the progress bar, JSON, its environment.

Owns the formats of these files and lines. Must not know what is trained, and does not import JAX,
so that reports can be made where it is not installed; only `environment` asks it for the devices.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TextIO

import numpy as np
import tensorboardX
import tqdm

from mobilenets_jax.errors import InputError
from mobilenets_jax.runtime import cores

# One, or a list of one for each replica.
Numbers = SupportsFloat | Sequence[float]


def append_metrics(
    path: str | Path,
    *,
    step: int,
    epoch: float,
    split: str,
    loss: Numbers,
    accuracy: Numbers | None = None,
    images_per_second: float | None = None,
    seconds: float | None = None,
) -> None:
    """Appends one JSON object as a line to the file at `path`, complete when this returns.

    Args:
        path: `<workdir>/metrics.jsonl`.
        step: number of completed training steps.
        epoch: number of completed epochs, fractions included.
        split: "train", "test" or "test_ema".
        loss: mean loss; null in the file if it is not finite, which JSON cannot say. A list if
            there are several replicas.
        accuracy: fraction of images classified correctly, in [0, 1], or a list likewise.
        images_per_second: speed of training, over all devices.
        seconds: wall time of the training until then, compilation and evaluations included.
    """
    line = {
        "step": int(step),
        "epoch": float(epoch),
        "split": split,
        "loss": _floats(loss),
        "accuracy": None if accuracy is None else _floats(accuracy),
        "images_per_second": None if images_per_second is None else float(images_per_second),
        "seconds": None if seconds is None else round(float(seconds), 3),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(line), allow_nan=False) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl` as dicts, without a half-written last one.

    Raises:
        InputError: the file is missing, or a line is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(
            f"Metrics file {path} cannot be read ({error.strerror}): check the workdir."
        ) from error
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            metrics.append(json.loads(line))
            metrics[-1]["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"Line {number} of metrics file {path} is not JSON with a step: delete this line."
            ) from error
    return metrics


def truncate_metrics(path: str | Path, step: int) -> None:
    """Drops lines after `step` and a half-written last one, before training resumes from `step`.

    Atomic: a kill leaves the file as it was or as it shall be. A missing file stays missing.

    Raises:
        InputError: a line is not JSON.
    """
    if Path(path).exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        _replace(Path(path), "".join(json.dumps(line) + "\n" for line in kept))


class TensorBoard:
    """Writes TensorBoard events; from `tensorboard`."""

    def __init__(self, writer: tensorboardX.SummaryWriter | None):
        self._writer = writer

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Adds a point at `step` to the curve of each tag in `values`."""
        for tag, value in values.items():
            if self._writer:
                self._writer.add_scalar(tag, float(value), step)

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        if self._writer:
            self._writer.add_image(tag, image, step, dataformats="HWC")


@contextlib.contextmanager
def tensorboard(workdir: str | Path, start: int = 0, enabled: bool = True) -> Iterator[TensorBoard]:
    """Opens `<workdir>/tensorboard` for events after step `start`.

    Args:
        workdir: directory of the training.
        start: the step that was restored, 0 for a new training. TensorBoard hides what an
            interrupted run has written after it.
        enabled: False writes nothing: for all processes but the first.
    """
    if not enabled:
        yield TensorBoard(None)
        return
    writer = tensorboardX.SummaryWriter(
        str(Path(workdir) / "tensorboard"),
        purge_step=start + 1,
        flush_secs=10,
        # Names are otherwise equal for two runs that start in the same second.
        filename_suffix=f".{start}",
    )
    try:
        yield TensorBoard(writer)
    finally:
        writer.close()


class Progress:
    """Shows how far a training is; from `progress`."""

    def __init__(self, total: int, start: int, every: int, enabled: bool, file: TextIO):
        self._total, self._every, self._enabled, self._file = total, every, enabled, file
        self._facts: dict[str, Any] = {}
        # Step and time of the first report: the step before it compiles.
        self._first: tuple[int, float] | None = None
        self._bar: Any = None
        if enabled and file.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                file=file,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {desc}{remaining} left",
            )

    def __call__(self, step: int, **facts: Numbers) -> None:
        """Reports that `step` is completed.

        Args:
            step: number of completed steps.
            **facts: loss, accuracy, images_per_second. One left out keeps its last value. They are
                converted to numbers, which waits for a device array, only when they are shown. Of
                those that are one for each replica, the mean is shown.
        """
        now = time.monotonic()
        self._first = self._first or (step, now)
        self._facts.update(facts)
        if self._bar is not None:
            if step % self._every == 0 or step >= self._total:
                shown = self._shown()
                self._bar.set_description_str(shown and shown + ", ", refresh=False)
            self._bar.update(step - self._bar.n)
            if step >= self._total:
                self._bar.refresh()
        elif self._enabled and (step % self._every == 0 or step >= self._total):
            words = [f"step {step}/{self._total}", self._shown(), self._left(step, now)]
            print(", ".join(filter(None, words)), file=self._file, flush=True)

    def write(self, text: str) -> None:
        """Prints a line of its own without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        elif self._enabled:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Ends the bar and leaves it on the screen."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int, now: float) -> str:
        first_step, first_time = self._first or (step, now)
        if step == first_step:
            return ""
        seconds = (now - first_time) / (step - first_step) * (self._total - step)
        return tqdm.tqdm.format_interval(seconds) + " left"

    def _shown(self) -> str:
        formats = {
            "loss": "loss {:.4f}",
            "accuracy": "accuracy {:.3f}",
            "images_per_second": "{:.0f} images/s",
        }
        return ", ".join(
            text.format(float(np.mean(_floats(self._facts[name]))))
            for name, text in formats.items()
            if name in self._facts
        )


@contextlib.contextmanager
def progress(
    total: int,
    start: int = 0,
    every: int = 1,
    enabled: bool = True,
    file: TextIO | None = None,
) -> Iterator[Progress]:
    """Shows a bar on a terminal, and a line every few steps anywhere else.

    Use: `with progress(total, start, every) as report: report(step, loss=...)`.

    Args:
        total: number of the last step.
        start: number of steps completed before.
        every: steps between two lines, and between two updates of the facts beside the bar.
        enabled: False prints nothing: for all processes but the first.
        file: where to; standard output by default.
    """
    report = Progress(total, start, every, enabled, file or sys.stdout)
    try:
        yield report
    finally:
        report.close()


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)


def means(replicas: int) -> str:
    """Says behind numbers that they are means, if there are several replicas."""
    return f", means of {replicas} replicas" if replicas > 1 else ""


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all, in the order of its keys.

    NumPy and JAX scalars become numbers, tuples lists, and what is not finite null.

    Raises:
        TypeError: `value` holds something that JSON cannot; the file is left as it was.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    _replace(Path(path), text + "\n")


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides its config: versions, git revision, device."""
    import jax

    distributions = {
        "jax": "jax",
        "jaxlib": "jaxlib",
        "flax": "flax",
        "optax": "optax",
        "orbax": "orbax-checkpoint",
        "grain": "grain",
        "tensorflow_datasets": "tensorflow-datasets",
        "numpy": "numpy",
    }
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in distributions.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    devices = jax.devices()
    return {
        "versions": versions,
        "git_revision": git_revision(Path(__file__).parent),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "host_cores": cores(),
        },
    }


def git_revision(directory: str | Path) -> str | None:
    """Returns the commit that the code in `directory` is of, with "-dirty" if it was modified.

    None if unknown: no git, no commit, or a directory that its repository does not track, such as
    a virtual environment within another project.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files"):
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _floats(value: Numbers) -> float | list[float]:
    return [float(each) for each in value] if isinstance(value, Sequence) else float(value)


def _plain(value: Any) -> Any:
    """Returns `value` in the types that JSON knows, as far as possible."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
