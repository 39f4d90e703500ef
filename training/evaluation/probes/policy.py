"""A policy that imitates: from features of the last moments to an action."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = (256, 256, 256)
RATE = 1e-3
BATCH = 256


def with_past(features: Tensor, past: Tensor) -> Tensor:
    """Join moments with those before them, as VC-1 does (its FLARE): the last one, and the steps that led to it.

    Args:
        features: (n, C).
        past: (n, H) which of the n are the last H moments up to each one, the newest first.

    Returns:
        (n, H * C): features, then the H - 1 differences, the newest first.
    """
    seen = features[past]
    return torch.cat([seen[:, :1], seen[:, :-1] - seen[:, 1:]], dim=1).flatten(1)


def past_of(episode: Tensor, history: int) -> Tensor:
    """Return (n, history) for moments of episodes one after the other; before an episode's first is its first."""
    moments = torch.arange(len(episode))
    first = torch.searchsorted(episode.contiguous(), episode.contiguous())
    return torch.stack([torch.maximum(moments - back, first) for back in range(history)], dim=1)


class Policy(nn.Module):
    """VC-1's: BatchNorm of the inputs, three layers of 256 with ReLU, and the action."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        widths = (width, *HIDDEN)
        layers: list[nn.Module] = [nn.BatchNorm1d(width)]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], actions))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C) -> (B, A)."""
        found: Tensor = self.layers(inputs)
        return found


def imitate(inputs: Tensor, actions: Tensor, *, epochs: int, parts: int, seed: int) -> Iterator[Policy]:
    """Train a policy by Adam on the squared error of its actions; yield it, in evaluation mode, after each part.

    Args:
        inputs: (n, C).
        actions: (n, A).
        epochs: passes.
        parts: in which they are done.
        seed: of weights and order.
    """
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
        torch.manual_seed(seed)
        policy = Policy(inputs.shape[1], actions.shape[1]).to(inputs.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE)
    ends = {round(epochs * part / parts) for part in range(1, parts + 1)}
    for epoch in range(1, epochs + 1):
        policy.train()
        for chosen in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(BATCH):
            if len(chosen) == 1:
                continue  # of which BatchNorm knows no spread
            optimizer.zero_grad()
            F.mse_loss(policy(inputs[chosen]), actions[chosen]).backward()
            optimizer.step()
        if epoch in ends:
            yield policy.eval()
