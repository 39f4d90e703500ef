"""Reading and writing video files with PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from video_distilled_encoder.errors import InputError, import_extra
from video_distilled_encoder.files import atomic_path

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv"}


@dataclass(frozen=True)
class VideoFrame:
    """One decoded frame."""

    time: float
    """Presentation time in seconds since the first frame, from the container's own time stamps."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its first video stream, before anything is decoded."""

    width: int
    height: int
    fps: float
    frames: int
    """Number of frames; an estimate where the container does not store it."""


def probe(path: Path) -> VideoInfo:
    """Read the header of a video.

    Raises:
        InputError: the file is missing, empty, damaged, or holds no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = float(container.duration or 0) / 1e6
        return VideoInfo(stream.width, stream.height, fps, stream.frames or round(seconds * fps))


def read_frames(path: Path, min_interval: float = 0.0) -> Iterator[VideoFrame]:
    """Decode a video from front to back.

    Args:
        path: the video file.
        min_interval: seconds; of the frames, the nearest to each multiple of it is kept. 0 keeps all.

    Raises:
        InputError: the file is missing, empty, damaged, truncated or holds no video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = 0
        start = None
        next_time = 0.0
        interval = 1 / float(stream.average_rate) if stream.average_rate else 0.0
        for frame in _decode(container, path):
            decoded += 1
            stamp = frame.time if frame.time is not None else decoded * interval
            start = stamp if start is None else start
            time = stamp - start
            if time + interval / 2 < next_time:
                continue
            while min_interval and time + interval / 2 >= next_time:
                next_time += min_interval
            yield VideoFrame(time, _upright(frame))
        if decoded == 0:
            raise InputError(f"{path} holds no frame that can be decoded; it is damaged or truncated")
        if decoded + max(2, 0.01 * stream.frames) < stream.frames:
            raise InputError(f"{path} is truncated: {decoded} of its {stream.frames} frames can be decoded")


def write_video(path: Path, images: Iterable[np.ndarray], fps: float) -> None:
    """Write (H, W, 3) uint8 RGB images as an H.264 video that every player shows; H and W must be even."""
    av = import_extra("av", "video")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "20"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def find_videos(paths: Iterable[Path]) -> list[Path]:
    """Return the video files named by `paths`, looking into directories (recursively, sorted).

    Raises:
        InputError: a path does not exist, or a directory holds no video.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"the directory {path} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist")
    return found


def _open(path: Path) -> Any:
    av = import_extra("av", "video")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as a video ({_reason(error)}); it is damaged or truncated") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} holds no video stream")
    return container


def _decode(container: Any, path: Path) -> Iterator[Any]:
    av = import_extra("av", "video")
    try:
        yield from container.decode(video=0)
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be decoded to its end ({_reason(error)}); it is damaged") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _upright(frame: Any) -> np.ndarray:
    """Return the picture with the container's rotation flag applied."""
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for each of some seconds the number of the frame that is nearest, the earlier one of two.

    Args:
        times: (T,) seconds of the frames, ascending, at least one.
        wanted: seconds, of any shape.
    """
    right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    return np.where(wanted - times[left] <= times[right] - wanted, left, right)
