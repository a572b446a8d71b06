"""MobileNetV3, arXiv:1905.02244.

    python -m mobilenets_jax.main --config=configs/v3.py
    python -m mobilenets_jax.main --config=configs/v3.py:variant=small
    python -m mobilenets_jax.main --config=configs/v3.py:variant=small,dataset=imagenet2012

Arguments: variant (large, small, large_minimalistic, small_minimalistic), dataset, recipe; see
`configs/default.py`. On ImageNet the default recipe has the paper's settings (section 6.1.1:
RMSProp with momentum 0.9, rate 0.1 falling by 1 % every 3 epochs, batches of 4096, weight decay
1e-5, dropout 0.2, EMA 0.9999, BN 0.99); where the paper states none, those of TensorFlow's Model
Garden. The paper states 75.2 % (Large) and 67.4 % (Small) top-1; not measured here.
"""

from ml_collections import ConfigDict

from configs import default
from mobilenets_jax.errors import choose

VARIANTS = ("large", "small", "large_minimalistic", "small_minimalistic")


def imagenet(config: ConfigDict) -> None:
    """The paper's section 6.1.1; epsilon, epochs, warm-up and smoothing of the Model Garden."""
    config.batch_size = 4096
    config.epochs = 1000.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.augment.min_area = 0.05
    config.model.update(bn_momentum=0.99, dropout=0.2)
    config.optimizer.update(
        name="rmsprop",
        momentum=0.9,
        decay=0.9,
        epsilon=0.002,
        weight_decay=1e-5,
        # The paper does not exempt them.
        weight_decay_depthwise=True,
    )
    config.schedule.update(
        name="exponential",
        learning_rate=0.1,
        decay_rate=0.99,
        decay_epochs=3.0,
        warmup_epochs=5.0,
    )


def get_config(arg: str = "") -> ConfigDict:
    """Returns the locked config for `arg`, e.g. "variant=small,dataset=fashion_mnist"."""
    values = default.parse_arg(arg, variant="large", dataset="digits", recipe="default")
    variant = values.pop("variant")
    choose("variant", variant, VARIANTS)
    config = default.build(f"mobilenet_v3_{variant}", **values)
    if values["dataset"] == "imagenet2012" and values["recipe"] == "default":
        imagenet(config)
    return config.lock()
