"""XLA:CPU's own program for the networks shows that the depthwise work fuses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenets_jax import chunks, runtime
from mobilenets_jax.fold import fold_batch_norm
from mobilenets_jax.model import create_model
from mobilenets_jax.specs import pad_amounts

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


def inference_hlo(name, alpha=0.5, folded=False, loop=False, **arguments):
    model = create_model(name, 10, alpha, **arguments)
    x = jnp.zeros((2 * jax.device_count(), 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    if folded:
        ones = jax.tree.map(lambda each: np.ones(each.shape, each.dtype), variables)
        model, variables = fold_batch_norm(model, ones)
    apply = jax.jit(
        functools.partial(model.apply, train=False), compiler_options=runtime.inference_options()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "plan", lambda *_: [(len(model.spec.blocks) + 1, 1)] if loop else [])
        hlo = apply.lower(variables, x).compile().as_text()
    assert (" while(" in hlo) == loop
    return model.spec, hlo


def computations(hlo):
    """Name -> its instructions as (opcode, op_name, line)."""
    found, name = {}, None
    for line in hlo.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = start[1]
            found[name] = []
        elif instruction := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = .*? ([\w\-]+)\(", line):
            op_name = re.search(r'op_name="([^"]*)"', line)
            found[name].append((instruction[1], op_name[1] if op_name else "", line))
    return found


def feature_map(parameter):
    """Height, width and channels of a 4-D parameter; None of another."""
    shape = re.search(r"= \w+\[([\d,]*)\]", parameter)[1].split(",")
    return tuple(map(int, shape[1:])) if len(shape) == 4 else None


def padded(spec, i):
    """Height, width and channels of what block i's depthwise convolution reads, of 64 pixels."""
    size = -(-64 // spec.stem.strides)
    for block in spec.blocks[:i]:
        size = -(-size // block.strides)
    block = spec.blocks[i]
    size += sum(pad_amounts(size, block.kernel, block.strides, spec.padding))
    return size, size, block.expansion


# The last instruction of an activation.
ENDS = {"relu": ("maximum", "select"), "relu6": ("clamp", "select"), "hswish": ("multiply",)}
CASES = [(name, {"folded": folded}) for name in NETWORKS for folded in (False, True)]
# Of each family one, by chunks of the batch.
CASES += [(name, {"folded": True, "loop": True}) for name in NETWORKS[:3]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *CASES,
        ("mobilenet_v2", {"se": True, "folded": True}),
        ("mobilenet_v2", {"alpha": 0.25, "folded": True}),
    ],
)
def test_each_depthwise_convolution_is_one_fusion_with_its_batch_norm_and_activation(
    name, arguments
):
    spec, hlo = inference_hlo(name, **arguments)
    assert not re.search(r" convolution\(", hlo)
    bodies = computations(hlo)
    for i, block in enumerate(spec.blocks):
        layer = f"/blocks_{i}/depthwise/"

        def products(body, layer=layer):
            return sum(
                code == "multiply" and layer in op and not re.search("/bn/|hard_silu", op)
                for code, op, _ in body
            )

        holders = {key: body for key, body in bodies.items() if products(body)}
        ((holder, body),) = holders.items()  # of all k² products …
        assert products(body) == block.kernel**2
        # … one instruction of the program calls it, and what it returns is the activation's.
        (call,) = [line for line in hlo.splitlines() if re.search(rf"calls=%?{holder}\b", line)]
        assert " fusion(" in call
        last = [(code, op) for code, op, _ in body if layer in op and code != "bitcast"][-1]
        assert last[0] in ENDS[block.activation]
        assert layer in call
        # Of feature maps it reads one, the padded one.
        read = [feature_map(line) for code, _, line in body if code == "parameter"]
        assert list(filter(None, read)) == [padded(spec, i)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*CASES, *(("mobilenet_v2", {"alpha": 0.25, "folded": folded}) for folded in (False, True))],
)
def test_an_expansion_of_few_channels_is_one_fusion_with_its_activation_and_the_padding(
    name, arguments
):
    spec, hlo = inference_hlo(name, **arguments)
    bodies = computations(hlo)
    inputs = [spec.stem.out, *(block.out for block in spec.blocks)]
    few = [
        (i, channels)
        for i, (block, channels) in enumerate(zip(spec.blocks, inputs, strict=False))
        if block.expansion != channels <= 16
    ]
    assert few or name == "mobilenet_v1"
    for i, channels in few:
        layer = f"/blocks_{i}/expand/"
        assert not any(
            code == "dot" and layer in op for body in bodies.values() for code, op, _ in body
        )

        def products(body, layer=layer):
            return sum(
                code == "multiply" and layer in op and not re.search("/bn/|hard_silu", op)
                for code, op, _ in body
            )

        ((holder, body),) = {key: body for key, body in bodies.items() if products(body)}.items()
        assert products(body) == channels
        assert len(re.findall(rf"calls=%?{holder}\b", hlo)) == 1
        assert any(code == "pad" and f"/blocks_{i}/depthwise/" in op for code, op, _ in body)
        # What makes its input may be in it, but no convolution.
        assert not any(
            code == "multiply" and re.search(r"/(stem|depthwise)/(?!bn/|jit)", op)
            for code, op, _ in body
        )


def test_another_implementation_would_be_seen():
    """XLA's grouped convolution has no such products."""
    spec, hlo = inference_hlo("mobilenet_v2", depthwise_implementation="lax")
    for i in range(len(spec.blocks)):
        layer = f"/blocks_{i}/depthwise/"
        for body in computations(hlo).values():
            assert not any(
                code == "multiply" and layer in op and "/bn/" not in op for code, op, _ in body
            )
