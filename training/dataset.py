"""Samples for the data loader: one clip's views and photometric parameters, a pure function of (seed, position)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.clips import ClipIndex
from training.distributed import World
from training.methods import load_method
from training.photometric import draw_parameters
from training.plan import Plan
from training.recipe import Recipe
from training.resident import table_of
from training.views import View, cut_all
from video_distilled_encoder.errors import InputError


class Sample(TypedDict):
    """Views of a clip; batched, each tensor gets a leading batch dimension."""

    views: dict[str, Tensor]
    """Per group (n, 3, size, size) uint8; where the device cuts them, (n, 7) int64, see `resident.table_of`."""
    photometric: dict[str, Tensor]
    """Per group (n, 11) float32, see `training.photometric.draw_parameters`."""
    masks: dict[str, Tensor]
    """Per group whose views have masks, (n, patches) bool."""


class Place(NamedTuple):
    """Where in a run a sample is."""

    position: int
    """Number of the sample, from 0."""
    progress: float
    """Share of the run that is over at its step: some settings change with it."""


class ClipViews(Dataset[Sample]):
    """The sample at a place of a run: what it shows depends on nothing but the seed and the place.

    Args:
        index: the clips.
        recipe: all settings.
        resident: say where in the resident frames the views are, and leave cutting to the device.
    """

    def __init__(self, index: ClipIndex, recipe: Recipe, resident: bool = False) -> None:
        self.index = index
        self.recipe = recipe
        self.resident = resident
        self.plan_views = load_method(recipe.method).plan_views

    def __getitem__(self, place: Place) -> Sample:
        position, progress = place
        now = self.recipe.views.at(progress)
        colours = self.recipe.photometric.scaled(now.global_size / self.recipe.views.global_size)
        recipe = replace(self.recipe, views=now, photometric=colours)
        rng = np.random.default_rng([recipe.run.seed, 1, position])
        store, numbers = self.index[position]
        views = self.plan_views(rng, store.size, recipe)
        groups: dict[str, list[View]] = {}
        for view in views:
            groups.setdefault(view.group, []).append(view)
        if self.resident:
            first = store.first_resident
            pixels = {
                group: table_of(found, [first + int(numbers[view.frame]) for view in found], now.size_of(group))
                for group, found in groups.items()
            }
        else:
            reduced = recipe.clips.reduced and store.pixels is None
            pixels = cut_all(lambda frame, *where: store.read(int(numbers[frame]), *where), views, now, reduced)
        parameters = {group: draw_parameters(rng, found, recipe.photometric) for group, found in groups.items()}
        masks = {
            group: np.stack([view.mask for view in found if view.mask is not None])
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
            progress = self.plan.progress(self.drawn)
            self.drawn += 1
            yield [Place(position, progress) for position in range(first, first + self._share)]


def load_batches(index: ClipIndex, recipe: Recipe, schedule: Schedule, world: World) -> Iterator[Sample]:
    """Yield this process's share of the batches that a schedule names."""
    in_memory = recipe.clips.in_memory
    workers = recipe.run.workers
    if workers is None:
        workers = min(max((os.cpu_count() or 1) - 1, 1), 16)
    loader = DataLoader(
        ClipViews(index, recipe, resident=in_memory == "device"),
        batch_sampler=schedule,
        num_workers=workers,
        pin_memory=world.device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # forked workers share what is in memory
        multiprocessing_context="fork" if in_memory and workers else None,
    )
    return iter(loader)


def _start_worker(worker: int) -> None:
    """Keep a worker on one processor, which it shares with others of its kind, and leave it to the main process to end.

    A signal that asks the whole group of processes to stop must not take the batches from the last step.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
