"""CUDA graphs: the kernels of one call, recorded once for each input shape and started together from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.recent import Recent

_WARM_UP = 3
_Kind = tuple[tuple[int, ...], torch.dtype, torch.device]
"""Shape, type and place of an input."""


class CudaGraphs:
    """A function of one tensor, replayed.

    Calls from several streams wait for one another on the GPU; calls from several threads are the caller's to order.

    Args:
        function: GPU tensor in, GPU tensors out, all its work on the current stream; nothing in it depends on the
            values. It lives as long as its recordings.
    """

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self._function = function
        self._recorded: Recent[_Kind, _Recording] = Recent(8)
        self._last: torch.cuda.Stream | None = None

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """Return the outputs, good until the next call; they are complete for work on the current stream."""
        kind = tuple(inputs.shape), inputs.dtype, inputs.device
        recording = self._recorded.get(kind, partial(_record, self._function))
        stream = torch.cuda.current_stream(inputs.device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)  # it may still read the buffers that are now written again
        self._last = stream
        recording.buffer.copy_(inputs)
        recording.graph.replay()
        return recording.outputs


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    buffer: Tensor
    outputs: Sequence[Tensor]


def _record(function: Callable[[Tensor], Sequence[Tensor]], kind: _Kind) -> _Recording:
    shape, dtype, device = kind
    # On the input's GPU and a stream of its own: by default torch records on a stream of the GPU that was current at
    # the first recording of the process.
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # the oldest recording may be freed after this, and must not be running
        buffer = torch.zeros(shape, dtype=dtype, device=device)
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(buffer)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread, such as a camera's, may allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function(buffer)
        current.wait_stream(stream)
    return _Recording(graph, buffer, outputs)


def cuda_device(name: str) -> torch.device:
    """Return the GPU of a name such as "cuda" or "cuda:1", with its number.

    Raises:
        InputError: there is no such GPU.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and device.index is None and count:
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type != "cuda" or device.index is None or device.index >= count:
        known = ", ".join(f"cuda:{index}" for index in range(count)) or "there are none"
        raise InputError(f"the device {name!r} is none of the CUDA GPUs here ({known})")
    return device
