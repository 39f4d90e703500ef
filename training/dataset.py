"""Samples for the data loader: one clip's views and photometric parameters, a pure function of (seed, position)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.clips import ClipIndex
from training.distributed import World
from training.methods import load_method
from training.photometric import draw_parameters
from training.recipe import Recipe
from training.views import cut_all
from video_distilled_encoder.errors import InputError


class Sample(TypedDict):
    """Views of a clip; batched, each tensor gets a leading batch dimension."""

    views: dict[str, Tensor]
    """Per group (n, 3, size, size) uint8."""
    photometric: dict[str, Tensor]
    """Per group (n, 11) float32, see `training.photometric.draw_parameters`."""
    masks: dict[str, Tensor]
    """Per group whose views have masks, (n, patches) bool."""


class ClipViews(Dataset[Sample]):
    """Sample `position` of a run: what it shows depends on nothing but the seed and the position.

    Args:
        index: the clips.
        recipe: all settings.
        length: positions of the whole run, of which settings that change with progress take a share.
    """

    def __init__(self, index: ClipIndex, recipe: Recipe, length: int) -> None:
        self.index = index
        self.recipe = recipe
        self.length = length
        self.plan_views = load_method(recipe.method).plan_views

    def __getitem__(self, position: int) -> Sample:
        recipe = replace(self.recipe, views=self.recipe.views.at(position / self.length))
        rng = np.random.default_rng([recipe.run.seed, 1, position])
        store, numbers = self.index[position]
        views = self.plan_views(rng, store.size, recipe)
        pixels = cut_all(lambda frame, box: store.read(int(numbers[frame]), box), views, recipe.views)
        groups = {group: [view for view in views if view.group == group] for group in pixels}
        parameters = {group: draw_parameters(rng, found, recipe.photometric) for group, found in groups.items()}
        masks = {
            group: np.stack([view.mask for view in found])
            for group, found in groups.items()
            if found[0].mask is not None
        }
        return {
            "views": pixels,
            "photometric": {group: torch.from_numpy(array) for group, array in parameters.items()},
            "masks": {group: torch.from_numpy(array) for group, array in masks.items()},
        }


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


def load_batches(index: ClipIndex, recipe: Recipe, *, start: int, steps: int, world: World) -> Iterator[Sample]:
    """Yield this process's share of the batches of steps `start` to `steps` - 1.

    A step's batch is `run.batch_size` consecutive positions; process r of n takes the r-th of n equal parts of it.

    Raises:
        InputError: the batch cannot be shared equally.
    """
    size, share = recipe.run.batch_size, share_of_batch(recipe, world)
    firsts = range(start * size + world.rank * share, steps * size, size)
    workers = recipe.run.workers
    if workers is None:
        workers = min(max((os.cpu_count() or 1) - 1, 1), 16)
    loader = DataLoader(
        ClipViews(index, recipe, steps * size),
        batch_sampler=[list(range(first, first + share)) for first in firsts],
        num_workers=workers,
        pin_memory=world.device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    """Keep a worker on one processor: it shares the machine with others of its kind."""
    torch.set_num_threads(1)
