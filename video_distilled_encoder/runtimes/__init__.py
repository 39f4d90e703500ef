"""Exported encoders in their runtimes, all with the same face.

>>> from video_distilled_encoder import load_runtime
>>> runtime = load_runtime("encoder.onnx", device="cpu")
>>> out = runtime.encode("photograph.jpg")  # out.cls, out.patches, out.grid
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.runtimes.artefact import Artefact
from video_distilled_encoder.runtimes.recording import gpus
from video_distilled_encoder.runtimes.runtime import Runtime

RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "aoti": "aotinductor",
    "tensorrt": "tensorrt",
}
"""The module of this package that runs each format."""


def load_runtime(path: str | Path, device: str | torch.device | None = None, *, threads: int | None = None) -> Runtime:
    """Load what `vde-export` wrote, in the runtime it was written for.

    Args:
        path: the exported file; its JSON lies beside it.
        device: "cpu", "cuda" or "cuda:1" ("gpu" for OpenVINO on Intel graphics); the runtime runs there or not at all.
            By default what the export was made for: CUDA for TensorRT and for AOTInductor's code for it, else the CPU.
        threads: of the CPU; the runtime's own choice by default.

    Raises:
        InputError: a file is missing, damaged or made for another machine, the runtime is not installed, or it cannot
            run on the device or with so many threads.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads are a positive number of the CPU's, or None for the runtime's own; got {threads!r}")
    path = Path(path).absolute()
    artefact = Artefact.read(path)
    module = importlib.import_module(f"{__name__}.{RUNTIMES[artefact.format]}")
    place = str(device or artefact.device or "cpu").lower()
    with gpus.inside() if place.startswith("cuda") else nullcontext():
        session = module.open_session(path, artefact, place, threads)
    return Runtime(artefact, session, partial(load_runtime, path, device, threads=threads))
