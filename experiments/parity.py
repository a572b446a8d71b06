"""Do published networks give the same logits here as in torchvision, timm and Keras?

    python -m experiments.parity run [--only=CASE ...]    compare, store the results
    python -m experiments.parity table                    render the table in docs/weights.md
    python -m experiments.parity list                     the names of all cases
    python -m experiments.parity record                   store what the tests need of PyTorch

No pretrained weights are needed: each network is built in its library with random weights, random
affine parameters and BatchNorm statistics of a pass over noise, then jittered; saved by the
library; loaded here; and compared on 3 random batches of 2 images at 224 pixels, at 193, where SAME
and symmetric padding agree, and at 200, where the three paddings differ. For PyTorch the weights
are written by us, loaded back strictly, and compared again. A few networks are compared in float64
too, and two in one training step.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from experiments import documents, parity_report
from mobilenets_jax import costs, published, weights, weights_names
from mobilenets_jax.errors import InputError
from mobilenets_jax.model import MobileNet

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "parity.json"
RECORDED = ROOT / "tests" / "data" / "weights.json"
DOCUMENT = ROOT / "docs" / "weights.md"
RESOLUTIONS = (224, 193, 200)
BATCHES, BATCH = 3, 2
LIMITS = {"float32": 1e-4, "float64": 1e-9, "step": 1e-3}
Logits = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        source: the library.
        name: the network, as `weights.model_for` and the library know it.
        network: its published description.
        float64: whether to compare in double precision as well.
        step: whether to compare one training step.
    """

    source: str
    name: str
    network: published.Network
    float64: bool = False
    step: bool = False

    @property
    def key(self) -> str:
        """Name on the command line, e.g. "keras/mobilenet_v2@0.35"."""
        alpha = "" if self.source == "timm" else f"@{self.network.alpha}"
        return f"{self.source}/{self.name}{alpha}"


def cases() -> list[Case]:
    """Every published network, and some widths of torchvision's that have no weights."""
    double = {"mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"}
    double |= {"tf_mobilenetv3_small_100", "mobilenetv3_rw"}
    found = []
    for network in published.NETWORKS:
        timm = network.source == "timm"
        name = network.name if timm else network.model
        plain = network.alpha == 1 and "minimalistic" not in network.model
        float64 = name in double if timm else plain
        step = network.source == "torchvision" and name != "mobilenet_v3_large"
        found.append(Case(network.source, name, network, float64, step))
        if network.source == "torchvision":
            for alpha in (0.25, 0.5, 1.4):
                other = published.find("torchvision", name, alpha)
                found.append(Case(network.source, name, other))
    return found


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a fraction of the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def images(resolution: int, dtype: str) -> list[np.ndarray]:
    """Random batches `[N, H, W, 3]`, in [-1, 1]."""
    generator = np.random.default_rng(resolution)
    shape = (BATCH, resolution, resolution, 3)
    return [generator.uniform(-1, 1, shape).astype(dtype) for _ in range(BATCHES)]


# PyTorch ----------------------------------------------------------------------------------------


def _torch_network(case: Case, **more: Any) -> Any:
    import torch

    torch.manual_seed(0)
    if case.source == "timm":
        import timm

        return timm.create_model(case.name, **more)
    import torchvision

    build = getattr(torchvision.models, case.name)
    return build(width_mult=case.network.alpha, **more)


def _randomise_torch(network: Any) -> None:
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
        for module in network.modules():
            # Large enough for the logits to hang on the features and not on the biases.
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum, before = 1.0, norm.momentum
            norm.before = before
        network.train()(torch.randn(8, 3, 96, 96))
        for norm in norms:
            norm.momentum = norm.before
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features)
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.5, 2)
    network.eval()


def _torch_logits(network: Any) -> Logits:
    import torch

    def logits(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous()).numpy()

    return logits


def _save_torch(network: Any, case: Case, directory: Path) -> Path:
    """As the libraries do it: timm's weights are .safetensors, torchvision's .pth."""
    import safetensors.torch
    import torch

    if case.source == "timm":
        path = directory / "theirs.safetensors"
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        path = directory / "theirs.pth"
        torch.save(network.state_dict(), path)
    return path


def _round_trip_torch(case: Case, variables: Any, model: Any, directory: Path) -> Any:
    """Ours → a file → the library's own strict loading."""
    import safetensors.torch
    import torch

    network = _torch_network(case).eval()
    safe, pickled = directory / "ours.safetensors", directory / "ours.pth"
    weights.save(variables, safe, model, naming=case.source)
    network.load_state_dict(safetensors.torch.load_file(safe), strict=True)
    weights.save(variables, pickled, model, naming=case.source, format="pth")
    network.load_state_dict(torch.load(pickled, weights_only=True), strict=True)
    return network


# Keras ------------------------------------------------------------------------------------------


def _keras_network(case: Case, resolution: int) -> Any:
    import keras

    build = getattr(keras.applications, case.network.name)
    more = {"minimalistic": True} if "minimalistic" in case.name else {}
    return build(
        input_shape=(resolution, resolution, 3),
        alpha=case.network.alpha,
        weights=None,
        classifier_activation=None,
        **more,
    )


def _randomise_keras(network: Any, case: Case) -> None:
    import keras

    generator = np.random.default_rng(0)
    norms = [m for m in network.layers if isinstance(m, keras.layers.BatchNormalization)]
    for layer in network.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.normal(0, 0.1, layer.bias.shape))
    for norm in norms:
        norm.gamma.assign(generator.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(generator.normal(0, 0.1, norm.beta.shape))
        norm.momentum, norm.before = 0.0, norm.momentum
    shape = (4, *network.input_shape[1:])
    network(_keras_input(generator.uniform(-1, 1, shape), case), training=True)
    for norm in norms:
        norm.momentum = norm.before
        mean, var = _numpy(norm.moving_mean), _numpy(norm.moving_variance)
        jitter = 0.1 * np.sqrt(var) * generator.normal(size=mean.shape)
        # Values that float32 holds, so that a file in either precision is the same weights.
        norm.moving_mean.assign(np.float32(mean + jitter))
        norm.moving_variance.assign(np.float32(var * generator.uniform(0.5, 2, var.shape)))
    for variable in network.weights:
        if "seed" not in variable.path:
            variable.assign(np.float32(_numpy(variable)))


def _keras_precision(dtype: str) -> None:
    import keras
    from keras.src.backend.common import dtypes

    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)  # made of the former only once
    # Without TensorFlow, Keras' own layers compute BatchNorm in float32 even in float64.
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = dtype
    for function in (dtypes._lattice_result_type, dtypes.result_type):
        getattr(function, "cache_clear", lambda: None)()


def _numpy(variable: Any) -> np.ndarray:
    return np.asarray(variable.value)  # NumPy warns of what Keras' own conversion lacks.


def _keras_input(x: np.ndarray, case: Case) -> np.ndarray:
    """V3 scales pixels of 0 to 255 inside of the network, V1 and V2 outside."""
    return 127.5 * x + 127.5 if "v3" in case.name else x


def _keras_logits(case: Case, source: Any) -> Callable[[int], Logits]:
    def at(resolution: int) -> Logits:
        # Keras fixes the padding of stride-2 layers when it builds them.
        network = _keras_network(case, resolution)
        network.set_weights(source.get_weights())
        state = [
            [variable.value for variable in group]
            for group in (network.trainable_variables, network.non_trainable_variables)
        ]
        call = jax.jit(lambda state, x: network.stateless_call(*state, x, training=False)[0])
        return lambda x: np.asarray(call(state, _keras_input(x, case)))

    return at


def _save_keras(network: Any, case: Case, directory: Path) -> list[Path]:
    paths = [directory / f"theirs{suffix}" for suffix in (".keras", ".weights.h5", ".h5")]
    network.save(paths[0])
    network.save_weights(paths[1])
    network.save(paths[2])
    return paths


# One case ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """float64 in JAX, and in Keras where it is used."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def _cast(variables: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)


def compare(
    case: Case, dtype: str, directory: Path, resolutions: tuple[int, ...] = RESOLUTIONS
) -> dict[str, Any]:
    """Returns the largest relative difference of logits for each resolution, and more.

    Args:
        case: what to compare.
        dtype: of the computation on both sides.
        directory: for files.
        resolutions: of the images in pixels.
    """
    model = weights.model_for(case.source, case.name, _alpha(case))
    result: dict[str, Any] = {}
    if case.source == "keras":
        import keras

        _keras_precision(dtype)
        keras.utils.set_random_seed(0)
        network = _keras_network(case, 96)
        _randomise_keras(network, case)
        paths = _save_keras(network, case, directory)
        loaded = [weights.load(path, model, "keras") for path in paths]
        variables = loaded[0]
        for other in loaded[1:]:
            jax.tree.map(np.testing.assert_array_equal, variables, other)
        at = _keras_logits(case, network)
    else:
        network = _torch_network(case)
        _randomise_torch(network)
        variables = weights.load(_save_torch(network, case, directory), model, case.source)
        returned = _round_trip_torch(case, variables, model, directory)
        x = images(96, "float32")[0]
        theirs = _torch_logits(network)(x)
        result["round_trip"] = float(np.abs(_torch_logits(returned)(x) - theirs).max())
        logits = _torch_logits(network.double() if dtype == "float64" else network)
        at = lambda resolution: logits  # noqa: E731
    native = directory / "native.npz"
    weights.save(variables, native, model, format="npz", naming="native")
    jax.tree.map(np.testing.assert_array_equal, variables, weights.load(native, model))
    ours = jax.jit(model.clone(dtype=jnp.dtype(dtype)).apply)
    cast = _cast(variables, dtype)
    for resolution in resolutions:
        theirs_at = at(resolution)
        result[str(resolution)] = max(
            relative(np.asarray(ours(cast, x)), theirs_at(x)) for x in images(resolution, dtype)
        )
    if case.float64 and dtype == "float32":
        # What a wrong padding or ε would look like.
        spec = model.spec
        for field, value in (
            ("padding", "same" if spec.padding == "symmetric" else "symmetric"),
            ("bn_epsilon", 1e-3 if spec.bn_epsilon == 1e-5 else 1e-5),
        ):
            wrong = MobileNet(dataclasses.replace(spec, **{field: value}))
            x = images(resolutions[-1], dtype)[0]
            logits = np.asarray(jax.jit(wrong.apply)(cast, x))
            result[f"wrong_{field}"] = relative(logits, theirs_at(x))
    return result


def _alpha(case: Case) -> float:
    return 1.0 if case.source == "timm" else case.network.alpha


Gradients = dict[str, np.ndarray]


def _step(
    case: Case, dtype: str, directory: Path
) -> tuple[tuple[float, Gradients], tuple[float, Gradients]]:
    """Loss and gradients, by our paths, of one training step: ours and theirs."""
    import torch

    network = _torch_network(case, dropout=0.0)
    _randomise_torch(network)
    model = weights.model_for(case.source, case.name, _alpha(case))
    model = MobileNet(dataclasses.replace(model.spec, dropout=0.0), jnp.dtype(dtype))
    variables = weights.load(_save_torch(network, case, directory), model, case.source)
    variables = _cast(variables, dtype)
    generator = np.random.default_rng(1)
    x = generator.uniform(-1, 1, (16, 128, 128, 3)).astype(np.float32).astype(dtype)
    y = generator.integers(1000, size=16)

    network = network.train().to(getattr(torch, dtype))
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous()
    loss = torch.nn.functional.cross_entropy(network(inputs), torch.from_numpy(y))
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    theirs = {
        slot.ours: weights_names.to_ours(gradients[slot.theirs], slot, case.source)
        for slot in weights_names.slots(model.spec, weights.shapes(model), case.source)
        if slot.theirs in gradients
    }

    def objective(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    value, ours = jax.jit(jax.value_and_grad(objective))(variables["params"])
    flat = {name: np.asarray(g) for name, g in flatten_dict({"params": ours}, sep="/").items()}
    assert flat.keys() == theirs.keys()
    return (float(value), flat), (loss.item(), theirs)


def _distance(one: Gradients, other: Gradients) -> float:
    """Norm of the difference by the norm of the second, over all arrays."""
    squares = [np.sum((one[name] - g).astype(float) ** 2) for name, g in other.items()]
    return float(np.sqrt(sum(squares) / sum(np.sum(g.astype(float) ** 2) for g in other.values())))


def training_step(case: Case, directory: Path) -> dict[str, float]:
    """Compares one training step: batch statistics, no dropout, cross-entropy.

    Returns:
        Relative differences of the loss and of the whole gradient in both precisions; in float64
        the largest of any one array's; and how far each side's gradient in float32 is from
        PyTorch's in float64. What BatchNorm makes exactly 0 (a bias before another BatchNorm) is
        noise on either side, so an array's norm counts as no less than 1e-6 of the whole.
    """
    found: dict[str, float] = {}
    with _precision("float64"):
        (loss, ours), (their_loss, truth) = _step(case, "float64", directory)
    norms = {name: float(np.linalg.norm(g)) for name, g in truth.items()}
    least = 1e-6 * float(np.linalg.norm([*norms.values()]))
    found["loss_float64"] = abs(loss / their_loss - 1)
    found["gradient_float64"] = _distance(ours, truth)
    found["array_float64"] = max(
        float(np.linalg.norm(ours[name] - truth[name])) / max(norm, least)
        for name, norm in norms.items()
    )
    (loss, ours), (their_loss, theirs) = _step(case, "float32", directory)
    found["loss_float32"] = abs(loss / their_loss - 1)
    found["gradient_float32"] = _distance(ours, theirs)
    found["our_error_float32"] = _distance(ours, truth)
    found["their_error_float32"] = _distance(theirs, truth)
    return found


def check(case: Case) -> dict[str, Any]:
    """Compares one network in every way that is asked of it.

    Raises:
        AssertionError: if a difference is above `LIMITS`.
    """
    began = time.perf_counter()
    spec = weights.model_for(case.source, case.name, _alpha(case)).spec
    result: dict[str, Any] = {
        "source": case.source,
        "name": case.name,
        "alpha": case.network.alpha,
        "params": costs.params(spec),
        "macs": costs.macs(spec),
    }
    with tempfile.TemporaryDirectory() as directory:
        for dtype in ("float32", "float64") if case.float64 else ("float32",):
            with _precision(dtype):
                found = compare(case, dtype, Path(directory))
            assert max(found[str(r)] for r in RESOLUTIONS) <= LIMITS[dtype], (
                case.key,
                dtype,
                found,
            )
            assert found.get("round_trip", 0.0) == 0.0, (case.key, found)
            wrong = [value for key, value in found.items() if key.startswith("wrong")]
            assert min(wrong, default=1.0) >= 10 * LIMITS["float32"], (case.key, found)
            result[dtype] = found
        if case.step:
            found = training_step(case, Path(directory))
            # PyTorch's own rounding leaves less than three digits of V2's gradient in float32.
            exact = ("loss_float64", "gradient_float64", "array_float64", "loss_float32")
            assert max(found[key] for key in exact) <= LIMITS["step"], (case.key, found)
            assert found["our_error_float32"] <= 2 * found["their_error_float32"], (case.key, found)
            result["step"] = found
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


class _Code:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def check_pytorch_files(directory: Path) -> None:
    """Reads bad .pth files: each ends in one sentence, and none is executed.

    Raises:
        AssertionError: if one is read, or runs code.
    """
    import pickle

    import torch

    victim = directory / "executed"
    model = weights.model_for("torchvision", "mobilenet_v2", 0.25)
    whole = directory / "whole.pth"
    torch.save(_torch_network(cases()[1]).state_dict(), whole)
    content = whole.read_bytes()

    def pickled(path: Path, protocol: int) -> None:
        path.write_bytes(pickle.dumps({"features.0.0.weight": _Code(victim)}, protocol=protocol))

    files: dict[str, Callable[[Path], Any]] = {
        "code": lambda path: torch.save({"features.0.0.weight": _Code(victim)}, path),
        "code as a plain pickle": lambda path: pickled(path, 2),
        "code as a modern pickle": lambda path: pickled(path, 5),
        "code as an old file": lambda path: torch.save(
            {"a": _Code(victim)}, path, _use_new_zipfile_serialization=False
        ),
        "a whole network": lambda path: torch.save(_torch_network(cases()[1]), path),
        "no dictionary": lambda path: torch.save([1, 2], path),
        "other things": lambda path: torch.save({"epoch": 3}, path),
        "truncated": lambda path: path.write_bytes(content[: len(content) // 2]),
        "text": lambda path: path.write_text("not a file of weights"),
        "empty": lambda path: path.write_bytes(b""),
    }
    for name, make in files.items():
        path = directory / f"{name.replace(' ', '_')}.pth"
        make(path)
        try:
            weights.load(path, model, "torchvision")
        except InputError as error:
            message = str(error)
            assert str(path) in message, (name, message)
            assert "\n" not in message, (name, message)
            assert ("run code" in message) == (name.startswith(("code", "a whole"))), (
                name,
                message,
            )
        else:
            raise AssertionError(f"{name} was read")
    assert not victim.exists()


def run(only: list[str]) -> None:
    """Checks all cases, or some, and stores each result at once."""
    with tempfile.TemporaryDirectory() as directory:
        check_pytorch_files(Path(directory))
    for case in cases():
        if only and case.key not in only:
            continue
        result = check(case)
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
        stored["cases"][case.key] = result
        stored["versions"] = {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "torch", "torchvision", "timm", "keras", "numpy")
        }
        stored["device"] = f"{platform.machine()} CPU, Python {platform.python_version()}"
        order = [each.key for each in cases()]
        stored["cases"] = {key: stored["cases"][key] for key in order if key in stored["cases"]}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        worst = max(result["float32"][str(resolution)] for resolution in RESOLUTIONS)
        print(f"{case.key}: {worst:.1e}, {result['seconds']:.0f} s", flush=True)


# What the tests, which have no PyTorch, compare with ---------------------------------------------

# Networks whose logits are recorded, and the images' side.
LOGITS = (
    *("torchvision/mobilenet_v2@0.25", "torchvision/mobilenet_v3_small@0.25"),
    *("timm/mobilenetv1_100h", "timm/mobilenetv2_110d", "timm/mobilenetv3_small_050"),
    *("timm/mobilenetv3_rw", "timm/tf_mobilenetv3_small_075", "timm/tf_mobilenetv3_large_075"),
)
PIXELS, CLASSES = 72, 5


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Names and shapes of a state dict in one number, whatever their order."""
    lines = sorted(f"{name} {[*map(int, shape)]}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def synthetic(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of PyTorch's with values that follow from each array's name and shape."""
    state = {}
    for name, shape in shapes.items():
        uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
        if len(shape) > 1:
            value = (2 * uniform - 1) * np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            value = 0.5 + 1.5 * uniform
        else:
            value = 0.4 * uniform - 0.2 + name.endswith("weight")
        tracked = name.endswith("num_batches_tracked")
        state[name] = np.asarray(value, np.float32) if not tracked else np.zeros((), np.int64)
    return state


def recorded_images() -> np.ndarray:
    """The images of the recorded logits, `[2, PIXELS, PIXELS, 3]`."""
    values = np.random.default_rng(0).random((2, PIXELS, PIXELS, 3))
    return (2 * values - 1).astype(np.float32)


def record() -> None:
    """Stores each PyTorch state dict's digest, and the logits of some networks."""
    import torch

    found: dict[str, Any] = {"states": {}, "logits": {}}
    for case in cases():
        if case.source == "keras":
            continue
        state = _torch_network(case).state_dict()
        found["states"][case.key] = digest({name: v.shape for name, v in state.items()})
        if case.key in LOGITS:
            network = _torch_network(case, num_classes=CLASSES).eval()
            shapes = {name: tuple(v.shape) for name, v in network.state_dict().items()}
            values = {name: torch.from_numpy(v) for name, v in synthetic(shapes).items()}
            network.load_state_dict(values, strict=True)
            logits = _torch_logits(network)(recorded_images())
            found["logits"][case.key] = [[float(f"{x:.7g}") for x in row] for row in logits]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")}
    RECORDED.write_text(json.dumps({"versions": versions, **found}, indent=1) + "\n")


def table() -> str:
    """Returns the Markdown of the stored results."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    return parity_report.table(cases(), stored, RESOLUTIONS, LIMITS["step"])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table", "list", "record"))
    parser.add_argument("--only", nargs="+", default=[], choices=[case.key for case in cases()])
    arguments = parser.parse_args()
    if arguments.action == "list":
        print("\n".join(case.key for case in cases()))
    elif arguments.action == "run":
        run(arguments.only)
    elif arguments.action == "record":
        record()
    else:
        documents.rewrite(DOCUMENT, "parity", table())


if __name__ == "__main__":
    main()
