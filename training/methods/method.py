"""What a run asks of a method, whatever it learns: something to train, losses, and in the end an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.common.monitors import Stopwatch
from training.data.batch import Batch
from training.data.clips import ClipsConfig
from training.data.views import ViewsConfig
from video_distilled_encoder import ModelConfig, model_directory
from video_distilled_encoder.errors import InputError

Build = Callable[[bool], VisionTransformer]
"""Builds a backbone with random weights, with stochastic depth or without."""


@dataclass(frozen=True)
class Objective:
    """Settings of a method; every method has its own."""

    def phases(self) -> list[float]:
        """Return where in the run, by its progress, its steps begin to cost something else."""
        return []

    def logits_at_once(self) -> int:
        """Return how many logits a loss holds for a moment that keeps none of them."""
        return 0


class Spec(NamedTuple):
    """What a method is told of a recipe."""

    objective: Any
    """Its own settings."""
    clips: ClipsConfig
    """Which frames a clip has."""
    views: ViewsConfig
    """With the sizes now in force."""
    patch: int
    """Side of the backbone's patches in pixels."""
    config: ModelConfig
    """Mean and standard deviation of its pixels."""


class At(NamedTuple):
    """Where in a run a batch is."""

    progress: float
    """Share of the run that is over, in [0, 1)."""
    key: int = 0
    """Of seed, step and part. Drop paths draw from it by the numbers of rows, as a method would: so a method draws from
    keys of its own, `training.common.keyed.key_of(key, 1)` and on."""
    first_row: int = 0
    """Number, in the whole step's batch, of the first clip."""


class Losses(NamedTuple):
    """What a method returns for one batch."""

    total: Tensor
    """Scalar with gradients."""
    metrics: dict[str, Tensor]
    """Named scalars without gradients, for the log; they stay on the device."""


class Method(nn.Module, ABC):
    """What is learnt.

    Its state is what checkpoints hold and the next run goes on from, so a frozen model that it learns from is not one
    of its modules: `outside` names it. The encoder's backbone is `teacher.backbone`, or `student.backbone` if there is
    no teacher.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopwatch = Stopwatch()
        """Of the parts of a step that are no network: names that end in `_time`."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """What the optimiser sees: one of the method's modules."""

    @abstractmethod
    def forward(self, batch: Batch, at: At) -> Losses:
        """Compute the losses of a batch.

        Args:
            batch: per group of views `pixels` (B, n, 3, H, W), normalised, n in the order of `plan_views`, and the
                arrays that were planned with them.
            at: where in the run.
        """

    @abstractmethod
    def encoder(self) -> VisionTransformer:
        """Return the backbone that the run saves."""

    def held(self, at: At) -> Sequence[nn.Parameter]:
        """Return the trained parameters that this step leaves as they are."""
        return []

    def after_step(self, at: At) -> dict[str, float]:
        """Follow the optimiser's step; return what the log is to hold."""
        return {}

    def start_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take a backbone's weights in place of random ones.

        Raises:
            InputError: they are of another architecture.
        """
        model_directory.load_strictly(self.encoder(), state, where)

    def go_on_from(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take all that a run of the same parts learnt.

        Raises:
            InputError: a tensor is missing, or has another shape.
        """
        model_directory.load_strictly(self, state, where)

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Return why the run should stop, given what the log holds of a step."""
        return None

    def prepare(self, batches: Iterable[Batch]) -> None:
        """See some batches before the first step, if any are asked for: for statistics, which belong to the state."""

    def outside(self) -> dict[str, str]:
        """Return the names and SHA-256 of the frozen models that it learns from."""
        return {}

    def save_beside(self, out: Path) -> None:
        """Write what a run leaves in its directory `out` besides the encoder, if there is more that is of use."""

    def provenance(self) -> str:
        """Return what the encoder's card is to say of them; Markdown."""
        return ""


def need_first_and_last(method: str, spec: Spec) -> None:
    """Raise an InputError if clips have no second frame to compare the first with."""
    if spec.clips.frames < 2:
        raise InputError(
            f"{method} compares the first and the last frame of a clip: clips.frames must be at least 2, got "
            f"{spec.clips.frames}; without time, set clips.still true"
        )
