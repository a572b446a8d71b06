"""Opens datasets as random-access sources of encoded images with labels, without TensorFlow.

Owns where prepared data lie and how one example is read: from ArrayRecord files, and from folders
of images. Knows nothing about decoding, augmentation, batches or models.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mobilenets_jax import builders
from mobilenets_jax.errors import InputError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Source(Protocol):
    """Random access to examples `{'image': encoded bytes, 'label': int, 'name': str}`.

    `name` says in errors which file or record an example is. Sources are picklable: worker
    processes receive a copy.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset: its training and evaluation examples and the names of its classes."""

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes; labels are 0 to num_classes - 1."""
        return len(self.class_names)


def open_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    train_split: str = "train",
    eval_split: str = "test",
) -> Dataset:
    """Opens a dataset, preparing it first where that needs no TensorFlow.

    Args:
      name: 'digits', 'fashion_mnist', 'imagenet2012', 'image_folder', or any TFDS dataset
        ('name', 'name/config' or 'name:version') that is already prepared as ArrayRecord.
      data_dir: where prepared datasets are kept. Default: TFDS's own (~/tensorflow_datasets, or
        the environment variable TFDS_DATA_DIR).
      manual_dir: where files that were placed by hand lie: Fashion-MNIST's IDX files, ImageNet's
        tars, or the root of an image folder.
      train_split: split to train on; sub-splits such as 'train[:90%]' are understood (image_folder:
        the name of a folder).
      eval_split: split to evaluate on, likewise.

    Raises:
      InputError: the dataset, a file or a split is unknown, missing, broken or not prepared.
    """
    if name == "image_folder":
        return _open_image_folder(manual_dir or data_dir, train_split, eval_split)
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR)
    root = root.expanduser().absolute()
    if name == "digits":
        builder = builders.prepare(builders.Digits, root)
    elif name == "fashion_mnist":
        builder = builders.prepare(
            builders.FashionMnist32, root, lambda: builders.find_fashion_mnist(manual_dir, root)
        )
    elif name == "imagenet2012":
        builder = builders.prepare(
            builders.Imagenet2012, root, lambda: builders.find_imagenet(manual_dir)
        )
    else:
        builder = _open_prepared(name, root)
    return _from_builder(name, builder, train_split, eval_split)


# Sources ------------------------------------------------------------------------------------------


class RecordSource:
    """One split of a dataset that TFDS keeps as ArrayRecord files.

    Args:
      builder: of the prepared dataset, with features `image` and `label`.
      split: such as 'train' or 'train[:90%]'.
    """

    def __init__(self, builder: Any, split: str):
        # Only the reader is kept: TFDS's own data source would pickle the builder, and decodes
        # five times slower than parsing the tf.Example here.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split, deserialize_method=raw).data_source
        self._num_classes = len(builder.info.features["label"].names)
        self._where = f"of split '{split}' in {builder.data_dir}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = f"record {index} {self._where}"
        try:
            example = tf_example_pb2.Example.FromString(self._records[index])
            feature = example.features.feature
            image = feature["image"].bytes_list.value[0]
            label = feature["label"].int64_list.value[0]
        except Exception as error:
            raise InputError(
                f"Cannot read {name} ({error}): prepare the dataset again in an empty directory."
            ) from error
        if not 0 <= label < self._num_classes:
            raise InputError(
                f"The {name} has label {label} of {self._num_classes} classes: choose a split "
                "that has labels."
            )
        return {"image": image, "label": label, "name": name}


class FolderSource:
    """Image files, read when they are asked for.

    Args:
      root: directory of the split.
      files: paths of the images relative to `root`.
      labels: label of each file.
    """

    def __init__(self, root: str, files: Sequence[str], labels: Sequence[int]):
        self._root = root
        self._files = tuple(files)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = os.path.join(self._root, self._files[index])
        try:
            image = Path(name).read_bytes()
        except OSError as error:
            raise InputError(
                f"Cannot read the image {name} ({error.strerror}): restore it or start again "
                "without it."
            ) from error
        return {"image": image, "label": int(self._labels[index]), "name": name}


# Prepared datasets --------------------------------------------------------------------------------


def _from_builder(name: str, builder: Any, train_split: str, eval_split: str) -> Dataset:
    features = dict(builder.info.features or {})
    classes = getattr(features.get("label"), "names", None)
    if not isinstance(features.get("image"), tfds.features.Image) or not classes:
        raise InputError(
            f"Dataset '{name}' has the features {sorted(features)}, but an image feature 'image' "
            "and a class feature 'label' are needed: choose a classification dataset."
        )
    sources = []
    for split in (train_split, eval_split):
        try:
            source = RecordSource(builder, split)
        except NotImplementedError as error:
            raise InputError(
                f"Dataset '{name}' is prepared in {builder.data_dir} as "
                f"{builder.info.file_format.value}, which cannot be read without TensorFlow: "
                f"choose another --config.dataset.data_dir, and prepare it there by: "
                f"{_prepare_command(name, Path('ANOTHER'))}"
            ) from error
        except (ValueError, KeyError, AssertionError) as error:
            splits = ", ".join(f"'{s}'" for s in builder.info.splits)
            raise InputError(
                f"Dataset '{name}' has no split '{split}' with examples in it: choose one of "
                f"{splits}, or a part such as 'train[:90%]'."
            ) from error
        sources.append(source)
    return Dataset(name, sources[0], sources[1], tuple(classes))


def _prepare_command(name: str, root: Path) -> str:
    return (
        "pip install '.[tf]' && python -c \"import tensorflow_datasets as tfds; tfds.builder("
        f"'{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )


def _open_prepared(name: str, root: Path) -> Any:
    """Finds a dataset that TFDS prepared earlier, by its files alone."""
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", name)
    known = tfds.list_builders(with_community_datasets=False)
    if match is None or not (match[1] in known or (root / match[1]).is_dir()):
        names = ["digits", "fashion_mnist", "imagenet2012", "image_folder", *known]
        raise InputError(
            f"Unknown dataset '{name}'.{nearest(name, names)} Choose digits, fashion_mnist, "
            "imagenet2012, image_folder or a prepared TFDS dataset."
        )
    folder = root / match[1] / (match[2] or "")
    versions = [
        p.parent
        for p in folder.glob("*/dataset_info.json" if match[2] else "**/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name) and match[3] in (None, p.parent.name)
    ]
    configs = sorted({p.parent for p in versions})
    if not versions:
        raise InputError(
            f"Dataset '{name}' is not prepared in {root}: prepare it by "
            f"{_prepare_command(name, root)}, or name the place by --config.dataset.data_dir."
        )
    if len(configs) > 1:
        raise InputError(
            f"Dataset '{name}' is prepared in several configurations: choose one of "
            f"{', '.join(str(p.relative_to(root)) for p in configs)}."
        )
    newest = max(versions, key=lambda p: tuple(int(n) for n in p.name.split(".")))
    try:
        return tfds.builder_from_directory(newest)
    except Exception as error:
        raise InputError(
            f"Cannot read the dataset in {newest} ({type(error).__name__}): delete it and prepare "
            f"it again by {_prepare_command(name, root)}."
        ) from error


# image_folder -------------------------------------------------------------------------------------


def _open_image_folder(root: str | None, train_split: str, eval_split: str) -> Dataset:
    layout = "it must hold train/<class>/*.jpg (or .png, .webp, ...) and val/<class>/*"
    if not root:
        raise InputError(
            "Dataset 'image_folder' has no folder: name it by --config.dataset.manual_dir; "
            f"{layout}."
        )
    folder = Path(root).expanduser().absolute()
    # The data are in val/ by convention, while evaluation splits are called test elsewhere.
    if eval_split == "test" and not (folder / "test").is_dir():
        eval_split = "val"
    found = {}
    for split in (train_split, eval_split):
        if not (folder / split).is_dir():
            raise InputError(f"The image folder {folder} has no directory '{split}': {layout}.")
        found[split] = _scan_classes(folder / split)
    classes = list(found[train_split])
    different = sorted(set(classes) ^ set(found[eval_split]))
    if different:
        raise InputError(
            f"The classes of {folder / train_split} and {folder / eval_split} differ in "
            f"'{different[0]}': give both the same sub-directories."
        )
    sources = []
    for split, files in found.items():
        labels = [classes.index(c) for c in files for _ in files[c]]
        paths = [path for c in files for path in files[c]]
        sources.append(FolderSource(str(folder / split), paths, labels))
    return Dataset("image_folder", sources[0], sources[-1], tuple(classes))


def _scan_classes(folder: Path) -> dict[str, list[str]]:
    """Returns the sorted image files, relative to `folder`, of each class, sorted."""
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    if not classes:
        raise InputError(f"{folder} has no class: give it one sub-directory per class.")
    found = {}
    for name in classes:
        found[name] = sorted(
            os.path.join(name, entry.name)
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.name[0] != "."
        )
        if not found[name]:
            raise InputError(
                f"Class folder {folder / name} has no image: add .jpg, .jpeg or .png files or "
                "remove it."
            )
    return found
