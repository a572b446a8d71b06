"""Prepares the datasets that need no TensorFlow: digits, Fashion-MNIST and ImageNet.

Owns what their input files must look like, where they are found, and the TFDS builders that write
them as ArrayRecord. Knows nothing about how examples are read, decoded or used.
"""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import io
import os
import re
import struct
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mobilenets_jax.errors import InputError

FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_DEBIAN = "/usr/share/datasets/fashion-mnist"
# Per split: number of examples and the SHA-256 of the images and of the labels as unpacked IDX
# bytes, which (unlike the .gz files) are the same at the authors' and in Debian's package.
FASHION_MNIST_FILES = {
    "train": (
        60000,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k": (
        10000,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file; the lock goes with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(builder_class: Any, root: Path, find: Callable[[], Path] | None = None) -> Any:
    """Prepares one of this module's datasets, once, whoever comes first.

    TFDS writes into a directory of its own and renames it at the end, so what exists is complete.

    Args:
      builder_class: one of the builders below.
      root: the data_dir.
      find: returns the directory of the input files; called only if they are needed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        builder = builder_class(data_dir=root, file_format="array_record")
        info = Path(builder.data_dir) / "dataset_info.json"
        if info.exists():
            return tfds.builder_from_directory(builder.data_dir)
        with _locked(root / f".{builder.name}.lock"):
            if not info.exists():
                config = tfds.download.DownloadConfig(
                    manual_dir=find() if find else None, try_download_gcs=False
                )
                with contextlib.ExitStack() as stack:
                    if find is None:  # a second's work needs no report
                        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                    if find is None or not sys.stderr.isatty():
                        tfds.disable_progress_bar()
                        stack.callback(tfds.enable_progress_bar)
                    builder.download_and_prepare(
                        download_dir=root / "downloads", download_config=config
                    )
        return tfds.builder_from_directory(builder.data_dir)
    except OSError as error:
        raise InputError(
            f"Cannot prepare dataset '{builder_class.name}' in {root} ({error}): look at the "
            "input files, or choose a place that can be written by --config.dataset.data_dir."
        ) from error


class _Builder(tfds.core.GeneratorBasedBuilder):
    """What the builders below share: an image, its label, no downloads."""

    VERSION = tfds.core.Version("1.0.0")
    encoding: str
    classes: Sequence[str]
    extra_features: dict[str, Any]

    def __init_subclass__(cls) -> None:
        # Not in TFDS's registry, which has an imagenet2012 of its own.
        super().__init_subclass__(skip_registration=True)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format=self.encoding),
                    "label": tfds.features.ClassLabel(names=list(self.classes)),
                    **self.extra_features,
                }
            ),
            supervised_keys=("image", "label"),
        )


def _png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W]. Bytes, since TFDS would send an array through TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


# digits -------------------------------------------------------------------------------------------


def upscale4(images: np.ndarray) -> np.ndarray:
    """Enlarges images four times by bilinear interpolation between pixel centres.

    In float64 every intermediate value here is exact, so the result is the same everywhere.

    Args:
      images: [N, H, W], small integers.

    Returns:
      float64 [N, 4H, 4W].
    """

    def matrix(size: int) -> np.ndarray:
        position = np.clip((np.arange(4 * size) + 0.5) / 4 - 0.5, 0, size - 1)
        return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(size)))

    return matrix(images.shape[1]) @ images.astype(np.float64) @ matrix(images.shape[2]).T


def split_digits(labels: np.ndarray, num_test: int = 360) -> np.ndarray:
    """Chooses the test digits: every class in proportion, at random but always the same.

    Args:
      labels: int [N].
      num_test: size of the test split.

    Returns:
      bool [N], true for test.
    """
    counts = np.bincount(labels)
    quota, remainder = np.divmod(counts * num_test, len(labels))
    quota[np.argsort(-remainder, kind="stable")[: num_test - quota.sum()]] += 1
    # RandomState's streams are frozen by NumPy's policy, Generator's are not.
    order = np.random.RandomState(0).permutation(len(labels))
    test = np.zeros(len(labels), bool)
    for label, size in enumerate(quota):
        test[order[labels[order] == label][:size]] = True
    return test


class Digits(_Builder):
    """The 1,797 handwritten digits (8 × 8, 17 grey levels) of scikit-learn's wheel at 32 × 32."""

    encoding = "png"
    classes = tuple("0123456789")
    extra_features: dict[str, Any] = {}  # noqa: RUF012

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(upscale4(digits.images) * (255 / 16)).astype(np.uint8)
        for i in np.flatnonzero(split_digits(digits.target) == test):
            yield int(i), {"image": _png(images[i]), "label": int(digits.target[i])}


# fashion_mnist ------------------------------------------------------------------------------------


def find_fashion_mnist(manual_dir: str | None, root: Path) -> Path:
    """Returns a directory with Fashion-MNIST's four files, downloading them as a last resort."""
    names = [
        f"{s}-{k}-ubyte.gz" for s in FASHION_MNIST_FILES for k in ("images-idx3", "labels-idx1")
    ]
    if manual_dir:
        folder = Path(manual_dir).expanduser()
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise InputError(
                f"Fashion-MNIST's {missing[0]} is missing in {folder}: put the four files "
                f"{', '.join(names)} there, or leave --config.dataset.manual_dir out."
            )
        return folder
    debian = Path(FASHION_MNIST_DEBIAN)
    if all((debian / n).is_file() for n in names):
        return debian
    folder = root / "downloads" / "fashion_mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / name).is_file():
            continue
        part = folder / f"{name}.part"
        try:
            with urllib.request.urlopen(FASHION_MNIST_URL + name, timeout=30) as response:
                part.write_bytes(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"Fashion-MNIST is neither prepared nor at hand, and {FASHION_MNIST_URL}{name} "
                f"cannot be downloaded ({error}): put the four files {', '.join(names)} into a "
                "directory and name it by --config.dataset.manual_dir, or run 'apt-get install "
                "dataset-fashion-mnist', or try again on a machine with a connection."
            ) from error
        try:
            split, kind = name.split("-")[:2]
            read_fashion_mnist(part, split, kind)
        except InputError:
            part.unlink()
            raise
        part.rename(folder / name)
    return folder


def read_fashion_mnist(path: Path, split: str, kind: str) -> np.ndarray:
    """Reads one .gz file of Fashion-MNIST and checks every byte of it.

    Args:
      path: the file.
      split: 'train' or 't10k'.
      kind: 'images' or 'labels'.

    Returns:
      uint8 [N, 28, 28] images or [N] labels.
    """
    count, images_hash, labels_hash = FASHION_MNIST_FILES[split]
    shape = (count, 28, 28) if kind == "images" else (count,)
    # IDX: two zero bytes, the type (8: uint8), the number of axes, and the axes' lengths.
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole gzip file ({error}): fetch Fashion-MNIST's file again."
        ) from error
    if data[: len(header)] != header or len(data) != len(header) + np.prod(shape):
        raise InputError(
            f"{path} is not an IDX file of {count} {kind} as Fashion-MNIST's: fetch the file again."
        )
    if hashlib.sha256(data).hexdigest() != (images_hash if kind == "images" else labels_hash):
        raise InputError(
            f"The contents of {path} are not Fashion-MNIST's {kind} (SHA-256 differs): fetch the "
            "file again."
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


class FashionMnist32(_Builder):
    """Fashion-MNIST with a border of two zeros, 32 × 32; not TFDS's fashion_mnist of 28 × 28."""

    encoding = "png"
    classes = FASHION_MNIST_CLASSES
    extra_features: dict[str, Any] = {}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The four .gz files of Fashion-MNIST."

    def _split_generators(self, dl_manager: Any) -> Any:
        folder = Path(dl_manager.manual_dir)
        return {
            "train": self._generate_examples(folder, "train"),
            "test": self._generate_examples(folder, "t10k"),
        }

    def _generate_examples(self, folder: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = (
            read_fashion_mnist(folder / f"{split}-{kind}-{idx}-ubyte.gz", split, kind)
            for kind, idx in (("images", "idx3"), ("labels", "idx1"))
        )
        for i, image in enumerate(np.pad(images, ((0, 0), (2, 2), (2, 2)))):
            yield i, {"image": _png(image), "label": int(labels[i])}


# imagenet2012 -------------------------------------------------------------------------------------


def find_imagenet(manual_dir: str | None) -> Path:
    """Returns the directory of the two official tars.

    Raises:
      InputError: one of them is missing.
    """
    folder = Path(manual_dir or "").expanduser()
    for name in IMAGENET_TARS:
        if not manual_dir or not (folder / name).is_file():
            raise InputError(
                f"ImageNet's {name} is missing in {folder if manual_dir else 'manual_dir'}: "
                f"download {' and '.join(IMAGENET_TARS)} from https://image-net.org and name "
                "their directory by --config.dataset.manual_dir."
            )
    return folder


def _imagenet_file(name: str) -> list[str]:
    """Lines of a label file that TFDS ships: labels.txt or validation_labels.txt."""
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def as_rgb_jpeg(image: bytes, name: str) -> bytes:
    """Re-encodes what is not an RGB or grey JPEG (ImageNet has 22 CMYK ones and a PNG).

    Raises:
      InputError: not an image.
    """
    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
            if opened.format == "JPEG" and opened.mode in ("RGB", "L"):
                return image
            buffer = io.BytesIO()
            opened.convert("RGB").save(buffer, "jpeg", quality=100)
            return buffer.getvalue()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name} is not a whole image ({error}): fetch the archive again."
        ) from error


@contextlib.contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Opens a tar, and at the end makes sure that there was an end.

    Raises:
      InputError: the tar is cut off or not a tar.
    """
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            yield tar
            file.seek(tar.offset)
            if not file.read(1):  # tarfile misses a cut between two members
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is not a whole tar ({error}): fetch it again.") from error


def _tar_files(tar: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    """Yields the name and the file object of each regular file of a tar, in order."""
    for member in tar:
        file = tar.extractfile(member)
        if file is not None:
            yield os.path.basename(member.name), file


class Imagenet2012(_Builder):
    """ImageNet 2012 from its two official tars, with the features and names of TFDS's builder."""

    VERSION = tfds.core.Version("5.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The two official tars."
    encoding = "jpeg"
    extra_features = {"file_name": tfds.features.Text()}  # noqa: RUF012

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """The 1000 WordNet identifiers, in order."""
        return _imagenet_file("labels.txt")

    def _split_generators(self, dl_manager: Any) -> Any:
        train, val = (Path(dl_manager.manual_dir) / name for name in IMAGENET_TARS)
        return {"train": self._generate_examples(train), "validation": self._generate_val(val)}

    def _generate_examples(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """The training tar is a tar of one tar per class; both are streamed."""
        classes = set(self.classes)
        with _open_tar(path) as outer:
            for tar_name, tar_file in _tar_files(outer):
                label = tar_name.removesuffix(".tar")
                if label not in classes:
                    raise InputError(
                        f"{path} holds {tar_name}, which is not one of ImageNet's 1000 classes: "
                        "fetch the official tar."
                    )
                with tarfile.open(fileobj=tar_file, mode="r:") as inner:
                    for name, file in _tar_files(inner):
                        image = as_rgb_jpeg(file.read(), f"{name} in {path}")
                        yield name, {"image": image, "label": label, "file_name": name}

    def _generate_val(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Labels are listed in the order of the file names, which end in their number."""
        labels = _imagenet_file("validation_labels.txt")
        with _open_tar(path) as tar:
            for name, file in _tar_files(tar):
                match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
                if match is None or not 1 <= int(match[1]) <= len(labels):
                    raise InputError(
                        f"{path} holds {name}, which is not an official validation image: fetch "
                        "the official tar."
                    )
                image = as_rgb_jpeg(file.read(), f"{name} in {path}")
                label = labels[int(match[1]) - 1]
                yield name, {"image": image, "label": label, "file_name": name}
