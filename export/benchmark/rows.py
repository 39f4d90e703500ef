"""What is measured: a row for each network, precision, size and batch, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from export.latency import Latency

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What torch computes in, by precision."""

Group = tuple[tuple[int, int], int]
"""What rows must share to be compared: (height, width) of the network's input, and the batch."""


@dataclass(frozen=True)
class Row:
    """One network in one precision at one size and batch."""

    kind: str
    """torch, torch-compile, timm, transformers, or the format of an export."""
    source: str
    """Model directory, name in timm or transformers, or the exported file."""
    precision: str
    size: tuple[int, int]
    """(height, width) of the network's input in pixels."""
    batch: int
    label: str
    """What a reader calls it."""

    @property
    def name(self) -> str:
        """The label with the precision."""
        return f"{self.label} {self.precision}"

    @property
    def group(self) -> Group:
        """Size and batch."""
        return self.size, self.batch


class Failure(NamedTuple):
    """A row that could not be measured."""

    row: Row
    reason: str
    """One line."""


@dataclass(frozen=True)
class Result:
    """What a row's process measured."""

    row: Row
    network: Latency
    """From normalised pixels to features (from frames, if preprocessing is part of the export)."""
    end_to_end: Latency
    """From uint8 frames in memory to features."""
    memory_mib: float
    """Most resident memory of the process, with everything in it."""
    gpu_memory_mib: float | None = None
    """GPU memory taken, as the driver counts it."""
    load_seconds: float | None = None
    """None: the weights are random, and nothing was loaded."""
    min_cosine: float | None = None
    """Of the export's parity with torch: the least of all tokens."""
    preprocessing_inside: bool = False
    """The export takes frames."""

    @property
    def images_per_second(self) -> float:
        """Of the network alone."""
        return 1000 * self.row.batch / self.network.median

    @property
    def preprocessing_share(self) -> float | None:
        """Share of the end-to-end time that is not the network's; None if the network contains it."""
        return None if self.preprocessing_inside else 1 - self.network.median / self.end_to_end.median

    @classmethod
    def of(cls, row: Row, answer: Mapping[str, Any]) -> Result:
        """Read what the row's process answered."""
        times = {part: Latency(**answer[part]) for part in ("network", "end_to_end")}
        return cls(row, **{**answer, **times})


def best(rounds: Sequence[Result]) -> Result:
    """Join the rounds of one row: the round with the least median, the slowest first call, the most memory.

    Network and end to end are chosen each by itself. Later rounds find compiled code in caches, so the first call that
    counts is the slowest.
    """
    chosen = {}
    for part in ("network", "end_to_end"):
        latencies = [getattr(result, part) for result in rounds]
        fastest = min(latencies, key=lambda latency: latency.median)
        chosen[part] = replace(fastest, first=max(latency.first for latency in latencies))
    loads = [result.load_seconds for result in rounds if result.load_seconds is not None]
    return replace(
        rounds[0],
        **chosen,
        memory_mib=max(result.memory_mib for result in rounds),
        gpu_memory_mib=max((result.gpu_memory_mib or 0 for result in rounds), default=0) or None,
        load_seconds=min(loads, default=None),
    )
