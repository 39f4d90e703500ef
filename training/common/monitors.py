"""What a step costs: time by part, arithmetic per second against what the card can do, memory."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BF16_PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
}
"""TFLOP/s of dense bf16 products with float32 sums, by NVIDIA's data sheets; the first name that fits counts."""


class Stopwatch:
    """Adds up how long parts of a step take, on a GPU by events that nothing waits for."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Callable[[], float]]] = []

    @contextmanager
    def part(self, name: str, device: torch.device) -> Iterator[None]:
        """Time what a block gives the device to do."""
        begin = _mark(device)
        yield
        end = _mark(device)
        self._spans.append((name, lambda: _seconds(begin, end)))

    def take(self) -> Callable[[], dict[str, float]]:
        """Begin anew; return a function that gives the seconds of each part so far, once the device has done it."""
        spans, self._spans = self._spans, []

        def read() -> dict[str, float]:
            total: dict[str, float] = {}
            for name, seconds in spans:
                total[name] = total.get(name, 0.0) + seconds()
            return total

        return read


def peak_memory(device: torch.device) -> float:
    """Return the most GiB that were in use at one time so far: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def bf16_peak(name: str) -> float | None:
    """Return how many TFLOP/s a GPU of this name computes at most in bf16, if that is known."""
    return next((peak for card, peak in _BF16_PEAKS.items() if re.search(rf"\b{card}\b", name)), None)


def _mark(device: torch.device) -> float | torch.cuda.Event:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(begin: Any, end: Any) -> float:
    """Return the seconds between two marks of one device."""
    return float(end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000)
