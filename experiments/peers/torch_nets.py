"""PyTorch: torchvision's V2 and V3 and timm's V1, eager and compiled, NCHW and channels_last.

Owns the settings under which PyTorch runs. BatchNorm is folded for inference, and on a GPU TF32 is
allowed, as JAX does by default.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import peers


def network(cell: peers.Cell) -> nn.Module:
    """Returns the library's model with random weights."""
    if cell.model == "v1":
        import timm

        model = timm.create_model("mobilenetv1_100", num_classes=peers.CLASSES)
    else:
        import torchvision

        model = getattr(torchvision.models, peers.MODELS[cell.model])(weights=None)
    rng = np.random.default_rng(1)

    def fill(tensor: torch.Tensor, kind: str) -> None:
        fan_in = int(np.prod(tensor.shape[1:]))
        with torch.no_grad():
            value = peers.random_weight(kind, tuple(tensor.shape), fan_in, rng)
            tensor.copy_(torch.from_numpy(value))

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            fill(module.weight, "scale")
            fill(module.bias, "bias")
            fill(module.running_mean, "mean")
            fill(module.running_var, "var")
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fill(module.weight, "kernel")
            if module.bias is not None:
                fill(module.bias, "bias")
    return model


def folded(model: nn.Module) -> nn.Module:
    """Returns the model in evaluation mode with BatchNorm folded into its convolutions."""
    from torch.fx.experimental.optimization import fuse

    return fuse(model.eval())


def build(name: str, cell: peers.Cell) -> peers.Contender:
    """Builds one of `peers.TORCH`."""
    _, mode, layout = name.split()
    torch.set_num_threads(cell.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    images, labels = (torch.from_numpy(array).to(device) for array in peers.inputs(cell))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    model = network(cell)
    make = _training if cell.task == "training" else _inference
    step, settings = make(model, images, labels.long(), cell, mode, memory_format)
    on_gpu = device == "cuda"
    return peers.Contender(
        step,
        torch.cuda.get_device_name() if on_gpu else "cpu",
        f"{mode}, {layout}, {settings}",
        reset_peak=torch.cuda.reset_peak_memory_stats if on_gpu else None,
        peak_bytes=torch.cuda.max_memory_allocated if on_gpu else None,
    )


def _inference(model: Any, images: Any, _: Any, cell: peers.Cell, mode: str, form: Any) -> Any:
    dtype = getattr(torch, cell.dtype)
    model = folded(model).to(images.device, dtype, memory_format=form)
    images, settings = images.to(dtype), "BatchNorm folded, inference_mode"
    if mode == "compiled":
        torch._inductor.config.freezing = True
        model, settings = torch.compile(model), f"{settings}, freezing"

    def step() -> np.ndarray:
        with torch.inference_mode():
            return model(images).float().cpu().numpy()

    return step, settings


def _training(model: Any, images: Any, labels: Any, cell: peers.Cell, mode: str, form: Any) -> Any:
    model = model.train().to(images.device, memory_format=form)
    optimizer = torch.optim.SGD(
        model.parameters(), peers.LEARNING_RATE, momentum=peers.MOMENTUM, fused=True
    )
    half = cell.dtype != "float32"
    run = torch.compile(model) if mode == "compiled" else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, getattr(torch, cell.dtype), enabled=half):
            loss = nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, "fused SGD" + ", autocast" * half
