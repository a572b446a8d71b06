import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mobilenets_jax import builders
from mobilenets_jax.datasets import open_dataset
from mobilenets_jax.errors import InputError

ROOT = Path(__file__).parents[1]
# SHA-256 of all pixels and labels of digits, in order, as they were first prepared.
DIGITS_TRAIN = "78b83c41141073d7"
DIGITS_TEST = "5ca5ad7c33310a86"


def pixels(source):
    """The source's decoded images [N, H, W] (or [N, H, W, 3]) and labels [N]."""
    images = [np.array(Image.open(io.BytesIO(e["image"]))) for e in iter_source(source)]
    return np.stack(images), np.array([e["label"] for e in iter_source(source)])


def iter_source(source):
    return [source[i] for i in range(len(source))]


def encoded(color, file_format="jpeg", mode="RGB", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def run(code, *arguments, **environment):
    """Starts Python on the code; its modules are the project's."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# digits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture(scope="module")
def digits(data_dir):
    return open_dataset("digits", data_dir=data_dir)


def test_digits_split_is_pinned(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.class_names == tuple("0123456789")
    assert digits.num_classes == 10
    digest = {}
    for split in ("train", "test"):
        images, labels = pixels(getattr(digits, split))
        assert images.shape[1:] == (32, 32)
        assert images.dtype == np.uint8
        digest[split] = hashlib.sha256(images.tobytes() + labels.astype(np.int32).tobytes())
    assert digest["train"].hexdigest()[:16] == DIGITS_TRAIN
    assert digest["test"].hexdigest()[:16] == DIGITS_TEST


def test_digits_split_is_stratified(digits):
    train = Counter(e["label"] for e in iter_source(digits.train))
    test = Counter(e["label"] for e in iter_source(digits.test))
    for label in range(10):
        total = train[label] + test[label]
        assert abs(test[label] - total * 360 / 1797) < 1


def test_digits_are_all_of_scikit_learns(digits):
    from sklearn.datasets import load_digits

    def counts(images):
        return Counter(hashlib.sha256(i.tobytes()).digest() for i in images)

    ours = counts(pixels(digits.train)[0]) + counts(pixels(digits.test)[0])
    theirs = builders.upscale4(load_digits().images)
    assert ours == counts(np.rint(theirs * (255 / 16)).astype(np.uint8))


def test_upscale4_is_bilinear_between_pixel_centres():
    image = np.random.default_rng(0).integers(0, 17, (8, 8))
    ours = builders.upscale4(image[None])[0]
    theirs = cv2.resize(image.astype(np.float32), (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_digits_are_prepared_once(digits, data_dir):
    files = sorted(Path(data_dir, "digits").rglob("*"))
    times = [f.stat().st_mtime_ns for f in files]
    again = open_dataset("digits", data_dir=data_dir)
    assert [f.stat().st_mtime_ns for f in files] == times
    assert iter_source(again.test) == iter_source(digits.test)


def test_two_processes_prepare_digits_at_once(tmp_path, digits):
    code = (
        "import sys; from mobilenets_jax.datasets import open_dataset;"
        "d = open_dataset('digits', data_dir=sys.argv[1]); print(len(d.train), d.train[7]['label'])"
    )
    processes = [run(code, tmp_path) for _ in range(2)]
    outputs = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert [o for o, _ in outputs] == [f"1437 {digits.train[7]['label']}\n"] * 2
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_default_data_dir_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(open_dataset("digits").test) == 360
    assert (tmp_path / "digits" / "1.0.0" / "dataset_info.json").exists()


def test_unwritable_data_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"'digits'.*file.*--config.dataset.data_dir"):
        open_dataset("digits", data_dir=str(tmp_path / "file"))


def test_tensorflow_is_never_imported(tmp_path):
    # Even where TensorFlow is installed: this one tells on whoever imports it.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys\n"
        "from mobilenets_jax import data, datasets\n"
        "d = datasets.open_dataset('digits', data_dir=sys.argv[1])\n"
        "with data.train_batches(d, batch_size=8, seed=0, resolution=32, augment={}) as batches:\n"
        "    next(batches)\n"
        "list(data.eval_batches(d, batch_size=100, resolution=32))\n"
        "print('tensorflow' in sys.modules)"
    )
    process = run(code, tmp_path / "data", PYTHONPATH=f"{tmp_path}:{ROOT}")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "False\n"), errors
    assert errors == ""


def test_sources_are_small_and_equal_when_pickled(digits):
    dumped = pickle.dumps(digits.train)
    assert len(dumped) < 2000
    assert pickle.loads(dumped)[1436] == digits.train[1436]


def test_sub_splits(digits, data_dir):
    part = open_dataset(
        "digits", data_dir=data_dir, train_split="train[:90%]", eval_split="train[90%:]"
    )
    assert (len(part.train), len(part.test)) == (1293, 144)
    images = [e["image"] for s in (part.train, part.test) for e in iter_source(s)]
    assert images == [e["image"] for e in iter_source(digits.train)]
    assert part.test[3]["name"].startswith("record 3 of split 'train[90%:]' in ")


@pytest.mark.parametrize("split", ["validation", "train[:9", "train[:0%]", "test+nothing", ""])
def test_unknown_split(data_dir, digits, split):
    with pytest.raises(InputError, match=r"'digits' has no split .*choose one of 'train', 'test'"):
        open_dataset("digits", data_dir=data_dir, eval_split=split)


# fashion_mnist ------------------------------------------------------------------------------------

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A small Fashion-MNIST of 20 + 10 images in a folder; nothing else is at hand."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    table, arrays = {}, {}
    for split, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        raw = (
            struct.pack(">4I", 0x803, n, 28, 28) + images.tobytes(),
            struct.pack(">2I", 0x801, n) + labels.tobytes(),
        )
        for data, name in zip(raw, [x for x in NAMES if x.startswith(split)], strict=True):
            (folder / name).write_bytes(gzip.compress(data))
        table[split] = (n, *(hashlib.sha256(data).hexdigest() for data in raw))
        arrays[split] = images, labels
    monkeypatch.setattr(builders, "FASHION_MNIST_FILES", table)
    monkeypatch.setattr(builders, "FASHION_MNIST_DEBIAN", str(tmp_path / "nowhere"))
    monkeypatch.setattr(builders, "FASHION_MNIST_URL", f"file://{tmp_path}/no-server/")
    return folder, arrays


def check_fashion(dataset, arrays):
    assert dataset.class_names[9] == "Ankle boot"
    for source, (images, labels) in (
        (dataset.train, arrays["train"]),
        (dataset.test, arrays["t10k"]),
    ):
        found, found_labels = pixels(source)
        assert sorted(found_labels) == sorted(labels)
        assert not found[:, [0, 1, 30, 31]].any()
        assert not found[:, :, [0, 1, 30, 31]].any()
        expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        assert {
            i[2:30, 2:30].tobytes(): n for i, n in zip(found, found_labels, strict=True)
        } == expected


def test_fashion_mnist_from_manual_dir(fashion, tmp_path):
    folder, arrays = fashion
    dataset = open_dataset("fashion_mnist", data_dir=str(tmp_path / "d"), manual_dir=str(folder))
    check_fashion(dataset, arrays)
    # Once prepared, the files are not needed any more.
    check_fashion(open_dataset("fashion_mnist", data_dir=str(tmp_path / "d")), arrays)


def test_fashion_mnist_from_debian(fashion, tmp_path, monkeypatch):
    folder, arrays = fashion
    monkeypatch.setattr(builders, "FASHION_MNIST_DEBIAN", str(folder))
    check_fashion(open_dataset("fashion_mnist", data_dir=str(tmp_path / "d")), arrays)


def test_fashion_mnist_downloaded(fashion, tmp_path, monkeypatch):
    folder, arrays = fashion
    monkeypatch.setattr(builders, "FASHION_MNIST_URL", f"file://{folder}/")
    check_fashion(open_dataset("fashion_mnist", data_dir=str(tmp_path / "d")), arrays)
    assert sorted(p.name for p in (tmp_path / "d/downloads/fashion_mnist").iterdir()) == sorted(
        NAMES
    )


def test_fashion_mnist_broken_download_is_not_kept(fashion, tmp_path, monkeypatch):
    folder, _ = fashion
    monkeypatch.setattr(builders, "FASHION_MNIST_URL", f"file://{folder}/")
    (folder / NAMES[0]).write_bytes(b"<html>Sign in to the hotel's network</html>")
    with pytest.raises(InputError, match=rf"{NAMES[0]}.* is not a whole gzip file"):
        open_dataset("fashion_mnist", data_dir=str(tmp_path / "d"))
    assert list((tmp_path / "d/downloads/fashion_mnist").iterdir()) == []


def test_fashion_mnist_nowhere(fashion, tmp_path):
    with pytest.raises(InputError) as error:
        open_dataset("fashion_mnist", data_dir=str(tmp_path / "d"))
    for mend in (
        "--config.dataset.manual_dir",
        "apt-get install dataset-fashion-mnist",
        "connection",
    ):
        assert mend in str(error.value)


def test_fashion_mnist_missing_file(fashion, tmp_path):
    folder, _ = fashion
    (folder / NAMES[3]).unlink()
    with pytest.raises(InputError, match=rf"{NAMES[3]} is missing in {folder}"):
        open_dataset("fashion_mnist", data_dir=str(tmp_path / "d"), manual_dir=str(folder))


def damaged(name):
    def cut(data):
        return data[: len(data) // 2]

    def flipped(data):
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    def other_magic(data):
        raw = gzip.decompress(data)
        return gzip.compress(b"\0\0\x0d" + raw[3:])

    def other_count(data):
        raw = gzip.decompress(data)
        return gzip.compress(raw[:4] + struct.pack(">I", 21) + raw[8:])

    def other_size(data):
        return gzip.compress(gzip.decompress(data)[:-1])

    def other_contents(data):
        raw = gzip.decompress(data)
        return gzip.compress(raw[:-1] + bytes([raw[-1] ^ 1]))

    return locals()[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "whole gzip file"),
        ("flipped", "whole gzip file"),
        ("other_magic", "not an IDX file of"),
        ("other_count", "not an IDX file of"),
        ("other_size", "not an IDX file of"),
        ("other_contents", "SHA-256 differs"),
    ],
)
def test_fashion_mnist_damaged_file_is_named(fashion, tmp_path, name, damage, message):
    folder, _ = fashion
    file = folder / name
    file.write_bytes(damaged(damage)(file.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        open_dataset("fashion_mnist", data_dir=str(tmp_path / "d"), manual_dir=str(folder))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_fashion_mnist_is_that_of_debian():
    folder = Path(builders.FASHION_MNIST_DEBIAN)
    if not folder.exists():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    for split, count in (("train", 60000), ("t10k", 10000)):
        images = builders.read_fashion_mnist(
            folder / f"{split}-images-idx3-ubyte.gz", split, "images"
        )
        labels = builders.read_fashion_mnist(
            folder / f"{split}-labels-idx1-ubyte.gz", split, "labels"
        )
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10


# imagenet2012 -------------------------------------------------------------------------------------

CLASSES = ("n01440764", "n01443537", "n15075141")
VALIDATION_LABELS = {1: "n01751748", 2: "n09193705", 50000: "n02437616"}


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def imagenet(tmp_path):
    """Fakes of the two tars: 3 classes of 3 images with a CMYK and a PNG, and 3 for validation."""
    folder = tmp_path / "tars"
    folder.mkdir()
    images = {}
    inner = {}
    for i, synset in enumerate(CLASSES):
        images |= {f"{synset}_{j}.JPEG": encoded((80 * i, 80 * j, 0)) for j in range(3)}
        if i == 0:
            images[f"{synset}_0.JPEG"] = encoded((0, 255, 255, 0), mode="CMYK")
            images[f"{synset}_1.JPEG"] = encoded((1, 2, 3), "png")
            images[f"{synset}_2.JPEG"] = encoded(77, mode="L")
        write_tar(tmp_path / "inner", {k: v for k, v in images.items() if k.startswith(synset)})
        inner[f"{synset}.tar"] = (tmp_path / "inner").read_bytes()
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": encoded((0, 0, n % 256)) for n in VALIDATION_LABELS}
    write_tar(folder / "ILSVRC2012_img_val.tar", val)
    return folder, images, val


def open_imagenet(folder, tmp_path):
    return open_dataset(
        "imagenet2012",
        data_dir=str(tmp_path / "d"),
        manual_dir=str(folder),
        eval_split="validation",
    )


def test_imagenet_from_tars(imagenet, tmp_path):
    folder, images, val = imagenet
    dataset = open_imagenet(folder, tmp_path)
    assert dataset.num_classes == 1000
    assert dataset.class_names[:2] == CLASSES[:2]
    stored = iter_source(dataset.train)
    assert Counter(e["label"] for e in stored) == {0: 3, 1: 3, 999: 3}
    # What is a JPEG in RGB or grey is stored to the byte.
    converted = [e["image"] for e in stored if e["image"] not in images.values()]
    assert len(converted) == 2
    means = []
    for image in converted:
        with Image.open(io.BytesIO(image)) as opened:
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (40, 30))
            means.append(np.asarray(opened).mean((0, 1)).round().tolist())
    np.testing.assert_allclose(sorted(means), [[1, 2, 3], [255, 0, 0]], atol=2)
    by_image = {e["image"]: dataset.class_names[e["label"]] for e in iter_source(dataset.test)}
    assert by_image == {
        val[f"ILSVRC2012_val_{n:08d}.JPEG"]: label for n, label in VALIDATION_LABELS.items()
    }


def test_imagenet_is_stored_as_tfds_does(imagenet, tmp_path):
    open_imagenet(imagenet[0], tmp_path)
    ours = tfds.builder_from_directory(tmp_path / "d" / "imagenet2012" / "5.1.0").info
    theirs = tfds.builder("imagenet2012", try_gcs=False).info
    assert repr(ours.features) == repr(theirs.features)
    assert ours.features["label"].names == theirs.features["label"].names
    assert ours.full_name == theirs.full_name


@pytest.mark.parametrize("name", builders.IMAGENET_TARS)
def test_imagenet_missing_tar(imagenet, tmp_path, name):
    folder, _, _ = imagenet
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing in {folder}: .*image-net.org"):
        open_imagenet(folder, tmp_path)


def test_imagenet_without_manual_dir(tmp_path):
    with pytest.raises(InputError, match=r"train.tar is missing .*--config.dataset.manual_dir"):
        open_dataset("imagenet2012", data_dir=str(tmp_path / "d"))


@pytest.mark.parametrize("name", builders.IMAGENET_TARS)
@pytest.mark.parametrize("part", [0.0, 0.15, 0.3, 0.4])
def test_imagenet_cut_tar(imagenet, tmp_path, name, part):
    folder, _, _ = imagenet
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=f"{name} is not a whole tar") as error:
        open_imagenet(folder, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d" / "imagenet2012" / "5.1.0").exists()


@pytest.mark.parametrize(
    ("tar", "files", "message"),
    [
        ("ILSVRC2012_img_train.tar", {"n00000000.tar": b""}, "n00000000.tar, which is not one of"),
        ("ILSVRC2012_img_val.tar", {"cat.JPEG": b""}, "cat.JPEG, which is not an official"),
        (
            "ILSVRC2012_img_val.tar",
            {"ILSVRC2012_val_00000001.JPEG": b"?"},
            "00000001.JPEG in .* is not a",
        ),
    ],
)
def test_imagenet_strange_contents(imagenet, tmp_path, tar, files, message):
    folder, _, _ = imagenet
    write_tar(folder / tar, files)
    with pytest.raises(InputError, match=message) as error:
        open_imagenet(folder, tmp_path)
    assert "\n" not in str(error.value)


# image_folder -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    files = [
        "train/dog/1.jpg",
        "train/dog/2.JPEG",
        "train/cat/1.png",
        "val/cat/9.jpg",
        "val/dog/8.png",
    ]
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    (root / "train/dog/notes.txt").write_text("no image")
    (root / "train/dog/._1.jpg").write_text("a Mac's droppings")
    return root


def test_image_folder(folder):
    dataset = open_dataset("image_folder", manual_dir=str(folder))
    assert dataset.class_names == ("cat", "dog")
    expected = [("train/cat/1.png", 0), ("train/dog/1.jpg", 1), ("train/dog/2.JPEG", 1)]
    assert iter_source(dataset.train) == [
        {"image": f.encode(), "label": label, "name": str(folder / f)} for f, label in expected
    ]
    assert [(e["image"], e["label"]) for e in iter_source(dataset.test)] == [
        (b"val/cat/9.jpg", 0),
        (b"val/dog/8.png", 1),
    ]
    assert pickle.loads(pickle.dumps(dataset.train))[2] == dataset.train[2]


def test_image_folder_in_data_dir_with_other_splits(folder):
    (folder / "val").rename(folder / "test")
    dataset = open_dataset("image_folder", data_dir=str(folder))
    assert dataset.test[0]["image"] == b"val/cat/9.jpg"
    same = open_dataset("image_folder", data_dir=str(folder), eval_split="train")
    assert iter_source(same.test) == iter_source(dataset.train)


def test_image_folder_file_gone(folder):
    dataset = open_dataset("image_folder", manual_dir=str(folder))
    (folder / "train/dog/1.jpg").unlink()
    with pytest.raises(InputError, match=rf"{folder}/train/dog/1.jpg \(No such file"):
        dataset.train[1]


def test_image_folder_errors(folder):
    def fails(match, root=folder, **splits):
        with pytest.raises(InputError, match=match):
            open_dataset("image_folder", manual_dir=root and str(root), **splits)

    fails("--config.dataset.manual_dir", root=None)
    fails("no directory 'train'", root=folder / "train")
    fails(r"no directory 'train\[:90%\]'", train_split="train[:90%]")
    (folder / "val/bird").mkdir()
    fails("val/bird has no image")
    (folder / "val/bird/1.jpg").write_text("")
    fails("differ in 'bird'")
    (folder / "empty").mkdir()
    fails("empty has no class", train_split="empty")


# Other TFDS datasets ------------------------------------------------------------------------------


class Spots(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    label = "label"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    self.label: tfds.features.ClassLabel(names=["a", "b"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"image": encoded((i, 0, 0), "png"), self.label: i % 2}


@pytest.fixture
def spots(tmp_path):
    Spots(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


@pytest.mark.parametrize("name", ["spots", "spots:1.0.0"])
def test_prepared_dataset(spots, name):
    dataset = open_dataset(name, data_dir=str(spots))
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (6, 4, ("a", "b"))
    images, labels = pixels(dataset.train)
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert (images[:, 0, 0, 0] % 2 == labels).all()


def test_newest_version_and_configs(spots):
    (spots / "spots/1.0.0").rename(spots / "spots/10.0.0")
    (spots / "spots/9.0.0").mkdir()
    (spots / "spots/9.0.0/dataset_info.json").write_text("{}")
    assert len(open_dataset("spots", data_dir=str(spots)).train) == 6
    (spots / "spots/small").mkdir()
    (spots / "spots/10.0.0").rename(spots / "spots/small/10.0.0")
    assert len(open_dataset("spots/small", data_dir=str(spots)).train) == 6
    with pytest.raises(
        InputError, match=r"several configurations: choose one of spots, spots/small"
    ):
        open_dataset("spots", data_dir=str(spots))
    with pytest.raises(InputError, match=r"Cannot read the dataset in .*spots/9.0.0"):
        open_dataset("spots:9.0.0", data_dir=str(spots))
    with pytest.raises(InputError, match=r"'spots:3.0.0' is not prepared"):
        open_dataset("spots:3.0.0", data_dir=str(spots))


def test_unprepared_dataset_says_the_command(tmp_path):
    with pytest.raises(InputError) as error:
        open_dataset("cifar10", data_dir=str(tmp_path))
    assert str(error.value) == (
        f"Dataset 'cifar10' is not prepared in {tmp_path}: prepare it by "
        "pip install '.[tf]' && python -c \"import tensorflow_datasets as tfds; tfds.builder("
        f"'cifar10', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()\", "
        "or name the place by --config.dataset.data_dir."
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cifar_10", "cifar10"), ("digit", "digits"), ("imagenet2013", "imagenet2012")],
)
def test_unknown_dataset_names_the_nearest(tmp_path, name, meant):
    with pytest.raises(InputError, match=rf"Unknown dataset '{name}'\. Did you mean '{meant}'\?"):
        open_dataset(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["", "../digits", "a b"])
def test_impossible_names(tmp_path, name):
    with pytest.raises(InputError, match="Unknown dataset"):
        open_dataset(name, data_dir=str(tmp_path))


def test_dataset_in_another_format(spots):
    info = spots / "spots/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"as tfrecord, which cannot be read without TensorFlow"):
        open_dataset("spots", data_dir=str(spots))


def test_dataset_without_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(Spots, "label", "kind")
    Spots(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(
        InputError, match=r"features \['image', 'kind'\], but .* 'label' are needed"
    ):
        open_dataset("spots", data_dir=str(tmp_path))


def test_unlabelled_example(spots):
    source = open_dataset("spots", data_dir=str(spots)).train
    source._num_classes = 0
    with pytest.raises(InputError, match=r"record 2 of split 'train' in .* has label [01] of 0"):
        source[2]


def test_damaged_record_is_named(spots):
    dataset = open_dataset("spots", data_dir=str(spots))
    file = next((spots / "spots/1.0.0").glob("*train*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 20 :] = bytes(len(data) - len(data) // 20)
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"Cannot read record \d of split 'train' in .*spots"):
        iter_source(dataset.train)
