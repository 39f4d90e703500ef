"""Several processes as one: what torchrun or accelerate launch started, and the few reductions that training needs.

The recipe's batch is the batch of all processes together. Each takes an equal, consecutive share of every step's
positions, gradients and statistics are averaged, and randomness depends on a sample's position in the whole batch, so
that the number of processes changes the speed and nothing else.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from video_distilled_encoder.errors import InputError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_STEP = timedelta(minutes=10)
"""How long a process may keep the others waiting in a step, before they take it for dead."""
_EXTRACTION = timedelta(hours=24)
"""How long elsewhere: one process of a machine may extract hours of video while the others wait."""
_patient: Any = None
"""All processes, for what may take that long and for small values."""


@dataclass(frozen=True)
class World:
    """One process among its peers."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """Number of processes."""
    local_rank: int
    """Number of this process on its machine."""
    device: torch.device
    """The device this process trains on."""
    local_size: int = 1
    """Number of processes on its machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell the user something on stderr, once and not once per process."""
        if self.is_main:
            print(text, file=sys.stderr)


def start(device: str, full_float32: bool = False) -> World:
    """Join the processes that a launcher started, or be the only one.

    Args:
        device: "auto", "cuda" or "cpu"; "auto" takes CUDA if it is there.
        full_float32: on CUDA, compute what is float32 in float32, not in TF32.

    Raises:
        InputError: CUDA is asked for and not there, or there are fewer GPUs than processes.
    """
    global _patient
    device = choose_device(device)
    rank, local = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    size, local_size = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    place = torch.device("cpu")
    if device == "cuda":
        place = choose_gpu(local, torch.cuda.device_count())
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("highest" if full_float32 else "high")
        torch.backends.cudnn.allow_tf32 = not full_float32
    if size > 1 and not dist.is_initialized():
        # NCCL is not told the device here, or it would connect before two processes on one GPU are told apart.
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_STEP)
        _patient = dist.new_group(backend="gloo", timeout=_EXTRACTION)
        if device == "cuda":
            check_different(gather(str(torch.cuda.get_device_properties(place).uuid)))
    return World(rank, size, local, place, local_size)


def choose_gpu(local: int, count: int) -> torch.device:
    """Return the GPU of a process.

    Args:
        local: number of the process on its machine.
        count: GPUs that it sees. If that is one, it is taken: schedulers like Slurm show each process its own.

    Raises:
        InputError: there is none for it.
    """
    if count == 0:
        raise InputError("run.device is cuda, but torch sees no CUDA device; use run.device=cpu or mend the driver")
    if local >= count > 1:
        raise InputError(f"process {local} of this machine has no GPU: there are {count}; start that many")
    return torch.device("cuda", 0 if count == 1 else local)


def check_different(gpus: Sequence[str]) -> None:
    """Raise an InputError if two processes have the same GPU, of those that the processes have, in their order."""
    for rank, gpu in enumerate(gpus):
        if (first := gpus.index(gpu)) != rank:
            raise InputError(f"processes {first} and {rank} have one and the same GPU; start one process for each GPU")


def choose_device(device: str) -> str:
    """Return "cuda" or "cpu"; of "auto", CUDA if it is there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def synchronize(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """Name what computes on a device of type "cuda" or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here, be it hours later; no device takes part."""
    if dist.is_initialized():
        dist.barrier(_patient)


def from_main(value: T) -> T:
    """Return the main process's value in every process; it must be small, and no device takes part."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of their ranks; they must be small, and no device takes part."""
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_patient)
    return values


def average(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of each one's sum comes back to every process."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def average_with_gradient(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, through which gradients come back to all of them."""
    if not dist.is_initialized():
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total / dist.get_world_size()


def logsumexp(tensor: Tensor) -> Tensor:
    """Return log(sum(exp(tensor))) over all processes, entry by entry."""
    if not dist.is_initialized():
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return torch.logsumexp(torch.stack(gathered), dim=0)


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    seen = torch.tensor(float(flag), device=device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen.item())


def replicate(method: M) -> M | DistributedDataParallel:
    """Return what to call in place of a method, so that its gradients are averaged over processes as they arise."""
    if not dist.is_initialized():
        return method
    warnings.filterwarnings("ignore", message=".*(broadcast_buffers|find_unused_parameters).*")
    # Targets' running averages are the same in all processes, for what they follow was averaged.
    return DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)


def averaging(method: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average gradients over processes with the last part of a step; until then, leave them as they are."""
    return nullcontext() if last or not isinstance(method, DistributedDataParallel) else method.no_sync()
