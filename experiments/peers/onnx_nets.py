"""ONNX Runtime: the PyTorch networks, exported to ONNX.

Owns the export, which runs in a process of its own so that PyTorch's memory does not count, and the
session's settings. `python -m experiments.peers.onnx_nets CELL FILE` exports.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from experiments import peers
from experiments.peers.exporting import in_a_process


def build(name: str, cell: peers.Cell) -> peers.Contender:
    """Builds "onnxruntime"."""
    if cell.task != "inference" or cell.dtype != "float32":
        raise peers.Unsupported("inference in float32 only")
    images = np.ascontiguousarray(peers.inputs(cell)[0].transpose(0, 3, 1, 2))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cell.threads
    # Threads spin between the nodes of a run, and no longer than it lasts.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # A GPU's provider is there only in the package onnxruntime-gpu.
    providers = [
        provider
        for provider in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if provider in onnxruntime.get_available_providers()
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "network.onnx")
        in_a_process(__name__, cell, path)
        session = onnxruntime.InferenceSession(str(path), options, providers)

    def step() -> np.ndarray:
        return session.run(None, {"images": images})[0]

    settings = "exported from PyTorch, BatchNorm folded, all optimizations"
    return peers.Contender(step, session.get_providers()[0], settings)


def export(cell: peers.Cell, path: Path) -> None:
    """Writes the PyTorch network, with BatchNorm folded."""
    import torch

    from experiments.peers import torch_nets

    images = torch.zeros(cell.batch, 3, cell.resolution, cell.resolution)
    torch.onnx.export(
        torch_nets.folded(torch_nets.network(cell)),
        (images,),
        path,
        input_names=["images"],
        external_data=False,
        dynamo=True,
    )


if __name__ == "__main__":
    export(peers.Cell(**json.loads(sys.argv[1])), Path(sys.argv[2]))
