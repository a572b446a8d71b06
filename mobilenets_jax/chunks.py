"""Inference by chunks of the batch, whose feature maps stay in a processor's cache.

Owns which layers take how many images at a time, and the batch's way into chunks and back. Knows
nothing of how a layer is computed.

On CPU a layer of the whole batch writes feature maps that are larger than the cache, and the next
layer reads them from memory. Here a few images go through many layers, and then the next few.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from mobilenets_jax import costs
from mobilenets_jax.specs import Spec

Array = jax.Array

# For each core, bytes of a chunk's widest feature map, if one image is not larger; and how many
# times more images must fit for another loop to be worth it. Measured with two cores alone, see
# docs/profile.md.
_BYTES = 1_500_000
_GROWTH = 4
# Where no number of images divides a batch: images of zeros, at most, for each one of the batch.
_PADDING = 1 / 16


def plan(
    spec: Spec, batch: int, height: int, width: int, itemsize: int, cores: int
) -> list[tuple[int, int]]:
    """Returns the loops: of each, the layer that it ends before, and its images at a time.

    Layers are counted from the stem, 0, on; block i is i + 1. What follows the last loop takes the
    whole batch, and so does everything where no suitable number of images (almost) divides it.

    Args:
        spec: the network.
        batch: images of one device.
        height: of an image in pixels.
        width: of an image in pixels.
        itemsize: bytes of an element.
        cores: that one device computes with.
    """
    ends, images = [], 0
    for layer, elements in enumerate(_widest(spec, height, width)):
        fitting = min(max(cores * _BYTES // (elements * itemsize), cores), batch)
        if fitting >= _GROWTH * images or fitting == batch:
            ends.append((layer, images))
            images = fitting
        if images == batch:
            break
    else:
        ends.append((len(spec.blocks) + 1, images))
    loops = ((stop, _evenly(images, batch)) for stop, images in ends[1:])
    return [(stop, images) for stop, images in loops if images < batch]


def _widest(spec: Spec, height: int, width: int) -> list[int]:
    """Elements of the widest feature map of an image: in the stem, and in each block."""
    layers = costs.layers(spec, height, width=width)
    parts = itertools.groupby(layers, lambda layer: layer.name.split("/")[0])
    maps = [max(math.prod(s) for x in part for s in (x.input, x.output)) for _, part in parts]
    return maps[: len(spec.blocks) + 1]


def _evenly(images: int, batch: int) -> int:
    """Returns how many images to take instead, half to less than twice as many.

    That is what divides the batch, or nearly does; the whole batch if there is none.
    """
    near = [*range(images, max(images // 2, 2) - 1, -1), *range(images + 1, 2 * images)]
    for padding in (0, batch * _PADDING):
        for number in near:
            if -batch % number <= padding:
                return number
    return batch


def split(x: Array, images: int, devices: int) -> Array:
    """Splits a batch into chunks.

    Args:
        x: `[N, ...]`.
        images: of each device in a chunk.
        devices: that share the batch out among them, each an equal part; each part is split by
            itself.

    Returns:
        `[chunks, devices · images, ...]`; images of zeros fill up the last chunk.
    """
    x = x.reshape(devices, -1, *x.shape[1:])
    padding = -x.shape[1] % images
    x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(devices, -1, images, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(x.shape[0], devices * images, *x.shape[3:])


def join(x: Array, batch: int, devices: int) -> Array:
    """Undoes `split`.

    Args:
        x: `[chunks, devices · images, ...]`.
        batch: N.
        devices: as they were split for.

    Returns:
        `[N, ...]`.
    """
    x = x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(devices, -1, *x.shape[3:])[:, : batch // devices].reshape(batch, *x.shape[3:])
