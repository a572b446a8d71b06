"""Is what a network sees of a photo the same here as in torchvision, timm and Keras?

    python -m experiments.preprocessing measure    compare, store, render docs/preprocessing.md
    python -m experiments.preprocessing record     store what the tests need of the libraries

For every network and set of weights in `published.NETWORKS`: the library opens an image file and
applies the transform that it documents for these weights; we decode the same file and apply
`augment.evaluation_transform` with `published.preprocessing`. Both are compared in units of a
pixel's 0 to 255, by our mean and standard deviation. The images are scikit-learn's two photos and
what is made of them: other shapes, small, large, grey, CMYK, and one that EXIF says to turn.

Needs the extra `parity`; `pictures` does not.
"""

import argparse
import collections
import importlib.metadata
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from experiments import documents
from mobilenets_jax import published
from mobilenets_jax.augment import evaluation_transform
from mobilenets_jax.data import decode
from mobilenets_jax.published import Preprocessing

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
RECORDED = DATA / "preprocessing.npz"
RESULTS = Path(__file__).parent / "results" / "preprocessing.json"
DOCUMENT = ROOT / "docs" / "preprocessing.md"
LIBRARIES = ("torchvision", "timm", "keras", "pillow", "numpy")
# One network for each transform that differs.
DISTINCT = (
    ("torchvision", "mobilenet_v2.IMAGENET1K_V1"),
    ("torchvision", "mobilenet_v2.IMAGENET1K_V2"),
    ("timm", "mobilenetv2_100.ra_in1k"),
    ("timm", "mobilenetv3_large_100.ra4_e3600_r224_in1k"),
    ("timm", "mobilenetv1_125.ra4_e3600_r224_in1k"),
    ("keras", "mobilenet_v2"),
)
PATCH = slice(104, 120)  # of the recorded rows and columns
# Encoded file -> the float image [H, W, 3] that the library gives to its network.
Transform = Callable[[bytes], np.ndarray]


# Images -----------------------------------------------------------------------------------------


def pictures() -> dict[str, bytes]:
    """Returns image files by name, the same everywhere: none is encoded with loss on the way."""
    samples = load_sample_images()
    photos = dict(zip(map(os.path.basename, samples.filenames), samples.images, strict=True))
    china, flower = photos["china.jpg"], photos["flower.jpg"]
    files = {name: _sample_file(name) for name in ("china.jpg", "flower.jpg")}
    return {
        **files,
        "portrait 200 × 427": _lossless(china[:, 150:350]),
        "small 100 × 80": _lossless(flower[150:230, 250:350]),
        "odd 301 × 225": _lossless(china[60:285, 99:400]),
        "wide 640 × 60": _lossless(china[180:240]),
        "final 224 × 224": _lossless(flower[:224, :224]),
        "large 1920 × 1281": _lossless(china.repeat(3, 0).repeat(3, 1), "BMP"),
        "grey PNG": _lossless(flower[:, :, 1]),
        "grey JPEG": (DATA / "grey.jpg").read_bytes(),
        "CMYK JPEG": (DATA / "cmyk.jpg").read_bytes(),
        "EXIF-turned JPEG": turned(files["flower.jpg"], 6),
    }


def _sample_file(name: str) -> bytes:
    import sklearn.datasets

    return (Path(sklearn.datasets.__file__).parent / "images" / name).read_bytes()


def _lossless(image: np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format)
    return buffer.getvalue()


def turned(jpeg: bytes, orientation: int) -> bytes:
    """Returns a JPEG file with an EXIF orientation, 1 to 8, put in front of what it holds."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0])
    segment = b"Exif\0\0" + tiff + b"\0\0" + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def _record_jpegs() -> None:
    flower = Image.open(io.BytesIO(_sample_file("flower.jpg"))).crop((200, 60, 420, 220))
    for name, mode in (("grey.jpg", "L"), ("cmyk.jpg", "CMYK")):
        flower.convert(mode).save(DATA / name, "JPEG", quality=80)


# Both sides -------------------------------------------------------------------------------------


def ours(encoded: bytes, how: Preprocessing) -> np.ndarray:
    """Returns uint8 [R, R, 3], as our networks' pipeline makes it."""
    image = decode(encoded, "the picture")
    return evaluation_transform(image, how.resolution, how.crop_fraction, how.interpolation)


def theirs(source: str, name: str, how: Preprocessing) -> Callable[[bytes], np.ndarray]:
    """Returns what gives float64 [R, R, 3] in 0 to 255: the library's, our normalisation undone."""
    transform = {"torchvision": _torchvision, "timm": _timm, "keras": _keras}[source](name)

    def pixels(encoded: bytes) -> np.ndarray:
        return transform(encoded).astype(np.float64) * how.std + how.mean

    return pixels


def _open(encoded: bytes) -> Image.Image:
    """As torchvision's and timm's data sets do."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _torchvision(name: str) -> Transform:
    import torchvision

    model, _, tag = name.partition(".")
    transform = torchvision.models.get_model_weights(model)[tag].transforms()
    return lambda encoded: transform(_open(encoded)).numpy().transpose(1, 2, 0)


def _timm(name: str) -> Transform:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=config))
    return lambda encoded: transform(_open(encoded)).numpy().transpose(1, 2, 0)


def _keras(name: str) -> Transform:
    import keras

    module = getattr(keras.applications, name.replace("mobilenet_v1", "mobilenet")[:12].rstrip("_"))

    def transform(encoded: bytes) -> np.ndarray:
        with tempfile.NamedTemporaryFile() as file:
            file.write(encoded)
            file.flush()
            image = keras.utils.load_img(file.name, target_size=(224, 224))
        pixels = module.preprocess_input(keras.utils.img_to_array(image))
        # V3 scales as its first layer.
        return pixels / 127.5 - 1 if "_v3" in name else pixels

    return transform


def _torchvision_tensors(encoded: bytes) -> np.ndarray:
    """Torchvision's first preset, applied to a tensor instead of to Pillow's image."""
    import torch
    import torchvision

    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    image = transform(torch.from_numpy(np.array(_open(encoded)).transpose(2, 0, 1)))
    mean, std = np.array(transform.mean), np.array(transform.std)
    return (image.numpy().transpose(1, 2, 0).astype(np.float64) * std + mean) * 255


def _keras_bilinear(encoded: bytes) -> np.ndarray:
    """How `keras.utils.image_dataset_from_directory` resizes."""
    import keras

    image = np.array(_open(encoded), np.float32)
    return np.asarray(keras.ops.image.resize(image, (224, 224), interpolation="bilinear"))


# Comparison -------------------------------------------------------------------------------------


def compare(encoded: bytes, how: Preprocessing, reference: Transform) -> dict[str, float]:
    """Returns how far apart both are, in pixels' units: 1 is 1/255."""
    difference = np.abs(ours(encoded, how) - reference(encoded))
    return {
        "mean": float(difference.mean()),
        "p99.9": float(np.quantile(difference, 0.999)),
        "max": float(difference.max()),
    }


def worst(how: Preprocessing, reference: Transform) -> dict[str, Any]:
    """Returns the largest of each number over all pictures, and by picture."""
    each = {name: compare(encoded, how, reference) for name, encoded in pictures().items()}
    numbers = ("mean", "p99.9", "max")
    return {**{n: max(row[n] for row in each.values()) for n in numbers}, "pictures": each}


def measure() -> None:
    """Compares all, and stores and renders it."""
    rows = []
    # Keras documents one transform for all widths.
    networks = {
        (n.source, n.model if n.source == "keras" else n.name): n for n in published.NETWORKS
    }
    for (_, called), network in networks.items():
        for weights in network.weights:
            name = ".".join(filter(None, (called, weights.tag)))
            how = weights.preprocessing
            result = worst(how, theirs(network.source, name, how))
            rows.append({"source": network.source, "name": name, "how": how._asdict(), **result})
            print(
                network.source, name, {n: result[n] for n in ("mean", "p99.9", "max")}, flush=True
            )
    first = published.preprocessing("torchvision", "mobilenet_v2.IMAGENET1K_V1")
    squeezed = published.preprocessing("keras", "mobilenet_v2")
    others = {
        "the preset of IMAGENET1K_V1 on a tensor instead of an image": (
            *("torchvision", first, _torchvision_tensors),
        ),
        "the preset of IMAGENET1K_V1": (
            "torchvision",
            first._replace(interpolation="bilinear"),
            theirs("torchvision", "mobilenet_v2.IMAGENET1K_V1", first),
        ),
        "`image_dataset_from_directory`": (
            *("keras", squeezed._replace(interpolation="bilinear"), _keras_bilinear),
        ),
    }
    for name, (source, how, reference) in others.items():
        row = {"source": source, "name": name, "how": how._asdict(), **worst(how, reference)}
        rows.append({**row, "other": True})
        print(source, name, {n: row[n] for n in ("mean", "p99.9", "max")}, flush=True)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n'
    RESULTS.write_text(text, encoding="utf-8")
    documents.rewrite(DOCUMENT, "preprocessing", table(json.loads(text)))


def table(results: dict[str, Any]) -> str:
    """Returns the table in Markdown, networks of the same transform and result in one row."""
    lines = [
        "| library | transform of | `crop_fraction` | `interpolation` | mean | 99.9th percentile "
        "| largest |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    groups = collections.defaultdict(list)
    for row in results["rows"]:
        how = row["how"]
        crop = "None" if how["crop_fraction"] is None else f"{how['crop_fraction']:.4g}"
        numbers = (_number(row[n]) for n in ("mean", "p99.9", "max"))
        groups[(row["source"], crop, f"`{how['interpolation']}`", *numbers)].append(row)
    for (source, crop, interpolation, *numbers), rows in groups.items():
        names = ", ".join(r["name"] if r.get("other") else f"`{r['name']}`" for r in rows)
        lines.append(f"| {' | '.join((source, names, crop, interpolation, *numbers))} |")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    count = len(results["rows"][0]["pictures"])
    note = f"Units of 1/255, the worst of {count} images; 0: equal to the bit. {versions}."
    return "\n".join((*lines, "", note))


def _number(value: float) -> str:
    """As text; what float32's normalisation there and back leaves is nothing."""
    return "0" if value < 1e-3 else f"{value:.2f}"


def record() -> None:
    """Stores patches, means and checksums of what the libraries make of every picture."""
    _record_jpegs()
    images = [
        [np.rint(reference(encoded)).astype(np.uint8) for encoded in pictures().values()]
        for reference in (theirs(*key, published.preprocessing(*key)) for key in DISTINCT)
    ]
    np.savez_compressed(
        RECORDED,
        transforms=np.array([" ".join(key) for key in DISTINCT]),
        pictures=np.array(list(pictures())),
        patches=np.array([[image[PATCH, PATCH] for image in row] for row in images]),
        means=np.array([[image.mean((0, 1)) for image in row] for row in images]),
        checksums=np.array([[zlib.crc32(image.tobytes()) for image in row] for row in images]),
    )


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands: dict[str, Callable[[], None]] = {"measure": measure, "record": record}
    parser.add_argument("command", choices=commands)
    commands[parser.parse_args().command]()


if __name__ == "__main__":
    main()
