"""The input pipeline: from a dataset's examples to batches of uint8 images, by Grain.

Owns decoding, order, sharding, batching and worker processes. A training batch is a pure function
of (seed, step): the number of workers, a resume and the number of processes that share the work
change nothing. Knows nothing about models, and about datasets only what `datasets.Source` says.
"""

import contextlib
import dataclasses
import gc
import io
import multiprocessing.resource_tracker
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain  # type: ignore[import-untyped]
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from absl import flags
from PIL import Image, UnidentifiedImageError

from mobilenets_jax.augment import augment_train, check, evaluation_transform
from mobilenets_jax.datasets import Dataset, Source
from mobilenets_jax.errors import InputError

# Pillow would hand others, such as EPS, to external programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
# Pillow refuses larger images, which a small file can claim to hold; simplejpeg does not.
MAX_PIXELS = 178_956_970
# A dataset whose decoded images fit into this many bytes is decoded only once per process.
CACHE_BYTES = 256 * 2**20
# Arrays below this come from worker processes through pipes. Blocks of shared memory are faster for
# large ones, but stay behind if the whole process group is killed.
SHARED_BYTES = 8 * 2**20


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decodes a JPEG, PNG or other still image.

    The pixels are those of Pillow's `convert("RGB")`, which torchvision, timm and Keras take: as
    they are stored, whatever EXIF says about turning them. Only 16-bit grey differs: it is scaled.

    Args:
      encoded: the file's contents.
      name: what the image is called in an error.

    Returns:
      uint8 [H, W, 3] RGB.

    Raises:
      InputError: the image is broken, or has more than MAX_PIXELS.
    """
    if encoded[:3] == b"\xff\xd8\xff":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
            # Of CMYK, simplejpeg makes another RGB than PIL does; what is too large, PIL refuses.
            if colours in ("YCbCr", "Gray") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(encoded, "RGB")
        except ValueError:
            pass  # harmless extra bytes that PIL overlooks, or broken: PIL decides
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey instead of scaling it
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise InputError(
            f"Cannot decode the image {name} (it is none of {', '.join(FORMATS)}): replace or "
            "remove it."
        ) from error
    except Exception as error:
        raise InputError(
            f"Cannot decode the image {name} ({error}): replace or remove it."
        ) from error


class _Decoded:
    """A source's examples as (image, label), kept in memory if all of them fit into CACHE_BYTES."""

    def __init__(self, source: Source):
        self._source = source
        # The first image stands for all; `_room` holds even if it was much the smallest.
        self._keep = self._decode(0)[0].nbytes * len(source) <= CACHE_BYTES
        self._room = CACHE_BYTES
        self._cache: dict[int, tuple[np.ndarray, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_room": CACHE_BYTES, "_cache": {}}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        found = self._cache.get(index)
        if found is None:
            found = self._decode(index)
            if self._keep and self._room > found[0].nbytes:
                self._room -= found[0].nbytes
                self._cache[index] = found
        return found

    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        example = self._source[index]
        image = decode(example["image"], example["name"])
        image.flags.writeable = False  # an augmentation must not change what is kept
        return image, example["label"]


@dataclasses.dataclass(frozen=True)
class _Augment:
    resolution: int
    augment: Mapping[str, Any]
    interpolation: str

    def __call__(self, example: tuple[np.ndarray, int], rng: np.random.Generator) -> dict[str, Any]:
        image, label = example
        image = augment_train(image, rng, self.resolution, self.augment, self.interpolation)
        return {"image": image, "label": np.int32(label)}


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    """Position in the padded evaluation set -> example; past the end: zeros, with mask 0."""

    examples: _Decoded
    resolution: int
    crop_fraction: float | None
    interpolation: str

    def __call__(self, index: int) -> dict[str, Any]:
        if index >= len(self.examples):
            image = np.zeros((self.resolution, self.resolution, 3), np.uint8)
            return {"image": image, "label": np.int32(0), "mask": np.float32(0)}
        image, label = self.examples[index]
        image = evaluation_transform(image, self.resolution, self.crop_fraction, self.interpolation)
        return {"image": image, "label": np.int32(label), "mask": np.float32(1)}


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Step -> the batches of several streams, stacked."""

    streams: list[grain.MapDataset[dict[str, np.ndarray]]]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        batches = [stream[step] for stream in self.streams]
        return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches that is to be closed when done, by `close` or by `with`.

    It closes itself after an error, when nobody holds it any longer, and when Python exits.
    """

    def __init__(
        self,
        iterator: grain.DatasetIterator[dict[str, np.ndarray]],
        starts_workers: bool = False,
    ):
        self._starts_workers = starts_workers  # at the first batch
        # Held in one place, from where closing can drop it: Grain's iterators must be gone before
        # Python takes their modules away at exit.
        self._holder = [iterator]
        self._close = weakref.finalize(self, _close_all, self._holder)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._holder:
            raise StopIteration
        try:
            if self._starts_workers:
                self._starts_workers = False
                with _workers_ignore_signals():
                    batch = next(self._holder[0])
            else:
                batch = next(self._holder[0])
        except BaseException:
            self.close()
            raise
        # Arrays from workers lie in shared memory, which is better given back at once.
        return {k: v if type(v) is np.ndarray else np.array(v) for k, v in batch.items()}

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads or worker processes; further calls do nothing."""
        self._close()


def _close_all(iterators: list[grain.DatasetIterator[dict[str, np.ndarray]]]) -> None:
    while iterators:
        iterators.pop().close()
    gc.collect()  # Grain holds the last batch, a block of shared memory, in a cycle


def _check_batch_size(batch_size: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"A batch size of {batch_size} cannot be shared by {process_count} process(es): choose "
            f"a positive multiple of {process_count}."
        )


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """The number of whole batches in the training split; what remains is left out.

    Raises:
      InputError: there is not even one.
    """
    steps = len(dataset.train) // batch_size
    if not steps:
        raise InputError(
            f"A batch size of {batch_size} is larger than the training split of '{dataset.name}': "
            f"choose at most {len(dataset.train)}."
        )
    return steps


def train_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int | Sequence[int],
    resolution: int,
    augment: Mapping[str, Any],
    interpolation: str = "bilinear",
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Yields training batches without end; close the iterator when done.

    Each epoch is shuffled and augmented anew and ends with its last whole batch. All processes
    together see in step s the examples, augmented alike, that a single process would.

    Args:
      dataset: what to read.
      batch_size: over all processes.
      seed: with the step, it determines the batch. Of several seeds, each step has the batches of
        all; the decoded images are kept once.
      resolution: side of the images in pixels.
      augment: the fields of config.augment.
      interpolation: one of augment.INTERPOLATIONS.
      start_step: step of the first batch.
      workers: processes that prepare batches; 0: threads of this one.
      process_index: which share of each batch to yield.
      process_count: number of shares.

    Returns:
      `{'image': uint8 [b, R, R, 3], 'label': int32 [b]}`, b = batch_size / process_count; with
      an axis in front if several seeds are given.

    Raises:
      InputError: a value is out of range, or the batch size does not fit the dataset or the
        processes; while iterating: an image is broken.
    """
    check(augment, interpolation)
    _check_batch_size(batch_size, process_count)
    steps_per_epoch(dataset, batch_size)
    source, transform = _Decoded(dataset.train), _Augment(resolution, dict(augment), interpolation)

    def stream(seed: int) -> grain.MapDataset[dict[str, np.ndarray]]:
        if not 0 <= seed < 2**32:
            raise InputError(f"The seed is {seed}: choose an integer from 0 to 2^32 - 1.")
        examples = grain.MapDataset.source(source).seed(seed).shuffle()
        # Augmented before it is shared out: the chance is keyed by the position in the epoch.
        examples = examples.random_map(transform)
        examples = examples[: len(examples) // batch_size * batch_size]
        share = examples[process_index::process_count]
        return share.batch(batch_size // process_count, drop_remainder=True).repeat()

    if isinstance(seed, int):
        batches = stream(seed)
    else:
        streams = [stream(each) for each in seed]
        batches = grain.MapDataset.range(len(streams[0])).map(_Stack(streams))
    return _iterate(batches[start_step:], workers)


def eval_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    resolution: int,
    crop_fraction: float | None = 1.0,
    interpolation: str = "bilinear",
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Batches:
    """Yields each evaluation example once, in as many batches on every process.

    Args:
      dataset: what to read.
      batch_size: over all processes.
      resolution: side of the images in pixels.
      crop_fraction: see augment.evaluation_transform.
      interpolation: one of augment.INTERPOLATIONS.
      process_index: which share of each batch to yield.
      process_count: number of shares.
      workers: processes that prepare batches; 0: threads of this one.

    Returns:
      `{'image': uint8 [b, R, R, 3], 'label': int32 [b], 'mask': float32
      [b]}`, b = batch_size / process_count. The last batch is filled up with zeros, mask 0.

    Raises:
      InputError: a value is out of range, or the processes cannot share a batch; while iterating:
        an image is broken.
    """
    check({}, interpolation)
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise InputError(
            f"preprocess.crop_fraction is {crop_fraction}: choose a number above 0 up to 1."
        )
    _check_batch_size(batch_size, process_count)
    transform = _Evaluate(_Decoded(dataset.test), resolution, crop_fraction, interpolation)
    padded = -(-len(dataset.test) // batch_size) * batch_size
    share = grain.MapDataset.range(padded)[process_index::process_count].map(transform)
    batches = share.batch(batch_size // process_count, drop_remainder=True)
    return _iterate(batches, workers)


def _iterate(batches: grain.MapDataset[dict[str, np.ndarray]], workers: int) -> Batches:
    """Prepares batches ahead, in threads or in `workers` processes."""
    cv2.setNumThreads(1)  # batches are made in parallel; threads for one image only get in the way
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 if workers else 4)
    if not workers:
        return Batches(iter(batches.to_iter_dataset(options)))
    if not flags.FLAGS.is_parsed():  # Grain asks for its flags, also outside of absl.app.run
        flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    small = grain.experimental.DatasetOptions(min_shm_size=SHARED_BYTES)
    stream = grain.experimental.WithOptionsIterDataset(batches.to_iter_dataset(options), small)
    stream = stream.mp_prefetch(processes, worker_init_fn=_start_worker)
    return Batches(iter(stream), starts_workers=True)


@contextlib.contextmanager
def _workers_ignore_signals() -> Iterator[None]:
    """Processes started here, from new threads too, never get the signals meant for this one.

    ^C and SIGTERM often reach a whole process group, while this process may want to finish its
    step and save, for which it needs its workers. A signal that comes here meanwhile waits.
    """
    # Python's helper for semaphores would otherwise be started later, and unblock the signals.
    multiprocessing.resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker(index: int, count: int) -> None:
    """Set-up of a worker process: it ends when its parent has ended, however that was.

    Python's resource tracker then removes the blocks of shared memory that batches were in. (Not
    by PR_SET_PDEATHSIG, which watches the thread that started the worker, not the process.)
    """
    del index, count
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
