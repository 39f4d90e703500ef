"""Samples for the data loader: one clip's views and photometric parameters, a pure function of (seed, position)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from training.common.distributed import World
from training.common.machine import processors
from training.data.clips import ClipIndex
from training.data.photometric import PhotometricConfig, draw_parameters
from training.data.resident import table_of
from training.data.views import View, ViewsConfig, cut_all


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


PlanViews = Callable[[np.random.Generator, tuple[int, int], ViewsConfig], list[View]]
"""Says which views are wanted of a clip whose frames have a size (width, height), with the settings now in force."""


class ClipViews(Dataset[Sample]):
    """The sample at a place of a run: what it shows depends on nothing but the seed and the place.

    Args:
        index: the clips.
        plan_views: which views of a clip are wanted.
        views: their sizes and areas.
        photometric: their colours.
        seed: of the run.
        resident: say where in the resident frames the views are, and leave cutting to the device.
        reduced: decode frames at a part of their size where all views are so much smaller.
    """

    def __init__(
        self,
        index: ClipIndex,
        plan_views: PlanViews,
        views: ViewsConfig,
        photometric: PhotometricConfig,
        seed: int,
        *,
        resident: bool = False,
        reduced: bool = False,
    ) -> None:
        self.index = index
        self.plan_views = plan_views
        self.views = views
        self.photometric = photometric
        self.seed = seed
        self.resident = resident
        self.reduced = reduced

    def __getitem__(self, place: Place) -> Sample:
        position, progress = place
        now = self.views.at(progress)
        colours = self.photometric.scaled(now.global_size / self.views.global_size)
        rng = np.random.default_rng([self.seed, 1, position])
        store, numbers = self.index[position]
        views = self.plan_views(rng, store.size, now)
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
            reduced = self.reduced and store.pixels is None
            pixels = cut_all(lambda frame, *where: store.read(int(numbers[frame]), *where), views, now, reduced)
        parameters = {group: draw_parameters(rng, found, colours) for group, found in groups.items()}
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
    clips: ClipViews, schedule: Iterable[list[Place]], world: World, workers: int | None = None
) -> Generator[Sample, None, None]:
    """Yield this process's share of the batches that a schedule names.

    Close it when no more are taken: its workers, which heed no signal, end then.

    Args:
        clips: the samples.
        schedule: their places, batch by batch.
        world: this process among its peers.
        workers: processes that load them; if not given, as many as this process has processors, less one, at most 16.
    """
    if workers is None:
        workers = min(max(processors() // world.local_size - 1, 1), 16)
    in_memory = clips.resident or any(store.pixels is not None for store in clips.index.stores)
    loader = DataLoader(
        clips,
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
