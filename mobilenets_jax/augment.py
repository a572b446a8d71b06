"""Augmentation: of single images in NumPy and OpenCV, and mixing within a batch in JAX.

Images are uint8 [H, W, 3] RGB, and every function is pure: all chance comes from the `rng` or
`key` it is given. Knows nothing about datasets, files, the input pipeline or models.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mobilenets_jax.errors import InputError, choose

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,  # the only one of OpenCV's that smooths when it shrinks an image
    # Pillow's smooth too, all but nearest. torchvision, timm and Keras resize by them.
    "pillow_nearest": Image.Resampling.NEAREST,
    "pillow_bilinear": Image.Resampling.BILINEAR,
    "pillow_bicubic": Image.Resampling.BICUBIC,
}
CROPS = ("none", "pad", "random_resized")
# The numbers in a config's `augment` section and where they may lie.
RANGES = {
    "padding": (0, math.inf),
    "min_area": (0, 1),
    "rotate": (0, 180),
    "brightness": (0, 1),
    "saturation": (0, 1),
    "randaugment": (0, math.inf),
    "magnitude": (0, 10),
    "erasing": (0, 1),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
}
# Weights of RGB in luma, ITU-R BT.601.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# What RandAugment's geometric operations move into the image, as in the paper's code.
FILL = (128, 128, 128)


# Geometry -----------------------------------------------------------------------------------------


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Repeats the channel of a grey image [H, W] or [H, W, 1]."""
    if image.ndim == 2:
        image = image[:, :, None]
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if interpolation.startswith("pillow_"):
        resized = Image.fromarray(image).resize((width, height), INTERPOLATIONS[interpolation])
        return np.array(resized)
    return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def evaluation_transform(
    image: np.ndarray,
    resolution: int,
    crop_fraction: float | None = 1.0,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Resizes the shorter side to resolution / crop_fraction and cuts out the centre.

    An image that already is of the final size, with a crop fraction of 1, stays as it is.

    With Pillow's interpolations the result is, bit by bit, that of torchvision's presets and timm's
    evaluation transforms before they normalise ("pillow_bilinear" and "pillow_bicubic"), and with
    "pillow_nearest" and no crop that of `keras.utils.load_img(target_size=…)`: sizes round down,
    and half a pixel of the crop's offset to the even one. Only of images longer than 32 to 1 the
    ends are left out before. OpenCV's interpolations are faster and give no library's result:
    "bilinear" and "bicubic" do not smooth. `docs/preprocessing.md` has the numbers.

    Args:
      image: uint8 [H, W, 3], or grey.
      resolution: side of the result in pixels.
      crop_fraction: share of the resized image's shorter side that is kept, above 0 to 1; None
        squeezes the whole image into the square.
      interpolation: one of INTERPOLATIONS.

    Returns:
      uint8 [resolution, resolution, 3].
    """
    image = _as_rgb(image)
    if crop_fraction is None:
        return _resize(image, resolution, resolution, interpolation)
    pillow = interpolation.startswith("pillow_")
    side = max(resolution, (math.floor if pillow else round)(resolution / crop_fraction))
    height, width = image.shape[:2]
    short = min(height, width)
    # Of a very long image only the middle matters; resizing all of it could exhaust memory.
    longest = (32 if pillow else 4) * short
    if max(height, width) > longest:
        image = _centre(image, min(height, longest), min(width, longest))
        height, width = image.shape[:2]
    if pillow:
        height, width = (n * side // short for n in (height, width))
        image = _resize(image, height, width, interpolation)
        top, left = (round((n - resolution) / 2) for n in (height, width))
        return image[top : top + resolution, left : left + resolution]
    height, width = (round(n * side / short) if n > short else side for n in (height, width))
    return _centre(_resize(image, height, width, interpolation), resolution, resolution)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    resolution: int,
    min_area: float = 0.08,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Resizes a random part, of aspect ratio 3/4 to 4/3, to a square (arXiv:1409.4842, section 6).

    Args:
      image: uint8 [H, W, 3].
      rng: source of chance.
      resolution: side of the result in pixels.
      min_area: smallest share of the image's area that a part has.
      interpolation: one of INTERPOLATIONS.

    Returns:
      uint8 [resolution, resolution, 3].
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            break
    else:  # the image is too narrow for such a part: take the largest in the middle
        h, w = min(height, max(1, width * 4 // 3)), min(width, max(1, height * 4 // 3))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], resolution, resolution, interpolation)


def pad_and_crop(image: np.ndarray, rng: np.random.Generator, padding: int) -> np.ndarray:
    """Moves the image by up to `padding` pixels each way; zeros come in (arXiv:1512.03385, 4.2)."""
    height, width = image.shape[:2]
    padding = min(padding, height, width)
    down, right = rng.integers(-padding, padding + 1, size=2).tolist()
    result = np.zeros_like(image)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return result


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability 1/2."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def _warp(image: np.ndarray, matrix: Any, fill: tuple[int, int, int]) -> np.ndarray:
    """Applies a 2 × 3 matrix that takes output coordinates to input coordinates."""
    return cv2.warpAffine(
        image,
        np.asarray(matrix, np.float32),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )


def _rotate(image: np.ndarray, degrees: float, fill: tuple[int, int, int]) -> np.ndarray:
    y, x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _warp(image, [[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]], fill)


def rotate(image: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Turns by an angle of up to ±`degrees` about the centre; zeros come in."""
    return _rotate(image, rng.uniform(-degrees, degrees), (0, 0, 0))


# Colour -------------------------------------------------------------------------------------------


def _blend(image: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    """Returns other + factor · (image - other), rounded and clipped: factor 1 is the image."""
    mixed = image.astype(np.float32) * factor + np.asarray(other, np.float32) * (1 - factor)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) @ LUMA)[:, :, None]


def brightness(image: np.ndarray, rng: np.random.Generator, delta: float) -> np.ndarray:
    """Adds up to ±`delta` (a fraction of 255) to all pixels."""
    shift = 255 * rng.uniform(-delta, delta)
    return np.clip(np.rint(image.astype(np.float32) + shift), 0, 255).astype(np.uint8)


def saturation(image: np.ndarray, rng: np.random.Generator, spread: float) -> np.ndarray:
    """Multiplies the distance from grey by a factor of 1 - `spread` to 1 + `spread`."""
    return _blend(image, _grey(image), rng.uniform(1 - spread, 1 + spread))


def random_erasing(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Fills a rectangle of 2 to 33 % of the area with noise (arXiv:1708.04896, its R mode).

    The ratio of the sides is 0.3 to 1/0.3; after ten rectangles that do not fit the image stays.
    """
    if rng.random() >= probability:
        return image
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
            break
    return image


# RandAugment --------------------------------------------------------------------------------------


def _auto_contrast(image: np.ndarray) -> np.ndarray:
    low = image.min((0, 1)).astype(np.float32)
    high = image.max((0, 1)).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    low = np.where(high > low, low, 0)
    return np.clip(np.rint((image - low) * scale), 0, 255).astype(np.uint8)


def _sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed image; the outermost pixels stay, as in PIL."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return _blend(image, smooth, factor)


def apply_operation(image: np.ndarray, name: str, level: float, sign: int) -> np.ndarray:
    """Applies one of RandAugment's operations.

    Ranges are those of AutoAugment (arXiv:1805.09501, table 6) with levels 0 to 10, as used by
    RandAugment and timm; posterize and solarize grow stronger with the level, and enhancements
    move away from 1 either way, as in timm's "increasing" variants.

    Args:
      image: uint8 [H, W, 3].
      name: one of OPERATIONS.
      level: strength, 0 (identity for all that have a strength) to 1.
      sign: 1 or -1, the direction of operations that have one.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    signed = sign * level
    match name:
        case "identity":
            return image
        case "auto_contrast":
            return _auto_contrast(image)
        case "equalize":
            return np.stack(
                [cv2.equalizeHist(np.ascontiguousarray(c)) for c in np.moveaxis(image, 2, 0)],
                axis=2,
            )
        case "rotate":
            return _rotate(image, 30 * signed, FILL)
        case "solarize":
            return np.where(image >= 256 * (1 - level), 255 - image, image)
        case "posterize":
            return image & np.uint8(0xFF << round(4 * level) & 0xFF)
        case "color":
            return _blend(image, _grey(image), 1 + 0.9 * signed)
        case "contrast":
            return _blend(image, np.rint(_grey(image).mean()), 1 + 0.9 * signed)
        case "brightness":
            return _blend(image, 0.0, 1 + 0.9 * signed)
        case "sharpness":
            return _sharpness(image, 1 + 0.9 * signed)
        case "shear_x":
            return _warp(image, [[1, 0.3 * signed, 0], [0, 1, 0]], FILL)
        case "shear_y":
            return _warp(image, [[1, 0, 0], [0.3 * signed, 1, 0]], FILL)
        case "translate_x":
            return _warp(image, [[1, 0, 0.45 * signed * width], [0, 1, 0]], FILL)
        case "translate_y":
            return _warp(image, [[1, 0, 0], [0, 1, 0.45 * signed * height]], FILL)
    raise ValueError(f"unknown operation {name!r}")


OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def randaugment(
    image: np.ndarray, rng: np.random.Generator, operations: int, magnitude: float
) -> np.ndarray:
    """RandAugment (arXiv:1909.13719): `operations` drawn from 14, all of one magnitude.

    Args:
      image: uint8 [H, W, 3].
      rng: source of chance.
      operations: the paper's N, how many operations are applied.
      magnitude: the paper's M, 0 to 10.

    Returns:
      uint8 [H, W, 3].
    """
    for index in rng.integers(len(OPERATIONS), size=operations):
        sign = 1 if rng.random() < 0.5 else -1
        image = apply_operation(image, OPERATIONS[index], magnitude / 10, sign)
    return image


# All together -------------------------------------------------------------------------------------


def check(augment: Mapping[str, Any], interpolation: str) -> None:
    """Checks a config's `augment` section and `preprocess.interpolation`.

    Raises:
      InputError: names the first bad field and what it may be.
    """
    choose("preprocess.interpolation", interpolation, INTERPOLATIONS)
    for name, value in augment.items():
        choose("field of augment", name, ["crop", "flip", *RANGES])
        if name == "crop":
            choose("augment.crop", value, CROPS)
        elif name in RANGES:
            low, high = RANGES[name]
            if not low <= value <= high:
                raise InputError(
                    f"augment.{name} is {value}: choose a number from {low} to {high}."
                    if high < math.inf
                    else f"augment.{name} is {value}: choose a number from {low} up."
                )


def augment_train(
    image: np.ndarray,
    rng: np.random.Generator,
    resolution: int,
    augment: Mapping[str, Any],
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Applies what a config's `augment` section asks for, in the order written here.

    Mixup and cutmix are not part of it: see `mix`.

    Args:
      image: uint8 [H, W, 3] of any size, or grey.
      rng: source of chance.
      resolution: side of the result in pixels.
      augment: the fields of config.augment; those left out do nothing.
      interpolation: one of INTERPOLATIONS.

    Returns:
      uint8 [resolution, resolution, 3].
    """
    get = augment.get
    if get("crop") == "random_resized":
        area = get("min_area", 0.08)
        image = random_resized_crop(_as_rgb(image), rng, resolution, area, interpolation)
    else:
        image = evaluation_transform(image, resolution, 1.0, interpolation)
        if get("crop") == "pad":
            image = pad_and_crop(image, rng, get("padding", 0))
    if get("flip"):
        image = flip(image, rng)
    if get("rotate"):
        image = rotate(image, rng, augment["rotate"])
    if get("randaugment"):
        image = randaugment(image, rng, augment["randaugment"], get("magnitude", 0))
    if get("brightness"):
        image = brightness(image, rng, augment["brightness"])
    if get("saturation"):
        image = saturation(image, rng, augment["saturation"])
    if get("erasing"):
        image = random_erasing(image, rng, augment["erasing"])
    return image


# Batches ------------------------------------------------------------------------------------------


def mix(
    images: jax.Array,
    labels: jax.Array,
    num_classes: int,
    key: jax.Array,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch with itself in reverse order: mixup (arXiv:1710.09412) or cutmix (1905.04899).

    With both, each batch is mixed in one of the two ways with probability 1/2, as in timm.

    Args:
      images: float [B, H, W, C].
      labels: int [B].
      num_classes: static.
      key: PRNG key.
      mixup: parameter of mixup's Beta distribution, static; 0 for none.
      cutmix: parameter of cutmix's Beta distribution, static; 0 for none.

    Returns:
      Images like `images`, and labels as float32 distributions [B, num_classes].
    """
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if not mixup and not cutmix:
        return images, targets
    choose_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    # The share of each image that stays, per pixel [H, W] and overall.
    if mixup:
        share = jax.random.beta(mixup_key, mixup, mixup)
        keep = jnp.full((height, width), share)
    if cutmix:
        box = _cutmix_box(cutmix_key, cutmix, height, width)
        if mixup:
            chosen = jax.random.bernoulli(choose_key)
            keep = jnp.where(chosen, box, keep)
            share = jnp.where(chosen, box.mean(), share)
        else:
            keep, share = box, box.mean()
    keep = keep[:, :, None].astype(images.dtype)
    return (
        keep * images + (1 - keep) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def _cutmix_box(key: jax.Array, alpha: float, height: int, width: int) -> jax.Array:
    """Returns float32 [H, W]: 0 in a box of about 1 - Beta(alpha, alpha) of the area, else 1.

    The box is cut off at the borders, so that its true area is to be taken from the mask.
    """
    share_key, y_key, x_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(key: jax.Array, length: int) -> jax.Array:
        centre = jax.random.randint(key, (), 0, length)
        half = jnp.floor(side * length).astype(jnp.int32) // 2
        position = jnp.arange(length)
        return (position >= centre - half) & (position < centre + half)

    box = inside(y_key, height)[:, None] & inside(x_key, width)[None, :]
    return 1 - box.astype(jnp.float32)
