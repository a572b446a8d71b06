"""MobileNetV1, arXiv:1704.04861.

    python -m mobilenets_jax.main --config=configs/v1.py
    python -m mobilenets_jax.main --config=configs/v1.py:dataset=imagenet2012

Expected on digits: 98.3 % test accuracy (median of seeds 0, 1, 2; see the README).

Arguments: dataset, recipe; see `configs/default.py`. On ImageNet the default recipe has the
paper's settings where it states them (RMSProp, no label smoothing, no weight decay on depthwise
filters, fewer distortions), and TF-slim's and Inception V3's, to which it refers, where it does
not (its gradient clipping and its 2 epochs a decay excepted). The paper states 70.6 % top-1; not
measured here.
"""

from ml_collections import ConfigDict

from configs import default


def imagenet(config: ConfigDict) -> None:
    """The paper's section 3.2; TF-slim is its nets/mobilenet_v1.py and mobilenet_v1_train.py."""
    config.batch_size = 64  # TF-slim
    config.epochs = 200.0  # the paper gives none
    config.label_smoothing = 0.0  # the paper: no label smoothing
    config.ema_decay = 0.9999  # V3's paper; V1's gives none
    # "Limiting the size of small crops"; the paper gives no number.
    config.augment.min_area = 0.25
    config.model.update(bn_momentum=0.9997, dropout=0.001)  # TF-slim
    config.optimizer.update(
        name="rmsprop",  # the paper, "similar to Inception V3"
        momentum=0.9,  # TF-slim's train_image_classifier.py
        decay=0.9,  # Inception V3, arXiv:1512.00567, section 8
        epsilon=1.0,  # likewise
        weight_decay=4e-5,  # TF-slim
        weight_decay_depthwise=False,  # the paper: "very little or no" there
    )
    config.schedule.update(
        name="exponential",  # all of TF-slim
        learning_rate=0.045,
        decay_rate=0.94,
        decay_epochs=2.5,
        warmup_epochs=0.0,
    )


def get_config(arg: str = "") -> ConfigDict:
    """Returns the locked config for `arg`, e.g. "dataset=fashion_mnist"."""
    values = default.parse_arg(arg, dataset="digits", recipe="default")
    config = default.build("mobilenet_v1", **values)
    if values["dataset"] == "imagenet2012" and values["recipe"] == "default":
        imagenet(config)
    return config
