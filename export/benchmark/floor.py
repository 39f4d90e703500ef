"""The matmul floor: how long the network's matrix products alone would take at the best rate this machine reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from export import latency
from export.benchmark.rows import DTYPES
from video_distilled_encoder import ModelConfig

PRECISIONS = ("fp32", "bf16")
_TRIES = 5
_SIDES = {"cpu": 2048, "cuda": 8192}
_SMALLEST = 128


@dataclass(frozen=True)
class Floor:
    """What no runtime can beat in the same arithmetic; one that computes in less (bf16, int8) may."""

    size: tuple[int, int]
    batch: int
    gflop: float
    """Of the network's matrix products, patch embedding and attention included: 10^9 multiplications and additions."""
    rates: Mapping[str, float]
    """By precision: the best rate of a large square product measured here, in GFLOP/s."""

    def ms(self, precision: str) -> float | None:
        """Milliseconds that the products take at that rate; None if it was not measured."""
        return 1000 * self.gflop / self.rates[precision] if precision in self.rates else None


def count_flops(config: ModelConfig, size: tuple[int, int], batch: int) -> int:
    """Return the floating-point operations of the encoder's matrix products.

    Args:
        config: of the encoder.
        size: (height, width) of the input in pixels.
        batch: images.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = config.build_backbone(img_size=size, dynamic_img_size=False).eval()
        with FlopCounterMode(display=False) as counter:
            backbone.forward_features(torch.empty(batch, 3, *size))
    return int(counter.get_total_flops())


def matmul_rate(precision: str, device: str, seconds: float) -> float:
    """Return the best rate of a large square matrix product in GFLOP/s.

    Args:
        precision: fp32 or bf16.
        device: "cpu" or "cuda".
        seconds: how long to try; a product is as large as a fifth of that allows.
    """
    largest, patience = _SIDES[torch.device(device).type], 1000 * seconds / _TRIES
    side = _SMALLEST
    # Where a processor has no units for a precision, a large product takes minutes. One of twice the side takes 8 times
    # as long.
    while side < largest and 8 * _product_ms(side, precision, device, 0.0) < patience:
        side *= 2
    best = min(_product_ms(side, precision, device, seconds / _TRIES) for _ in range(_TRIES))
    return 2 * side**3 / best / 1e6


def _product_ms(side: int, precision: str, device: str, seconds: float) -> float:
    a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    return latency.measure(lambda: a @ b, a.device, seconds, least=1, warm_up=1).median
