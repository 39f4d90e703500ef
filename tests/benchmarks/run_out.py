"""Latency of `run(out=…)` against `run()`: `python tests/benchmarks/run_out.py [FORMAT…] [--size 64] [--batch 1]`.

Calls of the two alternate, so that a machine whose speed varies favours neither; the ratio is that of each pair. On a
busy machine `--clock cpu` counts the process's own time alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from export.pipeline import export
from video_distilled_encoder import load_runtime
from video_distilled_encoder.runtimes.artefact import SUFFIXES

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return how long a call takes."""
    start = clock()
    call()
    return clock() - start


def measure(format: str, size: int, batch: int, pairs: int, clock: Callable[[], float]) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"encoder{SUFFIXES[format]}"
        export("nota/vfd-vits16", path, format=format, size=(size, size), batch=(1, batch, batch), layer_parity=False)
        runtime = load_runtime(path, threads=1)
        pixels = torch.randn(batch, 3, size, size)
        out = {name: np.empty(tensor.shape, np.float32) for name, tensor in runtime.run(pixels).items()}
        runtime.warm_up(batches=(batch,))
        first = seconds(lambda: runtime.run(pixels), clock)
        times = np.empty((pairs, 2))
        for number in range(pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                times[number, which] = seconds(
                    lambda which=which: runtime.run(pixels, out=out if which else None), clock
                )
    low, middle, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    plain, given = 1000 * np.median(times, axis=0)
    return f"| {format} | {1000 * first:.2f} | {plain:.2f} | {given:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=["onnx", "openvino", "aoti"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    print("| format | first call after warm_up, ms | run(), ms | run(out=), ms | ratio (quartiles) |")
    print("|---|---|---|---|---|")
    for format in options.formats:
        print(measure(format, options.size, options.batch, options.pairs, CLOCKS[options.clock]), flush=True)


if __name__ == "__main__":
    main()
