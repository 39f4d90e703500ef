"""The training loop that the fine-tuning protocols share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.common.sharing import Collate, spared, told
from training.evaluation.cache import find_entry
from training.evaluation.data.fingerprint import fingerprint
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import read_tensors, write_json


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


WEIGHTS, LOSSES = "weights.safetensors", "losses.json"


def train_once(
    network: nn.Module,
    cache: Path,
    what: Mapping[str, object],
    files: Iterable[Path],
    fit: Callable[[], list[float]],
) -> list[float]:
    """Train a network, or give it the weights that the same training gave before.

    The weights are in the cache before anything is scored: whatever becomes of that, the same command goes on there.

    Args:
        network: as it is before training; it is changed.
        cache: folder of the entries.
        what: says how it is trained; JSON.
        files: that it is trained on.
        fit: trains the network and returns the loss of each step.

    Returns:
        The loss of each step.

    Raises:
        InputError: as `fit`, or the cache cannot be written.
    """

    def write(folder: Path) -> None:
        write_json(folder / LOSSES, fit())
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)

    entry = find_entry(cache, {"trained": what}, map(fingerprint, files), (WEIGHTS, LOSSES), write)
    network.load_state_dict(read_tensors(entry / WEIGHTS))
    print(f"the trained weights are {entry / WEIGHTS}, which the same command scores anew", file=sys.stderr)
    losses: list[float] = json.loads((entry / LOSSES).read_text(encoding="utf-8"))
    return losses


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
    with spared() if workers else nullcontext():
        batches = iter(loader)
    bar = tqdm(batches, desc=description, total=len(loader), unit="step", dynamic_ncols=True)
    for step, batch in enumerate(map(made.received, told(bar))):
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
