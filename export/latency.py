"""How long calls take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

_PATIENCE = 10
"""A slow call gets at most so many times the seconds asked for, however few calls that makes."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call."""

    median: float
    p95: float
    p99: float
    first: float
    """The very first call, which makes buffers, graphs and caches."""
    calls: int = 0
    """How many the percentiles are taken from."""


def measure(
    call: Callable[[], object], device: torch.device, seconds: float = 1.0, least: int = 20, warm_up: int = 3
) -> Latency:
    """Time a call again and again.

    Args:
        call: what is timed.
        device: where it computes; a GPU is waited for.
        seconds: how long to go on.
        least: number of calls at least.
        warm_up: calls after the first that are not counted.
    """
    return measure_in_turns({"": call}, device, seconds, least, warm_up, turn=1)[""]


def measure_in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float = 1.0,
    least: int = 20,
    warm_up: int = 3,
    turn: int = 5,
) -> dict[str, Latency]:
    """Time several calls by turns, so that a machine whose speed varies does not favour one of them.

    Args:
        calls: what is timed, by name; the first call of each is made in this order.
        device: where they compute; a GPU is waited for.
        seconds: how long to go on with each.
        least: number of calls of each at least, unless they are very slow.
        warm_up: calls of each after the first that are not counted.
        turn: how often one is called before the next.
    """
    first: dict[str, float] = {}
    for name, call in calls.items():
        first[name], *_ = [_time(call, device) for _ in range(1 + warm_up)]
    times: dict[str, list[float]] = {name: [] for name in calls}
    while any(not _enough(values, seconds, least) for values in times.values()):
        for name, call in calls.items():
            times[name] += [_time(call, device) for _ in range(turn)]
    return {name: _summary(times[name], first[name]) for name in calls}


def _enough(times: list[float], seconds: float, least: int) -> bool:
    passed = sum(times) / 1000
    return (len(times) >= least and passed >= seconds) or (passed >= _PATIENCE * seconds and bool(times))


def _summary(times: list[float], first: float) -> Latency:
    median, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return Latency(median, p95, p99, first, len(times))


def _time(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # which need not be the current GPU
    return 1000 * (time.perf_counter() - start)
