"""OpenVINO: NAME.xml with its weights in NAME.bin, for CPUs and Intel graphics.

bf16 is chosen when the model is loaded, so it is stored as float32; fp16 halves the stored weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from export import onnx
from export.job import Job
from export.network import Network
from video_distilled_encoder.errors import import_extra

PRECISIONS = dict.fromkeys(("fp32", "fp16", "bf16", "int8"), torch.float32)
DYNAMIC_SIZE = True


def write(network: Network, path: Path, job: Job) -> dict[str, str]:
    """Export the network to `path`; arguments, result and errors as of `export.onnx.write`."""
    openvino = import_extra("openvino", "export")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "encoder.onnx"
        onnx.write(network, graph, job)
        model = openvino.convert_model(graph)
        openvino.save_model(model, path, compress_to_fp16=network.artefact.precision == "fp16")
    return {}
