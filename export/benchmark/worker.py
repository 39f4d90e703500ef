"""One task in a process of its own (`export.benchmark.process`): a request as JSON in, an answer as JSON out.

So memory is that of one row alone, thread pools do not disturb one another, and a crash ends one row only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from export.benchmark.floor import matmul_rate
from export.benchmark.rows import Row
from export.benchmark.subjects import open_subject
from export.latency import measure_in_turns
from export.pipeline import export
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.float32 import full_float32


def main() -> None:
    """Answer one request; what libraries print goes to stderr."""
    request = json.load(sys.stdin)
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with channel:
        json.dump(answer(request), channel)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what is asked: {"task": …, "threads": …, "arguments": {…}} -> {"result": …} or {"error": one line}."""
    torch.set_num_threads(request["threads"])
    tasks: dict[str, Callable[..., Any]] = {"measure": measure, "export": make_export, "matmul_rate": matmul_rate}
    try:
        with full_float32():
            return {"result": tasks[request["task"]](**request["arguments"])}
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:  # a row of the table must say why it is empty, whatever the library raised
        lines = str(error).strip().splitlines() or ["no reason given"]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def measure(row: Mapping[str, Any], frame: list[int], device: str, seconds: float) -> dict[str, Any]:
    """Time a row; returns what `Result` holds.

    Args:
        row: of `Row`.
        frame: (height, width) of a camera frame.
        device: "cpu" or "cuda:1".
        seconds: how long to measure, the network alone and end to end each.
    """
    height, width = frame
    subject_row = Row(**{**row, "size": tuple(row["size"])})
    free = torch.cuda.mem_get_info(device)[0] if device != "cpu" else 0
    start = time.perf_counter()
    subject = open_subject(subject_row, (height, width), device, torch.get_num_threads())
    loaded = time.perf_counter() - start
    with torch.no_grad():
        calls = {"network": subject.network, "end_to_end": subject.end_to_end}
        times = measure_in_turns(calls, torch.device(device), seconds)
    return {
        **{name: asdict(latency) for name, latency in times.items()},
        "load_seconds": loaded,
        "memory_mib": peak_memory() / 2**20,
        "gpu_memory_mib": (free - torch.cuda.mem_get_info(device)[0]) / 2**20 if device != "cpu" else None,
        **subject.facts,
    }


def make_export(model: str, out: str, format: str, precision: str, size: list[int], batch: int, device: str) -> None:
    """Write the export of a row, for one size and one batch; it must pass the parity gate."""
    height, width = size
    batches = (batch, batch, batch)
    options: dict[str, Any] = {"format": format, "precision": precision, "device": device, "layer_parity": False}
    export(model, Path(out), size=(height, width), batch=batches, **options)


def peak_memory() -> int:
    """Return the most memory that was resident in this process, in bytes."""
    try:
        # Not getrusage, where Linux lets a process begin with the peak of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
