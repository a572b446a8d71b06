"""MobileNetV2, arXiv:1801.04381.

    python -m mobilenets_jax.main --config=configs/v2.py
    python -m mobilenets_jax.main --config=configs/v2.py:dataset=fashion_mnist
    python -m mobilenets_jax.main --config=configs/v2.py:dataset=imagenet2012

Arguments: dataset, recipe; see `configs/default.py`. On ImageNet the default recipe has the
paper's settings (section 6.1: RMSProp with decay and momentum 0.9, rate 0.045 falling by 2 % an
epoch, batches of 96, weight decay 4e-5), and TF-slim's where the paper states none. The paper
states 72.0 % top-1; not measured here.
"""

from ml_collections import ConfigDict

from configs import default


def imagenet(config: ConfigDict) -> None:
    """The paper's section 6.1; label smoothing, EMA, dropout, epsilon and BN of TF-slim."""
    config.batch_size = 96
    config.epochs = 300.0  # the paper gives none
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.augment.min_area = 0.05
    config.model.update(bn_momentum=0.997, dropout=0.2)
    config.optimizer.update(
        name="rmsprop",
        momentum=0.9,
        decay=0.9,
        epsilon=1.0,
        weight_decay=4e-5,
        weight_decay_depthwise=False,
    )
    config.schedule.update(
        name="exponential",
        learning_rate=0.045,
        decay_rate=0.98,
        decay_epochs=1.0,
        warmup_epochs=0.0,
    )


def get_config(arg: str = "") -> ConfigDict:
    """Returns the locked config for `arg`, e.g. "dataset=fashion_mnist"."""
    values = default.parse_arg(arg, dataset="digits", recipe="default")
    config = default.build("mobilenet_v2", **values)
    if values["dataset"] == "imagenet2012" and values["recipe"] == "default":
        imagenet(config)
    return config.lock()
