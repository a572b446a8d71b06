"""The networks that torchvision, timm and Keras publish weights for, as data.

Owns what each library builds (rounding rule, padding, BatchNorm constants, variants), the
preprocessing that belongs to each set of weights, and the top-1 accuracy where its publisher prints
one. Knows nothing of JAX, of array names or of files.

Read in torchvision 0.29.1, timm 1.0.31 and Keras 3.15.1.
"""

from typing import Any, NamedTuple

from mobilenets_jax.errors import InputError, choose
from mobilenets_jax.specs import list_models

SOURCES = ("timm", "torchvision", "keras", "native")
Triple = tuple[float, float, float]


class Preprocessing(NamedTuple):
    """What an image goes through before the network, for evaluation.

    Attributes:
        mean: subtracted from R, G and B, in 0 to 255.
        std: divided by afterwards, in 0 to 255.
        crop_fraction: side of the central crop as a fraction of the resized image's shorter side;
            None squeezes the whole image into the square.
        interpolation: of the resize, one of `augment.INTERPOLATIONS`.
        resolution: side of the crop in pixels.
    """

    mean: Triple
    std: Triple
    crop_fraction: float | None
    interpolation: str
    resolution: int = 224


class Weights(NamedTuple):
    """One published set of weights of a network.

    Attributes:
        tag: the library's name for it; "" where there is only one.
        top1: ImageNet accuracy in percent as its publisher prints it, or None where that is not
            known to us.
        preprocessing: what belongs to it.
    """

    tag: str
    top1: float | None
    preprocessing: Preprocessing


class Network(NamedTuple):
    """A network of a library.

    Attributes:
        source: "timm", "torchvision" or "keras".
        name: the library's name.
        model: our name.
        alpha: width multiplier.
        arguments: further arguments of `create_model` that make it the library's.
        weights: those published; the first is the library's default.
    """

    source: str
    name: str
    model: str
    alpha: float
    arguments: dict[str, Any]
    weights: tuple[Weights, ...]


def _imagenet(crop_fraction: float, interpolation: str) -> Preprocessing:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(_pixels(mean), _pixels(std), crop_fraction, interpolation)


def _pixels(fractions: Triple) -> Triple:
    r, g, b = (255 * value for value in fractions)
    return r, g, b


def _centred(crop_fraction: float | None, interpolation: str) -> Preprocessing:
    """To [-1, 1]."""
    return Preprocessing((127.5,) * 3, (127.5,) * 3, crop_fraction, interpolation)


# Alibaba-MIIL's weights divide by 255 only.
_MIIL = Preprocessing((0.0,) * 3, (255.0,) * 3, 0.875, "pillow_bilinear")
# Keras publishes no evaluation. Its documentation's examples for these networks load images by
# `keras.utils.load_img(path, target_size=(224, 224))`: the whole image, squeezed, by the nearest
# pixel. V1 and V2 scale outside of the network and V3 inside.
_KERAS = _centred(None, "pillow_nearest")

_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "timm": {
        family: {
            "rule": "timm",
            "padding": "symmetric",
            "bn_epsilon": 1e-5,
            "bn_momentum": 0.9,
            "dropout": 0.0,
        }
        for family in ("v1", "v2", "v3")
    },
    "torchvision": {
        family: {
            "rule": "torchvision",
            "padding": "symmetric",
            "bn_epsilon": epsilon,
            "bn_momentum": momentum,
            "dropout": 0.2,
        }
        for family, epsilon, momentum in (("v2", 1e-5, 0.9), ("v3", 1e-3, 0.99))
    },
    "keras": {
        family: {
            "rule": "keras",
            "padding": padding,
            "bn_epsilon": 1e-3,
            "bn_momentum": momentum,
            "dropout": dropout,
        }
        for family, padding, momentum, dropout in (
            ("v1", "bottom_right", 0.99, 0.001),
            ("v2", "same", 0.999, 0.0),
            ("v3", "same", 0.999, 0.2),
        )
    },
}
# timm's ports of TensorFlow's weights.
_TF = {"padding": "same", "bn_epsilon": 1e-3}


def _network(
    source: str,
    name: str,
    model: str,
    alpha: float,
    weights: tuple[Weights, ...],
    **arguments: Any,
) -> Network:
    merged = {**_DEFAULTS[source][model.split("_")[1]], **arguments}
    return Network(source, name, model, alpha, merged, weights)


_LARGE, _SMALL = "mobilenet_v3_large", "mobilenet_v3_small"
_RA4 = "ra4_e3600_r224_in1k"


def _timm() -> tuple[Network, ...]:
    """Top-1: timm's results/results-imagenet.csv at 224 pixels, as of commit 0173a139.

    It is older than the "ra4" weights, which it does not list.
    """
    bicubic, bilinear = _imagenet(0.875, "pillow_bicubic"), _imagenet(0.875, "pillow_bilinear")
    centred, tf = _centred(0.875, "pillow_bicubic"), _centred(0.875, "pillow_bilinear")

    def v1(name: str, alpha: float, of: Preprocessing, **more: str) -> Network:
        return _network("timm", name, "mobilenet_v1", alpha, (Weights(_RA4, None, of),), **more)

    def v2(name: str, alpha: float, tag: str, top1: float | None, **more: float) -> Network:
        return _network("timm", name, "mobilenet_v2", alpha, (Weights(tag, top1, bicubic),), **more)

    def v3(name: str, model: str, alpha: float, *weights: Weights, **more: Any) -> Network:
        return _network("timm", name, model, alpha, weights, **more)

    def tf_v3(name: str, model: str, alpha: float, top1: float) -> Network:
        name = f"tf_mobilenetv3_{name}"
        return _network("timm", name, model, alpha, (Weights("in1k", top1, tf),), **_TF)

    return (
        v1("mobilenetv1_100", 1.0, centred),
        v1("mobilenetv1_100h", 1.0, centred, timm_variant="h"),
        v1("mobilenetv1_125", 1.25, _centred(0.9, "pillow_bicubic")),
        v2("mobilenetv2_035", 0.35, "untrained", None),
        v2("mobilenetv2_050", 0.5, "lamb_in1k", 65.950),
        v2("mobilenetv2_075", 0.75, "untrained", None),
        v2("mobilenetv2_100", 1.0, "ra_in1k", 72.976),
        v2("mobilenetv2_110d", 1.1, "ra_in1k", 75.056, depth=1.2),
        v2("mobilenetv2_120d", 1.2, "ra_in1k", 77.302, depth=1.4),
        v2("mobilenetv2_140", 1.4, "ra_in1k", 76.520),
        v3("mobilenetv3_large_075", _LARGE, 0.75, Weights("untrained", None, bilinear)),
        v3(
            "mobilenetv3_large_100",
            _LARGE,
            1.0,
            Weights("ra_in1k", 75.766, bicubic),
            Weights(_RA4, None, _centred(0.95, "pillow_bicubic")),
            Weights("miil_in21k_ft_in1k", 77.918, _MIIL),
            Weights("miil_in21k", None, _MIIL),
        ),
        v3("mobilenetv3_small_050", _SMALL, 0.5, Weights("lamb_in1k", 57.910, bicubic)),
        v3("mobilenetv3_small_075", _SMALL, 0.75, Weights("lamb_in1k", 65.234, bicubic)),
        v3("mobilenetv3_small_100", _SMALL, 1.0, Weights("lamb_in1k", 67.656, bicubic)),
        v3(
            "mobilenetv3_rw",
            _LARGE,
            1.0,
            Weights("rmsp_in1k", 75.620, bicubic),
            timm_variant="rw",
            bn_epsilon=1e-3,
        ),
        tf_v3("large_075", _LARGE, 0.75, 73.432),
        tf_v3("large_100", _LARGE, 1.0, 75.516),
        tf_v3("large_minimal_100", f"{_LARGE}_minimalistic", 1.0, 72.258),
        tf_v3("small_075", _SMALL, 0.75, 65.728),
        tf_v3("small_100", _SMALL, 1.0, 67.918),
        tf_v3("small_minimal_100", f"{_SMALL}_minimalistic", 1.0, 62.890),
    )


def _torchvision() -> tuple[Network, ...]:
    """Top-1: `acc@1` of each weights enum. Resized to 256 (V1 weights) or 232 (V2)."""
    first, second = _imagenet(224 / 256, "pillow_bilinear"), _imagenet(224 / 232, "pillow_bilinear")
    return tuple(
        _network("torchvision", model, model, 1.0, weights)
        for model, weights in (
            (
                "mobilenet_v2",
                (
                    Weights("IMAGENET1K_V2", 72.154, second),
                    Weights("IMAGENET1K_V1", 71.878, first),
                ),
            ),
            (
                _LARGE,
                (
                    Weights("IMAGENET1K_V2", 75.274, second),
                    Weights("IMAGENET1K_V1", 74.042, first),
                ),
            ),
            (_SMALL, (Weights("IMAGENET1K_V1", 67.668, first),)),
        )
    )


def _keras() -> tuple[Network, ...]:
    """Top-1: the table in keras/src/applications/mobilenet_v3.py."""
    rows: list[tuple[str, str, float, float | None]] = [
        *(("MobileNet", "mobilenet_v1", alpha, None) for alpha in (0.25, 0.5, 0.75, 1.0)),
        *(("MobileNetV2", "mobilenet_v2", a, None) for a in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)),
        ("MobileNetV3Large", _LARGE, 0.75, 73.3),
        ("MobileNetV3Large", _LARGE, 1.0, 75.6),
        ("MobileNetV3Large", f"{_LARGE}_minimalistic", 1.0, 72.3),
        ("MobileNetV3Small", _SMALL, 0.75, 65.4),
        ("MobileNetV3Small", _SMALL, 1.0, 68.1),
        ("MobileNetV3Small", f"{_SMALL}_minimalistic", 1.0, 61.9),
    ]
    return tuple(
        _network("keras", name, model, alpha, (Weights("", top1, _KERAS),))
        for name, model, alpha, top1 in rows
    )


NETWORKS: tuple[Network, ...] = (*_torchvision(), *_timm(), *_keras())


def find(source: str, name: str, alpha: float = 1.0) -> Network:
    """Returns the network of a library by name.

    Args:
        source: "timm", "torchvision" or "keras".
        name: ours, at any alpha; or timm's, with or without its tag ("mobilenetv2_120d.ra_in1k"),
            whose alpha is in the name.
        alpha: width multiplier.

    Returns:
        The network, with the weights that the library publishes of it, which may be none.

    Raises:
        InputError: for a source or name that does not exist, a network that the source does not
            have, or an alpha beside a name that has one.
    """
    choose("source", source, SOURCES[:-1])
    own = [network for network in NETWORKS if network.source == source]
    if source == "timm":
        names = {network.name: network for network in own}
        network = names.get(name.partition(".")[0])
        if network is not None:
            if alpha not in (1.0, network.alpha):
                raise InputError(
                    f"timm's {name} has alpha = {network.alpha}, not {alpha}: leave alpha out, or "
                    f"name the network {network.model}."
                )
            return network
        choose("timm model", name, (*names, *list_models()))
    model = name.partition(".")[0]
    choose("model", model, list_models())
    alike = [network for network in own if network.model == model]
    if not alike:
        raise InputError(
            f"{source} has no {model}: choose one of "
            f"{', '.join(dict.fromkeys(network.model for network in own))}."
        )
    # The plain network before its variants, and timm's own before its ports.
    found = min(alike, key=lambda network: (len(network.arguments), network.name.startswith("tf_")))
    same = [n for n in alike if n.alpha == alpha and n.arguments == found.arguments]
    return same[0] if same else found._replace(name=model, alpha=alpha, weights=())


def preprocessing(source: str, name: str, alpha: float = 1.0) -> Preprocessing:
    """Returns what an image goes through before a library's network.

    Args:
        source: "timm", "torchvision" or "keras".
        name: as for `find`; a tag behind a dot ("mobilenet_v2.IMAGENET1K_V1") chooses among
            several sets of weights, the library's default is the first.
        alpha: width multiplier.

    Raises:
        InputError: for a source, name or tag that does not exist, and for weights that nobody
            published.
    """
    weights = find(source, name, alpha).weights
    if not weights:
        raise InputError(f"{source} publishes no weights of {name} at alpha = {alpha}.")
    tag = name.partition(".")[2]
    if not tag:
        return weights[0].preprocessing
    choose(f"tag of {name.partition('.')[0]}", tag, [each.tag for each in weights])
    return next(each.preprocessing for each in weights if each.tag == tag)
