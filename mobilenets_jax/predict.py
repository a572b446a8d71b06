"""Predictions for image files: what `--mode=predict` does.

Owns which files are meant, and how the answers are written; `predictors` has the networks. Knows
nothing of flags or of training.

An image takes the way that it takes in an evaluation: `data.decode`, `augment.evaluation_transform`
and `steps.normalize`, at the config's resolution. So, as there, EXIF's orientation is not applied.
"""

import contextlib
import glob
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mobilenets_jax import config as config_lib
from mobilenets_jax import data, plots, predictors, runtime, steps
from mobilenets_jax.augment import evaluation_transform
from mobilenets_jax.datasets import IMAGE_SUFFIXES
from mobilenets_jax.errors import InputError
from mobilenets_jax.predictors import Predictor

TOP = 5  # classes that are named of each image
BATCH = 32  # images at a time, at most
PICTURE = "predict.png"
ORIENTATION = 0x0112  # EXIF's tag


class Prediction(NamedTuple):
    """The answer for one image.

    Attributes:
        file: its path.
        top: indices of the likeliest classes, the likeliest first.
        probabilities: of these, in [0, 1].
    """

    file: str
    top: list[int]
    probabilities: list[float]


def predict(
    patterns: Sequence[str],
    config: ConfigDict,
    overrides: Sequence[str],
    workdir: Path,
    *,
    best: bool = False,
    as_json: bool = False,
) -> bool:
    """Predicts the class of images, prints the answers and draws the first ones.

    The weights are those of the workdir if it holds a training, and else of `config.init_from`.
    The answers alone go to standard output; what is said of them goes to standard error.

    Args:
        patterns: see `find_images`.
        config: see `predictors.trained` and `predictors.published`.
        overrides: dotted names of its fields that were set on the command line.
        workdir: where the weights may be, and where the picture goes.
        best: see `predictors.trained`.
        as_json: print one JSON document instead of a table.

    Returns:
        Whether every image could be read.

    Raises:
        InputError: if no file matches, there are no such weights, or the picture cannot be written.
    """
    files = find_images(patterns)
    with contextlib.redirect_stdout(sys.stderr):
        if config.init_from is None or (workdir / "config.json").exists():
            predictor = predictors.trained(config, overrides, workdir, best)
        else:
            predictor = predictors.published(config, overrides)
        print(f"{predictor.origin}: {len(files):,} image{'s'[: len(files) - 1]}.")
        predictions, images, skipped, to_be_turned = classify(predictor, files)
        for _, reason in skipped:
            print(f"skipped: {_shown(reason)}")
        if to_be_turned:
            print(_say_turned(to_be_turned))
    picture, failure = None, None
    if predictions:
        try:
            picture = workdir / PICTURE
            draw(predictor, predictions, images, picture)
        except InputError as error:  # the answers come first
            picture, failure = None, error
    if as_json:
        print(json.dumps(document(predictor, predictions, skipped, picture), indent=2))
    elif predictions:
        print(table(predictions, predictor.class_names))
    if failure is not None:
        raise failure
    if picture is not None:
        print(f"Picture: {picture}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped):,} of {len(files):,} images were skipped.", file=sys.stderr)
    return not skipped


def _say_turned(files: Sequence[str]) -> str:
    others = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (
        f"EXIF says to turn {_shown(files[0])}{others}; predicted as stored, as in training and "
        "evaluation."
    )


# Files ------------------------------------------------------------------------------------------


def find_images(patterns: Iterable[str]) -> list[str]:
    """Returns the files that are meant, in the order of the patterns and sorted within each.

    A file is taken as named, so that it may hold a "*" or "["; of a directory the images that lie
    in it, by their suffix; and what a pattern such as "photos/*.jpg" or "photos/**/*.png" matches.
    What is meant twice comes twice.

    Raises:
        InputError: for a pattern that matches nothing, or a directory without images.
    """
    found: list[str] = []
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
            files = [os.path.join(path, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
            if not files:
                raise InputError(
                    f"There is no image in the directory '{pattern}': name another, or its files "
                    "as in --images='photos/**/*.jpg'."
                )
        else:
            files = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
            if not files:
                raise InputError(f"No file matches --images '{pattern}': correct the path.")
        found += files
    return found


def read_image(file: str) -> tuple[np.ndarray, bool]:
    """Reads an image file.

    Returns:
        Its pixels as they are stored, uint8 [H, W, 3], and whether EXIF says to turn them.

    Raises:
        InputError: names the file and says why it is none.
    """
    path = Path(file)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise InputError(f"Cannot read the image {file} ({kind}): leave it out.")
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Cannot read the image {file} ({error.strerror}): leave it out."
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images and of damaged metadata
        image = data.decode(encoded, file)
        try:
            with Image.open(io.BytesIO(encoded), formats=data.FORMATS) as opened:
                orientation = opened.getexif().get(ORIENTATION, 1)
        except Exception:  # metadata can be broken in any way, and the image is whole
            orientation = 1
    return image, orientation in range(2, 9)


# Predicting -------------------------------------------------------------------------------------


def classify(
    predictor: Predictor, files: Sequence[str]
) -> tuple[list[Prediction], np.ndarray, list[tuple[str, str]], list[str]]:
    """Predicts the class of each image that can be read.

    All batches are of one size, the last filled up with zeros: one compilation.

    Args:
        predictor: the network.
        files: paths of the images.

    Returns:
        The predictions in the order of the files; the first images as the network saw them, uint8
        [n, R, R, 3]; each file that is skipped because it cannot be read, and why; and the files
        whose EXIF says to turn them.

    Raises:
        InputError: if the network gives no number.
    """
    config, side = predictor.config, predictor.resolution
    crop_fraction, interpolation = config.preprocess.crop_fraction, config.preprocess.interpolation
    # Of few sizes, because what is compiled for one is kept for the next run.
    size = min(BATCH, config.eval_batch_size, 1 << (len(files) - 1).bit_length())
    probabilities_of = _compiled(predictor)
    batch = np.zeros((size, side, side, 3), np.uint8)
    pending: list[str] = []
    predictions: list[Prediction] = []
    shown: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    to_be_turned: list[str] = []

    def flush() -> None:
        batch[len(pending) :] = 0
        # A copy, since what JAX is given must not be written into.
        rows = np.asarray(probabilities_of(predictor.variables, batch.copy()))[: len(pending)]
        for file, row in zip(pending, rows, strict=True):
            predictions.append(_prediction(file, row, predictor))
        pending.clear()

    for file in files:
        try:
            image, turned = read_image(file)
        except InputError as error:
            skipped.append((file, str(error)))
            continue
        if turned:
            to_be_turned.append(file)
        batch[len(pending)] = evaluation_transform(image, side, crop_fraction, interpolation)
        if len(shown) < plots.MOST_SHOWN:
            shown.append(batch[len(pending)].copy())
        pending.append(file)
        if len(pending) == size:
            flush()
    if pending:
        flush()
    images = np.stack(shown) if shown else np.zeros((0, side, side, 3), np.uint8)
    return predictions, images, skipped, to_be_turned


def _compiled(predictor: Predictor) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns jitted (variables, uint8 [n, R, R, 3]) -> probabilities [n, classes]."""

    def probabilities(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = predictor.model.apply(variables, steps.normalize(images, predictor.config))
        return jax.nn.softmax(logits)

    return jax.jit(probabilities, compiler_options=runtime.inference_options())


def _prediction(file: str, probabilities: np.ndarray, predictor: Predictor) -> Prediction:
    if not np.isfinite(probabilities).all():
        raise InputError(
            f"The network gives no number for {file}, so its weights are of no use: choose others "
            f"than those of {predictor.origin}."
        )
    top = np.argsort(-probabilities, kind="stable")[:TOP]
    return Prediction(file, top.tolist(), probabilities[top].tolist())


# Writing ----------------------------------------------------------------------------------------


def table(predictions: Sequence[Prediction], class_names: Sequence[str]) -> str:
    """Returns lines of file, class and probability, in columns; the file once for its classes."""
    rows = [("image", "class", "probability")]
    for file, top, probabilities in predictions:
        for i, (index, probability) in enumerate(zip(top, probabilities, strict=True)):
            name = _shown(class_names[index])
            rows.append(("" if i else _shown(file), name, f"{100 * probability:.2f} %"))
    first, second, third = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{a:<{first}}  {b:<{second}}  {c:>{third}}" for a, b, c in rows)


def _shown(text: str) -> str:
    """As it can be printed: a file's name may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def document(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    skipped: Sequence[tuple[str, str]],
    picture: Path | None,
) -> dict[str, Any]:
    """Returns what `--json` prints."""
    names, plain = predictor.class_names, config_lib.plain(predictor.config)
    return {
        **predictor.facts,
        "classes": len(names),
        "resolution": predictor.resolution,
        "model": {name: value for name, value in plain["model"].items() if value is not None},
        "preprocess": plain["preprocess"],
        "images": [
            {
                "file": file,
                "top": [
                    {"index": index, "class": names[index], "probability": probability}
                    for index, probability in zip(top, probabilities, strict=True)
                ],
            }
            for file, top, probabilities in predictions
        ],
        "skipped": [{"file": file, "reason": reason} for file, reason in skipped],
        "picture": None if picture is None else str(picture),
    }


def draw(
    predictor: Predictor, predictions: Sequence[Prediction], images: np.ndarray, path: Path
) -> None:
    """Draws the first images with their answers.

    Raises:
        InputError: if the picture cannot be written.
    """
    panels = []
    for file, top, probabilities in predictions[: len(images)]:
        names = (predictor.class_names[index] for index in top)
        panels.append(plots.panel(_shown(file), list(zip(names, probabilities, strict=True))))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
            plots.classified(images, panels, len(predictions), predictor.origin, path)
    except OSError as error:
        raise InputError(
            f"The picture {path} cannot be written ({error.strerror}): choose another --workdir."
        ) from error
