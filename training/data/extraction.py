"""Sources to frame stores, in parallel, each once."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from training.common import stop
from training.common.machine import processors
from training.common.spread import spread, worker_pool
from training.data.frame_store import ExtractConfig, extract_sources, find_store
from video_distilled_encoder.errors import CannotWrite, InputError, refuse_failed
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Asked, Source, in_passes

if TYPE_CHECKING:
    from training.common.distributed import World

_ABANDONED = 3600.0
"""Seconds after which a store that does not grow is given up."""
_STOPPED = "stopped while videos were extracted; the same command goes on"


def extract_all(
    paths: Sequence[Path],
    root: Path,
    config: ExtractConfig,
    *,
    asked: Asked | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    deadline: float | None = None,
    shard: tuple[int, int] = (0, 1),
    turn: float = 0.0,
) -> dict[Path, str]:
    """Extract every source that `paths` hold (`video_distilled_encoder.sources`).

    Args:
        paths: video files, data sets, or folders that are searched for them.
        root: folder of the stores.
        config: frame rate, size and quality.
        asked: cameras and episodes, and the rate of what has no clock.
        workers: processes; 0 means one per processor.
        skip_unreadable: leave out, with a warning, videos that cannot be read, instead of refusing at the end.
        deadline: of `time.monotonic`, after which no more is begun.
        shard: i and n; of n parts of the sources, in their order, only part i, from 0, which may be empty.
        turn: which share of the sources, 0 to 1, comes last: machines that begin at different ones and have one folder
            of stores share the work.

    Returns:
        The stores in the order of the sources, each with the group of its source; a video given twice counts once.

    Raises:
        InputError: a video cannot be read, all others being extracted then, or none is left; or the time is over, or
            the process was asked to stop, or the stores cannot be written.
    """
    found = find_sources(paths, asked, partial(spread, workers=workers))
    videos = found[len(found) * shard[0] // shard[1] : len(found) * (shard[0] + 1) // shard[1]]
    if not videos:
        return {}
    _sweep(root / config.folder)
    workers = workers or processors()
    stores: dict[Source, Path] = {}
    failed: list[InputError] = []
    with tqdm(total=len(set(videos)), desc="extract", unit="video", dynamic_ncols=True) as bar:
        left = deque(dict.fromkeys(videos))
        left.rotate(-int(turn * len(left)))
        for video in list(left):
            if path := find_store(video, root, config):
                stores[video] = path
                left.remove(video)
        bar.update(len(stores))
        for video, result in _in_parallel(left, root, config, min(workers, len(left))):
            if stop.asked():
                raise InputError(_STOPPED)
            if deadline is not None and time.monotonic() > deadline:
                raise InputError(
                    f"the time was over when {bar.n} of {len(videos)} videos were extracted; the same command goes on, "
                    "and python -m training.extract takes its time"
                )
            try:
                stores[video] = result()
            except CannotWrite:
                raise
            except InputError as error:
                failed.append(error)
                if skip_unreadable:
                    bar.write(f"left out: {error}", file=sys.stderr)
            bar.update()
    if not skip_unreadable:
        refuse_failed(failed, len(videos), "videos cannot be read; mend them or leave them out (--skip-unreadable)")
    if not stores:
        raise InputError("none of the videos can be read")
    # From the back, so that of a video given twice the first group stays.
    groups = {stores[video]: video.group for video in reversed(videos) if video in stores}
    return {stores[video]: groups[stores[video]] for video in videos if video in stores}


def extract_together(
    world: World,
    paths: Sequence[Path],
    root: Path,
    config: ExtractConfig,
    *,
    asked: Asked | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    shard: tuple[int, int] | None = None,
) -> int:
    """Extract a part, or with the processes that a launcher started a part each; return how many stores there are.

    Args:
        world: the processes.
        paths: as of `extract_all`, and so are the rest.
        root: see there.
        config: see there.
        asked: see there.
        workers: see there; 0 means one per processor, divided among the processes of a machine.
        skip_unreadable: see there.
        shard: see there; the rank among the processes if none is given.

    Raises:
        InputError: in the main process, of what failed in any, when all are done: a launcher ends the others where one
            fails.
    """
    from training.common import distributed  # torch, which the processes that extract do without

    count, error = 0, ""
    workers = workers or max(1, processors() // world.local_size)
    try:
        count = len(
            extract_all(
                paths,
                root,
                config,
                asked=asked,
                workers=workers,
                skip_unreadable=skip_unreadable,
                shard=shard or (world.rank, world.size),
            )
        )
    except InputError as failure:
        error = str(failure)
    of_all = distributed.gather((count, error))
    distributed.stop()
    errors = dict.fromkeys(error for _, error in of_all if error)
    if errors and world.is_main:
        raise InputError("\n".join(errors))
    return sum(count for count, _ in of_all)


Result = tuple[Source, Callable[[], Path]]
"""A video that is done, with a function that returns its store or raises its error."""


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left behind: a store in work grows all the time."""
    for file in folder.glob(".*.zip"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink()


def _in_parallel(left: deque[Source], root: Path, config: ExtractConfig, workers: int) -> Iterator[Result]:
    """Yield each video as it is done. Where a process dies, the videos in work are tried one by one to find which."""
    passes = deque(in_passes(left))
    if workers <= 1:
        for videos in passes:
            yield from _results(videos, cache(partial(extract_sources, videos, root, config)))
        return
    while passes:
        for video in (yield from _until_a_process_dies(passes, root, config, workers)):
            if (yield from _until_a_process_dies(deque([[video]]), root, config, 1)):
                yield video, partial(_refuse, video)


def _results(videos: Sequence[Source], work: Callable[[], list[Path | Exception]]) -> Iterator[Result]:
    for number, video in enumerate(videos):
        yield video, partial(_give, work, number)


def _give(work: Callable[[], list[Path | Exception]], number: int) -> Path:
    found = work()[number]
    if isinstance(found, Exception):
        raise found
    return found


def _until_a_process_dies(
    left: deque[list[Source]], root: Path, config: ExtractConfig, workers: int
) -> Generator[Result, None, list[Source]]:
    """Extract videos, which are taken from `left`, and return those that were in work when a process died, if one did.

    Raises:
        InputError: it died because all were asked to stop.
    """
    jobs: dict[Future[list[Path | Exception]], list[Source]] = {}
    with worker_pool(workers) as pool:
        try:
            while left or jobs:
                while left and len(jobs) < workers:
                    jobs[pool.submit(extract_sources, left[0], root, config)] = left[0]
                    left.popleft()
                done, _ = wait(jobs, return_when=FIRST_COMPLETED)
                for job in done:
                    if not isinstance(job.exception(), BrokenProcessPool):
                        yield from _results(jobs.pop(job), job.result)
                if done & jobs.keys():
                    break
        except BrokenProcessPool:  # while the next was handed in
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    if jobs and stop.asked():
        raise InputError(_STOPPED)
    return [video for videos in jobs.values() for video in videos]


def _refuse(video: Source) -> Path:
    raise InputError(
        f"{video} was given up: a process was ended from outside, perhaps for want of memory, twice while videos were "
        "extracted, the second time with this one alone"
    )
