"""Reading and writing video files with PyAV (FFmpeg)."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from video_distilled_encoder.errors import InputError, import_extra, warn
from video_distilled_encoder.files import Opener, atomic_path, reading

_LONGEST_GAP = 3600.0
"""Seconds that two frames that follow one another may lie apart; more is taken for a jump of the clock."""
_LONGEST_GAP_OF_BROADCAST = 10.0
"""The same in MPEG streams, whose clocks may jump, as FFmpeg's command has it (-dts_delta_threshold)."""
_DISORDER = 3
"""So many frames a time stamp may go back before the clock is taken to have started again."""
_MAY_JUMP, _NO_TIME_STAMPS = 0x0200, 0x0080  # AVFMT_TS_DISCONT, AVFMT_NOTIMESTAMPS


@dataclass(frozen=True)
class VideoFrame:
    """One decoded frame."""

    time: float
    """Presentation time in seconds since the first frame, from the container's own time stamps; it never goes back."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright, of the first frame's size."""
    new_shot: bool = False
    """Another recording begins here, or since the frame before: the clock or the size of the pictures changed."""


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its first video stream, before anything is decoded."""

    width: int
    height: int
    fps: float
    frames: int
    """Number of frames; an estimate where the container does not store it, and 0 where it says nothing."""


def probe(path: Path) -> VideoInfo:
    """Read the header of a video.

    Raises:
        InputError: the file is missing, empty, damaged, or holds no video with time stamps.
    """
    info = _probe(path, {"skip_frame": "all"})
    return info if info.width and info.fps else _probe(path, {})


def _probe(path: Path, options: dict[str, str]) -> VideoInfo:
    with _open(path, options=options) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = float(container.duration or 0) / 1e6
        # where the container has an index, it is right: edit lists hide frames of it, and dropped ones have no entry
        shown = sum(not entry.is_discard for entry in stream.index_entries) if stream.frames else 0
        frames = shown if shown > 1 else stream.frames
        return VideoInfo(stream.width, stream.height, fps, frames or round(seconds * fps))


class Pace:
    """Chooses frames: the nearest to each multiple of `min_interval` seconds; 0 chooses all.

    Args:
        min_interval: seconds.
        interval: usual seconds between two frames, 0 if they are not known.
    """

    def __init__(self, min_interval: float, interval: float) -> None:
        self.min_interval, self.half = min_interval, interval / 2
        self._next = 0.0

    def keeps(self, time: float) -> bool:
        """Return whether the next frame, at `time` seconds, is kept."""
        if time + self.half < self._next:
            return False
        while self.min_interval and time + self.half >= self._next:
            self._next += self.min_interval
        return True


def read_frames(
    path: Path, min_interval: float = 0.0, span: tuple[float, float] | None = None, opener: Opener | None = None
) -> Iterator[VideoFrame]:
    """Decode a video, or a part of it, from front to back.

    Where recordings were joined, or the clock was set, time goes on with the next frame, which begins a new shot; where
    the size changes, a new shot begins whose frames are resized and cropped to the first size. A warning says so, and
    counts the frames that are damaged.

    Args:
        path: the video file.
        min_interval: seconds; of the frames, the nearest to each multiple of it is kept. 0 keeps all.
        span: begin and end, which is left out, in seconds of the container's own clock.
        opener: opens the file, in FFmpeg's place.

    Raises:
        InputError: the file is missing, empty, damaged, truncated or holds no video with time stamps, or ends before
            the span does.
    """
    with _open(path, opener) as container, _threads_at_rest(container.streams.video[0]) as stream:
        interval = 1 / float(stream.average_rate) if stream.average_rate else 0.0
        clock = _Clock(interval, _LONGEST_GAP_OF_BROADCAST if container.format.flags & _MAY_JUMP else _LONGEST_GAP)
        changes: Counter[str] = Counter()
        pace = Pace(min_interval, interval)
        packets = _Packets(container)
        decoded, damaged, new_shot = 0, 0, False
        shape: tuple[int, int] | None = None
        size: tuple[int, int] | None = None
        for frame in _within(path, span, container, _decode(packets, path)):
            decoded += 1
            damaged += frame.is_corrupt
            time, change = clock.read(frame.time)
            if shape not in (None, (frame.width, frame.height)):
                changes["the size changes"] += 1
                new_shot = True
            shape = frame.width, frame.height
            if change:
                changes[change] += 1
                new_shot = True
            if not pace.keeps(time):
                continue
            image = _upright(frame)
            size = size or image.shape[:2]
            yield VideoFrame(time, _fit(image, size), new_shot)
            new_shot = False
        if decoded == 0 and span:
            raise InputError(f"{path} holds no frame from {max(span[0], 0):.2f} s to {span[1]:.2f} s")
        if decoded == 0:
            raise InputError(f"{path} holds no frame that can be decoded; it is damaged or truncated")
        if span and span[1] - span[0] > time + 1.75 * interval:
            raise InputError(f"{path} ends {span[1] - span[0] - time - interval:.2f} s before {span[1]:.2f} s")
        if not span and (missing := packets.missing(round((time + interval) / interval) if interval else 0)):
            raise InputError(f"{path} is truncated: {missing} of its frames are missing at its end")
        if changes:
            counts = ", ".join(f"{change} ({count} x)" for change, count in changes.items())
            warn(f"in {path} {counts}: a new shot begins, time goes on, and all frames are given the first one's size")
        if damaged:
            warn(f"in {path} {damaged} frames are damaged; what is missing of them, and of those after, is made up")


def _within(path: Path, span: tuple[float, float] | None, container: Any, frames: Iterable[Any]) -> Iterator[Any]:
    """Yield the frames of a span, decoded from the last key frame before it."""
    if span is None:
        yield from frames
        return
    stream = container.streams.video[0]
    if span[0] > 0:
        with _decoding(path):
            container.seek(int(span[0] / stream.time_base), stream=stream)
    for frame in frames:
        if frame.time is not None and frame.time >= span[1]:
            return
        if frame.time is not None and frame.time >= span[0]:
            yield frame


@contextmanager
def _threads_at_rest(stream: Any) -> Iterator[Any]:
    """Decode in several threads, and wait for them at the end, as when a caller wants no more frames.

    Python frees a decoder some time later, at the latest when it ends itself, and holds the lock that they may want.
    """
    stream.thread_type = "AUTO"
    try:
        yield stream
    finally:
        stream.codec_context.flush_buffers()


class _Clock:
    """Seconds since the first frame, from time stamps that may be missing, start again or jump ahead.

    Args:
        interval: usual seconds between two frames, 0 if they are not known.
        longest_gap: seconds; if two frames are further apart, the clock jumped.
    """

    def __init__(self, interval: float, longest_gap: float) -> None:
        self.interval, self.longest_gap = interval, longest_gap
        self.time: float | None = None
        """Of the last frame."""
        self._start: float | None = None

    def read(self, stamp: float | None) -> tuple[float, str]:
        """Return the time of the next frame, and what happened to the clock before it, if anything did."""
        last = self.time
        usual = 0.0 if last is None else last + self.interval
        if self._start is None and stamp is not None:
            self._start = stamp - usual
        time = usual if stamp is None or self._start is None else stamp - self._start
        change = ""
        if last is not None and time < last - _DISORDER * self.interval:
            change = "the clock starts again"
        elif last is not None and time > last + self.longest_gap:
            change = "the clock jumps ahead"
        if change and self._start is not None:
            self._start += time - usual
            time = usual
        self.time = time if last is None else max(last, time)
        return self.time, change


class _Packets:
    """The packets of a container's first video stream, counted, so that a truncated file can be told.

    MP4's index, and AVI's, list the packets that a whole file has. Its number of frames says less: an edit list hides
    some, AVI also counts frames that were dropped. But AVI's index is at its end, and goes first.
    """

    def __init__(self, container: Any) -> None:
        self.container = container
        self.stream = container.streams.video[0]
        self.listed = len(self.stream.index_entries)
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for packet in self.container.demux(self.stream):
            self.count += packet.size > 0
            yield packet

    def missing(self, slots: int) -> int:
        """Return how many frames are missing at the end, after all were read; a few may always be.

        Args:
            slots: of so many frames the time has gone by.
        """
        listed, found = self.listed, self.count
        if found > listed:  # there is no index, or not of all
            listed, found = self.stream.frames, max(found, slots)
        return listed - found if found + max(2, 0.01 * listed) < listed else 0


def write_video(path: Path, images: Iterable[np.ndarray], fps: float) -> None:
    """Write (H, W, 3) uint8 RGB images as an H.264 video that every player shows; H and W must be even."""
    av = import_extra("av", "video")
    with atomic_path(path) as temporary, av.open(_url(temporary), "w", format="mp4") as container:
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


@contextmanager
def _open(path: Path, opener: Opener | None = None, options: dict[str, str] | None = None) -> Iterator[Any]:
    av = import_extra("av", "video")
    with ExitStack() as opened:
        with reading(path):
            with path.open("rb") as begin:
                if not begin.read(1):
                    raise InputError(f"{path} is empty")
            file = opened.enter_context(opener(path)) if opener else _url(path)
            try:
                container = opened.enter_context(av.open(file, options=options))
            except OSError:
                raise
            except av.error.FFmpegError as error:
                raise InputError(
                    f"{path} cannot be read as a video ({_reason(error)}); it is damaged or truncated"
                ) from error
        if not container.streams.video:
            raise InputError(f"{path} holds no video stream")
        if not container.streams.video[0].codec_context:
            raise InputError(f"{path} holds video of a kind that FFmpeg does not know here, or its header is damaged")
        if container.format.flags & _NO_TIME_STAMPS:
            kind = container.format.name
            raise InputError(
                f"{path} has no time stamps: it is read as a bare {kind} stream; give a video in a container, as "
                f"ffmpeg -r FRAMES_PER_SECOND -f {kind} -i FILE -c copy FILE.mkv makes one, or of a recording of "
                "several sensors a video of each camera"
            )
        yield container


def _url(path: Path) -> str:
    """Return the name that FFmpeg takes for a file whatever it holds; 12:30.mp4 it would take for a protocol."""
    return f"file:{path}"


def _decode(packets: Iterable[Any], path: Path) -> Iterator[Any]:
    with _decoding(path):
        for packet in packets:
            yield from packet.decode()


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    av = import_extra("av", "video")
    with reading(path):
        try:
            yield
        except av.error.FFmpegError as error:
            if (
                isinstance(error, OSError) and error.errno != errno.EPERM
            ):  # as demuxers call an index that leads nowhere
                raise
            raise InputError(f"{path} cannot be decoded to its end ({_reason(error)}); it is damaged") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _upright(frame: Any) -> np.ndarray:
    """Return the picture as the container's display matrix turns and mirrors it, by quarters of a turn.

    A pixel at (x, y) is shown at (a x + c y, b x + d y); the matrix holds a, b, 0, c, d, 0 and a shift.
    """
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize and crop a picture to (height, width), if it has another size."""
    if image.shape[:2] == size:
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.BICUBIC))


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
