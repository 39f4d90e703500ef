"""Videos to frame stores, in parallel, each video once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from training.common import stop
from training.common.machine import processors
from training.data.frame_store import ExtractConfig, extract_video
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.video import find_videos


def extract_all(
    paths: Sequence[Path],
    root: Path,
    config: ExtractConfig,
    *,
    workers: int = 0,
    skip_unreadable: bool = False,
    deadline: float | None = None,
) -> dict[Path, str]:
    """Extract every video named by `paths` (files or folders).

    Args:
        paths: video files, or folders that are searched for them.
        root: folder of the stores.
        config: frame rate, size and quality.
        workers: processes; 0 means one per processor.
        skip_unreadable: leave out, with a warning, videos that cannot be read, instead of stopping at the first.
        deadline: of `time.monotonic`, after which no more is begun.

    Returns:
        The stores in the order of the videos, each with the folder of its video; a video given twice counts once.

    Raises:
        InputError: a video cannot be read, or none is left; or the time is over, or a process was ended.
    """
    videos = find_videos(paths)
    workers = min(workers or processors(), len(videos))
    stores: dict[Path, Path] = {}
    with tqdm(total=len(videos), desc="extract", unit="video", dynamic_ncols=True) as bar:
        for video, result in _in_parallel(videos, root, config, workers):
            if stop.asked():
                raise InputError("stopped while videos were extracted; the same command goes on")
            if deadline is not None and time.monotonic() > deadline:
                raise InputError(
                    f"the time was over when {bar.n} of {len(videos)} videos were extracted; the same command goes on, "
                    "and python -m training.extract takes its time"
                )
            try:
                stores[video] = result()
            except InputError as error:
                if not skip_unreadable:
                    raise
                bar.write(f"left out: {error}")
            except BrokenProcessPool as error:
                why = "stopped" if stop.asked() else "a process was ended from outside, perhaps for want of memory,"
                raise InputError(f"{why} while videos were extracted; the same command goes on") from error
            bar.update()
    if not stores:
        raise InputError("none of the videos can be read")
    # From the back, so that of a video given twice the first folder stays.
    folders = {stores[video]: str(video.parent) for video in reversed(videos) if video in stores}
    return {stores[video]: folders[stores[video]] for video in videos if video in stores}


def _in_parallel(
    videos: Sequence[Path], root: Path, config: ExtractConfig, workers: int
) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Yield each video, as it is done, with a function that returns its store or raises its error."""
    if workers == 1:
        for video in videos:
            yield video, partial(extract_video, video, root, config)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(extract_video, video, root, config): video for video in videos}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result
        finally:
            pool.shutdown(cancel_futures=True)
