"""OpenVINO, on the CPU or Intel graphics."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, import_extra
from video_distilled_encoder.runtimes.artefact import Artefact

COMPUTE = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Of what is not quantised. Said in every case: left to itself, OpenVINO computes in bf16 where the CPU can."""


@lru_cache
def shared_core() -> Any:
    """Return the process's one OpenVINO core.

    Each gives signal handlers a stack, and takes it away when it is deleted. Of two that are deleted in the order in
    which they were made the second leaves the first one's, which is gone: the next signal, as Ctrl-C or the end of a
    worker process is, would be a segmentation fault.

    Raises:
        InputError: OpenVINO is not installed.
    """
    core = import_extra("openvino", "export").Core()
    core.set_property({"ENABLE_MMAP": False})  # weights in memory of their own, whatever becomes of the file
    return core


class OpenVinoSession:
    """A compiled model and one request.

    Args:
        path: the .xml file.
        artefact: what it is.
        device: "cpu" or "gpu".
        threads: of the CPU.
    """

    device = torch.device("cpu")
    on_gpu = False

    def __init__(self, path: Path, artefact: Artefact, device: str, threads: int | None) -> None:
        core = shared_core()
        name = device.upper()
        if name.split(":")[0] not in {known.split(".")[0] for known in core.available_devices}:
            raise InputError(
                f"OpenVINO has no device {device!r} here; it has {', '.join(core.available_devices).lower()}"
            )
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _compute_type(core, name, artefact.precision),
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.compile_model(core.read_model(path), name, settings)
        except Exception as error:  # OpenVINO raises plain RuntimeErrors
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{path.name} cannot be loaded by OpenVINO: {reason}") from error
        self._request, self._tensor = model.create_infer_request(), import_extra("openvino", "export").Tensor
        self._outputs = {port.get_any_name(): port for port in model.outputs}

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch, from the caller's memory into the caller's."""
        self._request.set_input_tensor(self._tensor(inputs.numpy(), shared_memory=True))
        for name, output in outputs.items():
            self._request.set_tensor(self._outputs[name], self._tensor(output.numpy(), shared_memory=True))
        self._request.infer(share_outputs=True)


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> OpenVinoSession:
    """Load an OpenVINO model.

    Raises:
        InputError: OpenVINO is not installed or lacks the device, or the file cannot be loaded.
    """
    return OpenVinoSession(path, artefact, device, threads)


def _compute_type(core: Any, device: str, precision: str) -> str:
    capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise InputError(f"this {device} does not compute in bf16 (it can: {', '.join(capabilities)}); export fp32")
    if precision == "fp16" and "FP16" not in capabilities:
        return "f32"  # the weights are stored in half, and computed with in full
    return COMPUTE[precision]
