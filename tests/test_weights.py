"""Weights of other libraries: names, layouts, formats, strictness, and the sentences of errors.

What needs PyTorch is in `experiments.parity`; its digests and logits are in data/weights.json.
"""

import collections
import functools
import json
import os
import pickle
import re
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import flax.struct
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from configs import default
from experiments import documents, parity, parity_report
from mobilenets_jax import (
    checkpoint,
    costs,
    fold,
    published,
    weights,
    weights_files,
    weights_names,
)
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import create_model

fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
RECORDED = json.loads(parity.RECORDED.read_text())
CASES = {case.key: case for case in parity.cases()}
SMALL = ("timm", "mobilenetv3_small_050", 1.0, 5)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def their_shapes(model, source):
    """Shapes of a library's state dict, as our tables have it."""
    slots = weights_names.slots(model.spec, weights.shapes(model), source)
    found = {slot.theirs: slot.their_shape for slot in slots}
    for name in list(found):
        if name.endswith(".running_mean"):
            found[name.replace("running_mean", "num_batches_tracked")] = ()
    return found


@functools.cache
def small():
    """A narrow network of timm's, with a state dict of synthetic values."""
    model = weights.model_for(*SMALL)
    return model, parity.synthetic(their_shapes(model, "timm"))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(small()[1], path)
    return path


# The networks that libraries build


# Of each table, and each network that has a switch of its own; the others as slow as all of them.
STATES = (
    *("torchvision/mobilenet_v2@0.25", "torchvision/mobilenet_v3_large@0.5"),
    *("torchvision/mobilenet_v3_small@0.25", "timm/mobilenetv1_100h", "timm/mobilenetv1_125"),
    *("timm/mobilenetv2_050", "timm/mobilenetv2_120d", "timm/mobilenetv3_large_075"),
    *("timm/mobilenetv3_rw", "timm/tf_mobilenetv3_small_minimal_100"),
)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[pytest.mark.slow] * (key not in STATES))
        for key in RECORDED["states"]
    ],
)
def test_state_dict_has_the_librarys_names_and_shapes(key):
    case = CASES[key]
    alpha = 1.0 if case.source == "timm" else case.network.alpha
    model = weights.model_for(case.source, case.name, alpha)
    assert parity.digest(their_shapes(model, case.source)) == RECORDED["states"][key]


def test_every_pytorch_case_is_recorded():
    assert set(STATES) < set(RECORDED["states"])
    assert set(RECORDED["states"]) == {key for key in CASES if not key.startswith("keras")}
    assert set(RECORDED["logits"]) == set(parity.LOGITS)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[pytest.mark.slow] * (key.endswith(("110d", "large_075"))))
        for key in RECORDED["logits"]
    ],
)
def test_logits_are_pytorchs(key, tmp_path):
    case = CASES[key]
    alpha = 1.0 if case.source == "timm" else case.network.alpha
    model = weights.model_for(case.source, case.name, alpha, parity.CLASSES)
    path = tmp_path / "theirs.safetensors"
    save_file(parity.synthetic(their_shapes(model, case.source)), path)
    variables = weights.load(path, model, case.source)
    logits = np.asarray(fast_jit(model.apply)(variables, parity.recorded_images()))
    expected = np.array(RECORDED["logits"][key], np.float32)
    assert parity.relative(logits, expected) <= parity.LIMITS["float32"]
    assert expected.std() > 0.01


@pytest.mark.parametrize(
    ("source", "name", "alpha", "fields"),
    [
        ("timm", "mobilenet_v2", 0.5, ("timm", "symmetric", 1e-5, 0.9)),
        ("timm", "mobilenetv2_050", 1.0, ("timm", "symmetric", 1e-5, 0.9)),
        ("timm", "tf_mobilenetv3_small_100", 1.0, ("timm", "same", 1e-3, 0.9)),
        ("timm", "mobilenet_v3_small_minimalistic", 1.0, ("timm", "same", 1e-3, 0.9)),
        ("timm", "mobilenetv3_rw.rmsp_in1k", 1.0, ("timm", "symmetric", 1e-3, 0.9)),
        ("torchvision", "mobilenet_v2", 1.0, ("torchvision", "symmetric", 1e-5, 0.9)),
        ("torchvision", "mobilenet_v3_large", 1.0, ("torchvision", "symmetric", 1e-3, 0.99)),
        ("keras", "mobilenet_v1", 0.25, ("keras", "bottom_right", 1e-3, 0.99)),
        ("keras", "mobilenet_v3_small", 0.75, ("keras", "same", 1e-3, 0.999)),
        ("native", "mobilenet_v2", 0.35, ("keras", "same", 1e-3, 0.999)),
    ],
)
def test_model_for_has_the_sources_constants(source, name, alpha, fields):
    spec = weights.model_for(source, name, alpha, 7).spec
    assert (spec.rule, spec.padding, spec.bn_epsilon, spec.bn_momentum) == fields
    assert spec.num_classes == 7


def test_ours_and_timms_name_are_the_same_network():
    for ours, alpha, theirs in (
        ("mobilenet_v1", 1.25, "mobilenetv1_125"),
        ("mobilenet_v2", 1.4, "mobilenetv2_140"),
        ("mobilenet_v3_large", 0.75, "mobilenetv3_large_075"),
        ("mobilenet_v3_large_minimalistic", 1.0, "tf_mobilenetv3_large_minimal_100"),
    ):
        assert weights.model_for("timm", ours, alpha) == weights.model_for("timm", theirs)
    # The plain network, not the deeper one of that width.
    assert weights.model_for("timm", "mobilenet_v2", 1.2).spec.fixed_ends is False


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mobilenetv1_100", 4_231_976),
        ("mobilenetv1_100h", 5_282_600),
        ("mobilenetv1_125", 6_270_840),
        ("mobilenetv2_110d", 4_516_520),
        ("mobilenetv2_120d", 5_831_144),
        ("mobilenetv2_140", 6_108_776),
        ("mobilenetv3_rw", 5_479_918),
    ],
)
def test_parameters_of_timms_variants(name, params):
    assert costs.params(weights.model_for("timm", name).spec) == params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tmm", "mobilenet_v2"), "Unknown source 'tmm'. Did you mean 'timm'?"),
        (("timm", "mobilenetv2_10"), "Unknown timm model 'mobilenetv2_10'. Did you mean"),
        (("torchvision", "mobilenet_v4"), "Unknown model 'mobilenet_v4'. Did you mean"),
        (("torchvision", "mobilenet_v1"), "torchvision has no mobilenet_v1: choose one of"),
        (("timm", "mobilenetv2_120d", 0.5), "timm's mobilenetv2_120d has alpha = 1.2, not 0.5"),
        (("keras", "mobilenet_v2", -1), "alpha must be a positive number"),
    ],
)
def test_model_for_refuses(arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        weights.model_for(*arguments)


# Preprocessing


def test_preprocessing_is_the_publishers():
    imagenet = tuple(255 * m for m in (0.485, 0.456, 0.406))
    v2 = published.preprocessing("torchvision", "mobilenet_v2")
    assert v2 == published.preprocessing("torchvision", "mobilenet_v2.IMAGENET1K_V2")
    assert (v2.mean, v2.crop_fraction, v2.interpolation) == (imagenet, 224 / 232, "pillow_bilinear")
    first = published.preprocessing("torchvision", "mobilenet_v2.IMAGENET1K_V1")
    assert first == v2._replace(crop_fraction=0.875)
    rw = published.preprocessing("timm", "mobilenetv3_rw")
    assert (rw.interpolation, rw.crop_fraction, rw.resolution) == ("pillow_bicubic", 0.875, 224)
    miil = published.preprocessing("timm", "mobilenetv3_large_100.miil_in21k_ft_in1k")
    assert (miil.mean, miil.std) == ((0.0,) * 3, (255.0,) * 3)
    for source, name in (("keras", "mobilenet_v3_small"), ("timm", "tf_mobilenetv3_large_075")):
        assert published.preprocessing(source, name)[:2] == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm", "mobilenetv2_100.ra_in1"), "Unknown tag of mobilenetv2_100 'ra_in1'. Did you"),
        (("torchvision", "mobilenet_v2", 0.5), "torchvision publishes no weights of mobilenet_v2"),
        (("native", "mobilenet_v2"), "Unknown source 'native'"),
    ],
)
def test_preprocessing_refuses(arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        published.preprocessing(*arguments)


def test_published_networks_are_the_listed_ones():
    counts = collections.Counter(network.source for network in published.NETWORKS)
    assert counts == {"torchvision": 3, "timm": 22, "keras": 16}
    assert len({(n.source, n.name, n.model, n.alpha) for n in published.NETWORKS}) == 41


# Round trips


@pytest.mark.parametrize("naming", weights.NAMINGS)
@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_saved_weights_load_as_the_same(naming, format, tmp_path):
    source = "timm" if naming == "native" else naming
    model = weights.model_for(source, "mobilenet_v3_small", 0.35, 3)
    shapes = weights.shapes(model)
    values = parity.synthetic(
        {name.replace("bn/var", "running_var"): s for name, s in shapes.items()}
    )
    flat = {name: values[name.replace("bn/var", "running_var")] for name in shapes}
    variables = unflatten_dict(flat, sep="/")
    path = tmp_path / f"mine.{format}"
    weights.save(variables, path, model, format=format, naming=naming)
    assert_same(weights.load(path, model, naming), variables)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if naming != "native":
        with_counters = set(weights_files.read(path))
        assert with_counters == set(their_shapes(model, naming))


def test_every_array_is_laid_out_anew(saved):
    model, state = small()
    variables = weights.load(saved, model, "timm")
    params = variables["params"]
    stem, depthwise = state["conv_stem.weight"], state["blocks.0.0.conv_dw.weight"]
    assert stem.shape == (16, 3, 3, 3)
    assert params["stem"]["kernel"][1, 2, 0, 5] == stem[5, 0, 1, 2]
    assert params["blocks_0"]["depthwise"]["kernel"][1, 2, 5] == depthwise[5, 0, 1, 2]
    assert (
        params["blocks_0"]["se"]["reduce"]["kernel"][5, 3]
        == (state["blocks.0.0.se.conv_reduce.weight"][3, 5, 0, 0])
    )
    assert params["classifier"]["kernel"][7, 2] == state["classifier.weight"][2, 7]
    assert variables["batch_stats"]["stem"]["bn"]["var"][3] == state["bn1.running_var"][3]


def test_half_precision_is_widened(tmp_path):
    model, state = small()
    half = {name: a.astype(np.float16) if a.ndim else a for name, a in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    variables = weights.load(tmp_path / "half.safetensors", model, "timm")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got = variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(got, half["classifier.bias"].astype(np.float32))


def test_bfloat16_is_widened(tmp_path):
    model, state = small()
    half = {name: a.astype(jnp.bfloat16) if a.ndim else a for name, a in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    variables = weights.load(tmp_path / "half.safetensors", model, "timm")
    got = variables["params"]["classifier"]["bias"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, half["classifier.bias"].astype(np.float32))


def test_classifier_of_other_classes_starts_fresh_and_says_so(saved, capsys):
    model = weights.model_for(*SMALL[:3], 9)
    variables = weights.load(saved, model, "timm", seed=3)
    said = f"{saved}: its classifier has 5 classes and this network has 9, so the classifier starts"
    assert capsys.readouterr().out.startswith(said)
    fresh = variables["params"]["classifier"]
    assert fresh["kernel"].shape == (1024, 9)
    assert np.std(fresh["kernel"]) == pytest.approx(0.01, rel=0.1)
    assert not np.any(fresh["bias"])
    again = weights.load(saved, model, "timm", seed=4)["params"]["classifier"]
    assert np.all(fresh["kernel"] != again["kernel"])
    capsys.readouterr()
    rest = weights.load(saved, small()[0], "timm")
    assert capsys.readouterr().out == ""
    del variables["params"]["classifier"], rest["params"]["classifier"]
    assert_same(variables, rest)


def test_what_timm_must_be_told_is_said(tmp_path, capsys):
    model = create_model("mobilenet_v2", 3, 0.35, rule="timm")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
    weights.save(variables, tmp_path / "a.npz", model, format="npz", naming="timm")
    assert "needs pad_type='same', bn_eps=0.001 for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            create_model("mobilenet_v2", 3),
            {"naming": "torchvision"},
            "torchvision does not build this mobilenet_v2 (padding is 'same' here and 'symmetric' "
            "there): create it by weights.model_for('torchvision', 'mobilenet_v2')",
        ),
        (
            create_model("mobilenet_v2", 3, activation="silu"),
            {"naming": "timm"},
            "timm does not build this mobilenet_v2 (stem.activation is 'silu' here and 'relu6'",
        ),
        (
            create_model("mobilenet_v2", 3, se=True),
            {"naming": "timm"},
            "timm does not build this mobilenet_v2 (blocks_0.se is True here and False there)",
        ),
        (
            create_model("mobilenet_v1", 3),
            {"naming": "torchvision"},
            "torchvision has no mobilenet_v1: save it with naming='native'",
        ),
        (create_model("mobilenet_v1", 3), {"naming": "keras"}, "Unknown naming 'keras'"),
        (
            weights.model_for(*SMALL),
            {"format": "npz"},
            "The format 'npz' needs a path that ends in .npz",
        ),
        (weights.model_for(*SMALL), {"format": "onnx"}, "Unknown format 'onnx'"),
        (
            weights.model_for("timm", "mobilenet_v2"),
            {},
            "The variables are not of this mobilenet_v2",
        ),
    ],
)
def test_save_refuses(model, arguments, message, saved, tmp_path):
    variables = weights.load(saved, small()[0], "timm")
    if "variables" not in message:
        zeros = {name: np.zeros(shape) for name, shape in weights.shapes(model).items()}
        variables = unflatten_dict(zeros, sep="/")
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        weights.save(variables, tmp_path / "out.safetensors", model, **arguments)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_save_needs_a_directory(format, saved, tmp_path):
    variables = weights.load(saved, small()[0], "timm")
    (tmp_path / f"taken.{format}").mkdir()
    for place in ("no", saved.name, "."):  # missing, a file, and where a directory is in the way
        path = tmp_path / place / f"taken.{format}"
        with pytest.raises(InputError, match=r"^Cannot write .*: choose a path in a directory"):
            weights.save(variables, path, small()[0], format=format)
    assert sorted(p.name for p in tmp_path.iterdir()) == [saved.name, f"taken.{format}"]


def test_a_folded_network_is_neither_loaded_nor_saved(saved, tmp_path):
    model, _ = small()
    folded, variables = fold.fold_batch_norm(model, weights.load(saved, model, "timm"))
    message = "^This mobilenet_v3_small is folded, .*: load and save the network that fold"
    with pytest.raises(InputError, match=message):
        weights.load(saved, folded, "timm")
    for naming in weights.NAMINGS:
        with pytest.raises(InputError, match=message):
            weights.save(variables, tmp_path / "out.safetensors", folded, naming=naming)


def test_a_layer_without_counterpart_is_named():
    model = create_model("mobilenet_v2", 3, standard_conv=True)
    with pytest.raises(InputError, match="no counterpart of the layer blocks_0/full of this"):
        weights_names.slots(model.spec, weights.shapes(model), "timm")


# Strictness


def changed(**changes):
    """The small state with arrays replaced, or left out where None; "__" stands for "."."""
    state = {**small()[1], **{key.replace("__", "."): value for key, value in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


STATE = small()[1]
STEM, BIAS, VAR = STATE["conv_stem.weight"], STATE["classifier.bias"], STATE["bn1.running_var"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(conv_stem__weight=None), "conv_stem.weight is missing; give the source"),
        (changed(extra__weight=STEM), "extra.weight is unknown; give the source"),
        (
            changed(conv_stem__weight=None, conv_stm__weight=STEM),
            "conv_stem.weight is missing and conv_stm.weight is unknown; give the source",
        ),
        (changed(bn1__bias=None, bn1__weight=None), "bn1.weight is missing, as are 1 more; give"),
        (
            changed(conv_stem__weight=np.ascontiguousarray(STEM.transpose(2, 3, 1, 0))),
            "conv_stem.weight is [3, 3, 3, 16] and must be [16, 3, 3, 3] (its axes look transposed",
        ),
        (
            changed(conv_stem__weight=STEM[:8]),
            "conv_stem.weight is [8, 3, 3, 3] and must be [16, 3, 3, 3]; give the network",
        ),
        (
            changed(classifier__weight=STATE["classifier.weight"].T.copy()),
            "classifier.weight is [1024, 5] and must be [5, 1024] (its axes look transposed)",
        ),
        (changed(bn1__running_var=VAR.astype(np.int32)), "bn1.running_var is of int32 and must be"),
        (changed(bn1__running_var=-VAR), "bn1.running_var holds values that no weights have"),
        (
            changed(conv_stem__weight=STEM + np.float32(np.inf)),
            "conv_stem.weight holds values that no weights have",
        ),
        (
            changed(conv_stem__weight=np.full(STEM.shape, 1e300)),
            "conv_stem.weight holds values that no weights have (not finite in float32",
        ),
        (
            changed(classifier__weight=STATE["classifier.weight"][:0], classifier__bias=BIAS[:0]),
            "its classifier has no classes, so the file is damaged",
        ),
        ({"weight": STEM}, "conv_stem.weight is missing, as are"),
        ({}, "conv_stem.weight is missing, as are"),
    ],
)
def test_an_array_that_does_not_fit_is_named(state, message, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(state, path)
    with pytest.raises(InputError) as info:
        weights.load(path, small()[0], "timm")
    text = str(info.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text


def test_weights_of_another_alpha_are_refused(saved):
    with pytest.raises(InputError, match=r"is \[16, 16, 1, 1\] and must be|and must be \["):
        weights.load(saved, weights.model_for("timm", "mobilenetv3_small_100", 1.0, 5), "timm")


def test_a_file_of_another_source_is_recognised(saved):
    model = weights.model_for("torchvision", "mobilenet_v3_small")
    with pytest.raises(InputError, match=r"names, so give the source 'timm'\.$"):
        weights.load(saved, model, "torchvision")


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights", b"PK\x03\x04 torn", pickle.dumps({"a": 1})]
)
def test_files_of_something_else_end_in_one_sentence(suffix, content, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as info:
        weights.load(path, small()[0], "timm")
    text = str(info.value)
    assert text.startswith(f"{path} ")
    assert "\n" not in text
    assert text.endswith(
        (": copy or download it again.", "objects, which could run code.", "path).")
    )


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_truncated_files_end_in_one_sentence(format, tmp_path):
    path = tmp_path / f"file.{format}"
    weights_files.write(STATE, path, format)
    content = path.read_bytes()
    for part in (0.001, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InputError, match=r"is corrupt, truncated or not what its suffix says"):
            weights.load(path, small()[0], "timm")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    for name, shown in (
        ("\x1b[2J\nerror", r"'\x1b[2J\nerror' is unknown; give"),
        ("\u202e" + "x" * 10_000, r"'\u202e" + "x" * 72 + "… is unknown; give"),
        ("x" * 10_000, "x" * 79 + "… is unknown; give"),
    ):
        weights_files.write({**STATE, name: BIAS}, path, suffix[1:])
        with pytest.raises(InputError) as info:
            weights.load(path, small()[0], "timm")
        assert f": {shown}" in str(info.value)


def test_a_safetensors_array_that_is_there_twice_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"conv": np.ones(1)}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    (entry,) = re.findall(rb'"conv":\{.*?\}', header)
    header = header.replace(entry, entry + b"," + entry)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(InputError, match=r"is damaged \(conv is there twice\): take another file"):
        weights_files.read(path)


def test_an_npz_member_that_is_no_array_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **changed(classifier__bias=None))
    for name in ("classifier.bias", "classifier.bias.npy"):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"no array")
        with pytest.raises(InputError, match=r"\(TypeError: classifier.bias is no array\)"):
            weights.load(path, small()[0], "timm")
        np.savez(path, **changed(classifier__bias=None))


class Code:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function, text):
        self.call = function, (text,)

    def __reduce__(self):
        return self.call


def test_a_pickle_is_never_opened(tmp_path):
    victim = tmp_path / "executed"
    pickle.loads(pickle.dumps(Code(victim)))
    assert victim.exists()
    victim.unlink()
    # An .npz can hold pickled objects, and a pickle can be called anything.
    np.savez(tmp_path / "a.npz", **{"conv_stem.weight": np.array([Code(victim)], dtype=object)})
    with pytest.raises(InputError, match="holds Python objects, which could run code when read"):
        weights.load(tmp_path / "a.npz", small()[0], "timm")
    for suffix in (".npz", ".safetensors", ".keras", ".h5"):
        path = tmp_path / f"b{suffix}"
        path.write_bytes(pickle.dumps(Code(victim)))
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} is corrupt"):
            weights.load(path, small()[0], "timm")
    assert not victim.exists()


@pytest.mark.parametrize("function", [os.system, eval], ids=["system", "eval"])
@pytest.mark.parametrize("layout", ["plain", "zip", "old"])
@pytest.mark.parametrize("protocol", range(5))
def test_a_pth_that_would_run_code_is_called_that(protocol, layout, function, tmp_path):
    torch = pytest.importorskip("torch")
    victim, path = tmp_path / "executed", tmp_path / "file.pth"
    text = f"touch {victim}" if function is os.system else f"open({str(victim)!r}, 'w')"
    content = {"a": Call(function, text)}
    if layout == "plain":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        zipped = layout == "zip"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    message = "holds Python objects, which could run code when read; nothing was executed: take a"
    with pytest.raises(InputError, match=message):
        weights.load(path, small()[0], "timm")
    whole = path.read_bytes()
    assert not victim.exists()
    # Half of it is damage and no attack.
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is corrupt, truncated or not what its suffix says"):
        weights.load(path, small()[0], "timm")
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pth_is_not_called_an_attack(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    damaged = [whole[: int(part * len(whole))] for part in (0, 0.01, 0.03, 0.07, 0.1, 0.5, 0.99)]
    if zipped:
        place = whole.index(b"_rebuild_tensor")
        damaged.append(whole[:place] + b"X" + whole[place + 1 :])
    for content in (*damaged, b"not weights", b"hello."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is corrupt, truncated or not what its suffix says"):
            weights_files.read(path)


@pytest.mark.parametrize("package", ["torch", "safetensors.numpy", "h5py"])
def test_a_package_that_is_not_installed_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    suffix = {"torch": ".pth", "safetensors.numpy": ".safetensors", "h5py": ".h5"}[package]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"needs the package {package.partition('.')[0]}, which"):
        weights.load(path, small()[0], "timm")


@pytest.mark.parametrize("version", ["2.5.1+cu121", "1.13.0"])
def test_a_pytorch_that_may_run_code_is_refused(version, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    path = tmp_path / "file.pth"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=rf"with PyTorch {re.escape(version)} .*: install PyTorch"):
        weights.load(path, small()[0], "timm")


def test_files_larger_than_any_network_are_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_files, "_MOST_BYTES", 10_000)
    zeros = np.zeros(20_000, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=zeros)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", data=zeros, compression="gzip")
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", zeros.tobytes())
    for suffix in (".npz", ".h5", ".keras"):
        path = tmp_path / f"a{suffix}"
        assert path.stat().st_size < 10_000
        with pytest.raises(InputError, match=r"holds 20,\d+ bytes and .* at most 10,000"):
            weights_files.read(path)


def test_a_large_safetensors_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [2**31], "data_offsets": [0, 2**31]}})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 2**31)  # takes no place
    monkeypatch.setattr("safetensors.numpy.load_file", None)
    with pytest.raises(InputError, match=r"holds 2,147,483,\d+ bytes and .* at most 1,073,741,824"):
        weights_files.read(path)


@pytest.mark.parametrize("layout", ["deflated", "stored", "old"])
def test_a_large_pth_is_not_read(layout, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(5000)}, path, _use_new_zipfile_serialization=layout != "old")
    if layout == "deflated":
        stored = path.rename(tmp_path / "stored.pth")
        with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", 8) as target:
            for member in source.infolist():
                target.writestr(member.filename, source.read(member))
        assert path.stat().st_size < 10_000
    monkeypatch.setattr(weights_files, "_MOST_BYTES", 10_000)
    monkeypatch.setattr(torch, "load", None)
    for function in (weights_files.read, weights_files.read_document):
        with pytest.raises(InputError, match=r"holds 2\d,\d+ bytes and .* at most 10,000"):
            function(path)


def test_paths_that_are_no_weights(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"x")
    for path, message in (
        (tmp_path / "none.npz", "There is no file of weights"),
        (tmp_path / "weights.onnx", "is no file of weights by its suffix '.onnx'"),
        (tmp_path, "is a directory: give a file of timm's weights"),
    ):
        with pytest.raises(InputError, match=message):
            weights.load(path, small()[0], "timm")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["long", "NUL"])
def test_paths_that_cannot_be(name, saved, tmp_path):
    model, path = small()[0], tmp_path / f"{name}.npz"
    for source in ("timm", "native"):
        with pytest.raises(InputError, match=r"^There is no file of weights"):
            weights.load(path, model, source)
    with pytest.raises(InputError, match=r"^There is no file of weights"):
        weights.describe(path)
    variables = weights.load(saved, model, "timm")
    with pytest.raises(InputError, match=r"^Cannot write .*: choose a path in a directory"):
        weights.save(variables, path, model, format="npz")


# Keras' files


@functools.cache
def keras_small():
    """A narrow V3 in Keras, with its files' content by suffix, and our model of it."""
    import keras

    case = CASES["keras/mobilenet_v3_small@0.75"]
    keras.utils.set_random_seed(0)
    network = parity._keras_network(case, 64)
    with tempfile.TemporaryDirectory() as directory:
        paths = parity._save_keras(network, case, Path(directory))
        files = {"".join(path.suffixes): path.read_bytes() for path in paths}
    values = {variable.path: np.asarray(variable.value) for variable in network.weights}
    return files, values, weights.model_for("keras", "mobilenet_v3_small", 0.75)


@pytest.fixture
def keras_file(tmp_path):
    def write(suffix):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(keras_small()[0][suffix])
        return path

    return write


def assert_is_keras(variables):
    values = keras_small()[1]
    stem, block = variables["params"]["stem"], variables["params"]["blocks_3"]
    np.testing.assert_array_equal(stem["kernel"], values["conv/kernel"])
    np.testing.assert_array_equal(
        block["depthwise"]["kernel"], values["expanded_conv_3_depthwise/kernel"][..., 0]
    )
    np.testing.assert_array_equal(
        block["se"]["expand"]["kernel"],
        values["expanded_conv_3_squeeze_excite_conv_1/kernel"][0, 0],
    )
    np.testing.assert_array_equal(
        variables["params"]["classifier"]["kernel"], values["logits/kernel"][0, 0]
    )


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_keras_files_are_read_without_keras(suffix, keras_file, monkeypatch):
    path = keras_file(suffix)
    monkeypatch.setitem(sys.modules, "keras", None)
    assert_is_keras(weights.load(path, keras_small()[2], "keras"))


@pytest.mark.parametrize(
    "key",
    [
        "keras/mobilenet_v1@0.25",
        pytest.param("keras/mobilenet_v3_small_minimalistic@1.0", marks=pytest.mark.slow),
        pytest.param("keras/mobilenet_v2@0.35", marks=pytest.mark.slow),
        pytest.param("keras/mobilenet_v3_small@0.75", marks=pytest.mark.slow),
    ],
)
def test_logits_are_kerass(key, tmp_path):
    jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
    try:
        found = parity.compare(CASES[key], "float32", tmp_path, resolutions=(72,))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert found["72"] <= parity.LIMITS["float32"]


def test_keras_layers_that_are_only_counted_are_named_by_order(keras_file):
    """Keras before 3.7 stored no names."""
    path = keras_file(".weights.h5")
    with h5py.File(path, "a") as file:
        for layer in file["layers"].values():
            if "vars" in layer:
                del layer["vars"].attrs["name"]
    assert_is_keras(weights.load(path, keras_small()[2], "keras"))


def test_legacy_keras_names_are_those_of_today(keras_file):
    """V3's published .h5 has the names of 2020: expanded_conv_1/squeeze_excite/Conv, and so on."""
    path = keras_file(".h5")
    old = path.with_name("old.h5")

    def renamed(name):
        prefix = re.match(r"expanded_conv(_\d+)?_", name)
        start, rest = (prefix[0][:-1] + "/", name[prefix.end() :]) if prefix else ("", name)
        rest = rest.replace("squeeze_excite_conv", "squeeze_excite/Conv")
        if not prefix:
            rest = rest.capitalize()
        return start + re.sub("_bn$", "/BatchNorm", rest)

    with h5py.File(path) as new, h5py.File(old, "w") as target:
        for layer, group in new["model_weights"].items():
            for name in group.attrs["weight_names"]:
                variable = f"{renamed(layer)}/{name.rpartition('/')[2]}:0"
                to = target.require_group(renamed(layer))
                to[variable] = group[name][()]
                names = [*to.attrs.get("weight_names", []), variable]
                to.attrs["weight_names"] = [n.encode() if isinstance(n, str) else n for n in names]
        assert "expanded_conv_1/expand/BatchNorm" in target
        assert "expanded_conv_3/squeeze_excite/Conv_1" in target
        assert "Conv_1/BatchNorm" in target
    assert_is_keras(weights.load(old, keras_small()[2], "keras"))


def test_keras_optimizer_state_is_not_the_networks(keras_file):
    path = keras_file(".weights.h5")
    with h5py.File(path, "a") as file:
        file["optimizer/vars/0"] = np.zeros(3)
    assert_is_keras(weights.load(path, keras_small()[2], "keras"))


def test_bad_keras_files_end_in_one_sentence(keras_file, tmp_path):
    model = keras_small()[2]
    for suffix in (".keras", ".weights.h5", ".h5"):
        path = keras_file(suffix)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="is corrupt, truncated or not what its suffix says"):
            weights.load(path, model, "keras")
    damaged = bytearray(keras_small()[0][".keras"])
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "flipped.keras").write_bytes(damaged)
    with pytest.raises(InputError, match="Bad CRC-32"):
        weights.load(tmp_path / "flipped.keras", model, "keras")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match=r"no item named 'model.weights.h5'"):
        weights.load(tmp_path / "empty.keras", model, "keras")


def test_keras_files_cannot_refer_to_others(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4000))
    with h5py.File(tmp_path / "refers.h5", "w") as file:
        file.create_dataset(
            "layers/conv2d/vars/0", (10,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(InputError, match=r"refers to other files \(layers/conv2d/vars/0\)"):
        weights.load(tmp_path / "refers.h5", small()[0], "timm")


@pytest.mark.parametrize("kind", ["external", "soft"])
@pytest.mark.parametrize("layout", ["modern", "legacy", "legacy directory"])
def test_keras_files_cannot_link_to_others(layout, kind, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["place/kernel:0"] = np.ones(3)
    target = "/place" if layout == "legacy directory" else "/place/kernel:0"
    soft = h5py.SoftLink(target)
    link = soft if kind == "soft" else h5py.ExternalLink("secret.h5", target)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["place/kernel:0"] = np.ones(3)
        if layout == "modern":
            file["layers/conv2d/vars/0"] = link
        else:
            group = file.create_group("conv1")
            group.attrs["weight_names"] = [b"conv1/kernel:0"]
            group["conv1" if layout == "legacy directory" else "conv1/kernel:0"] = link
    with pytest.raises(InputError, match=r"links.h5 refers to other files \((layers|conv1)/conv"):
        weights_files.read(tmp_path / "links.h5")


def test_a_keras_layer_that_is_there_twice_is_named(keras_file, tmp_path):
    path = keras_file(".weights.h5")
    with h5py.File(path, "a") as file:
        file["layers/conv2d_1/vars"].attrs["name"] = file["layers/conv2d/vars"].attrs["name"]
    with pytest.raises(InputError, match=r"\(conv/kernel is there twice\)"):
        weights_files.read(path)
    # Names of today beside those of 2020.
    with h5py.File(tmp_path / "old.h5", "w") as file:
        for layer in ("Conv/BatchNorm", "Conv_bn", "conv_bn"):
            file[f"{layer}/gamma:0"] = np.ones(3)
            file[layer].attrs["weight_names"] = [b"gamma:0"]
    with pytest.raises(InputError, match=r"\(conv_bn/gamma is there twice\)"):
        weights_files.read(tmp_path / "old.h5")
    # The first layer by order beside one of its name.
    with h5py.File(tmp_path / "order.h5", "w") as file:
        for layer in ("conv2d", "conv"):
            file[f"{layer}/kernel:0"] = np.ones(3)
            file[layer].attrs["weight_names"] = [b"kernel:0"]
    with pytest.raises(InputError, match=r"\(conv/kernel is there twice\)"):
        weights.load(tmp_path / "order.h5", keras_small()[2], "keras")


def test_a_renamed_keras_layer_is_named(keras_file):
    path = keras_file(".weights.h5")
    with h5py.File(path, "a") as file:
        file["layers/conv2d/vars"].attrs["name"] = "stem"
    message = "conv/kernel is missing and stem/kernel is unknown"
    with pytest.raises(InputError, match=message):
        weights.load(path, keras_small()[2], "keras")


# A training's workdir


@flax.struct.dataclass
class State:
    ema_params: dict
    ema_batch_stats: dict
    step: jax.Array


@pytest.fixture
def workdir(tmp_path):
    """A checkpoint as a training leaves it, of a narrow V1."""
    model = create_model("mobilenet_v1", 3, 0.1, shallow=True)
    shapes = weights.shapes(model)
    flat = {n: np.random.default_rng(len(n)).random(s, np.float32) for n, s in shapes.items()}
    variables = unflatten_dict(flat, sep="/")
    fields = default.get_config("model=mobilenet_v1").model.to_dict()
    config = {"model": {**fields, "alpha": 0.1, "shallow": True, "drop_strides": 0}}
    with checkpoint.open_manager(tmp_path) as manager:
        state = State(variables["params"], variables["batch_stats"], jnp.int32(5))
        checkpoint.save(manager, 5, state, {"config": config, "class_names": []}, None)
    return tmp_path, model, variables


def test_a_workdirs_averaged_weights_are_loaded(workdir, capsys):
    path, model, variables = workdir
    assert_same(weights.load(path, model), variables)
    loaded = weights.load(path, create_model("mobilenet_v1", 7, 0.1, shallow=True))
    assert loaded["params"]["classifier"]["bias"].shape == (7,)
    assert "has 3 classes and this network has 7" in capsys.readouterr().out


def test_a_workdir_of_another_network_is_refused(workdir):
    path, _, _ = workdir
    other = create_model("mobilenet_v1", 3, 0.1, shallow=True, padding="symmetric")
    message = (
        r"is of another network \(padding is 'same' there and 'symmetric' here\): give the name"
    )
    with pytest.raises(InputError, match=message):
        weights.load(path, other)


def test_a_directory_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint in"):
        weights.load(tmp_path, small()[0])


# The stored results


def test_the_document_shows_the_stored_results():
    document = parity.DOCUMENT.read_text(encoding="utf-8")
    assert documents.replaced(document, "parity", parity.table()) == document


def test_the_document_says_which_gradients_are_within_the_limit():
    def step(double, single, theirs):
        return {
            "gradient_float64": double,
            "gradient_float32": single,
            "their_error_float32": theirs,
        }

    cases = {
        "a": {"name": "v2", "step": step(1e-13, 8e-3, 1.1e-2)},
        "b": {"name": "v3", "step": step(3e-9, 1e-4, 1e-4)},
        "c": {"name": "v1"},
    }
    assert parity_report.gradients({"cases": cases}, 1e-3) == (
        "The gradient's limit of 0.001 is met in float64 by `v2` and `v3`, and in float32 by `v3`. "
        "`v2` is limited by rounding in float32, where PyTorch's own gradient differs by 1.1e-02 "
        "from its own in float64."
    )


def test_stored_results_are_of_every_case_and_within_the_limits():
    stored = json.loads(parity.RESULTS.read_text(encoding="utf-8"))["cases"]
    assert list(stored) == list(CASES)
    for key, case in CASES.items():
        result = stored[key]
        assert ("float64" in result, "step" in result) == (case.float64, case.step and case.float64)
        for dtype in ("float32", "float64") if case.float64 else ("float32",):
            for resolution in parity.RESOLUTIONS:
                assert result[dtype][str(resolution)] <= parity.LIMITS[dtype], key
        if case.source != "keras":
            assert result["float32"]["round_trip"] == 0.0, key
