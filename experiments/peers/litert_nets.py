"""LiteRT with XNNPACK: the naive Flax twin with our weights, converted.

Owns the conversion, which runs in a process of its own so that JAX's memory does not count, and the
interpreter's settings. `python -m experiments.peers.litert_nets CELL FILE` converts.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from experiments import peers
from experiments.peers.exporting import in_a_process


def build(name: str, cell: peers.Cell) -> peers.Contender:
    """Builds "litert"."""
    if cell.task != "inference" or cell.dtype != "float32":
        raise peers.Unsupported("inference in float32 only")
    images = peers.inputs(cell)[0]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "network.tflite")
        in_a_process(__name__, cell, path)
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=cell.threads)
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def step() -> np.ndarray:
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(wanted["index"])

    settings = "XNNPACK, converted from the naive twin, BatchNorm folded"
    return peers.Contender(step, "cpu", settings, lambda: {"logits": step()})


def export(cell: peers.Cell, path: Path) -> None:
    """Writes the naive twin at the cell's batch: with a symbolic one, BatchNorm is not folded.

    The converter's entry points are not public; these are 0.5's.
    """
    import jax
    import jax.numpy as jnp
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext

    from experiments.peers import jax_nets

    model, variables = jax_nets.network("naive", cell)
    images = jax.ShapeDtypeStruct((cell.batch, cell.resolution, cell.resolution, 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: model.apply(variables, x)))(images)
    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter_api_ext.set_signature(
            module.operation,
            signature_name="serving_default",
            input_names=["images"],
            output_names=["logits"],
        )
        config = converter_api_ext.ConvertToTFLConfig()
        config.model_origin_framework = "JAX"
        converter_api_ext.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        path.write_bytes(converter_api_ext.export_flatbuffer_to_bytes(module.operation))


if __name__ == "__main__":
    export(peers.Cell(**json.loads(sys.argv[1])), Path(sys.argv[2]))
