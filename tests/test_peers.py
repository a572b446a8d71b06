"""What each contender of the benchmark computes is what ours does, with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import peers
from experiments.peers import jax_nets, layers
from mobilenets_jax import create_model, weights
from mobilenets_jax.depthwise import IMPLEMENTATIONS
from mobilenets_jax.model import MobileNet

INFERENCE = peers.Cell("inference", "v3_small", 2, 32, "float32", 1)
TRAINING = peers.Cell("training", "v3_small", 4, 64, "float32", 1)
SOME = [
    pytest.param(model, marks=[pytest.mark.slow] * (model != "v3_small")) for model in peers.MODELS
]


pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(autouse=True)
def _settings_of_other_tests_stay(monkeypatch):
    monkeypatch.setattr("mobilenets_jax.runtime.configure_jax", lambda: None)


def losses(contender):
    return [contender.step() for _ in range(3)]


def assert_close(got, expected, tolerance):
    assert np.shape(got) == np.shape(expected)
    assert np.ptp(expected) > 0
    assert np.abs(np.subtract(got, expected)).max() <= tolerance * np.abs(expected).max()


def assert_same_losses(got, expected):
    """To a fiftieth of how far SGD has moved them, momentum and all."""
    assert np.ptp(expected) > 0.01
    assert np.abs(np.subtract(got, expected)).max() <= np.ptp(expected) / 50


def our_model(source, model):
    """Ours as a library builds it, without dropout: it draws differently everywhere."""
    spec = weights.model_for(source, peers.MODELS[model]).spec
    return MobileNet(dataclasses.replace(spec, dropout=0.0))


def our_logits(model, variables, cell):
    return np.asarray(jax.jit(model.apply)(variables, peers.inputs(cell)[0]))


def our_losses(model, variables, cell):
    step, _ = jax_nets._training(model, variables, *map(jnp.asarray, peers.inputs(cell)), None)
    return [step() for _ in range(3)]


@pytest.mark.parametrize("model", SOME)
def test_naive_twin(model, monkeypatch):
    """In float64, where no ReLU6's kink blurs gradients; dropout draws the same, too."""

    def first_blocks(name, *args, **kwargs):
        whole = create_model(name, *args, **kwargs)
        # Of each kind: expansion or none, both strides, SE or none, a shortcut.
        return MobileNet(dataclasses.replace(whole.spec, blocks=whole.spec.blocks[:4]), whole.dtype)

    monkeypatch.setattr(jax_nets, "create_model", first_blocks)
    with jax.enable_x64(True):
        for task in "inference", "training":
            cell = peers.Cell(task, model, 2, 32, "float64", 1)
            ours, twin = (jax_nets.build(name, cell) for name in ("ours", "naive"))
            if task == "training":
                first = ours.step(), twin.step()
            mine, theirs = ours.outputs(), twin.outputs()
            assert mine.keys() == theirs.keys()
            for name, values in theirs.items():
                assert values.dtype == np.float64
                np.testing.assert_allclose(mine[name], values, rtol=1e-9, atol=1e-9)
            if task == "training":
                # SGD's momentum is in the third loss.
                assert_close([first[0], *losses(ours)], [first[1], *losses(twin)], 1e-9)


@pytest.fixture
def torch_network(monkeypatch, tmp_path):
    """Gives a model of PyTorch's contenders to ours: a function from its name."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    from experiments.peers import torch_nets

    build = torch_nets.network

    def without_dropout(cell):
        network = build(cell)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return network

    monkeypatch.setattr(torch_nets, "network", without_dropout)

    def ours(model):
        source = "timm" if model == "v1" else "torchvision"
        path = tmp_path / "theirs.pth"
        torch.save(build(INFERENCE._replace(model=model)).state_dict(), path)
        network = our_model(source, model)
        return network, weights.load(path, network, source)

    return ours


# V1's gradient is large, and with it what float32's rounding makes of the next loss.
@pytest.mark.parametrize(("model", "rate"), [("v1", 1e-5), ("v3_small", peers.LEARNING_RATE)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * ("compiled" in n)) for n in peers.TORCH]
)
def test_torch(name, model, rate, torch_network, monkeypatch):
    monkeypatch.setattr(peers, "LEARNING_RATE", rate)
    from experiments.peers import torch_nets

    ours = torch_network(model)
    cell = INFERENCE._replace(model=model)
    assert_close(torch_nets.build(name, cell).step(), our_logits(*ours, cell), 1e-5)
    cell = TRAINING._replace(model=model)
    assert_same_losses(losses(torch_nets.build(name, cell)), our_losses(*ours, cell))


@pytest.mark.slow
def test_onnx_runtime(torch_network):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from experiments.peers import onnx_nets

    got = onnx_nets.build("onnxruntime", INFERENCE).step()
    assert_close(got, our_logits(*torch_network("v3_small"), INFERENCE), 1e-5)
    with pytest.raises(peers.Unsupported, match="inference in float32 only"):
        onnx_nets.build("onnxruntime", TRAINING)


@pytest.mark.slow
def test_litert():
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("litert_converter")
    from experiments.peers import litert_nets

    got = litert_nets.build("litert", INFERENCE).step()
    assert_close(got, jax_nets.build("ours", INFERENCE).step(), 1e-5)
    with pytest.raises(peers.Unsupported, match="inference in float32 only"):
        litert_nets.build("litert", TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["v2", "v3_small"])
def test_keras(model, monkeypatch, tmp_path):
    keras = pytest.importorskip("keras")
    from experiments.peers import keras_nets

    network, built = getattr(keras.applications, keras_nets.NAMES[model]), []

    def without_dropout(**arguments):
        built.append(network(**arguments, **({"dropout_rate": 0.0} if model != "v2" else {})))
        return built[-1]

    monkeypatch.setattr(keras.applications, keras_nets.NAMES[model], without_dropout)
    ours = our_model("keras", model)
    path = tmp_path / "theirs.weights.h5"
    for cell in INFERENCE._replace(model=model), TRAINING._replace(model=model):
        contender = keras_nets.build("keras", cell)
        built[-1].save_weights(path)
        variables = weights.load(path, ours, "keras")
        if cell.task == "inference":
            assert_close(contender.step(), our_logits(ours, variables, cell), 1e-5)
        else:
            # What train_on_batch returns is the mean of the losses until then.
            means = np.cumsum(our_losses(ours, variables, cell)) / np.arange(1, 4)
            assert_same_losses(np.float64(losses(contender)), means)


LAYERS = {
    "depthwise": ("ours", *(f"ours {name}" for name in IMPLEMENTATIONS), *peers.LAYERS_TORCH),
    "pointwise": ("ours", "nn.Conv", *peers.LAYERS_TORCH),
}


def reference(cell, x, kernel, g):
    """The layer in the cell's direction, in numpy."""
    if cell.kind == "pointwise":
        results = x @ kernel, g @ kernel.T, np.einsum("nhwi,nhwo->io", x, g)
    else:
        around, stride, after = (cell.kernel - 1) // 2, cell.strides, g.shape[1]
        padded = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
        forward, of_input, of_kernel = np.zeros(g.shape), np.zeros(padded.shape), 0 * kernel
        for i, j in np.ndindex(cell.kernel, cell.kernel):
            tap = np.s_[:, i : i + stride * after : stride, j : j + stride * after : stride]
            forward += padded[tap] * kernel[i, j]
            of_input[tap] += g * kernel[i, j]
            of_kernel[i, j] = np.einsum("nhwc,nhwc->c", padded[tap], g)
        inside = slice(around, around + cell.size)
        results = forward, of_input[:, inside, inside], of_kernel
    directions = ("forward", "input gradient", "weight gradient")
    return results[directions.index(cell.direction)]


@pytest.mark.parametrize("direction", ["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] * ("compiled" in name))
        for kind, names in LAYERS.items()
        for name in names
    ],
)
def test_layer(kind, name, direction, monkeypatch):
    if name in peers.LAYERS_TORCH:
        pytest.importorskip("torch")
    depthwise = kind == "depthwise"
    for kernel, strides in ((3, 1), (5, 2)) if depthwise else ((1, 1),):
        cell = peers.LayerCell(
            kind, direction, 8, 6, 6 if depthwise else 10, kernel, strides, 2, "float32", 1
        )
        if "compiled" in name and direction != "forward":
            with pytest.raises(peers.Unsupported, match="the same call as the eager one"):
                layers.build(name, cell)
            continue
        contender = layers.build(name, cell)
        contender.step()
        with monkeypatch.context() as context:
            context.setattr(layers, "_jax", lambda name, cell, *arrays: arrays)
            arrays = [np.float64(array) for array in layers.build("ours", cell)]
        assert_close(contender.outputs()["result"], reference(cell, *arrays).ravel(), 1e-5)


def test_layer_takes_a_sample_of_large_results():
    values = np.arange(10_000.0)
    np.testing.assert_array_equal(layers._sample(values)["result"], values[::10])
