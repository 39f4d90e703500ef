"""TensorRT engines: built on the GPU they are for, of the same typed ONNX that `--format onnx` writes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from export import onnx
from export.job import Job
from export.network import Network
from video_distilled_encoder.runtimes import tensorrt
from video_distilled_encoder.runtimes.cuda_graph import cuda_device

PRECISIONS = onnx.PRECISIONS | {"int8": torch.float16}
"""Strongly typed, all that is not quantised would run in float32, and an int8 engine be slower than one of fp16."""
DYNAMIC_SIZE = False


def write(network: Network, path: Path, job: Job) -> dict[str, str]:
    """Build an engine of the network.

    Args:
        network: the network.
        path: the .engine file.
        job: the device, and the options of the build.

    Returns:
        What the machine must be like.

    Raises:
        InputError: TensorRT is not installed (`MissingExtra`) or cannot build the network, or the device is no GPU.
    """
    tensorrt.require()
    device = cuda_device(job.device)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "encoder.onnx"
        onnx.write(network, graph, job)
        path.write_bytes(tensorrt.build(graph, network.artefact, job.engine, device))
    return tensorrt.made_for(job.engine, device)
