"""Files of weights: named arrays from a path, and back.

Owns the formats: .safetensors, .npz, PyTorch's .pth, Keras' .keras, .weights.h5 and legacy .h5,
and the workdir of a training. Nothing in a file is ever executed: no pickle is opened but by
PyTorch's restricted reader, and Keras' files are read as the HDF5 they are, without Keras. Knows
nothing of networks or of what the arrays mean.

`safetensors`, `h5py` and `torch` are imported only where their format is.
"""

import collections
import contextlib
import functools
import io
import json
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mobilenets_jax.errors import InputError, choose, shown

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
FORMATS = ("safetensors", "npz", "pth")
_PYTORCH = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", ".npz", *_PYTORCH, ".keras", ".h5", ".hdf5")
# Of all arrays together. The largest published network has 25 MB, and a small file can claim more
# than the memory holds.
_MOST_BYTES = 2**30
# What a file of our own says beside its arrays: a key of .safetensors' metadata, and elsewhere an
# array of the bytes of its text, which needs no pickle.
DOCUMENT = "mobilenets_jax.json"
MOST_DOCUMENT = 2**16  # bytes; the deepest network takes half
# The variables of a layer in the order in which Keras 3 numbers them.
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read(path: str | Path) -> Arrays:
    """Returns the arrays of a file by name, without what `read_document` returns.

    Keras' are named layer/variable, e.g. "conv1/kernel" and "conv1_bn/moving_mean"; where the file
    does not hold the layers' names, they are those that Keras makes up, e.g. "conv2d_3/kernel".

    Args:
        path: the file; its suffix says the format.

    Raises:
        InputError: there is no such file, it is corrupt, truncated or not what its suffix says, it
            would run code, refers to other files, is larger than any network's, has a name twice,
            or the package that reads it is not installed.
    """
    path = Path(path)
    suffix = _suffix(path)
    with _reading(path):
        if suffix == ".safetensors":
            arrays = _read_safetensors(path)
        elif suffix == ".npz":
            arrays = _read_npz(path)
        elif suffix in _PYTORCH:
            arrays = _read_pytorch(path)
        else:
            arrays = _read_keras(path)
    arrays.pop(DOCUMENT, None)
    return arrays


def read_document(path: str | Path) -> str | None:
    """Returns what a file of our own says beside its arrays, or None if it says nothing.

    Raises:
        InputError: as of `read`, and if it is longer than any network's or no text.
    """
    path = Path(path)
    suffix = _suffix(path)
    with _reading(path):
        if suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                text = (file.metadata() or {}).get(DOCUMENT)
            _check_document(path, len(text or ""))
            return text
        if suffix == ".npz":
            entry = _npz_entry(path)
        else:
            entry = _read_pytorch(path).get(DOCUMENT) if suffix in _PYTORCH else None
        if entry is None:
            return None
        if entry.dtype != np.uint8 or entry.ndim != 1:
            raise TypeError(f"{DOCUMENT} is no text")
        _check_document(path, entry.size)
        return entry.tobytes().decode()


def _npz_entry(path: Path) -> np.ndarray | None:
    """The array with the document alone, of which no more is inflated than one may have."""
    with zipfile.ZipFile(path) as archive:
        if f"{DOCUMENT}.npy" not in archive.namelist():
            return None
        member = archive.getinfo(f"{DOCUMENT}.npy")
        _check_document(path, member.file_size - 128)  # NumPy's header
        content = io.BytesIO(archive.read(member))
    return np.lib.format.read_array(content, allow_pickle=False)


def _check_document(path: Path, size: int) -> None:
    if size > MOST_DOCUMENT:
        raise InputError(
            f"{path} says {size:,} bytes of its weights, and no network needs more than "
            f"{MOST_DOCUMENT:,}: take another file, or save it again."
        )


def _suffix(path: Path) -> str:
    """Returns the suffix, which says the format; raises InputError if there is no such file."""
    # Unlike `Path.exists`, of any path, however long.
    if not os.path.exists(path):
        raise InputError(f"There is no file of weights {path}: check the path.")
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{path} is no file of weights by its suffix '{suffix}': give one of "
            f"{', '.join(_SUFFIXES)}, or the workdir of a training."
        )
    return suffix


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes its reader raise into one sentence."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise InputError(
            f"Reading {path} needs the package {package}, which is not installed: run 'pip install "
            f"{package}', or convert the file to .safetensors."
        ) from error
    # Each reader has errors of its own for damage, down to SystemError; none is worth a traceback.
    except Exception as error:
        reason = shown(" ".join(str(error).split()).partition(". ")[0].rstrip(".:"))
        raise InputError(
            f"{path} is corrupt, truncated or not what its suffix says "
            f"({type(error).__name__}: {reason}): copy or download it again."
        ) from error


def unique(path: Path, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Returns named things as a dict.

    Raises:
        InputError: two have the same name.
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(
                f"{path} is damaged ({shown(name)} is there twice): take another file."
            )
        found[name] = value
    return found


def _check_size(path: Path, size: int) -> None:
    """Raises InputError, before anything is inflated, for more bytes than weights have."""
    if size > _MOST_BYTES:
        raise InputError(
            f"{path} holds {size:,} bytes and a network's weights have at most "
            f"{_MOST_BYTES:,}: give a file of one network's weights."
        )


def _read_safetensors(path: Path) -> Arrays:
    import ml_dtypes  # NumPy has no bfloat16 of its own.
    from safetensors.numpy import load_file

    _check_size(path, path.stat().st_size)
    arrays = load_file(path)
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    # Of arrays of the same name it takes the last.
    json.loads(header, object_pairs_hook=functools.partial(unique, path))
    return {
        name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        for name, array in arrays.items()
    }


def _read_npz(path: Path) -> Arrays:
    # NumPy leaves the file open where it is no archive.
    with path.open("rb") as opened:
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is one array and no archive")
        with zipfile.ZipFile(opened) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
        try:
            arrays = unique(path, ((name, file[name]) for name in file.files))
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise _unsafe(path) from error
            raise
        # NumPy returns the bytes of what is none.
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{shown(name)} is no array")
        return arrays


def _unsafe(path: Path) -> InputError:
    return InputError(
        f"{path} holds Python objects, which could run code when read; nothing was executed: take "
        "a .safetensors file, or save again only the arrays, as in "
        "torch.save(model.state_dict(), path)."
    )


def _read_pytorch(path: Path) -> Arrays:
    import torch

    # CVE-2025-32434: before, `weights_only` could be made to run code.
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise InputError(
            f"Reading {path} with PyTorch {torch.__version__} could run code that the file holds: "
            "install PyTorch 2.6 or later, or take a .safetensors file."
        )
    _check_size(path, path.stat().st_size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
    try:
        with warnings.catch_warnings(action="ignore"):  # what it does not support, it raises
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The same exception for what is damaged, or no pickle at all.
        if _is_whole_pickle(path):
            raise _unsafe(path) from error
        raise
    # A training's checkpoint keeps the weights beside others.
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in found.values()
    ):
        raise InputError(
            f"{path} holds no state dict of tensors: save torch.save(model.state_dict(), path)."
        )
    _check_size(path, sum(value.nbytes for value in found.values()))
    # Parameters have gradients, which NumPy has not.
    return {
        str(name): (value.float() if value.dtype is torch.bfloat16 else value).detach().numpy()
        for name, value in found.items()
    }


def _is_whole_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive of them, without damage; executes nothing."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        size = path.stat().st_size
        with path.open("rb") as file:
            # PyTorch's old format has arrays behind a version, an identity, and the objects.
            for _ in range(4):
                if file.tell() < size:
                    collections.deque(pickletools.genops(file), maxlen=0)
    except Exception:  # each opcode's reader has its own
        return False
    return True


def _read_keras(path: Path) -> Arrays:
    import h5py

    if path.suffix.lower() == ".keras":
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive.getinfo("model.weights.h5").file_size)
            # Reading a member checks its CRC-32.
            source: Any = io.BytesIO(archive.read("model.weights.h5"))
    else:
        source = path
    found: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Group):
            pass
        elif name.startswith("optimizer") or "seed_generator" in name:
            pass  # A training's, not the network's.
        elif name.endswith("/vars"):
            found.extend(_keras3_layer(path, name, item))
        elif len(item.attrs.get("weight_names", ())):
            found.extend(_legacy_layer(path, name, item))

    with h5py.File(source, "r") as file:
        # Follows no links.
        file.visititems(visit)
        datasets = unique(path, _modern_keras_names(found))
        _check_size(path, sum(dataset.nbytes for dataset in datasets.values()))
        return {name: dataset[()] for name, dataset in datasets.items()}


def _dataset(path: Path, group: Any, key: str) -> Any:
    """A dataset of this file, still to be read: indexing by itself follows links to other files."""
    import h5py

    item, name = group, f"{group.name}/{key}".lstrip("/")
    refers = InputError(f"{path} refers to other files ({shown(name)}): take a file of its own.")
    for part in key.split("/"):
        link = item.get(part, getlink=True)
        if link is None:
            raise KeyError(f"no {name}")
        if not isinstance(link, h5py.HardLink):
            raise refers
        item = item[part]
    if not isinstance(item, h5py.Dataset):
        raise TypeError(f"{name} is no array")
    if item.external or item.is_virtual:
        raise refers
    return item


def _keras3_layer(path: Path, name: str, group: Any) -> list[tuple[str, Any]]:
    """A layer of Keras 3: variables by number, and the layer's name as an attribute since 3.7."""
    made_up = name.split("/")[-2]
    kind = re.sub(r"_\d+$", "", made_up)
    if name.count("/") != 2 or not name.startswith("layers/") or kind not in _VARIABLES:
        return [(f"{name}/{key}", _dataset(path, group, key)) for key in group]
    layer = str(group.attrs.get("name", made_up))
    return [(f"{layer}/{_VARIABLES[kind][int(key)]}", _dataset(path, group, key)) for key in group]


def _legacy_layer(path: Path, name: str, group: Any) -> list[tuple[str, Any]]:
    """A layer of the format before Keras 3: variables by a path that ends in their name."""
    found = []
    for variable in group.attrs["weight_names"]:
        text = variable.decode() if isinstance(variable, bytes) else str(variable)
        short = text.rpartition("/")[2].partition(":")[0].replace("depthwise_kernel", "kernel")
        layer = name.removeprefix("model_weights/")
        found.append((f"{layer}/{short}", _dataset(path, group, text)))
    return found


def _modern_keras_names(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Gives layers their names of today; Keras itself loads legacy files by order, not by name."""

    def modern(name: str) -> str:
        layer, _, variable = name.rpartition("/")
        if is_v3:
            layer = layer.replace("/BatchNorm", "_bn").replace("/", "_").lower()
        elif is_v2 and layer == "Logits":
            layer = "predictions"
        return f"{layer}/{variable}"

    is_v3 = any("/BatchNorm/" in name for name, _ in found)
    is_v2 = any(name == "bn_Conv1/gamma" for name, _ in found)
    return [(modern(name), dataset) for name, dataset in found]


def write(
    arrays: Mapping[str, np.ndarray], path: str | Path, format: str, document: str | None = None
) -> None:
    """Writes named arrays; a file that exists is replaced once the new one is whole.

    Args:
        arrays: by name.
        path: where to; its suffix should be the format's.
        format: one of `FORMATS`.
        document: what `read_document` is to return of it.

    Raises:
        InputError: for an unknown format, a path whose suffix is another format's or that cannot
            be written, or "pth" without PyTorch.
    """
    choose("format", format, FORMATS)
    path = Path(path)
    suffixes = _PYTORCH if format == "pth" else (f".{format}",)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"The format '{format}' needs a path that ends in {suffixes[0]}: {path}.")
    partial = path.with_name(f".{path.name}.partial")
    # Contiguous and its own, as the writers need it.
    contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
    metadata = {"format": "pt"}  # Some readers of PyTorch's insist on this key.
    if document is not None and format == "safetensors":
        metadata[DOCUMENT] = document
    elif document is not None:
        contiguous[DOCUMENT] = np.frombuffer(document.encode(), np.uint8).copy()
    try:
        # Opened here for every format: each writer has errors of its own for a path.
        with partial.open("wb") as file:
            if format == "safetensors":
                from safetensors.numpy import save

                file.write(save(contiguous, metadata=metadata))
            elif format == "npz":
                np.savez(file, **contiguous)  # type: ignore[arg-type]
            else:
                import torch

                torch.save({name: torch.from_numpy(a) for name, a in contiguous.items()}, file)
        os.replace(partial, path)
    except ImportError as error:
        raise InputError(
            f"Writing {path} needs the package {error.name}, which is not installed: run 'pip "
            f"install {error.name}', or choose another format."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: no path at all, with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"Cannot write {path} ({reason}): choose a path in a directory that "
            "exists and may be written to."
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):  # It never came to be.
            partial.unlink()
