"""The training loop that the fine-tuning protocols share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.common.sharing import Collate
from video_distilled_encoder.errors import InputError


class Stream(Dataset):
    """Shuffled passes over the data; each sample is a pure function of seed and position, whatever the workers do.

    Args:
        count: samples in the data.
        length: samples in the stream.
        load: returns an augmented sample by its number, with torch's generator; workers must be able to pickle it.
        seed: of order and augmentation.
    """

    def __init__(self, count: int, length: int, load: Callable[[int], Any], seed: int) -> None:
        self.count = count
        self.length = length
        self.load = load
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Any:
        turn, place = divmod(position, self.count)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + turn))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + position)
            return self.load(int(order[place]))


def train(
    losses: Callable[[list[Any]], dict[str, Tensor]],
    stream: Stream,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    *,
    batch_size: int,
    accumulate: int = 1,
    workers: int = 0,
    description: str = "fine-tune",
) -> list[float]:
    """Train on a stream, to its end.

    Args:
        losses: of a list of samples, by name; their sum is minimised.
        stream: of samples.
        optimizer: its groups' rates are what `rate` multiplies.
        rate: share of the learning rate at a step, counted from 0.
        batch_size: samples in a step.
        accumulate: parts that a batch is computed in.
        workers: processes that load.
        description: of the progress bar.

    Returns:
        The loss of each step.

    Raises:
        InputError: the loss is not finite any more.
    """
    base = [group["lr"] for group in optimizer.param_groups]
    made = Collate(list, workers)
    loader = DataLoader(stream, batch_size, num_workers=workers, collate_fn=made, drop_last=True)
    history = []
    bar = tqdm(loader, desc=description, unit="step", dynamic_ncols=True)
    for step, batch in enumerate(map(made.received, bar)):
        for group, value in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = value * rate(step)
        optimizer.zero_grad(set_to_none=True)
        history.append(sum(_backward(losses, part, len(batch)) for part in _parts(batch, accumulate)))
        if not torch.isfinite(torch.tensor(history[-1])):
            raise InputError(f"the loss is {history[-1]} at step {step}; lower learning_rate or raise warmup")
        optimizer.step()
        bar.set_postfix(loss=f"{history[-1]:.3f}", lr=f"{max(base) * rate(step):.1e}", refresh=False)
    return history


def ends(history: Sequence[float]) -> dict[str, float]:
    """Return the mean loss of the first and of the last tenth of the steps: whether it was learnt at all."""
    count = max(len(history) // 10, 1)
    return {"first_tenth": round(fmean(history[:count]), 4), "last_tenth": round(fmean(history[-count:]), 4)}


def _backward(losses: Callable[[list[Any]], dict[str, Tensor]], part: list[Any], total: int) -> float:
    loss = torch.stack(list(losses(part).values())).sum() * (len(part) / total)
    loss.backward()
    return loss.item()


def _parts(batch: Sequence[Any], count: int) -> list[list[Any]]:
    size = len(batch) // count
    return [list(batch[start : start + size]) for start in range(0, len(batch), size)]


def warm_up(step: int, steps: int, start: float) -> float:
    """Return the factor of a linear warm-up from `start` to 1 over `steps`."""
    return 1.0 if step >= steps else start + (1 - start) * step / steps


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Compute matrix products in bfloat16, on CUDA only."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and device.type == "cuda")
