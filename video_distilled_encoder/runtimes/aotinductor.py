"""AOTInductor packages: torch's own compiled code, on the CPU or CUDA. A package is native code: load only your own.

What a package computes with is freed with its session, but its code, and the weights beside it, stay mapped until the
process ends: g++ marks such code as never to be let go. So open a package once a process, not again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.float32 import full_float32
from video_distilled_encoder.runtimes.artefact import Artefact, check_machine, machine
from video_distilled_encoder.runtimes.cuda_graph import CudaGraphs, cuda_device


class AotiSession:
    """A loaded package; on a GPU each batch size is recorded as a CUDA graph.

    Args:
        path: the .pt2 file.
        artefact: what it is.
        device: "cpu", "cuda" or "cuda:1".
    """

    def __init__(self, path: Path, artefact: Artefact, device: torch.device) -> None:
        self.on_gpu = on_gpu = device.type == "cuda"
        try:
            # Of its own accord a package records events, which a CUDA graph cannot hold; calls come one at a time.
            package: Any = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=on_gpu, device_index=device.index if on_gpu else -1
            )
        except Exception as error:
            raise InputError(f"{path.name} cannot be loaded by AOTInductor: {first_line(error)}") from error
        self._artefact, self.device = artefact, device
        self._call: Callable[[Tensor], Any] = (
            CudaGraphs(lambda shape: partial(_run_in_full, package)) if on_gpu else package
        )

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch. A package puts its results into memory of its own, so they are copied."""
        for name, result in zip(self._artefact.outputs, self._call(inputs), strict=True):
            outputs[name].copy_(result)


def _run_in_full(package: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    """Run it in float32, not TF32: of what it leaves to torch's libraries, that is settled when a graph is recorded."""
    with full_float32():
        return package(inputs)


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> AotiSession:
    """Load an AOTInductor package.

    Raises:
        InputError: it was compiled for another machine or device, or cannot be loaded.
    """
    chosen = torch.device("cpu") if device == "cpu" else cuda_device(device)
    here = {**machine(), "device": chosen.type}
    if chosen.type == "cuda":
        here["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability(chosen))
    check_machine(path, artefact.made_for, here)
    if threads:
        torch.set_num_threads(threads)  # the package computes in torch's own threads
    return AotiSession(path, artefact, chosen)
