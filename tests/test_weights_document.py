"""What a file of our own says of its weights: there and back, and when it is not to be believed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs import default
from mobilenets_jax import (
    checkpoint,
    published,
    specs,
    switches,
    weights,
    weights_document,
    weights_files,
)
from mobilenets_jax import config as config_lib
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet, create_model
from mobilenets_jax.weights_document import Document

HOW = published.Preprocessing(
    (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 224 / 232, "pillow_bilinear", 160
)
SUFFIXES = (".safetensors", ".npz", ".pth")


def narrow(**fields):
    return create_model("mobilenet_v1", 3, 0.1, **{"shallow": True, **fields})


def variables_of(model):
    flat = {
        name: np.random.default_rng(len(name)).random(shape, np.float32)
        for name, shape in weights.shapes(model).items()
    }
    return unflatten_dict(flat, sep="/")


def save(path, model, **more):
    if path.suffix == ".pth":
        pytest.importorskip("torch")
    variables = variables_of(model)
    weights.save(variables, path, model, format=path.suffix[1:], naming="native", **more)
    return variables


def message_of(function, *args, **more):
    with pytest.raises(InputError) as caught:
        function(*args, **more)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# There and back


def every_network():
    """Each table and each switch."""
    for name in specs.list_models():
        yield {"name": name}
    yield {"name": "mobilenet_v2", "alpha": 0.35, "rule": "slim", "padding": "symmetric"}
    for fields in (
        {"activation": "mish", "activation_everywhere": True},
        {"depth": 1.4, "alpha": 1.2},
        {"last_stage": "shortened"},
        {"stem": 16, "se": True, "se_gate": "sigmoid"},
        {"residual": "classical"},
        {"shortcut": "expansion", "linear_bottleneck": False},
        {"standard_conv": True, "drop_strides": 2},
        {"hswish_from": 28, "bn_epsilon": 1e-5, "bn_momentum": 0.9, "dropout": 0.0},
    ):
        yield {"name": "mobilenet_v2", **fields}
    yield {"name": "mobilenet_v1", "timm_variant": "h", "padding": "bottom_right"}
    yield {"name": "mobilenet_v3_large", "timm_variant": "rw"}


@pytest.mark.parametrize("fields", [*every_network()], ids=str)
def test_every_network_comes_back_to_the_last_field(fields):
    spec = switches.build_spec(num_classes=7, **fields)
    for preprocessing in (None, HOW, HOW._replace(crop_fraction=None, resolution=32)):
        text = weights_document.to_json(Document(spec, preprocessing))
        assert len(text) < weights_files.MOST_DOCUMENT / 4
        found = weights_document.from_json(text, "file")
        assert found == Document(spec, preprocessing)
        # `stages` is not compared by ==.
        assert dataclasses.asdict(found.network) == dataclasses.asdict(spec)
        assert hash(found.network) == hash(spec)


def test_the_deepest_network_fits():
    spec = switches.build_spec("mobilenet_v2", depth=10)
    text = weights_document.to_json(Document(spec, HOW))
    assert len(text) < weights_files.MOST_DOCUMENT
    assert weights_document.from_json(text, "file").network == spec


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_network_and_preprocessing_travel_with_the_weights(suffix, tmp_path):
    model, path = narrow(padding="symmetric", drop_strides=2), tmp_path / f"mine{suffix}"
    variables = save(path, model, preprocessing=HOW)
    found = weights.describe(path)
    assert found == Document(model.spec, HOW)
    rebuilt = MobileNet(found.network)
    loaded = weights.load(path, rebuilt)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert set(weights_files.read(path)) == set(weights.shapes(model))


def test_where_it_lies_in_a_file(tmp_path):
    """Whoever reads only arrays finds no other in .safetensors, and one without pickle in .npz."""
    model = narrow()
    save(tmp_path / "a.safetensors", model, preprocessing=HOW)
    assert set(load_file(tmp_path / "a.safetensors")) == set(weights.shapes(model))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        said = json.loads(file.metadata()[weights_files.DOCUMENT])
        assert file.metadata()["format"] == "pt"
    assert said["network"]["padding"] == "same"
    assert said["preprocessing"] == {**HOW._asdict(), "mean": [*HOW.mean], "std": [*HOW.std]}
    save(tmp_path / "a.npz", model, preprocessing=HOW)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*weights.shapes(model), weights_files.DOCUMENT}
        entry = arrays[weights_files.DOCUMENT]
    assert (entry.dtype, entry.ndim) == (np.uint8, 1)
    assert json.loads(entry.tobytes()) == said


def test_without_preprocessing_the_network_travels_alone(tmp_path):
    save(tmp_path / "a.npz", narrow())
    assert weights.describe(tmp_path / "a.npz") == Document(narrow().spec, None)


def test_a_file_that_says_nothing_is_loaded_and_that_is_said(tmp_path, capsys):
    """Of an earlier version, or by others' hands: any network of those arrays takes it."""
    variables = variables_of(narrow())
    flat = {
        "/".join(key.key for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    save_file(flat, tmp_path / "a.safetensors")
    save_file(flat, tmp_path / "b.safetensors", metadata={"format": "pt"})
    np.savez(tmp_path / "a.npz", **flat)
    for name in ("a.safetensors", "b.safetensors", "a.npz"):
        assert weights.describe(tmp_path / name) is None
        loaded = weights.load(tmp_path / name, narrow(padding="symmetric"))
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
        assert capsys.readouterr().out == (
            f"{tmp_path / name} does not say of which network it is, so padding and epsilon are "
            "this network's: symmetric, 0.001.\n"
        )


def test_a_workdir_says_it_by_its_config(tmp_path):
    config = default.get_config("model=mobilenet_v1,dataset=image_folder")
    config.model.update(alpha=0.1, shallow=True, drop_strides=1, dtype="bfloat16")
    config.update(resolution=128, beta=0.5)
    config.preprocess.update(std=(1.0, 2.0, 3.0), crop_fraction=None)
    model = narrow(drop_strides=1, bn_momentum=config.model.bn_momentum)
    averaged = {f"ema_{name}": tree for name, tree in variables_of(model).items()}
    with checkpoint.open_manager(tmp_path / "run") as manager:
        meta = {"config": config_lib.plain(config), "class_names": ["a", "b", "c"]}
        checkpoint.save(manager, 5, averaged, meta, None)
    found = weights.describe(tmp_path / "run")
    how = published.Preprocessing((127.5,) * 3, (1.0, 2.0, 3.0), None, "bilinear", 64)
    assert found == Document(model.spec, how)
    # From a training to one file, nothing lost.
    loaded = weights.load(tmp_path / "run", MobileNet(found.network))
    path = tmp_path / "mine.npz"
    weights.save(
        loaded, path, MobileNet(found.network), format="npz", naming="native", preprocessing=how
    )
    assert weights.describe(path) == found


# Networks that differ


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"padding": "symmetric"}, "padding is 'symmetric' there and 'same' here"),
        ({"bn_epsilon": 1e-5}, "bn_epsilon is 1e-05 there and 0.001 here"),
        ({"activation": "silu"}, "stem.activation is 'silu' there and 'relu6' here"),
        ({"drop_strides": 1}, "stem.strides is 1 there and 2 here"),
        ({"se": True, "se_gate": "sigmoid"}, "blocks_0.se is True there and False here"),
    ],
)
def test_a_network_that_differs_in_a_field_is_refused(suffix, fields, difference, tmp_path):
    path = tmp_path / f"theirs{suffix}"
    save(path, narrow(**fields))
    assert message_of(weights.load, path, narrow()) == (
        f"{path} is of another network ({difference}): give the name and switches of the one that "
        "was saved."
    )


def test_a_network_of_another_width_or_name_is_named_by_that(tmp_path):
    path = tmp_path / "a.npz"
    save(path, narrow())
    wider = create_model("mobilenet_v1", 3, 0.25, shallow=True)
    assert "(alpha is 0.1 there and 0.25 here)" in message_of(weights.load, path, wider)
    other = create_model("mobilenet_v2", 3, 0.1)
    expected = "(name is 'mobilenet_v1' there and 'mobilenet_v2' here)"
    assert expected in message_of(weights.load, path, other)


def test_what_changes_no_answer_may_differ(tmp_path, capsys):
    path = tmp_path / "a.npz"
    variables = save(path, narrow(dropout=0.5, bn_momentum=0.5))
    loaded = weights.load(path, narrow(dropout=0.0, bn_momentum=0.9))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    weights.load(path, create_model("mobilenet_v1", 5, 0.1, shallow=True))
    assert "has 3 classes and this network has 5" in capsys.readouterr().out


# What is refused when it is saved


def test_only_native_files_hold_preprocessing(tmp_path):
    model = weights.model_for("timm", "mobilenetv3_small_050", num_classes=2)
    variables = variables_of(model)
    path = tmp_path / "a.npz"
    message = message_of(weights.save, variables, path, model, format="npz", preprocessing=HOW)
    assert message == (
        "Files with timm's names hold no preprocessing: leave it out, or save with naming='native'."
    )
    weights.save(variables, path, model, format="npz")
    assert weights_files.DOCUMENT not in np.load(path).files


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean": (1.0, 2.0)}, "preprocessing.mean must be three numbers such as"),
        ({"std": (0.0, 1.0, 1.0)}, "preprocessing.std must be three numbers such as"),
        ({"mean": (np.nan, 1.0, 1.0)}, "preprocessing.mean must be three numbers such as"),
        ({"crop_fraction": 1.5}, "preprocessing.crop_fraction must be a number above 0 and at mo"),
        ({"interpolation": "lanczos"}, "preprocessing.interpolation is 'lanczos'"),
        ({"resolution": 0}, "preprocessing.resolution must be an integer from 1"),
        ({"resolution": 1e6}, "preprocessing.resolution must be an integer from 1"),
    ],
)
def test_preprocessing_that_cannot_be_is_not_saved(change, reason, tmp_path):
    path, model = tmp_path / "a.npz", narrow()
    message = message_of(
        weights.save,
        variables_of(model),
        path,
        model,
        format="npz",
        naming="native",
        preprocessing=HOW._replace(**change),
    )
    assert message.startswith(f"Cannot save {path}: {reason}")
    assert not path.exists()


@pytest.mark.parametrize(
    "how", [tuple(HOW), HOW._asdict(), "none", 0], ids=lambda how: str(type(how))
)
def test_preprocessing_of_another_type_is_not_saved(how, tmp_path):
    path = tmp_path / "a.npz"
    message = message_of(save, path, narrow(), preprocessing=how)
    kind = type(how).__name__
    expected = f"Cannot save {path}: preprocessing is a {kind} and no Preprocessing."
    assert message == expected
    assert not path.exists()


def test_numbers_of_numpy_are_saved(tmp_path):
    path = tmp_path / "a.npz"
    how = HOW._replace(
        mean=np.array([1.0, 2.0, 3.0]),
        std=(np.float32(1.5),) * 3,
        crop_fraction=np.float64(0.5),
        resolution=np.int64(160),
    )
    save(path, narrow(), preprocessing=how)
    expected = HOW._replace(mean=(1.0, 2.0, 3.0), std=(1.5,) * 3, crop_fraction=0.5)
    assert weights.describe(path).preprocessing == expected
    message = message_of(save, path, narrow(), preprocessing=HOW._replace(mean=object()))
    assert message == f"Cannot save {path}: object cannot be written."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("params/stem/kernel", np.nan),
        ("params/classifier/bias", -np.inf),
        ("params/classifier/bias", 1e300),
        ("batch_stats/stem/bn/var", -1.0),
    ],
)
def test_weights_that_cannot_be_are_not_saved(name, value, tmp_path):
    model, path = narrow(), tmp_path / "a.npz"
    flat = {key: np.ones(shape) for key, shape in weights.shapes(model).items()}
    flat[name].flat[-1] = value
    variables = unflatten_dict(flat, sep="/")
    message = message_of(weights.save, variables, path, model, format="npz", naming="native")
    assert message.startswith(f"Cannot save {path}: {name} holds values that no weights have (not")
    assert not path.exists()


# What is not to be believed


def said(**changes):
    """A document's JSON with parts replaced; "__" stands for the way down, "x" is left out."""
    found = json.loads(weights_document.to_json(Document(narrow().spec, HOW)))
    for name, value in changes.items():
        *parents, leaf = (int(key) if key.isdigit() else key for key in name.split("__"))
        row = found
        for parent in parents:
            row = row[parent]
        row[leaf] = value
        if value == "x":
            del row[leaf]
    return json.dumps(found)


WRONG = {
    "": "Expecting value",
    "{": "Expecting property name",
    "[]": "it is no object",
    "null": "it is no object",
    '{"network": null}': "network is no object",
    "[" * 30_000: "nested too deeply",
    "1" * 5000: "Exceeds the limit",
    said(network="x"): "network is missing",
    said().replace('"alpha"', '"alpha": 7, "alpha"'): "alpha is there twice",
    said().replace('"kernel"', '"\\u001b": 7, "\\u001b": 7, "kernel"', 1): "'\\x1b' is there twice",
    said(more=1): "more is unknown",
    said(network__more=1): "network.more is unknown",
    said(**{"\x1b[2J\udc80": 1}): "'\\x1b[2J\\udc80' is unknown",
    said(network__family="x"): "network.family is missing",
    said(network__blocks={}): "network.blocks is no list",
    said(network__blocks=[]): "network.blocks is empty",
    said(network__blocks__3=7): "network.blocks[3] is no object",
    said(network__blocks__3__kernel=10**9): "network.blocks[3].kernel must be an integer from 1",
    said(network__blocks__0__out=-8): "network.blocks[0].out must be an integer from 1",
    said(network__blocks__0__out=8.5): "network.blocks[0].out must be an integer from 1",
    said(network__blocks__0__se=1): "network.blocks[0].se must be true or false",
    said(network__blocks__0__shortcut="a" * 9999): "network.blocks[0].shortcut is 'aaaa",
    said(network__stem__activation=["relu"]): "network.stem.activation is ['relu']",
    said(network__stem=None): "network.stem is no object",
    said(network__stages=[1]): "network.stages must be 8 blocks together",
    said(network__stages=[10**6] * 4): "network.stages[0] must be an integer from 1 to 1000",
    said(network__stages=[0]): "network.stages[0] must be an integer from 1",
    said(network__padding=None): "network.padding is None",
    said(network__bn_epsilon="1e-3"): "network.bn_epsilon must be a number from 0",
    said(network__bn_epsilon=float("nan")): "network.bn_epsilon must be a number from 0",
    said(network__alpha=float("inf")): "network.alpha must be a number above 0",
    said(network__num_classes=True): "network.num_classes must be an integer from 1",
    said(network__name=""): "network.name is ''",
    said(network__name="\x1b[2J"): "network.name is '\\x1b[2J'",
    said(preprocessing=[]): "preprocessing is no object",
    said(preprocessing__mean="x"): "preprocessing.mean is missing",
    said(preprocessing__mean=[1, 2]): "preprocessing.mean must be three numbers",
    said(preprocessing__std=[0, 1, 1]): "preprocessing.std must be three numbers",
    said(preprocessing__std=[1, 1, 1e-300]): "preprocessing.std must be three numbers",
    said(preprocessing__resolution=4097): "preprocessing.resolution must be an integer from 1 to 4",
    said(preprocessing__interpolation=None): "preprocessing.interpolation is None",
    said(preprocessing__more=1): "preprocessing.more is unknown",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=lambda text: WRONG[text])
def test_a_document_that_cannot_be_right_is_one_sentence(text, tmp_path):
    prefix = "file: what it says of its weights cannot be right ("
    suffix = "): take another file, or save it again."
    message = message_of(weights_document.from_json, text, "file")
    assert message.startswith(prefix + WRONG[text])
    assert message.endswith(suffix)


def written(tmp_path, suffix, text):
    """A file of the narrow network that says something else of it."""
    path = tmp_path / f"bad{suffix}"
    flat = {name: np.ones(shape, np.float32) for name, shape in weights.shapes(narrow()).items()}
    weights_files.write(flat, path, suffix[1:], text)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", ": what it says of its weights cannot be right (Expecting property name"),
        ("[]", ": what it says of its weights cannot be right (it is no object)"),
        (" " * 70_000, " says 70,000 bytes of its weights, and no network needs more than 65,536"),
    ],
    ids=["torn", "list", "long"],
)
def test_a_wrong_document_stops_a_load(suffix, text, reason, tmp_path):
    path = written(tmp_path, suffix, text)
    for function, *arguments in ((weights.load, narrow()), (weights.describe,)):
        assert message_of(function, path, *arguments).startswith(f"{path}{reason}")


def test_a_network_that_does_not_say_its_stages_has_no_names_elsewhere(tmp_path):
    path = tmp_path / "a.npz"
    model = weights.model_for("timm", "mobilenetv3_small_050", num_classes=2)
    document = Document(dataclasses.replace(model.spec, stages=()), None)
    flat = {name: np.ones(shape, np.float32) for name, shape in weights.shapes(model).items()}
    weights_files.write(flat, path, "npz", weights_document.to_json(document))
    found = MobileNet(weights.describe(path).network)
    variables = weights.load(path, found)
    message = message_of(weights.save, variables, tmp_path / "b.npz", found, format="npz")
    assert message.startswith("This mobilenet_v3_small has 11 blocks and its stages 0, so they")


@pytest.mark.parametrize(
    "entry",
    [
        np.frombuffer(b"\xff\xfe{}", np.uint8),  # no UTF-8
        np.zeros((2, 2), np.uint8),
        np.zeros(3, np.float32),
        np.array("{}"),
        np.array({"network": 1}, dtype=object),  # a pickle
    ],
    ids=["no text", "two axes", "numbers", "unicode", "pickle"],
)
def test_an_entry_of_another_kind_is_one_sentence(entry, tmp_path):
    path = tmp_path / "a.npz"
    flat = {name: np.ones(shape, np.float32) for name, shape in weights.shapes(narrow()).items()}
    np.savez(path, **flat, **{weights_files.DOCUMENT: entry})
    for function, *arguments in ((weights.load, narrow()), (weights.describe,)):
        message = message_of(function, path, *arguments)
        assert message.startswith(f"{path}")


def test_a_huge_entry_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{weights_files.DOCUMENT: np.zeros(2**27, np.uint8)})
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(np, "load", None)  # not even begun
    message = message_of(weights_files.read_document, path)
    assert message.startswith(f"{path} says 134,217,728 bytes of its weights")
