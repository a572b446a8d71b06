import contextlib
import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from PIL import Image

from mobilenets_jax import data
from mobilenets_jax.datasets import Dataset, open_dataset
from mobilenets_jax.errors import InputError

pytestmark = pytest.mark.xdist_group("workers")

ROOT = Path(__file__).parents[1]
AUGMENT = {
    "crop": "pad",
    "padding": 2,
    "flip": True,
    "rotate": 10.0,
    "randaugment": 1,
    "magnitude": 5,
}


def encode(image, file_format="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


class Memory:
    """Examples whose label is their index and whose image is random."""

    def __init__(self, size, broken=(), resolution=8):
        rng = np.random.default_rng(size)
        self.images = [
            encode(rng.integers(1, 256, (resolution, resolution, 3), np.uint8)) for _ in range(size)
        ]
        for index in broken:
            self.images[index] = self.images[index][:60]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index, "name": f"picture {index}"}


def memory(train=50, test=20, **options):
    return Dataset(
        "memory", Memory(train, **options), Memory(test, **options), tuple(map(str, range(train)))
    )


def take(count, dataset, **options):
    options = {"batch_size": 8, "seed": 0, "resolution": 8, "augment": AUGMENT} | options
    with data.train_batches(dataset, **options) as batches:
        return [next(batches) for _ in range(count)]


def equal(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def nothing_left():
    """After the test there are as many child processes and shared blocks as before."""
    before = set(os.listdir("/dev/shm"))
    yield
    assert multiprocessing.active_children() == []
    gc.collect()  # the exception that a test caught holds on to a batch
    # Grain frees blocks in a thread of its own.
    assert any(not shared_blocks(before, "psm") or time.sleep(0.1) for _ in range(50))


def shared_blocks(before, *kinds):
    """Names of blocks of shared memory (psm) and semaphores (sem.mp) that were not there before."""
    return {
        f for f in set(os.listdir("/dev/shm")) - before if f.startswith(kinds or ("psm", "sem.mp"))
    }


# Decoding -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo():
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC))


def test_decode_jpeg_as_pil(photo):
    encoded = encode(photo, "jpeg", quality=90)
    decoded = data.decode(encoded, "x")
    assert (decoded == np.asarray(Image.open(io.BytesIO(encoded)))).all()
    assert abs(decoded.astype(int) - photo).mean() < 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_decode_other_jpegs(photo, mode):
    buffer = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(buffer, "jpeg", quality=95)
    decoded = data.decode(buffer.getvalue(), "x")
    assert (decoded.shape, decoded.dtype) == ((60, 80, 3), np.uint8)
    assert abs(decoded.astype(int) - np.asarray(Image.open(buffer).convert("RGB"))).max() == 0
    expected = np.asarray(Image.fromarray(photo).convert(mode).convert("RGB"))
    assert abs(decoded.astype(int) - expected).mean() < 3


def test_decode_leaves_an_image_as_it_is_stored(photo):
    encoded = encode(photo, "jpeg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    to_be_turned = encode(photo, "jpeg", quality=90, exif=exif)
    assert to_be_turned != encoded
    assert (data.decode(to_be_turned, "x") == data.decode(encoded, "x")).all()


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_decode_refuses_what_claims_to_be_huge(photo, file_format):
    encoded = bytearray(encode(photo, file_format))
    if file_format == "jpeg":
        start = encoded.index(b"\xff\xc0") + 5
        encoded[start : start + 4] = b"\xff\xdc" * 2  # 65,500 × 65,500
    else:
        encoded[16:24] = (65_500).to_bytes(4, "big") * 2
        encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"^Cannot decode the image x \(.*exceeds limit.*remove"):
        data.decode(bytes(encoded), "x")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_decode_png(photo, mode):
    image = Image.fromarray(photo).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    decoded = data.decode(buffer.getvalue(), "x")
    assert decoded.dtype == np.uint8
    assert (decoded == np.asarray(image.convert("RGB"))).all()


def test_decode_png_of_16_bits(photo):
    grey = photo[:, :, 0].astype(np.uint16)
    decoded = data.decode(encode(grey * 256 + 255), "x")
    assert (decoded == grey[:, :, None]).all()


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_decode_names_what_is_broken(photo, file_format):
    encoded = encode(photo, file_format)
    for broken in (b"", b"GIF", encoded[:20], encoded[: len(encoded) // 2]):
        with pytest.raises(
            InputError, match=r"^Cannot decode the image dir/7.jpg \(.*replace"
        ) as error:
            data.decode(broken, "dir/7.jpg")
        assert "\n" not in str(error.value)


# Training -----------------------------------------------------------------------------------------


def test_batches_are_what_they_are_said_to_be():
    (batch,) = take(1, memory(), resolution=12)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((8, 12, 12, 3), np.uint8),
        "label": ((8,), np.int32),
    }


def test_without_augmentation_images_are_the_datasets():
    dataset = memory()
    for batch in take(6, dataset, augment={}):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert (image == data.decode(dataset.train[label]["image"], "")).all()


def test_an_epoch_has_each_example_once_and_leaves_the_remainder_out():
    # 50 examples in batches of 8: 6 steps.
    dataset = memory()
    assert data.steps_per_epoch(dataset, 8) == 6
    batches = take(4 * 6, dataset)
    orders = []
    for epoch in range(4):
        labels = np.concatenate([b["label"] for b in batches[6 * epoch : 6 * epoch + 6]])
        assert len(set(labels.tolist())) == 48
        orders.append(labels.tolist())
    assert len({tuple(o) for o in orders}) == 4  # reshuffled
    assert len({i for o in orders for i in o}) == 50  # other examples are left out


def test_each_epoch_is_augmented_anew():
    dataset = memory(train=8)
    versions = {i: set() for i in range(8)}
    for batch in take(10, dataset):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            versions[label].add(image.tobytes())
    assert min(map(len, versions.values())) >= 9


def test_seeds_give_different_batches():
    assert equal(take(3, memory()), take(3, memory()))
    first, second = take(1, memory()), take(1, memory(), seed=1)
    assert (first[0]["label"] != second[0]["label"]).any()
    first, second = (take(6, memory(train=8), seed=s) for s in (0, 1))
    # Nor is one seed's second epoch another's first.
    assert (first[1]["label"] != second[0]["label"]).any()


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 17, 1_000_003])
def test_resume_at_any_step(start):
    dataset = memory()
    if start < 100:
        assert equal(take(22, dataset)[start:], take(22 - start, dataset, start_step=start))
    else:
        later = take(4, dataset, start_step=start)
        assert equal(later[1:], take(3, dataset, start_step=start + 1))


def test_workers_change_nothing(nothing_left):
    dataset = memory()
    batches = take(15, dataset)
    assert equal(batches, take(15, dataset, workers=1))
    assert equal(batches[7:], take(8, dataset, workers=2, start_step=7))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_share_the_batches_of_one(count):
    dataset = memory()
    whole = take(13, dataset)
    shares = [take(13, dataset, process_index=i, process_count=count) for i in range(count)]
    for step, batch in enumerate(whole):
        assert all(s[step]["image"].shape[0] == 8 // count for s in shares)
        for name, expected in batch.items():
            together = np.empty_like(expected)
            for i, share in enumerate(shares):
                together[i::count] = share[step][name]
            assert (together == expected).all()


def test_config_dict_serves_as_augment():
    config = ml_collections.ConfigDict(AUGMENT).lock()
    assert equal(take(2, memory()), take(2, memory(), augment=config))


def test_memory_is_bounded_and_changes_nothing(monkeypatch):
    dataset = memory()
    batches = take(13, dataset)
    for limit in (0, 8 * 8 * 3 * 50 - 1, 8 * 8 * 3 * 50):
        monkeypatch.setattr(data, "CACHE_BYTES", limit)
        assert equal(batches, take(13, dataset))
    decoded = data._Decoded(dataset.train)
    for i in range(50):
        assert decoded[i][1] == i
    assert 45 <= len(decoded._cache) <= 50
    # A small first image does not fool it.
    dataset.train.images[0] = encode(np.zeros((1, 1, 3), np.uint8))
    decoded = data._Decoded(dataset.train)
    monkeypatch.setattr(decoded, "_room", 1000)
    assert [decoded[i][1] for i in range(50)] == list(range(50))
    assert sum(image.nbytes for image, _ in decoded._cache.values()) <= 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 51},
            "size of 51 is larger than the training split of 'memory': .* most 50",
        ),
        ({"batch_size": 0}, "size of 0 cannot be shared"),
        ({"batch_size": 9, "process_count": 2}, "size of 9 cannot be shared by 2 .* multiple of 2"),
    ],
)
def test_bad_batch_sizes(options, message):
    with pytest.raises(InputError, match=message):
        take(1, memory(), **options)
    if "51" not in message:
        with pytest.raises(InputError, match=message):
            data.eval_batches(memory(), resolution=8, **options)


def test_bad_values():
    with pytest.raises(InputError, match=r"The seed is -1: choose .* from 0"):
        take(1, memory(), seed=-1)
    with pytest.raises(InputError, match=r"augment.padding is -2"):
        take(1, memory(), augment={"padding": -2})
    with pytest.raises(InputError, match=r"crop_fraction is 0: choose"):
        data.eval_batches(memory(), batch_size=4, resolution=8, crop_fraction=0)


# Evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 7, 19, 20, 21, 100])
def test_evaluation_counts_every_example_once(size, count):
    dataset = memory()
    size *= count
    labels, lengths = [], []
    for index in range(count):
        batches = list(
            data.eval_batches(
                dataset, batch_size=size, resolution=8, process_index=index, process_count=count
            )
        )
        lengths.append(len(batches))
        for batch in batches:
            assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
                "image": ((size // count, 8, 8, 3), np.uint8),
                "label": ((size // count,), np.int32),
                "mask": ((size // count,), np.float32),
            }
            real = batch["mask"] == 1
            assert (batch["mask"][~real] == 0).all()
            assert not batch["image"][~real].any()
            assert not batch["label"][~real].any()
            assert batch["image"][real].all()
            labels += batch["label"][real].tolist()
    assert sorted(labels) == list(range(20))
    assert lengths == [-(-20 // size)] * count


def test_evaluation_with_workers(nothing_left):
    options = {"batch_size": 6, "resolution": 8, "crop_fraction": 0.5}
    batches = list(data.eval_batches(memory(), **options))
    assert equal(batches, list(data.eval_batches(memory(), workers=2, **options)))
    assert (np.concatenate([b["label"] for b in batches])[:20] == np.arange(20)).all()


def test_evaluation_crops_as_told():
    dataset = memory(resolution=16)
    batch = next(data.eval_batches(dataset, batch_size=4, resolution=8, crop_fraction=0.5))
    whole = data.decode(dataset.test[1]["image"], "")
    assert (batch["image"][1] == whole[4:12, 4:12]).all()


# Errors and the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(workers, nothing_left):
    dataset = memory(broken=[13])
    for read in (
        lambda: take(7, dataset, batch_size=7, workers=workers),
        lambda: list(data.eval_batches(dataset, batch_size=7, resolution=8, workers=workers)),
    ):
        with pytest.raises(InputError, match="picture 13") as error:
            read()
        assert str(error.value) == (
            "Cannot decode the image picture 13 (image file is truncated): replace or remove it."
        )


def test_closed_batches_are_at_their_end(nothing_left):
    for workers in (0, 1):
        options = {"batch_size": 4, "seed": 0, "resolution": 8, "augment": {}, "workers": workers}
        batches = data.train_batches(memory(), **options)
        next(batches)
        batches.close()
        batches.close()
        assert list(batches) == []
        batches = data.train_batches(memory(), **options)
        next(batches)
        del batches  # closes as well


@contextlib.contextmanager
def script(tmp_path, code):
    """Runs a script that uses digits and two workers; yields the process, with its output."""
    open_dataset("digits", data_dir=str(tmp_path))
    file = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(code), "    ")
    file.write_text(
        "import sys, time, signal\n"
        "from mobilenets_jax import data, datasets\n"
        "if __name__ == '__main__':\n"
        f"    digits = datasets.open_dataset('digits', data_dir={str(tmp_path)!r})\n"
        "    batches = data.train_batches(digits, batch_size=64, seed=0, resolution=64,\n"
        "                                 augment={}, workers=2)\n" + body
    )
    process = subprocess.Popen(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def group_is_gone(process, timeout=20):
    """Waits for the last process of the script's group to end."""
    for _ in range(timeout * 10):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_script_without_absl_app_and_without_close_ends_cleanly(tmp_path):
    before = set(os.listdir("/dev/shm"))
    code = "for _ in range(3): b = next(batches)\nprint(b['image'].shape)"
    with script(tmp_path, code) as process:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "(64, 64, 64, 3)\n", "")
        assert group_is_gone(process)
    assert shared_blocks(before) == set()


def test_what_watches_shared_memory_runs_in_one_process(request):
    """Beside each other, such tests would see each other's semaphores."""
    if request.config.getoption("loadgroup", False):  # set by pytest-xdist, in its processes
        assert request.node.nodeid.endswith("@workers")


def test_killed_parent_leaves_nothing(tmp_path):
    before = set(os.listdir("/dev/shm"))
    with script(tmp_path, "next(batches); print('ready', flush=True); time.sleep(100)") as process:
        assert process.stdout.readline() == "ready\n"
        assert shared_blocks(before) != set()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert group_is_gone(process)
    assert shared_blocks(before) == set()


def test_signals_are_the_parents_business(tmp_path):
    before = set(os.listdir("/dev/shm"))
    code = """
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        next(batches)
        print('ready', flush=True)
        while len(stop) < 2: time.sleep(0.01)
        time.sleep(0.5)
        for _ in range(30): next(batches)
        batches.close()
        print('saved')
        """
    with script(tmp_path, code) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "saved\n", "")
        assert group_is_gone(process)
    assert shared_blocks(before) == set()
