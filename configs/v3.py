"""MobileNetV3, arXiv:1905.02244.

    python -m mobilenets_jax.main --config=configs/v3.py
    python -m mobilenets_jax.main --config=configs/v3.py:variant=small
    python -m mobilenets_jax.main --config=configs/v3.py:variant=small,dataset=imagenet2012

Expected on digits: 98.6 % test accuracy, Large and Small alike (median of seeds 0, 1, 2; see the
README).

Arguments: variant (large, small, large_minimalistic, small_minimalistic), dataset, recipe; see
`configs/default.py`. On ImageNet the default recipe has the paper's settings (section 6.1.1:
RMSProp with momentum 0.9, rate 0.1 falling by 1 % every 3 epochs, batches of 4096, weight decay
1e-5, dropout 0.2, EMA 0.9999, BN 0.99); where the paper states none, those of TensorFlow's Model
Garden for Small, for Large too. The paper states 75.2 % (Large) and 67.4 % (Small) top-1; not
measured here.
"""

from ml_collections import ConfigDict

from configs import default
from mobilenets_jax.errors import choose

VARIANTS = ("large", "small", "large_minimalistic", "small_minimalistic")


def imagenet(config: ConfigDict) -> None:
    """The paper's section 6.1.1; Garden is TensorFlow's imagenet_mobilenetv3small_tpu.yaml."""
    config.batch_size = 4096  # the paper
    config.epochs = 1000.0  # Garden
    config.label_smoothing = 0.1  # Garden
    config.ema_decay = 0.9999  # the paper
    config.augment.min_area = 0.05  # the paper: Inception's preprocessing, as in TF-slim
    config.model.update(bn_momentum=0.99, dropout=0.2)  # the paper; its 0.8 is the share kept
    config.optimizer.update(
        name="rmsprop",  # the paper
        momentum=0.9,  # the paper
        decay=0.9,  # Garden; TensorFlow's default too
        epsilon=0.002,  # Garden
        weight_decay=1e-5,  # the paper
        # The paper does not exempt them.
        weight_decay_depthwise=True,
    )
    config.schedule.update(
        name="exponential",  # the paper
        learning_rate=0.1,  # the paper
        decay_rate=0.99,  # "decay rate of 0.01 every 3 epochs", read as Garden does
        decay_epochs=3.0,  # likewise
        warmup_epochs=5.0,  # Garden: 1560 steps
    )


def get_config(arg: str = "") -> ConfigDict:
    """Returns the locked config for `arg`, e.g. "variant=small,dataset=fashion_mnist"."""
    values = default.parse_arg(arg, variant="large", dataset="digits", recipe="default")
    variant = values.pop("variant")
    choose("variant", variant, VARIANTS)
    config = default.build(f"mobilenet_v3_{variant}", **values)
    if values["dataset"] == "imagenet2012":
        if values["recipe"] == "default":
            imagenet(config)
        else:
            config.epochs = 2000.0  # twice those of the default recipe, as elsewhere
    return config
