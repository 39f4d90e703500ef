"""ONNX Runtime, on the CPU or CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.recent import Recent
from video_distilled_encoder.runtimes.artefact import Artefact
from video_distilled_encoder.runtimes.cuda_graph import cuda_device

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """A session; on a GPU, for inputs of one size, with a CUDA graph and its buffers for each input shape.

    Args:
        path: the ONNX file.
        artefact: what it is.
        device: "cpu", "cuda" or "cuda:1".
        threads: of the CPU.
    """

    def __init__(self, path: Path, artefact: Artefact, device: torch.device, threads: int | None) -> None:
        runtime = import_extra("onnxruntime", "export")
        provider = PROVIDERS[device.type]
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # what matters is raised below
        if threads:
            options.intra_op_num_threads = threads
        self._graphs = device.type == "cuda" and artefact.size is not None
        settings = {"device_id": str(device.index or 0), "enable_cuda_graph": str(int(self._graphs))}
        chosen = (provider, settings) if device.type == "cuda" else provider
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[chosen])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            if artefact.precision == "bf16" and device.type == "cpu":
                raise InputError(
                    "ONNX Runtime does not compute in bf16 on the CPU: export fp32 or int8, or with --format openvino"
                ) from error
            raise InputError(f"{path.name} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
        if self._session.get_providers()[0] != provider:
            raise InputError(f"ONNX Runtime could not start {provider}; is its CUDA version that of the driver?")
        self._runtime, self._artefact, self.device = runtime, artefact, device
        self._graph_ids = itertools.count(1)
        self._recorded: Recent[tuple[int, ...], tuple[Tensor, dict[str, Tensor], Any, Any]] = Recent(8)

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch, from the caller's memory into the caller's; a graph has memory of its own."""
        if not self._graphs:
            binding = self._session.io_binding()
            self._bind(binding, inputs, outputs)
            self._start(binding)
            return
        buffer, results, binding, options = self._recorded.get(tuple(inputs.shape), self._record)
        buffer.copy_(inputs)
        self._start(binding, options)
        for name, output in outputs.items():
            output.copy_(results[name])

    def _start(self, binding: Any, options: Any = None) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    def _bind(self, binding: Any, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        place = (self.device.type, self.device.index or 0)
        element = np.uint8 if self._artefact.camera else np.float32
        binding.bind_input(self._artefact.input, *place, element, list(inputs.shape), inputs.data_ptr())
        for name, output in outputs.items():
            binding.bind_output(name, *place, np.float32, list(output.shape), output.data_ptr())

    def _record(self, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor], Any, Any]:
        """Make what a CUDA graph of an input shape needs: input, outputs, their binding, and the options of a run."""
        artefact = self._artefact
        assert artefact.size is not None
        dtype = torch.uint8 if artefact.camera else torch.float32
        buffer = torch.empty(shape, dtype=dtype, device=self.device)
        results = {
            name: torch.empty(
                artefact.output_shape(name, shape[0], artefact.size), dtype=torch.float32, device=self.device
            )
            for name in artefact.outputs
        }
        binding = self._session.io_binding()
        self._bind(binding, buffer, results)
        options = self._runtime.RunOptions()
        # A CUDA graph for each binding: its buffers' addresses are part of it.
        options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return buffer, results, binding, options


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> OnnxSession:
    """Load an ONNX file.

    Raises:
        InputError: ONNX Runtime is not installed or lacks the device, or the file cannot be loaded.
    """
    kind = device.split(":")[0]
    available = import_extra("onnxruntime", "export").get_available_providers()
    if PROVIDERS.get(kind) not in available:
        raise InputError(f"ONNX Runtime has no provider for the device {device!r} here; it has {', '.join(available)}")
    chosen = cuda_device(device) if kind == "cuda" else torch.device("cpu")
    return OnnxSession(path, artefact, chosen, threads)
