"""AOTInductor: a .pt2 package of compiled code, for Python and C++ programs that link torch; a C++ compiler is needed.

It is compiled for the device the encoder lies on, and runs on such a machine with such a torch only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from export.job import Job
from export.network import Network
from export.onnx import dynamic_shapes, example
from video_distilled_encoder.errors import InputError, first_line
from video_distilled_encoder.float32 import full_float32
from video_distilled_encoder.runtimes.artefact import machine

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DYNAMIC_SIZE = False


def write(network: Network, path: Path, job: Job) -> dict[str, str]:
    """Compile the network to `path`.

    Args:
        network: the network.
        path: the .pt2 file.
        job: not used.

    Returns:
        What the machine must be like.

    Raises:
        InputError: it cannot be compiled here.
    """
    device = network.device
    # Freezing packs the weights for the CPU's own kernels.
    settings = {"freezing": True} if device.type == "cpu" else {"max_autotune": True}
    if hasattr(torch._inductor.config.aot_inductor, "check_lowerbound"):
        # torch takes a free dimension for 2 or more, and a program that has shapes checked could run no single image.
        settings["aot_inductor.check_lowerbound"] = False
    try:
        with torch.no_grad(), full_float32():
            program = torch.export.export(network, (example(network),), dynamic_shapes=(dynamic_shapes(network),))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # compilers fail in their own ways
        mend = "" if shutil.which(os.environ.get("CXX", "g++")) else "; install a C++ compiler, g++, or name it in CXX"
        raise InputError(f"AOTInductor cannot compile the network here: {first_line(error)}{mend}") from error
    return machine(device)
