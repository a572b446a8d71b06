"""Inference by chunks of the batch, whose feature maps stay in a processor's cache.

Owns which layers take how many images at a time, and the batch's way into chunks and back. Knows
nothing of how a layer is computed.

On CPU a layer of the whole batch writes feature maps that are larger than the cache, and the next
layer reads them from memory. Here a few images go through many layers, and then the next few.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mobilenets_jax.specs import Block, Conv, Spec, output_size

Array = jax.Array

# Bytes of a chunk's widest feature map, and how many times more images must fit for another loop to
# be worth it: docs/profile.md. Products of a single image have too few rows.
_BYTES = 3_000_000
_GROWTH = 4
_MIN_IMAGES = 2
# Where no number of images divides a batch: images computed in vain, for each of the batch.
_MAX_PADDING = 1 / 16


def plan(spec: Spec, batch: int, height: int, width: int, itemsize: int) -> list[tuple[int, int]]:
    """Returns the loops: of each, the layer that it ends before, and its images at a time.

    Layers are counted from the stem, 0, on; block i is i + 1. What follows the last loop takes the
    whole batch.

    Args:
        spec: the network.
        batch: images.
        height: of an image in pixels.
        width: of an image in pixels.
        itemsize: bytes of an element.
    """
    loops = []
    current = 0
    for layer, elements in enumerate(_widest(spec, height, width)):
        images = min(max(_BYTES // (elements * itemsize), _MIN_IMAGES), batch)
        if images >= _GROWTH * current or images == batch:
            loops.append((layer, current))
            current = images
        if current == batch:
            break
    else:
        loops.append((len(spec.blocks) + 1, current))
    even = ((stop, _evenly(images, batch)) for stop, images in loops[1:])
    return [(stop, images) for stop, images in even if images < batch]


def _widest(spec: Spec, height: int, width: int) -> Iterator[int]:
    """Elements of the widest feature map of an image: in the stem, and in each block."""
    size = [height, width]
    before = 0
    rows: tuple[Conv | Block, ...] = (spec.stem, *spec.blocks)
    for row in rows:
        if isinstance(row, Block):
            before = size[0] * size[1] * row.expansion
        size = [output_size(s, row.kernel, row.strides, spec.padding) for s in size]
        yield max(before, size[0] * size[1] * row.out)


def _evenly(images: int, batch: int) -> int:
    """Returns how many images to take instead, half to twice as many: what divides the batch best.

    That is the whole batch where nothing (almost) does.
    """
    near = [*range(images, max(images // 2, _MIN_IMAGES) - 1, -1), *range(images + 1, 2 * images)]
    near.append(2 * images)
    for padding in (0, batch * _MAX_PADDING):
        for number in near:
            if -batch % number <= padding:
                return number
    return batch


def split(x: Array, images: int, devices: int) -> Array:
    """Splits `[N, ...]` into `[loops, devices · images, ...]`, with images of zeros at the end.

    Each device's part of the batch, if it is shared out over them, is split by itself.
    """
    x = x.reshape(devices, -1, *x.shape[1:])
    padding = -x.shape[1] % images
    x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(devices, -1, images, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(x.shape[0], devices * images, *x.shape[3:])


def join(x: Array, batch: int, devices: int) -> Array:
    """Undoes `split`, for a batch of N images: `[N, ...]`."""
    x = x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(devices, -1, *x.shape[3:])[:, : batch // devices].reshape(batch, *x.shape[3:])
