"""AOTInductor packages: torch's own compiled code, on the CPU or CUDA. A package is native code: load only your own.

What a package computes with is freed with its session, but its code, and the weights beside it, stay mapped until the
process ends: g++ marks such code as never to be let go. So open a package once a process, not again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.float32 import full_float32
from video_distilled_encoder.runtimes.artefact import Artefact, check_machine, machine
from video_distilled_encoder.runtimes.cuda_graph import Copied, CudaGraphs, cuda_device


def _run_in_full(package: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    """Run it in float32, not TF32: of what it leaves to torch's libraries, that is settled when a graph is recorded."""
    with full_float32():
        return package(inputs)


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> Copied:
    """Load an AOTInductor package.

    Raises:
        InputError: it was compiled for another machine or device, or cannot be loaded.
    """
    chosen = torch.device("cpu") if device == "cpu" else cuda_device(device)
    check_machine(path, artefact.made_for, machine(chosen))
    if threads:
        torch.set_num_threads(threads)  # the package computes in torch's own threads
    on_gpu = chosen.type == "cuda"
    try:
        # Of its own accord a package records events, which a CUDA graph cannot hold; calls come one at a time.
        package: Any = torch._inductor.aoti_load_package(
            str(path), run_single_threaded=on_gpu, device_index=chosen.index if on_gpu else -1
        )
    except Exception as error:
        raise InputError(f"{path.name} cannot be loaded by AOTInductor: {first_line(error)}") from error
    return Copied(CudaGraphs(lambda shape: partial(_run_in_full, package)) if on_gpu else package, artefact, chosen)
