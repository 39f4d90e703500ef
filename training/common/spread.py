"""Processes that share work, and `map`, which is spread over them where it takes long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from training.common.machine import processors
from video_distilled_encoder.errors import InputError, prepare_output

_PATIENCE = 2.0
"""Seconds of work in this process, before others are started: that takes as long."""


def spread(function: Callable[[Any], Any], items: Iterable[Any], workers: int = 0) -> Iterator[Any]:
    """Yield what a function makes of each item, in their order.

    Args:
        function: that a module names.
        items: that it takes.
        workers: processes; 0 means one per processor.

    Raises:
        InputError: a process was ended from outside.
    """
    left, done, spent = list(items), 0, 0.0
    workers = workers or processors()
    while done < len(left) and (workers == 1 or spent < _PATIENCE or spent * len(left) < 2 * _PATIENCE * done):
        begin = time.monotonic()
        result = function(left[done])
        spent, done = spent + time.monotonic() - begin, done + 1
        yield result
    if done == len(left):
        return
    with worker_pool(workers) as pool:
        try:
            yield from pool.map(function, left[done:], chunksize=max(1, min(50, (len(left) - done) // workers)))
        except BrokenProcessPool as error:
            raise InputError(
                "a process was ended from outside, perhaps for want of memory or by a damaged file, while recordings "
                "were looked at; the same command with --workers 1 goes on in one"
            ) from error


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of so many processes, which print as commands do, and end with this one however that ends."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    prepare_output()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)  # it waits for work that nobody hands in any more
