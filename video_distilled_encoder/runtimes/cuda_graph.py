"""CUDA graphs: the kernels of one call, recorded once for each input shape and started together from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.recent import Recent
from video_distilled_encoder.runtimes.artefact import Artefact
from video_distilled_encoder.runtimes.recording import gpus

KEPT = 8
"""Recordings of a runtime, those used last."""
_WARM_UP = 3
_Kind = tuple[tuple[int, ...], torch.dtype, torch.device]
"""Shape, type and place of an input."""
Function = Callable[[Tensor], Sequence[Tensor]]


class CudaGraphs:
    """A function of one tensor, replayed on one GPU.

    Calls from several streams wait for one another on the GPU; calls from several threads are the caller's to order.
    All recordings share the memory of what is computed in between.

    Args:
        prepare: gives the function for inputs of one shape: GPU tensor in, GPU tensors out, all its work on the current
            stream; nothing in it depends on the values. It lives as long as its recording.
    """

    def __init__(self, prepare: Callable[[tuple[int, ...]], Function]) -> None:
        self._prepare = prepare
        self._recorded: Recent[_Kind, _Recording] = Recent(KEPT)
        self._last: torch.cuda.Stream | None = None
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """Return the outputs, good until the next call; they are complete for work on the current stream."""
        recording = self._recorded.get((tuple(inputs.shape), inputs.dtype, inputs.device), self._record)
        stream = torch.cuda.current_stream(inputs.device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)  # it may still read the buffers that are now written again
        self._last = stream
        recording.buffer.copy_(inputs)
        recording.graph.replay()
        return recording.outputs

    def __del__(self) -> None:
        with suppress(RuntimeError):  # in a forked process
            self._wait()  # what still runs must not lose its memory

    def _wait(self) -> None:
        """Return when the last call is done, and with it all before it."""
        if self._last is not None:
            self._last.synchronize()

    def _record(self, kind: _Kind) -> _Recording:
        shape, dtype, device = kind
        with gpus.alone(), torch.cuda.device(device):
            self._wait()  # the oldest recording goes after this, and must not be running
            function = self._prepare(shape)
            buffer = torch.zeros(shape, dtype=dtype, device=device)
            if self._stream is None:
                self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP):
                    function(buffer)
                graph, outputs = _capture(function, buffer, self._pool)
            current.wait_stream(self._stream)
        return _Recording(graph, buffer, outputs, function)


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    buffer: Tensor
    outputs: Sequence[Tensor]
    function: Function


class Copied:
    """A session of a network whose results lie in memory of its own: each call copies them.

    Args:
        call: the network, `CudaGraphs` on a GPU.
        artefact: what it is.
        device: where inputs are wanted.
    """

    def __init__(self, call: Callable[[Tensor], Sequence[Tensor]], artefact: Artefact, device: torch.device) -> None:
        self._call, self._names, self.device = call, artefact.outputs, device
        self.on_gpu = isinstance(call, CudaGraphs)

    def run(self, inputs: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Run on one batch."""
        for name, result in zip(self._names, self._call(inputs), strict=True):
            outputs[name].copy_(result)


def _capture(function: Function, buffer: Tensor, pool: Any) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
    """Record a call on the current stream.

    Not by `torch.cuda.graph`, which waits for the whole GPU first: that would break off what another library records.
    """
    graph = torch.cuda.CUDAGraph()
    # "thread_local": another thread, such as a camera's, may allocate meanwhile.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        outputs = function(buffer)
    except BaseException:
        with suppress(RuntimeError):  # that the recording is incomplete
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, outputs


def cuda_device(name: str) -> torch.device:
    """Return the GPU of a name such as "cuda" or "cuda:1", with its number.

    Raises:
        InputError: there is no such GPU.
    """
    known = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    chosen = f"cuda:{torch.cuda.current_device()}" if name == "cuda" and known else name
    if chosen not in known:
        here = ", ".join(known) or "there are none"
        raise InputError(f"the device {name!r} is none of the CUDA GPUs here ({here})")
    return torch.device(chosen)
