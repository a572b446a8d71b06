import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mobilenets_jax import augment
from mobilenets_jax.errors import InputError


def generator(seed=0):
    return np.random.default_rng(seed)


def picture(height=40, width=50, seed=0):
    """Random but smooth, uint8 [height, width, 3]."""
    small = generator(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


# Evaluation ---------------------------------------------------------------------------------------


def test_evaluation_transform_is_the_identity_on_images_of_the_size():
    image = picture(32, 32)
    for interpolation in augment.INTERPOLATIONS:
        assert (augment.evaluation_transform(image, 32, 1.0, interpolation) == image).all()


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_evaluation_transform_halves_and_cuts_the_centre(shape):
    image = picture(*shape)
    halved = image.reshape(shape[0] // 2, 2, shape[1] // 2, 2, 3).mean((1, 3))
    top, left = (shape[0] // 2 - 28) // 2, (shape[1] // 2 - 28) // 2
    result = augment.evaluation_transform(image, 28, 28 / 32, "area")
    expected = halved[top : top + 28, left : left + 28]
    np.testing.assert_allclose(result, expected, atol=0.51)


def test_evaluation_transform_crop_fraction_of_imagenet():
    # 224 / 0.875 = 256: a 256 image is only cut.
    image = picture(256, 300)
    result = augment.evaluation_transform(image, 224, 0.875)
    assert (result == image[16:240, 38:262]).all()


@pytest.mark.parametrize(("name", "filter"), [("bilinear", 2), ("bicubic", 3), ("nearest", 0)])
@pytest.mark.parametrize(("height", "width"), [(301, 225), (60, 640), (20, 31)])
def test_pillow_resizes_and_rounds_as_torchvision_does(name, filter, height, width):
    image = picture(height, width)
    short = min(height, width)
    # 64 / 0.95 is 67.4; the crop's corner at half a pixel goes to the even one.
    size = (int(67 * width / short), int(67 * height / short))
    resized = np.array(Image.fromarray(image).resize(size, filter))
    top, left = (round((side - 64) / 2) for side in resized.shape[:2])
    result = augment.evaluation_transform(image, 64, 0.95, f"pillow_{name}")
    np.testing.assert_array_equal(result, resized[top : top + 64, left : left + 64])
    squeezed = augment.evaluation_transform(image, 64, None, f"pillow_{name}")
    np.testing.assert_array_equal(
        squeezed, np.array(Image.fromarray(image).resize((64, 64), filter))
    )


def test_pillow_resizes_the_middle_of_a_very_long_image():
    image = picture(2, 20_000)
    result = augment.evaluation_transform(image, 32, 1.0, "pillow_bilinear")
    middle = image[:, 10_000 - 32 : 10_000 + 32]
    assert (result == augment.evaluation_transform(middle, 32, 1.0, "pillow_bilinear")).all()


def test_no_crop_squeezes_the_whole_image():
    image = np.repeat([[[0]], [[255]]], 50, axis=0).repeat(400, axis=1).astype(np.uint8)
    for interpolation in ("bilinear", "area", "pillow_nearest"):
        result = augment.evaluation_transform(image, 32, None, interpolation)
        assert (result[:16] == 0).all()
        assert (result[16:] == 255).all()


def test_evaluation_interpolations_differ_as_named():
    image = picture(64, 64) // 128 * 255
    results = {i: augment.evaluation_transform(image, 24, 1.0, i) for i in augment.INTERPOLATIONS}
    assert set(np.unique(results["nearest"])) <= {0, 255}
    unequal = [(a, b) for a in results for b in results if (results[a] != results[b]).any()]
    assert len(unequal) == 7 * 6


ODD = {
    "tall": np.full((400, 1, 3), 9, np.uint8),
    "wide": np.full((1, 50_000, 3), 9, np.uint8),
    "pixel": np.full((1, 1, 3), 9, np.uint8),
    "grey": np.full((20, 30), 9, np.uint8),
    "grey channel": np.full((20, 30, 1), 9, np.uint8),
}
EVERYTHING = {
    "padding": 4,
    "min_area": 0.08,
    "rotate": 10.0,
    "flip": True,
    "brightness": 0.2,
    "saturation": 0.5,
    "randaugment": 2,
    "magnitude": 9.0,
    "erasing": 0.5,
}


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("crop", augment.CROPS)
def test_odd_images(shape, crop):
    result = augment.evaluation_transform(ODD[shape], 32, 0.875)
    assert (result == np.full((32, 32, 3), 9)).all()
    result = augment.augment_train(ODD[shape], generator(), 32, {"crop": crop})
    assert result.shape == (32, 32, 3)
    assert set(np.unique(result)) <= {0, 9}
    for seed in range(20):
        result = augment.augment_train(ODD[shape], generator(seed), 24, {"crop": crop} | EVERYTHING)
        assert (result.shape, result.dtype) == ((24, 24, 3), np.uint8)


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", augment.CROPS)
def test_augmentation_is_a_function_of_the_generator(crop):
    image = picture()
    image.flags.writeable = False  # and does not write into its input
    config = {"crop": crop} | EVERYTHING
    first, same, other = (augment.augment_train(image, generator(s), 32, config) for s in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_no_augmentation_is_the_evaluation_transform():
    image = picture(40, 50)
    config = dict.fromkeys(EVERYTHING, 0) | {"crop": "none", "flip": False}
    result = augment.augment_train(image, generator(), 32, config)
    assert (result == augment.evaluation_transform(image, 32)).all()


@pytest.mark.parametrize("name", [*EVERYTHING, "crop"])
def test_each_field_changes_the_result(name):
    image = picture(32, 32)
    config = {"crop": "none"}
    if name == "crop":
        config["crop"] = "random_resized"
    elif name in ("padding", "min_area"):
        config["crop"] = {"padding": "pad", "min_area": "random_resized"}[name]
        config[name] = {"padding": 4, "min_area": 0.9}[name]
    elif name == "magnitude":
        config |= {"randaugment": 2, "magnitude": 9.0}
    else:
        config |= {name: EVERYTHING[name], "erasing": 1.0 if name == "erasing" else 0}
    without = {"crop": "random_resized"} if name == "min_area" else {"crop": "none"}
    pairs = [
        (
            augment.augment_train(image, generator(s), 32, config),
            augment.augment_train(image, generator(s), 32, without),
        )
        for s in range(8)
    ]
    assert any((a != b).any() for a, b in pairs)


def test_pad_and_crop_moves_by_every_offset():
    image = picture(8, 8) | 1  # no zeros
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {(y, x): padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    found = {augment.pad_and_crop(image, generator(s), 2).tobytes() for s in range(400)}
    assert found == set(crops.values())


def test_random_resized_crop_draws_the_stated_areas_and_ratios():
    # Pixels hold their own coordinates, so that the crop's corners can be read off.
    y, x = np.mgrid[:200, :200]
    image = np.stack([y, x, y], -1).astype(np.uint8)
    areas, ratios = [], []
    for seed in range(500):
        crop = augment.random_resized_crop(image, generator(seed), 200, 0.25, "nearest").astype(int)
        height, width = (crop[-1, -1] - crop[0, 0] + 1)[:2]
        areas.append(height * width / 200**2)
        ratios.append(width / height)
    assert 0.24 < min(areas) < 0.27
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert abs(np.log(ratios).mean()) < 0.03


def test_flip_happens_half_the_time():
    image = picture()
    results = [augment.flip(image, generator(s)) for s in range(1000)]
    flipped = [(r == image[:, ::-1]).all() for r in results]
    assert all((r == image).all() for r, f in zip(results, flipped, strict=True) if not f)
    assert 450 < sum(flipped) < 550


def test_rotate_is_exact_at_right_angles():
    class Always:
        def uniform(self, low, high):
            return high

    image = picture(32, 32)
    assert (augment.rotate(image, Always(), 0) == image).all()
    turned = [np.rot90(image, k) for k in (1, 3)]
    result = augment.rotate(image, Always(), 90)
    assert any((result == t).all() for t in turned)


def test_brightness_and_saturation_ranges():
    image = np.full((2, 2, 3), 100, np.uint8)
    values = [int(augment.brightness(image, generator(s), 0.2)[0, 0, 0]) for s in range(500)]
    assert (min(values), max(values)) == (49, 151)
    assert abs(np.mean(values) - 100) < 5
    assert (augment.saturation(image, generator(), 1.0) == image).all()  # grey stays grey
    red = np.array([[[200, 100, 100]]], np.uint8)
    differences = [
        np.ptp(augment.saturation(red, generator(s), 0.5).astype(int)) for s in range(500)
    ]
    assert (min(differences), max(differences)) == (50, 150)


def test_random_erasing():
    image = np.zeros((64, 64, 3), np.uint8)
    assert not augment.random_erasing(image, generator(), 0.0).any()
    shares = []
    for seed in range(300):
        erased = augment.random_erasing(image, generator(seed), 1.0).any(-1)
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert erased.sum() > 0.99 * height * width  # a rectangle
        shares.append(height * width / 64**2)
    assert 0.015 < min(shares) < 0.05
    assert 0.3 < max(shares) < 0.36
    assert not image.any()
    half = [augment.random_erasing(image, generator(s), 0.5).any() for s in range(1000)]
    assert 450 < sum(half) < 550


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop": "padd"}, "Unknown augment.crop 'padd'. Did you mean 'pad'?"),
        ({"rotat": 3}, "Unknown field of augment 'rotat'. Did you mean 'rotate'?"),
        ({"magnitude": 11.0}, "augment.magnitude is 11.0: choose a number from 0 to 10."),
        ({"mixup": -0.1}, "augment.mixup is -0.1: choose a number from 0 up."),
        ({"erasing": float("nan")}, "augment.erasing is nan: choose a number from 0 to 1."),
    ],
)
def test_bad_values_are_named(config, message):
    augment.check(EVERYTHING | {"mixup": 0.2, "cutmix": 1.0}, "bicubic")
    with pytest.raises(InputError, match="^" + re.escape(message)):
        augment.check(EVERYTHING | config, "bicubic")
    with pytest.raises(InputError, match=r"Unknown preprocess.interpolation 'linear'"):
        augment.check({}, "linear")


# RandAugment --------------------------------------------------------------------------------------


def test_there_are_the_papers_14_operations():
    assert len(set(augment.OPERATIONS)) == 14


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_at_level_zero(name):
    image = picture()
    result = augment.apply_operation(image, name, 0.0, 1)
    if name not in ("auto_contrast", "equalize"):  # these have no strength
        assert (result == image).all()
    with pytest.raises(ValueError, match="unknown operation"):
        augment.apply_operation(image, "cut", 0.0, 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements_are_those_of_pil(name, level, sign):
    image = picture()
    enhancer = getattr(ImageEnhance, name.capitalize())(Image.fromarray(image))
    expected = np.asarray(enhancer.enhance(1 + 0.9 * sign * level)).astype(int)
    result = augment.apply_operation(image, name, level, sign).astype(int)
    assert abs(result - expected).max() <= 2


def test_point_operations_are_those_of_pil():
    image = picture(200, 256) // 2 + 40
    pil = Image.fromarray(image)
    for level, bits in ((0.5, 6), (1.0, 4)):
        expected = np.asarray(ImageOps.posterize(pil, bits))
        assert (augment.apply_operation(image, "posterize", level, 1) == expected).all()
        expected = np.asarray(ImageOps.solarize(pil, round(256 * (1 - level))))
        assert (augment.apply_operation(image, "solarize", level, 1) == expected).all()
    expected = np.asarray(ImageOps.autocontrast(pil)).astype(int)
    assert abs(augment.apply_operation(image, "auto_contrast", 1, 1) - expected).max() <= 1
    expected = np.asarray(ImageOps.equalize(pil)).astype(int)
    assert abs(augment.apply_operation(image, "equalize", 1, 1) - expected).mean() < 4


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_affine_operations_are_those_of_pil(name, sign):
    image = picture(40, 40)
    level = 0.5
    shear, shift = sign * 0.3 * level, sign * 0.45 * level * 40  # 9 pixels
    matrix = {
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }[name]
    expected = np.asarray(
        Image.fromarray(image).transform(
            (40, 40),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BILINEAR,
            fillcolor=augment.FILL,
        )
    ).astype(int)
    # Away from what came in: PIL's pixel centres and edges differ by half a pixel.
    difference = abs(augment.apply_operation(image, name, level, sign) - expected)
    assert np.mean(difference > 6) < 0.1
    assert (
        (augment.apply_operation(image, name, level, sign) == np.array(augment.FILL)).all(-1).any()
    )


def test_randaugment_draws_every_operation_and_both_signs(monkeypatch):
    drawn = []
    monkeypatch.setattr(augment, "apply_operation", lambda i, *rest: drawn.append(rest) or i)
    for seed in range(200):
        augment.randaugment(picture(), generator(seed), 3, 7.0)
    assert len(drawn) == 600
    assert {(name, sign) for name, _, sign in drawn} == {
        (n, s) for n in augment.OPERATIONS for s in (1, -1)
    }
    assert {level for _, level, _ in drawn} == {0.7}


# Mixing -------------------------------------------------------------------------------------------

LABELS = jnp.array([0, 1, 2, 3, 2, 1])


def batch(height=16, width=16):
    """Image i holds i everywhere, so that a pixel tells where it comes from."""
    return jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, height, width, 3))


def mixed(seed, mixup=0.0, cutmix=0.0, **shape):
    function = jax.jit(augment.mix, static_argnames=("num_classes", "mixup", "cutmix"))
    images, targets = function(batch(**shape), LABELS, 4, jax.random.key(seed), mixup, cutmix)
    return np.asarray(images), np.asarray(targets)


def test_no_mixing():
    images, targets = mixed(0)
    assert (images == batch()).all()
    assert (targets == np.eye(4)[np.array(LABELS)]).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_a_function_of_the_key(mixup, cutmix):
    first, same, other = (mixed(s, mixup, cutmix) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert (first[0] != other[0]).any()
    eager = augment.mix(batch(), LABELS, 4, jax.random.key(1), mixup, cutmix)
    for a, b in zip(eager, first, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def check_targets(targets, share):
    one_hot = np.eye(4)[np.array(LABELS)]
    np.testing.assert_allclose(targets, share * one_hot + (1 - share) * one_hot[::-1], atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


def test_mixup_blends_with_the_reversed_batch():
    shares = []
    for seed in range(100):
        images, targets = mixed(seed, mixup=1.0)
        share = (images[0, 0, 0, 0] - 5) / -5  # image 0 is mixed with image 5
        np.testing.assert_allclose(images, share * batch() + (1 - share) * batch()[::-1], atol=1e-5)
        check_targets(targets, share)
        shares.append(share)
    # Beta(1, 1) is uniform.
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    assert abs(np.mean(shares) - 0.5) < 0.1


def test_cutmix_pastes_a_box_and_weighs_labels_by_its_true_area():
    shares = []
    for seed in range(100):
        images, targets = mixed(seed, cutmix=1.0, height=16, width=24)
        kept = images[0, :, :, 0] == 0
        assert (
            images == np.where(kept[None, :, :, None], batch(16, 24), batch(16, 24)[::-1])
        ).all()
        pasted = np.argwhere(~kept)
        if len(pasted):  # a full rectangle
            assert len(pasted) == np.prod(np.ptp(pasted, axis=0) + 1)
        check_targets(targets, kept.mean())
        shares.append(kept.mean())
    assert min(shares) < 0.4
    assert max(shares) > 0.9


def test_both_share_the_batches_evenly():
    cut = 0
    for seed in range(200):
        images, _ = mixed(seed, mixup=0.5, cutmix=0.5)
        cut += set(np.unique(images)) <= set(range(6))
    assert 75 < cut < 125


def test_mixing_keeps_the_type_of_images():
    images, targets = augment.mix(
        batch().astype(jnp.bfloat16), LABELS, 4, jax.random.key(0), mixup=0.2, cutmix=1.0
    )
    assert (images.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)
