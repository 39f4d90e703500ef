"""Which clips make each process's share of each batch, in the order of the steps."""

from __future__ import annotations

from collections.abc import Iterator

from training.common.distributed import World
from training.data.loading import Place
from training.engine.plan import Plan
from training.recipes.recipe import Recipe
from video_distilled_encoder.errors import InputError


def share_of_batch(recipe: Recipe, world: World) -> int:
    """Return how many clips of a step each process takes.

    Raises:
        InputError: the batch cannot be shared equally.
    """
    size, parts = recipe.run.batch_size, world.size * recipe.run.accumulate
    if size % parts:
        raise InputError(
            f"run.batch_size {size} cannot be shared equally by {world.size} processes with run.accumulate "
            f"{recipe.run.accumulate}; make it a multiple of {parts}"
        )
    return size // world.size


class Schedule:
    """Which places make this process's share of each batch, in the order of the steps: a batch sampler.

    A step's batch is `run.batch_size` consecutive positions; process r of n takes the r-th of n equal parts of it. The
    loader asks some steps ahead of the training.

    Args:
        recipe: all settings.
        plan: of the run; it may be replaced while batches are drawn.
        start: the first step.
        world: this process among its peers.
        clips_before: positions that earlier runs of a chain have had.
        endless: go on after the last step of the plan, which may come to be a later one.

    Raises:
        InputError: the batch cannot be shared equally.
    """

    def __init__(
        self, recipe: Recipe, plan: Plan, start: int, world: World, clips_before: int = 0, endless: bool = False
    ) -> None:
        self.plan = plan
        self.drawn = start
        """Steps before this one have been asked for, and their places are fixed."""
        self._endless = endless
        self._size, self._share = recipe.run.batch_size, share_of_batch(recipe, world)
        self._first = clips_before + world.rank * self._share

    def __iter__(self) -> Iterator[list[Place]]:
        while self._endless or self.drawn < self.plan.steps:
            first = self._first + self.drawn * self._size
            step, progress = self.drawn, self.plan.progress(self.drawn)
            self.drawn += 1
            yield [Place(position, progress, step) for position in range(first, first + self._share)]
