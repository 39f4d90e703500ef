"""ONNX Runtime, on the CPU or CUDA."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError, first_line, import_extra, warn
from video_distilled_encoder.runtimes.artefact import Artefact
from video_distilled_encoder.runtimes.cuda_graph import KEPT, cuda_device
from video_distilled_encoder.runtimes.recording import gpus

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """A session; on a GPU, for inputs of one size, with a CUDA graph and its buffers for each input shape.

    ONNX Runtime keeps a graph for the thread that recorded it, as long as the session lives: so there are `KEPT` of all
    shapes and threads, and what comes after them runs unrecorded.

    Args:
        path: the ONNX file.
        artefact: what it is.
        device: "cpu", "cuda" or "cuda:1".
        provider: of `PROVIDERS`, that of the device.
        threads: of the CPU.
    """

    def __init__(
        self, path: Path, artefact: Artefact, device: torch.device, provider: str, threads: int | None
    ) -> None:
        self._runtime = import_extra("onnxruntime", "export")
        self._artefact, self.device, self.on_gpu = artefact, device, provider == PROVIDERS["cuda"]
        self._session = self._open(path, provider, threads)
        if self._session.get_providers()[0] != provider:
            raise InputError(f"ONNX Runtime could not start {provider}; is its CUDA version that of the driver?")
        self._unrecorded = self._options(-1) if self.on_gpu else None
        self._graphs = 0
        self._last: torch.cuda.Stream | None = None
        self._of_thread = threading.local()

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch, from the caller's memory into the caller's; a graph has memory of its own."""
        recording = self._recording(tuple(inputs.shape)) if self.on_gpu and self._artefact.size else None
        if recording is None:
            self._start(self._bind(inputs, outputs), self._unrecorded)
            return
        recording.buffer.copy_(inputs)
        self._start(recording.binding, recording.options)
        for name, output in outputs.items():
            output.copy_(recording.results[name])

    def _open(self, path: Path, provider: str, threads: int | None) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # what matters is raised below
        if threads:
            options.intra_op_num_threads = threads

        def start(**settings: int) -> Any:
            chosen = (provider, {name: str(value) for name, value in settings.items()})
            # Without ONNX Runtime's own fall-back, which would start another provider.
            return self._runtime.InferenceSession(str(path), options, providers=[chosen], enable_fallback=0)

        gpu = {"device_id": self.device.index or 0, "use_tf32": 0} if self.on_gpu else {}
        try:
            # With graphs enabled it refuses a network of which it would leave parts to the CPU, shapes apart. Its own
            # switch for that, session.disable_cpu_ep_fallback, refuses shapes too.
            return start(**gpu, enable_cuda_graph=1) if self.on_gpu else start()
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            if self.on_gpu and "graph" in str(error).lower() and "as requested by the user" in str(error):
                self._say_left_to_the_cpu(path, error)
                return start(**gpu)
            if self._artefact.precision == "bf16" and not self.on_gpu:
                raise InputError(
                    "ONNX Runtime does not compute in bf16 on the CPU: export fp32 or int8, or with --format openvino"
                ) from error
            raise InputError(f"{path.name} cannot be loaded by ONNX Runtime: {first_line(error)}") from error

    def _say_left_to_the_cpu(self, path: Path, error: Exception) -> None:
        """Refuse a network of one size that does not run on the GPU as a whole; say it of one that takes any size."""
        what = f"{path.name} is not run on the GPU as a whole: parts of it ONNX Runtime {self._runtime.__version__}"
        if self._artefact.size:
            raise InputError(
                f"{what} would leave to the CPU ({first_line(error)}); export it in another --precision, or load it "
                'with device="cpu"'
            ) from error
        warn(f"{what} leaves to the CPU, which takes longer; export it for one size, without --dynamic-size")

    def _options(self, graph: int) -> Any:
        """Return the options of runs that record a graph under this number, or replay it; -1: neither."""
        options = self._runtime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def _start(self, binding: Any, options: Any) -> None:
        if self.on_gpu:
            stream = torch.cuda.current_stream(self.device)
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)  # it may still read the results that are now written again
            self._last = stream
            stream.synchronize()  # ONNX Runtime has one of its own
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    def _bind(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> Any:
        binding = self._session.io_binding()
        place = (self.device.type, self.device.index or 0)
        element = np.uint8 if self._artefact.camera else np.float32
        binding.bind_input(self._artefact.input, *place, element, list(inputs.shape), inputs.data_ptr())
        for name, output in outputs.items():
            binding.bind_output(name, *place, np.float32, list(output.shape), output.data_ptr())
        return binding

    def _recording(self, shape: tuple[int, ...]) -> _Recording | None:
        """Return this thread's for inputs of a shape; None if there are enough of others."""
        mine: dict[tuple[int, ...], _Recording] = vars(self._of_thread).setdefault("recorded", {})
        if shape not in mine:
            if self._graphs == KEPT:
                self._graphs += 1  # said once
                warn(
                    f"this runtime keeps the {KEPT} CUDA graphs that it has recorded, one for each batch size and "
                    "thread, as ONNX Runtime lets go of none; other batch sizes and threads run without, more slowly"
                )
            if self._graphs > KEPT:
                return None
            self._graphs += 1
            mine[shape] = self._record(shape)
        return mine[shape]

    def _record(self, shape: tuple[int, ...]) -> _Recording:
        artefact = self._artefact
        assert artefact.size is not None
        shapes = {name: artefact.output_shape(name, shape[0], artefact.size) for name in artefact.outputs}
        buffer = torch.zeros(shape, dtype=torch.uint8 if artefact.camera else torch.float32, device=self.device)
        results = {name: torch.empty(sides, dtype=torch.float32, device=self.device) for name, sides in shapes.items()}
        recording = _Recording(buffer, results, self._bind(buffer, results), self._options(self._graphs))
        with gpus.alone():
            # Its memory grows with the first runs, and must not while a graph is recorded.
            for options in (self._unrecorded, self._unrecorded, recording.options):
                self._start(recording.binding, options)
        return recording


class _Recording(NamedTuple):
    """A CUDA graph: its buffers' addresses are part of it."""

    buffer: Tensor
    results: dict[str, Tensor]
    binding: Any
    options: Any


def open_session(path: Path, artefact: Artefact, device: str, threads: int | None) -> OnnxSession:
    """Load an ONNX file.

    Raises:
        InputError: ONNX Runtime is not installed or lacks the device, the file cannot be loaded, or not all of it runs
            on the GPU.
    """
    kind = device.split(":")[0]
    available = import_extra("onnxruntime", "export").get_available_providers()
    if PROVIDERS.get(kind) not in available:
        raise InputError(f"ONNX Runtime has no provider for the device {device!r} here; it has {', '.join(available)}")
    chosen = cuda_device(device) if kind == "cuda" else torch.device("cpu")
    return OnnxSession(path, artefact, chosen, PROVIDERS[kind], threads)
