"""Single layers: our depthwise implementations and pointwise product, `nn.Conv`, PyTorch.

Owns what one layer's forward pass and gradients are in each library. All get the same numbers;
a sample of the results is compared. Results stay on the device.
"""

from typing import Any

import numpy as np

from experiments import peers

SAMPLE = 1000  # Values of a result that are compared.


def build(name: str, cell: peers.LayerCell) -> peers.Contender:
    """Builds "ours", "ours IMPLEMENTATION", "nn.Conv" or one of `peers.LAYERS_TORCH`."""
    rng = np.random.default_rng(0)
    k, fan_in = cell.kernel, cell.kernel**2
    shape: tuple[int, ...] = (k, k, cell.channels)
    if cell.kind == "pointwise":
        shape, fan_in = (cell.channels, cell.out), cell.channels
    after = -(-cell.size // cell.strides)
    x = rng.standard_normal((cell.batch, cell.size, cell.size, cell.channels), np.float32)
    kernel = peers.random_weight("kernel", shape, fan_in, rng)
    g = rng.standard_normal((cell.batch, after, after, cell.out), np.float32)
    make = _torch if name.startswith("torch") else _jax
    return make(name, cell, x, kernel, g)


def _sample(values: np.ndarray) -> dict[str, np.ndarray]:
    flat = values.astype(np.float32).ravel()
    return {"result": flat[:: max(1, flat.size // SAMPLE)]}


def _jax(name: str, cell: peers.LayerCell, x: Any, kernel: Any, g: Any) -> peers.Contender:
    import jax
    import jax.numpy as jnp
    from jax import lax

    from mobilenets_jax.depthwise import depthwise_conv
    from mobilenets_jax.pointwise import pointwise_conv

    def forward(x: Any, kernel: Any) -> Any:
        if name == "nn.Conv":
            return lax.conv_general_dilated(  # what nn.Conv calls
                x,
                kernel.reshape(cell.kernel, cell.kernel, -1, cell.out),
                (cell.strides, cell.strides),
                [((cell.kernel - 1) // 2,) * 2] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=cell.channels if cell.kind == "depthwise" else 1,
            )
        if cell.kind == "pointwise":
            return pointwise_conv(x, kernel)
        implementation = name.partition(" ")[2] or None
        return depthwise_conv(x, kernel, cell.strides, "symmetric", implementation)

    def run(x: Any, kernel: Any, g: Any) -> Any:
        if cell.direction == "forward":
            return forward(x, kernel)
        if cell.direction == "input gradient":
            return jax.vjp(lambda x: forward(x, kernel), x)[1](g)[0]
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](g)[0]

    arguments = [jnp.asarray(array, cell.dtype) for array in (x, kernel, g)]
    compiled = jax.jit(run)

    def step() -> None:
        compiled(*arguments).block_until_ready()

    return peers.Contender(
        step, jax.devices()[0].device_kind, "jit", lambda: _sample(np.asarray(compiled(*arguments)))
    )


def _torch(name: str, cell: peers.LayerCell, x: Any, kernel: Any, g: Any) -> peers.Contender:
    import torch

    torch.set_num_threads(cell.threads)
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.cuda.is_available()
    _, mode, layout = name.split()
    if mode == "compiled" and cell.direction != "forward":
        raise peers.Unsupported("the compiled gradient is the same call as the eager one")
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    kernel = kernel.reshape(cell.kernel, cell.kernel, -1, cell.out).transpose(3, 2, 0, 1)
    x, kernel, g = (
        torch.from_numpy(np.ascontiguousarray(array))
        .to("cuda" if on_gpu else "cpu", getattr(torch, cell.dtype))
        .contiguous(memory_format=form)
        for array in (x.transpose(0, 3, 1, 2), kernel, g.transpose(0, 3, 1, 2))
    )
    strides, pads = [cell.strides] * 2, [(cell.kernel - 1) // 2] * 2
    groups = cell.channels if cell.kind == "depthwise" else 1
    layer = torch.nn.Conv2d(
        cell.channels, cell.out, cell.kernel, cell.strides, pads[0], groups=groups, bias=False
    )
    layer.weight = torch.nn.Parameter(kernel, requires_grad=False)
    if mode == "compiled":
        torch._dynamo.reset()  # of the layers before
        torch._inductor.config.freezing = True
        layer = torch.compile(layer.eval())

    def run() -> Any:
        with torch.inference_mode():
            if cell.direction == "forward":
                return layer(x)
            mask = [cell.direction == "input gradient", cell.direction == "weight gradient", False]
            return torch.ops.aten.convolution_backward(
                g, x, kernel, None, strides, pads, [1, 1], False, [0, 0], groups, mask
            )[int(mask[1])]

    def step() -> None:
        run()
        if on_gpu:
            torch.cuda.synchronize()

    def outputs() -> dict[str, np.ndarray]:
        axes = (2, 3, 1, 0) if cell.direction == "weight gradient" else (0, 2, 3, 1)
        return _sample(run().float().cpu().permute(*axes).contiguous().numpy())

    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    return peers.Contender(step, device, f"{mode}, {layout}", outputs)
