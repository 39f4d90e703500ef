"""Batches from worker processes: through /dev/shm, or, where that has no room for them, as messages.

Containers have 64 MB there, and a process that writes more is ended by the system (a bus error).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import get_worker_info

from training.common.machine import free_shared_memory
from video_distilled_encoder.errors import InputError, warn

_T = TypeVar("_T")


@dataclass(frozen=True)
class Message:
    """Samples whose tensors are arrays, which go from process to process by value."""

    samples: Any


@dataclass(frozen=True)
class Collate:
    """Makes a batch of samples: in a worker, if the shared memory has room for what all of them write there at once.

    Args:
        collate: returns the batch; in a worker its tensors may lie in shared memory.
        workers: processes of this machine that share it.
    """

    collate: Callable[[list[Any]], Any]
    workers: int

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch, or a message of its samples."""
        free = free_shared_memory() if get_worker_info() else None
        needed = sum(leaf.nbytes for leaf in tree_leaves(samples) if isinstance(leaf, Tensor))
        if free is None or 2 * self.workers * needed < free:
            return self.collate(samples)
        return Message(tree_map_only(Tensor, _Array.of, samples))

    def received(self, batch: Any, pin: Callable[[Any], Any] = lambda batch: batch) -> Any:
        """Return what a worker has sent as a batch; `pin` is what the loader would have done to it."""
        if not isinstance(batch, Message):
            return batch
        _say()
        return pin(self.collate(tree_map_only(_Array, _Array.tensor, batch.samples)))


@contextmanager
def spared() -> Iterator[None]:
    """Within, processes may be forked: what there is now is no garbage to them.

    FFmpeg's scaler, which a frame that was decoded may hold, waits at its end for threads of its own, and these stay
    behind: a worker that collected it would wait for ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def told(batches: Iterable[_T]) -> Iterator[_T]:
    """Yield batches; what is wrong with an input is told in a worker's words alone, without where it was at work."""
    try:
        yield from batches
    except InputError as error:
        raise InputError(str(error).rpartition(f"{type(error).__name__}: ")[2].rstrip()) from error


@dataclass(frozen=True)
class _Array:
    """A tensor that is no tensor: arrays of the samples' own stay arrays."""

    values: np.ndarray

    @staticmethod
    def of(tensor: Tensor) -> _Array:
        return _Array(tensor.numpy())

    def tensor(self) -> Tensor:
        return torch.from_numpy(self.values)


@lru_cache
def _say() -> None:
    warn(
        "/dev/shm has no room for the batches, which go from process to process as messages instead, more slowly; a "
        "container gets more with --shm-size=1g"
    )
