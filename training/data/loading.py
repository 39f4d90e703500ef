"""Samples for the data loader: one clip's views and photometric parameters, a pure function of (seed, position)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby, islice
from multiprocessing import get_start_method, resource_tracker
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from training.common import stop
from training.common.distributed import World
from training.common.machine import processors
from training.common.sharing import Collate, spared, told
from training.data.batch import Batch, collate
from training.data.clips import ClipIndex
from training.data.flow import Flows, Motion
from training.data.photometric import PhotometricConfig, draw_parameters
from training.data.resident import table_of
from training.data.views import View, ViewsConfig, cut_all


class Place(NamedTuple):
    """Where in a run a sample is."""

    position: int
    """Number of the sample, from 0."""
    progress: float
    """Share of the run that is over at its step: some settings change with it."""
    step: int = 0
    """Number of its step."""


PlanViews = Callable[..., list[View]]
"""Says, by a generator, which views are wanted of a clip whose frames have a size (width, height), with the settings
now in force; it is given the flow between the first frame and the last, too, if that is wanted."""


class ClipViews(Dataset[Batch]):
    """The sample at a place of a run: what it shows depends on nothing but the seed and the place.

    Args:
        index: the clips.
        plan_views: which views of a clip are wanted.
        views: their sizes and areas.
        photometric: their colours.
        seed: of the run.
        resident: say where in the resident frames the views are, and leave cutting to the device.
        reduced: decode frames at a part of their size where all views are so much smaller.
        flows: the optical flow that the views depend on, if they do.
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
        flows: Flows | None = None,
    ) -> None:
        self.index = index
        self.plan_views = plan_views
        self.views = views
        self.photometric = photometric
        self.seed = seed
        self.resident = resident
        self.reduced = reduced
        self.flows = flows

    def __getitem__(self, place: Place) -> Batch:
        return self._samples([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[Batch]:
        """Return the samples of a batch; those of one clip, which follow one another, share what is read of it."""
        clips = groupby(places, key=lambda place: self.index.number_of(place.position))
        return [sample for _, found in clips for sample in self._samples(list(found))]

    def _samples(self, places: Sequence[Place]) -> list[Batch]:
        """Return several samples of one clip."""
        store, numbers = self.index[places[0].position]
        motion = [self.flows.between(store, int(numbers[0]), int(numbers[-1]))] if self.flows else []
        drawn = [self._draw(place, store.size, *motion) for place in places]
        views = [view for found, _ in drawn for view in found]
        if self.resident:
            pixels = [*table_of(views, [store.first_resident + int(numbers[view.frame]) for view in views])]
        else:
            reduced = self.reduced and store.pixels is None
            pixels = cut_all(lambda frame, *where: store.read(int(numbers[frame]), *where), views, reduced)
        cuts = iter(pixels)
        return [_by_group(found, list(islice(cuts, len(found))), parameters) for found, parameters in drawn]

    def _draw(self, place: Place, size: tuple[int, int], *motion: Motion) -> tuple[list[View], dict[str, np.ndarray]]:
        """Return the views of a sample, and the photometric parameters of each group of them."""
        now = self.views.at(place.progress, place.step)
        colours = self.photometric.scaled(now.global_size / self.views.global_size)
        rng = np.random.default_rng([self.seed, 1, place.position])
        views = self.plan_views(rng, size, now, *motion)
        groups = dict.fromkeys(view.group for view in views)
        return views, {g: draw_parameters(rng, [view for view in views if view.group == g], colours) for g in groups}


def _by_group(views: Sequence[View], cuts: Sequence[Tensor], parameters: Mapping[str, np.ndarray]) -> Batch:
    """Put a sample together."""
    sample = {}
    for group, rows in parameters.items():
        chosen = [number for number, view in enumerate(views) if view.group == group]
        sample[group] = {
            "pixels": torch.stack([cuts[number] for number in chosen]),
            "photometric": torch.from_numpy(rows),
        }
        for name in views[chosen[0]].arrays:
            sample[group][name] = torch.from_numpy(np.stack([views[number].arrays[name] for number in chosen]))
    return sample


def load_batches(
    clips: ClipViews, schedule: Iterable[list[Place]], world: World, workers: int | None = None
) -> Generator[Batch, None, None]:
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
    pinned = world.device.type == "cuda"
    made = Collate(collate, workers * world.local_size)
    loader = DataLoader(
        clips,
        batch_sampler=schedule,
        num_workers=workers,
        collate_fn=made,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # forked workers share what is in memory
        multiprocessing_context="fork" if in_memory and workers else None,
    )
    with _begin_workers() if workers else nullcontext():
        batches = iter(loader)
    try:
        for batch in told(batches):
            yield made.received(batch, pin_memory if pinned else lambda batch: batch)
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            _end(batches)


@contextmanager
def _begin_workers() -> Iterator[None]:
    """Within, workers may be begun, and no signal that asks to stop arrives; afterwards it does, but not in them.

    Such a signal comes to the whole group of processes, and must not take the batches from the last step. A worker
    could not see to it by itself: it takes a while until it does anything.
    """
    if get_start_method() != "fork":
        resource_tracker.ensure_running()  # other ways need it, and as it begins it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop.SIGNALS)
    try:
        with spared():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(batches: _MultiProcessingDataLoaderIter) -> None:
    """End the workers, those too that do not come back from what they do, for no signal reaches them but the last."""
    workers = batches._workers
    batches._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _start_worker(worker: int) -> None:
    """Keep a worker on one processor, which it shares with others of its kind."""
    torch.set_num_threads(1)
