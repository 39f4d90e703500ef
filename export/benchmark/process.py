"""Asking a worker: a process for each task, one after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from video_distilled_encoder.errors import InputError

_PROGRAM = f"import sys; sys.path[:] = {sys.path!r}; from export.benchmark.worker import main; main()"
WORKER = (sys.executable, "-c", _PROGRAM)
"""Looks for modules where this process does: with `-m`, a package `export` in the current folder would come first."""


def ask(task: str, threads: int, timeout: float | None = None, **arguments: Any) -> Any:
    """Run a task in a process of its own and return its result; it ends, with all that it started, when this does.

    Args:
        task: of `worker.answer`.
        threads: of the CPU.
        timeout: seconds that it may take; without it, as long as it takes.
        **arguments: of the task, as JSON can hold them.

    Raises:
        InputError: it failed, crashed or took too long; the message is one line.
    """
    request = json.dumps({"task": task, "threads": threads, "arguments": arguments})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        WORKER,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # so that the compilers it starts are ended with it
    ) as worker:
        try:
            said, complaints = worker.communicate(request, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"it took longer than {timeout:g} s and was ended; give it more (--timeout)") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
    if worker.returncode or not said:
        raise InputError(_crash(worker.returncode, complaints))
    answer = json.loads(said)
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["result"]


def _crash(code: int, complaints: str) -> str:
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    lines = [line for line in complaints.splitlines() if line.strip()]
    return f"its process ended with {how}" + (f": {lines[-1].strip()}" if lines else "")
