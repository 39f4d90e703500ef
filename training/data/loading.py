"""Samples for the data loader: one clip's views and photometric parameters, a pure function of (seed, position)."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from training.common.distributed import World
from training.common.machine import processors
from training.data.clips import ClipIndex
from training.data.photometric import draw_parameters
from training.data.resident import table_of
from training.data.views import View, cut_all
from training.methods import load_method
from training.recipes.recipe import Recipe


class Sample(TypedDict):
    """Views of a clip; batched, each tensor gets a leading batch dimension."""

    views: dict[str, Tensor]
    """Per group (n, 3, size, size) uint8; where the device cuts them, (n, 7) int64, see `resident.table_of`."""
    photometric: dict[str, Tensor]
    """Per group (n, 11) float32, see `training.data.photometric.draw_parameters`."""
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


def load_batches(
    index: ClipIndex, recipe: Recipe, schedule: Iterable[list[Place]], world: World
) -> Generator[Sample, None, None]:
    """Yield this process's share of the batches that a schedule names.

    Close it when no more are taken: its workers, which heed no signal, end then.
    """
    in_memory = recipe.clips.in_memory
    workers = recipe.run.workers
    if workers is None:
        workers = min(max(processors() // world.local_size - 1, 1), 16)
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
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


def _start_worker(worker: int) -> None:
    """Keep a worker on one processor, which it shares with others of its kind, and leave it to the main process to end.

    A signal that asks the whole group of processes to stop must not take the batches from the last step.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
