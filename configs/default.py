"""What every experiment is made of, and the recipe of each data set.

    python -m mobilenets_jax.main --config=configs/default.py:model=mobilenet_v1,dataset=digits

`configs/v1.py`, `v2.py` and `v3.py` start from here and add their paper's ImageNet settings. The
argument after the colon is `key=value` pairs:

- model: one of `mobilenets_jax.list_models()`; default mobilenet_v2.
- dataset: digits (default), fashion_mnist, cifar10, image_folder, imagenet2012, or the name of any
  TFDS data set that is prepared as ArrayRecord.
- recipe: default, modern (cosine, AdamW, mixup, cutmix, random erasing, RandAugment, longer), or
  modern_sgd (the same with SGD).

Every field can be overridden: --config.model.alpha=0.75 --config.beta=0.714.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mobilenets_jax.errors import InputError, choose, nearest

RECIPES = ("default", "modern", "modern_sgd")


def parse_arg(arg: str, **defaults: str) -> dict[str, str]:
    """Reads `key=value,key=value`; keys and defaults are those of `defaults`.

    Raises:
        InputError: for a pair without "=", or an unknown key.
    """
    values = dict(defaults)
    for pair in filter(None, (part.strip() for part in (arg or "").split(","))):
        key, equals, value = (text.strip() for text in pair.partition("="))
        if not equals:
            raise InputError(f"The config argument '{pair}' must be key=value.")
        if key not in defaults:
            raise InputError(
                f"Unknown config argument '{key}'.{nearest(key, defaults)} Choose one of: "
                f"{', '.join(defaults)}."
            )
        values[key] = value
    if "recipe" in values:
        choose("recipe", values["recipe"], RECIPES)
    return values


def base(model: str, dataset: str) -> ConfigDict:
    """Every field that there is, at the value that does least; locked."""
    return ConfigDict(
        {
            "seed": 0,
            # So many trainings in one program, with seeds that follow `seed`, or as `replica` says:
            # a value for each, such as (0.01, 0.03). See README.md, "Seeds in one program".
            "replicas": 1,
            "replica": {"seeds": (), "learning_rate": (), "weight_decay": ()},
            # The network sees beta * resolution pixels, rounded to a multiple of 32 (of 4 for a
            # base below 128).
            "resolution": 224,
            "beta": 1.0,
            "batch_size": 256,
            "eval_batch_size": 256,
            "epochs": 100.0,
            "label_smoothing": 0.0,
            "ema_decay": 0.0,
            "log_every": 50,  # steps
            "eval_every": 1.0,  # epochs
            "checkpoint_every": 1.0,  # epochs; each evaluation saves too
            "distributed": False,
            # Fine-tuning: see README.md, "Published weights".
            "init_from": placeholder(str),  # a file of weights, or a workdir; None: random ones
            "init_source": "native",  # whose it is
            "freeze": placeholder(str),  # "backbone": only the classifier is trained
            # Passed to mobilenets_jax.create_model; None is the paper's own.
            "model": {
                "name": model,
                "alpha": 1.0,
                "activation": placeholder(str),
                "activation_everywhere": False,
                "rule": "keras",
                "standard_conv": placeholder(bool),
                "linear_bottleneck": placeholder(bool),
                "expansion": placeholder(int),
                "residual": placeholder(str),
                "shortcut": placeholder(str),
                "se": placeholder(bool),
                "hswish_from": placeholder(int),
                "timm_variant": placeholder(str),
                "depth": placeholder(float),
                "last_stage": placeholder(str),
                "stem": placeholder(int),
                "shallow": placeholder(bool),
                "drop_strides": 0,
                "padding": placeholder(str),
                "bn_momentum": placeholder(float),
                "bn_epsilon": placeholder(float),
                "dropout": placeholder(float),
                "se_gate": placeholder(str),
                "dtype": "float32",
                "depthwise_implementation": placeholder(str),  # None: the platform's fastest
            },
            "dataset": {
                "name": dataset,
                "num_classes": placeholder(int),  # None: what the data set says
                "data_dir": placeholder(str),
                "manual_dir": placeholder(str),
                "train_split": "train",
                "eval_split": "test",
                "workers": 0,
            },
            "augment": {
                "crop": "none",
                "padding": 4,  # pixels, for crop=pad
                "min_area": 0.08,  # of the image, for crop=random_resized
                "rotate": 0.0,  # degrees, to either side
                "flip": False,
                "brightness": 0.0,  # largest change, as a fraction of 255
                "saturation": 0.0,  # factor in 1 - s to 1 + s
                "randaugment": 0,  # operations per image
                "magnitude": 9.0,  # of RandAugment, 0 to 10
                "erasing": 0.0,  # probability
                "mixup": 0.0,  # parameter of the Beta distribution
                "cutmix": 0.0,
            },
            "preprocess": {
                "mean": (127.5, 127.5, 127.5),  # of pixels 0 to 255
                "std": (127.5, 127.5, 127.5),
                "crop_fraction": 1.0,  # of the shorter side, in evaluation; None: squeeze all
                "interpolation": "bilinear",
            },
            "optimizer": {
                "name": "sgd",
                "momentum": 0.9,
                "nesterov": True,
                "decay": 0.9,
                "epsilon": 1.0,
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": 0.0,
                "weight_decay_depthwise": False,
                "clip_norm": 0.0,
                "backbone_scale": 1.0,  # of the learning rate, for all but the classifier
            },
            "schedule": {
                "name": "cosine",
                "learning_rate": 0.1,
                "warmup_epochs": 0.0,
                "decay_rate": 0.98,
                "decay_epochs": 1.0,
            },
        }
    ).lock()


def small_images(config: ConfigDict) -> None:
    """What the 32-pixel data sets share: short runs, so fast statistics and averages."""
    config.resolution = 32
    config.model.bn_momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.label_smoothing = 0.1
    config.ema_decay = 0.99


def digits(config: ConfigDict) -> None:
    """1,437 + 360 handwritten digits of 8×8 pixels, enlarged to 32×32."""
    small_images(config)
    config.dataset.num_classes = 10
    config.model.drop_strides = 1
    config.batch_size = 32
    config.epochs = 8.0
    config.eval_every = 2.0
    config.checkpoint_every = 2.0
    config.log_every = 40
    config.augment.update(crop="pad", padding=3, rotate=10.0)
    config.schedule.update(learning_rate=0.03, warmup_epochs=1.0)


def fashion_mnist(config: ConfigDict) -> None:
    """60,000 + 10,000 pieces of clothing of 28×28 pixels, padded to 32×32."""
    small_images(config)
    config.dataset.num_classes = 10
    config.model.drop_strides = 1
    config.batch_size = 32
    config.epochs = 2.5
    config.ema_decay = 0.998
    config.label_smoothing = 0.0  # this, like stronger augmentation, pays in longer runs
    config.augment.flip = True
    config.schedule.update(learning_rate=0.03, warmup_epochs=0.1)


def cifar10(config: ConfigDict) -> None:
    """50,000 + 10,000 photos of 32×32 pixels."""
    small_images(config)
    config.dataset.num_classes = 10
    config.model.drop_strides = 2
    config.batch_size = 128
    config.epochs = 100.0
    config.ema_decay = 0.999
    config.augment.update(crop="pad", padding=4, flip=True)
    config.optimizer.weight_decay = 5e-4
    config.schedule.update(learning_rate=0.1, warmup_epochs=5.0)


def photos(config: ConfigDict) -> None:
    """What ImageNet and folders of photos share: Inception's crops and colours at 224 pixels."""
    config.resolution = 224
    config.preprocess.crop_fraction = 0.875
    config.augment.update(
        crop="random_resized", min_area=0.08, flip=True, brightness=32 / 255, saturation=0.5
    )
    config.dataset.workers = 2


def image_folder(config: ConfigDict) -> None:
    """Your own photos: train/<class>/*.jpg and val/<class>/* in dataset.manual_dir."""
    photos(config)
    config.dataset.eval_split = "val"
    config.batch_size = 64
    config.epochs = 100.0
    config.model.bn_momentum = 0.99
    config.label_smoothing = 0.1
    config.ema_decay = 0.999
    config.optimizer.weight_decay = 4e-5
    config.schedule.update(learning_rate=0.05, warmup_epochs=5.0)


def imagenet2012(config: ConfigDict) -> None:
    """ImageNet; the papers' own optimizers are in `v1.py`, `v2.py` and `v3.py`."""
    photos(config)
    config.dataset.num_classes = 1000
    config.dataset.eval_split = "validation"
    config.dataset.workers = 8
    config.epochs = 300.0
    config.ema_decay = 0.9999
    config.optimizer.weight_decay = 4e-5
    config.schedule.update(learning_rate=0.1, warmup_epochs=5.0)


def modern(config: ConfigDict) -> None:
    """What came after the papers: cosine, AdamW, mixing, erasing, RandAugment, and longer."""
    config.epochs *= 2
    config.label_smoothing = 0.1
    config.augment.update(
        brightness=0.0,
        saturation=0.0,
        randaugment=2,
        magnitude=9.0,
        erasing=0.25,
        mixup=0.2,
        cutmix=1.0,
    )
    config.optimizer.update(name="adamw", epsilon=1e-8, weight_decay=0.05, clip_norm=1.0)
    config.schedule.update(
        name="cosine", learning_rate=1e-3, warmup_epochs=min(5.0, config.epochs / 10)
    )


def modern_sgd(config: ConfigDict) -> None:
    """The same with SGD, at the data set's own rate and weight decay."""
    rate, decay = config.schedule.learning_rate, config.optimizer.weight_decay
    modern(config)
    config.optimizer.update(name="sgd", weight_decay=decay, clip_norm=0.0)
    config.schedule.learning_rate = rate


DATASETS = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "image_folder": image_folder,
    "imagenet2012": imagenet2012,
}


def build(model: str, dataset: str, recipe: str) -> ConfigDict:
    """The recipe of a data set; one without a recipe of its own gets that of cifar10."""
    config = base(model, dataset)
    DATASETS.get(dataset, cifar10)(config)
    if dataset not in DATASETS:
        config.dataset.num_classes = None
    if recipe == "modern":
        modern(config)
    elif recipe == "modern_sgd":
        modern_sgd(config)
    return config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the locked config for `arg`, see the module's docstring."""
    values = parse_arg(arg, model="mobilenet_v2", dataset="digits", recipe="default")
    return build(**values)
