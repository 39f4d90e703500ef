"""ONNX: one typed graph, for ONNX Runtime, and as the source of OpenVINO models and TensorRT engines."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.job import Job
from export.network import Network
from video_distilled_encoder.errors import import_extra
from video_distilled_encoder.runtimes.artefact import LAYER

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
"""And what the network is exported in."""
DYNAMIC_SIZE = True
_PRODUCTS = ["MatMul", "Gemm"]
OPSET = 20  # the newest without fused Attention, which TensorRT reads only from 10.14 on


def write(network: Network, path: Path, job: Job) -> dict[str, str]:
    """Export the network to `path`.

    Args:
        network: the network.
        path: the .onnx file.
        job: its images give int8 its ranges.

    Returns:
        What the machine must be like: nothing.

    Raises:
        MissingExtra: a package is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, "export")
    if network.artefact.precision == "int8":
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder) / "full.onnx"
            write_graph(network, full, job)
            quantize(full, path, network, job.calibration_inputs(network.artefact))
    else:
        write_graph(network, path, job)
    import_extra("onnx", "export").checker.check_model(str(path), full_check=True)
    return {}


def write_graph(network: Network, path: Path, job: Job) -> None:
    """Write the graph of a network, cut out of one that is traced once for all that the job asks for in its type."""
    artefact = network.artefact
    whole = job.scratch / f"{network.dtype}.onnx"
    if not whole.exists():
        layers = [f"{LAYER}{number}" for number in range(job.encoder.depth)] if job.layer_parity else []
        trace(network.giving(tuple(dict.fromkeys([*artefact.outputs, *layers]))), whole)
    extract = import_extra("onnx.utils", "export").extract_model
    extract(str(whole), str(path), [artefact.input], list(artefact.outputs), check_model=False)


def trace(network: Network, path: Path) -> None:
    """Export the network as it is."""
    torch.onnx.export(
        network,
        (example(network),),
        str(path),
        input_names=[network.artefact.input],
        output_names=list(network.artefact.outputs),
        dynamic_shapes=(dynamic_shapes(network),),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def example(network: Network) -> Tensor:
    """Return an input to trace the network with."""
    artefact = network.artefact
    batch = artefact.batch[0] if artefact.batch[0] == artefact.batch[2] else 2  # 1 would be taken for a constant
    shape = artefact.input_shape(batch, artefact.size or artefact.default_size)
    return torch.zeros(shape, dtype=torch.uint8 if artefact.camera else torch.float32, device=network.device)


def dynamic_shapes(network: Network) -> dict[int, Any]:
    """Return which dimensions of the input are free."""
    artefact = network.artefact
    least, _, most = artefact.batch
    free: dict[int, Any] = {} if least == most else {0: torch.export.Dim("batch", min=1, max=most)}
    if artefact.size is None:
        free[2] = artefact.patch_size * torch.export.Dim("rows", min=1, max=256)
        free[3] = artefact.patch_size * torch.export.Dim("columns", min=1, max=256)
    return free


def quantize(source: Path, target: Path, network: Network, calibration: Iterable[Tensor]) -> None:
    """Write an int8 graph: Q/DQ before the products with weights, symmetric, as TensorRT and OpenVINO want it.

    Weights are quantised by channel, activations by tensor, ranges taken from the calibration inputs. The products
    inside attention stay as they are: the many small probabilities of a softmax would all become 0.

    Args:
        source: the graph.
        target: where to write.
        network: what it is the graph of.
        calibration: inputs of one image each.
    """
    quantization = import_extra("onnxruntime.quantization", "export")
    shapes = import_extra("onnxruntime.quantization.shape_inference", "export")
    prepared = source.with_name("prepared.onnx")
    # The optimiser would compute in float32 whatever this machine's processor cannot in half.
    half = network.dtype == torch.float16
    shapes.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=half)

    model = import_extra("onnx", "export").load(str(prepared))
    excluded = _products_of_activations(model.graph)
    _apart(model.graph, [node for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in excluded])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        inputs = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.inputs, None)
            return None if image is None else {network.artefact.input: image.cpu().numpy()}

    quantization.quantize_static(
        model,
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_PRODUCTS,
        nodes_to_exclude=excluded,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": _PRODUCTS,
            # A scale that half cannot hold becomes 1, and all weights of the channel 0.
            "MinimumRealRange": 256 * torch.finfo(torch.float16).tiny if half else None,
        },
    )


def _apart(graph: Any, products: list[Any]) -> None:
    """Give products inputs of their own where others use them too: all users of what is quantised would get 8 bits."""
    names = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    for name in {node.input[0] for node in products}:
        users = [node for node in products if node.input[0] == name]
        if names.count(name) > len(users):
            own = f"{name}_of_products"
            maker = next((number for number, node in enumerate(graph.node) if name in node.output), -1)
            graph.node.insert(
                maker + 1, import_extra("onnx", "export").helper.make_node("Identity", [name], [own], own)
            )
            for node in users:
                node.input[0] = own


def _products_of_activations(graph: Any) -> list[str]:
    """Return the names of a graph's products of which no side is a weight."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in _PRODUCTS and node.input[1] not in weights]
