"""The recipe files: what their arguments mean, that all combinations build, the papers' values."""

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default, v1, v2, v3
from mobilenets_jax import config as config_lib
from mobilenets_jax import costs, optim, specs, switches
from mobilenets_jax.errors import InputError

# Training images of each data set; a folder of photos may be as small as a few batches.
TRAINING_IMAGES = {
    "digits": 1_437,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "image_folder": 300,
    "imagenet2012": 1_281_167,
    "svhn_cropped": 73_257,
}
FILES = {"default": default, "v1": v1, "v2": v2, "v3": v3}


def networks():
    """(get_config, argument without data set and recipe, the model that is meant)."""
    yield v1.get_config, "", "mobilenet_v1"
    yield v2.get_config, "", "mobilenet_v2"
    for variant in v3.VARIANTS:
        yield v3.get_config, f"variant={variant}", f"mobilenet_v3_{variant}"
    for name in specs.list_models():
        yield default.get_config, f"model={name}", name


def leaves(config):
    return dict(config_lib.flatten(config.to_dict()))


def refusal(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    return str(caught.value)


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_without_an_argument_it_is_the_embedded_data(file):
    config = FILES[file].get_config()
    assert isinstance(config, ConfigDict)
    assert config.dataset.name == "digits"
    assert config.dataset.num_classes == 10
    assert config.model.name == {
        "default": "mobilenet_v2",
        "v1": "mobilenet_v1",
        "v2": "mobilenet_v2",
        "v3": "mobilenet_v3_large",
    }[file]  # fmt: skip
    for empty in ("", " ", ",", " , ,"):
        assert FILES[file].get_config(empty) == config


@pytest.mark.parametrize("file", FILES)
def test_configs_are_locked_in_every_section(file):
    config = FILES[file].get_config("dataset=imagenet2012")
    for section in (config, *(value for value in config.values() if isinstance(value, ConfigDict))):
        with pytest.raises(AttributeError, match="locked"):
            section.something_new = 1


@pytest.mark.parametrize("file", FILES)
def test_spaces_and_order_do_not_matter(file):
    expected = FILES[file].get_config("dataset=fashion_mnist,recipe=modern")
    for arg in (
        "recipe=modern,dataset=fashion_mnist",
        " dataset=fashion_mnist , recipe=modern ",
        "dataset = fashion_mnist,recipe= modern,",
        "dataset=digits,recipe=modern,dataset=fashion_mnist",
    ):
        assert FILES[file].get_config(arg) == expected


def test_an_unknown_key_names_the_nearest():
    for file, keys in (
        ("default", "model, dataset, recipe"),
        ("v1", "dataset, recipe"),
        ("v2", "dataset, recipe"),
        ("v3", "variant, dataset, recipe"),
    ):
        assert refusal(FILES[file].get_config, "datset=digits") == (
            f"Unknown config argument 'datset'. Did you mean 'dataset'? Choose one of: {keys}."
        )
        assert refusal(FILES[file].get_config, "zzz=1") == (
            f"Unknown config argument 'zzz'. Choose one of: {keys}."
        )
    message = refusal(v3.get_config, "varient=small")
    assert message.startswith("Unknown config argument 'varient'. Did you mean 'variant'?")


@pytest.mark.parametrize("file", FILES)
def test_an_argument_that_is_no_pair(file):
    for arg in ("digits", "dataset=digits,modern"):
        part = arg.rpartition(",")[2]
        message = refusal(FILES[file].get_config, arg)
        assert message == f"The config argument '{part}' must be key=value."


@pytest.mark.parametrize("file", FILES)
def test_an_unknown_recipe_names_the_nearest(file):
    assert refusal(FILES[file].get_config, "recipe=modrn") == (
        "Unknown recipe 'modrn'. Did you mean 'modern'? Choose one of: default, modern, modern_sgd."
    )
    assert refusal(FILES[file].get_config, "recipe=") == (
        "Unknown recipe ''. Choose one of: default, modern, modern_sgd."
    )


def test_an_unknown_variant_names_the_nearest():
    assert refusal(v3.get_config, "variant=smal") == (
        "Unknown variant 'smal'. Did you mean 'small'? Choose one of: large, small, "
        "large_minimalistic, small_minimalistic."
    )


def test_another_data_set_gets_the_recipe_of_small_photos():
    config, cifar = v2.get_config("dataset=svhn_cropped"), v2.get_config("dataset=cifar10")
    different = {name for name, value in leaves(config).items() if value != leaves(cifar)[name]}
    assert different == {"dataset.name", "dataset.num_classes"}
    assert config.dataset.num_classes is None


# All combinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", default.RECIPES)
@pytest.mark.parametrize("dataset", TRAINING_IMAGES)
def test_every_combination_is_valid_and_builds(dataset, recipe):
    params = {
        "stem": {"kernel": jnp.zeros((3, 3, 3, 8))},
        "depthwise": {"kernel": jnp.ones((3, 3, 8))},
    }
    for get_config, arg, model in networks():
        config = get_config(f"{arg},dataset={dataset},recipe={recipe}")
        assert config.model.name == model
        assert config.dataset.name == dataset
        config_lib.check(config)

        computed = ("dtype", "depthwise_implementation")
        switches_ = {key: value for key, value in config.model.items() if key not in computed}
        spec = switches.build_spec(num_classes=config.dataset.num_classes or 7, **switches_)
        resolution = config_lib.effective_resolution(config.resolution, config.beta)
        # Neither too small a last feature map nor one as large as the image.
        pool = next(layer for layer in costs.layers(spec, resolution) if layer.kind == "pool")
        assert 2 <= pool.input[0] <= resolution // 4

        steps_per_epoch = TRAINING_IMAGES[dataset] // config.batch_size
        total = round(config.epochs * steps_per_epoch)
        schedule = optim.learning_rate_schedule(config.schedule, steps_per_epoch, total)
        warmup = round(config.schedule.warmup_epochs * steps_per_epoch)
        if config.schedule.name == "cosine":
            assert float(schedule(warmup)) == pytest.approx(config.schedule.learning_rate)
            assert float(schedule(total)) == pytest.approx(0, abs=1e-8)
        optimizer = optim.make_optimizer(config.optimizer, schedule, params)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert np.isfinite(updates["stem"]["kernel"]).all()


@pytest.mark.parametrize("dataset", default.DATASETS)
def test_the_modern_recipe(dataset):
    for get_config, arg, model in networks():
        plain = get_config(f"{arg},dataset={dataset}")
        config = get_config(f"{arg},dataset={dataset},recipe=modern")
        assert config.schedule.name == "cosine"
        assert config.optimizer.name == "adamw"
        assert config.optimizer.weight_decay == 0.05
        assert not config.optimizer.weight_decay_depthwise
        augment = config.augment
        assert augment.mixup > 0
        assert augment.cutmix > 0
        assert augment.erasing > 0
        assert augment.randaugment == 2
        assert augment.magnitude == 9.0
        assert augment.brightness == augment.saturation == 0  # RandAugment has both
        assert config.label_smoothing == 0.1
        assert config.epochs >= 2 * plain.epochs, model


@pytest.mark.parametrize(
    "dataset", [d for d in TRAINING_IMAGES if d not in ("digits", "fashion_mnist")]
)
def test_photos_may_be_flipped_and_digits_may_not(dataset):
    assert v2.get_config(f"dataset={dataset}").augment.flip
    for recipe in default.RECIPES:
        assert not v2.get_config(f"recipe={recipe}").augment.flip


# The papers' settings on ImageNet -----------------------------------------------------------------

# field: value, source. The sources are
#   V1   arXiv:1704.04861, section 3.2          V2   arXiv:1801.04381, section 6.1
#   V3   arXiv:1905.02244, section 6.1.1        I3   Inception V3, arXiv:1512.00567, section 8
#   slim tensorflow/models, research/slim: nets/mobilenet_v1.py, nets/mobilenet_v1_train.py,
#        nets/mobilenet/{README.md,mobilenet.py}, train_image_classifier.py,
#        preprocessing/inception_preprocessing.py
#   tfm  tensorflow/models, official/vision: imagenet_mobilenetv3small_tpu.yaml
#   tv   pytorch/vision, references/classification
#   -    not stated anywhere; the choice of this project
SHARED = {
    "resolution": (224, "V1 V2 V3"),
    "beta": (1.0, "V1 V2 V3"),
    "dataset.num_classes": (1000, "V1 V2 V3"),
    "dataset.eval_split": ("validation", "V1 V2 V3"),
    "model.alpha": (1.0, "V1 V2 V3"),
    "ema_decay": (0.9999, "V3 slim; V1 states none"),
    "optimizer.name": ("rmsprop", "V1 V2 V3"),
    "optimizer.momentum": (0.9, "V2 V3 slim"),
    "optimizer.decay": (0.9, "V2 I3 tfm"),
    "optimizer.clip_norm": (0.0, "V1 V2 V3 state none"),
    "optimizer.backbone_scale": (1.0, "-: for fine-tuning"),
    "schedule.name": ("exponential", "V2 V3 slim"),
    "preprocess.mean": ((127.5, 127.5, 127.5), "slim: to -1 to 1"),
    "preprocess.std": ((127.5, 127.5, 127.5), "slim: to -1 to 1"),
    "preprocess.crop_fraction": (0.875, "slim: central crop"),
    "preprocess.interpolation": ("bilinear", "slim"),
    "augment.crop": ("random_resized", "slim"),
    "augment.flip": (True, "slim"),
    "augment.brightness": (32 / 255, "slim"),
    "augment.saturation": (0.5, "slim: 0.5 to 1.5"),
    "augment.randaugment": (0, "V1 V2 V3"),
    "augment.erasing": (0.0, "V1 V2 V3"),
    "augment.mixup": (0.0, "V1 V2 V3"),
    "augment.cutmix": (0.0, "V1 V2 V3"),
}
V1 = {
    "model.name": ("mobilenet_v1", "V1"),
    "batch_size": (64, "slim"),
    "epochs": (200.0, "-"),
    "label_smoothing": (0.0, "V1: no label smoothing"),
    "model.bn_momentum": (0.9997, "slim"),
    "model.dropout": (0.001, "slim: keeps 0.999"),
    "augment.min_area": (0.25, "V1: small crops limited; the number is -"),
    "optimizer.epsilon": (1.0, "I3"),
    "optimizer.weight_decay": (4e-5, "slim"),
    "optimizer.weight_decay_depthwise": (False, "V1: very little or none; slim: none"),
    "schedule.learning_rate": (0.045, "slim I3"),
    "schedule.decay_rate": (0.94, "slim I3"),
    "schedule.decay_epochs": (2.5, "slim"),
    "schedule.warmup_epochs": (0.0, "slim"),
}
V2 = {
    "model.name": ("mobilenet_v2", "V2"),
    "batch_size": (96, "V2"),
    "epochs": (300.0, "tv"),
    "label_smoothing": (0.1, "slim"),
    "model.bn_momentum": (0.997, "slim"),
    "model.dropout": (0.2, "slim: keeps 0.8"),
    "augment.min_area": (0.05, "slim"),
    "optimizer.epsilon": (1.0, "slim"),
    "optimizer.weight_decay": (4e-5, "V2"),
    "optimizer.weight_decay_depthwise": (False, "slim"),
    "schedule.learning_rate": (0.045, "V2"),
    "schedule.decay_rate": (0.98, "V2"),
    "schedule.decay_epochs": (1.0, "V2"),
    "schedule.warmup_epochs": (0.0, "V2"),
}
V3 = {
    "batch_size": (4096, "V3"),
    "epochs": (1000.0, "tfm"),
    "label_smoothing": (0.1, "tfm"),
    "model.bn_momentum": (0.99, "V3"),
    "model.dropout": (0.2, "V3: 0.8 is kept"),
    "augment.min_area": (0.05, "V3: Inception's preprocessing, slim"),
    "optimizer.epsilon": (0.002, "tfm"),
    "optimizer.weight_decay": (1e-5, "V3"),
    "optimizer.weight_decay_depthwise": (True, "V3 exempts none"),
    "schedule.learning_rate": (0.1, "V3"),
    "schedule.decay_rate": (0.99, "V3: 0.01 every 3 epochs, read as tfm does"),
    "schedule.decay_epochs": (3.0, "V3"),
    "schedule.warmup_epochs": (5.0, "tfm: 1560 steps"),
}


@pytest.mark.parametrize(
    ("get_config", "arg", "pinned"),
    [
        (v1.get_config, "", V1),
        (v2.get_config, "", V2),
        *((v3.get_config, f"variant={variant},", V3) for variant in v3.VARIANTS),
    ],
)
def test_imagenet_has_the_papers_settings(get_config, arg, pinned):
    fields = leaves(get_config(f"{arg}dataset=imagenet2012"))
    expected = {name: value for name, (value, _) in {**SHARED, **pinned}.items()}
    assert {name: fields[name] for name in expected} == expected
    # Nothing that trains is left unpinned but what has no effect with these choices.
    unused = {"augment.padding", "augment.magnitude", "augment.rotate"}
    unused |= {"optimizer.nesterov", "optimizer.b1", "optimizer.b2"}
    training = ("model.bn_momentum", "model.dropout", "augment.", "optimizer.", "schedule.")
    assert {name for name in fields if name.startswith(training)} <= set(expected) | unused
    assert fields["augment.rotate"] == 0
    # The networks are the papers' own: no switch is set.
    own = {name for name in fields if name.startswith("model.")} - set(expected)
    own -= {"model.name", "model.rule", "model.dtype"}
    assert all(fields[name] in (None, False, 0) for name in own)
    assert fields["model.rule"] == "keras"
    assert fields["model.dtype"] == "float32"


@pytest.mark.parametrize("file", ["v1", "v2", "v3"])
def test_every_value_of_an_imagenet_recipe_has_its_source_beside_it(file):
    source = inspect.getsource(FILES[file].imagenet)
    lines = source.splitlines()

    def has_comment(number):
        return "#" in lines[number - 1] or lines[number - 2].strip().startswith("#")

    values = 0
    for statement in ast.parse(source).body[0].body[1:]:
        if isinstance(statement, ast.Assign):
            assert has_comment(statement.lineno), lines[statement.lineno - 1]
            values += 1
            continue
        keywords = statement.value.keywords
        together = "# all of" in lines[keywords[0].lineno - 1]
        for keyword in keywords:
            assert together or has_comment(keyword.lineno), lines[keyword.lineno - 1]
            values += 1
    assert values == 18
    # The expected result, and that it is the paper's and not ours.
    assert re.search(r"The paper\s+states \d\d\.\d %", FILES[file].__doc__)
    assert re.search(r"not\s+measured here", FILES[file].__doc__)


def test_the_schedules_fall_as_the_papers_say():
    """Staircases: constant within a period, then lower by the paper's factor."""
    for get_config, period, factor, rate, warmup in (
        (v1.get_config, 2.5, 0.94, 0.045, 0),
        (v2.get_config, 1.0, 0.98, 0.045, 0),
        (v3.get_config, 3.0, 0.99, 0.1, 5),
    ):
        config = get_config("dataset=imagenet2012")
        per_epoch = TRAINING_IMAGES["imagenet2012"] // config.batch_size
        total = round(config.epochs * per_epoch)
        schedule = optim.learning_rate_schedule(config.schedule, per_epoch, total)
        first = 1 + int(warmup / period)
        for fall in range(first, first + 3):
            at = -(-int(2 * fall * period) * per_epoch // 2)  # the first step of the period
            assert float(schedule(at)) == pytest.approx(rate * factor**fall, rel=1e-5)
            assert float(schedule(at - 1)) == pytest.approx(rate * factor ** (fall - 1), rel=1e-5)
        assert float(schedule(0)) == pytest.approx(0 if warmup else rate, rel=1e-6)


def test_v3_warms_up_in_the_model_gardens_1560_steps():
    config = v3.get_config("dataset=imagenet2012")
    per_epoch = TRAINING_IMAGES["imagenet2012"] // config.batch_size
    assert round(config.schedule.warmup_epochs * per_epoch) == 1560


# Documentation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_the_commands_in_the_docstring_are_valid(file):
    commands = re.findall(r"--config=configs/(\w+)\.py(?::(\S+))?", FILES[file].__doc__)
    assert commands
    for name, arg in commands:
        module = importlib.import_module(f"configs.{name}")
        config_lib.check(module.get_config(arg))


def test_there_are_no_other_recipe_files():
    names = {path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")}
    assert names == set(FILES)


def test_recipes_hold_no_shared_state():
    for (get_config, arg, _), dataset in itertools.product(networks(), default.DATASETS):
        first = get_config(f"{arg},dataset={dataset}")
        before = first.to_dict()
        with first.unlocked():
            first.seed = 99
            first.model.alpha = 0.1
        assert get_config(f"{arg},dataset={dataset}").to_dict() == before
