"""Several processes as one: what torchrun or accelerate launch started, and the few reductions that training needs.

The recipe's batch is the batch of all processes together. Each takes an equal, consecutive share of every step's
positions, gradients and statistics are averaged, and randomness depends on a sample's position in the whole batch, so
that the number of processes changes the speed and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from video_distilled_encoder.errors import InputError

T = TypeVar("T")


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

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell the user something on stderr, once and not once per process."""
        if self.is_main:
            print(text, file=sys.stderr)


def start(device: str) -> World:
    """Join the processes that a launcher started, or be the only one.

    Args:
        device: "auto", "cuda" or "cpu"; "auto" takes CUDA if it is there.

    Raises:
        InputError: CUDA is asked for and not there, or there are fewer GPUs than processes.
    """
    device = choose_device(device)
    rank, size, local = (int(os.environ.get(*entry)) for entry in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    place = torch.device("cpu")
    if device == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InputError("run.device is cuda, but torch sees no CUDA device; use run.device=cpu or mend the driver")
        if local >= count:
            raise InputError(f"process {local} of this machine has no GPU: there are {count}; start that many")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("high")
    if size > 1 and not dist.is_initialized():
        # The first process may extract hours of video while the others wait.
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=24))
    return World(rank, size, local, place)


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
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def from_main(value: T) -> T:
    """Return the main process's value in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def average(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
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


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one message.

    A ViT-S has 22 M parameters: 88 MB once a step, which is not worth overlapping with the backward pass.
    """
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
