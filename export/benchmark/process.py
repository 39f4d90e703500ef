"""Asking a worker: a process for each task, one after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from video_distilled_encoder.errors import InputError

_PROGRAM = f"import sys; sys.path[:] = {sys.path!r}; from export.benchmark.worker import main; main()"
WORKER = (sys.executable, "-c", _PROGRAM)
"""Looks for modules where this process does: with `-m`, a package `export` in the current folder would come first."""


def ask(task: str, threads: int, **arguments: Any) -> Any:
    """Run a task in a process of its own and return its result.

    Args:
        task: of `worker.answer`.
        threads: of the CPU.
        **arguments: of the task, as JSON can hold them.

    Raises:
        InputError: it failed or crashed; the message is one line.
    """
    request = json.dumps({"task": task, "threads": threads, "arguments": arguments})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        WORKER, input=request, capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    if done.returncode or not done.stdout:
        raise InputError(_crash(done))
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["result"]


def _crash(done: subprocess.CompletedProcess[str]) -> str:
    code = done.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"its process ended with {how}" + (f": {lines[-1].strip()}" if lines else "")
