"""ONNX: one typed file of a fixed size with a dynamic batch, for ONNX Runtime and as the source of TensorRT engines."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.network import INPUT, OUTPUTS, Network
from video_distilled_encoder.errors import InputError, MissingExtra

OPSET = 20  # the newest without fused Attention, which TensorRT reads only from 10.14 on


def write(network: Network, path: Path) -> None:
    """Export the network to `path`.

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        _import(package)
    weight = next(network.parameters())
    example = torch.zeros(2, 3, *network.size, dtype=weight.dtype, device=weight.device)
    torch.onnx.export(
        network,
        (example,),
        str(path),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    _import("onnx").checker.check_model(str(path), full_check=True)


def load(path: Path, device: str = "cpu") -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Load an ONNX file in ONNX Runtime.

    Args:
        path: the file.
        device: "cpu" or "cuda"; never silently another one.

    Returns:
        A function from (B, 3, H, W) pixels to the named outputs, on the CPU.

    Raises:
        InputError: ONNX Runtime is not installed or lacks the device, or the file cannot be loaded.
    """
    runtime = _import("onnxruntime")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
    if provider not in runtime.get_available_providers():
        raise InputError(f"ONNX Runtime has no provider for the device {device!r} here")
    try:
        session = runtime.InferenceSession(str(path), providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise InputError(f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}") from error
    if session.get_providers()[0] != provider:
        raise InputError(f"ONNX Runtime could not start {provider}; its log above says why")
    dtype = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32}[session.get_inputs()[0].type]
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor) -> Mapping[str, Tensor]:
        outputs = session.run(names, {INPUT: pixels.to("cpu", dtype).numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(package, "export") from error
