"""A linear layer that tells the depth of each pixel from frozen patch tokens.

`training/evaluation/protocols/linear_depth.py` states the procedure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.evaluation.data.depth import Range
from training.evaluation.features import Features
from training.evaluation.probes.linear import StandardizedLinear

BINS = 256
BATCH = 16
RATE = 1e-2
"""Ten times DINOv2's, for a twentieth of its steps: at 1e-3 the layer reads no more than a ridge regression does."""
CELLS = 4
"""Cells of a patch's side in which training depths are kept."""


class DepthLayer(nn.Module):
    """One linear layer from [patch token, class token] to weights of `BINS` depths, whose mean is the depth.

    Args:
        features: of the training images, by which both tokens are standardised per channel.
        within: the depths are evenly spaced in its range.
    """

    depths: Tensor

    def __init__(self, features: Features, within: Range) -> None:
        super().__init__()
        self.patch = StandardizedLinear(features.grid, BINS)
        self.image = StandardizedLinear(features.cls, BINS)
        self.register_buffer("depths", torch.linspace(within.least, within.most, BINS))

    def forward(self, features: Features) -> Tensor:
        """Features of b images -> (b, h, w) metres."""
        device = self.depths.device
        logits = self.patch(features.grid.to(device)) + self.image(features.cls.to(device))[:, None, None]
        weights = F.relu(logits) + 0.1
        return (weights @ self.depths) / weights.sum(-1)


def cell_means(depth: Tensor, grid: tuple[int, int]) -> Tensor:
    """(H, W) depths, 0 where not known -> (`CELLS` h, `CELLS` w) mean of the known ones in each cell, 0 if none is."""
    cells = (grid[0] * CELLS, grid[1] * CELLS)
    known = F.adaptive_avg_pool2d((depth > 0).float()[None], cells)[0]
    return F.adaptive_avg_pool2d(depth[None], cells)[0] / known.clamp(min=1e-6)


def scale_invariant_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return Eigen et al.'s loss of depths in AdaBins' form, sqrt(var(g) + 0.15 mean(g)^2), g = log of their ratio.

    Args:
        prediction: positive depths.
        truth: of the same shape, 0 where not known; at least one is.
    """
    known = truth > 0
    ratio = (prediction[known] + 1e-3).log() - (truth[known] + 1e-3).log()
    return (ratio.var(correction=0) + 0.15 * ratio.mean().square() + 1e-12).sqrt()


def train_layer(
    features: Features,
    depth: Callable[[int], Tensor],
    within: Range,
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> DepthLayer:
    """Train the layer.

    Args:
        features: of n images.
        depth: number of an image -> its (H, W) depths, 0 where not known.
        within: range of the depths.
        steps: of `BATCH` images.
        seed: of the layer's start and of the images' order.
        device: where the layer is trained.
    """
    torch.manual_seed(seed)
    grid = (features.grid.shape[1], features.grid.shape[2])
    layer = DepthLayer(features, within).to(device)
    truth = torch.stack([cell_means(depth(number), grid) for number in range(len(features.grid))])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for _ in tqdm(range(steps), desc="linear layer", unit="step", dynamic_ncols=True):
        chosen = torch.randint(len(truth), (BATCH,))
        wanted = truth[chosen].to(device).float()
        if wanted.any():
            found = layer(Features(features.cls[chosen], features.grid[chosen]))
            optimizer.zero_grad()
            scale_invariant_loss(enlarge(found, wanted.shape[1:]), wanted).backward()
            optimizer.step()
        schedule.step()
    return layer


def enlarge(depth: Tensor, size: tuple[int, ...]) -> Tensor:
    """(b, h, w) -> (b, H, W), bilinear."""
    return F.interpolate(depth[:, None], tuple(size), mode="bilinear")[:, 0]


@torch.no_grad()
def predict(layer: DepthLayer, features: Features, number: int, size: tuple[int, ...]) -> Tensor:
    """Return the (H, W) depths of one of the images, on the CPU."""
    one = Features(features.cls[number, None], features.grid[number, None])
    return enlarge(layer(one), size)[0].cpu()
