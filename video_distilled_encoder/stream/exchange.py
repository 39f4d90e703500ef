"""Where frames are handed in and results are taken: the newest of each camera, nothing else. It encodes nothing."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.errors import InputError, refuse_forked
from video_distilled_encoder.preprocessing import Images


class StreamResult(NamedTuple):
    """Features of one frame, as `Stream.get` returns them."""

    features: EncoderOutput
    """What `encode` returned; on a GPU the computation is over. A later result may be the same (`reused`), so do not
    write into it."""
    number: int
    """Which of the camera's frames this is, counted from 0 in the order of `put`."""
    frame_time: float
    """Seconds on the clock `time.monotonic`: when the frame was put, or the time given with it."""
    age: float
    """Seconds from `frame_time` until the result was taken."""
    dropped: int
    """The camera's frames since its previous result taken that were never encoded: a newer one came while they waited,
    or they were too old."""
    reused: bool
    """The frame's bytes are those of the camera's frame before it, and so are its features: nothing was computed."""
    camera: str
    """The name it was put with."""


class StreamTotals(NamedTuple):
    """Counts of all cameras' frames since the stream was opened.

    What is put is later encoded, reused, dropped or failed; at most two frames of a camera are none of these yet: one
    waits, one is being encoded.
    """

    put: int
    encoded: int
    """Also those whose result was replaced by a newer one before it was taken, or was too old by then."""
    reused: int
    """Given the features of the frame before, whose bytes were equal."""
    dropped: int
    """Never encoded: replaced while waiting, too old, or still waiting at `close`."""
    failed: int
    """`encode` raised an error."""
    late: int
    """Frames and results that were dropped since they were older than `max_age`."""


class Frame(NamedTuple):
    """A frame that is to be encoded."""

    image: Images
    camera: str
    number: int
    time: float
    dropped_before: int
    """Of the camera's frames put before it."""


class Closed(InputError):
    """The stream is closed."""


class Exchange:
    """Frames in, results out. Every method may be called from any thread.

    Args:
        max_age: seconds after which a frame, or its result, is dropped.

    Raises:
        InputError: `max_age` is not more than 0.
    """

    def __init__(self, max_age: float | None) -> None:
        if max_age is not None and not max_age > 0:
            raise InputError(f"max_age is a number of seconds more than 0, got {max_age!r}")
        self._max_age = math.inf if max_age is None else max_age
        # The last reference to a stream, which then closes it, may be let go while this thread holds the lock.
        self._lock = threading.RLock()
        self._frame_came = threading.Condition(self._lock)
        self._outcome_came = threading.Condition(self._lock)
        self._waiters: set[asyncio.Future[None]] = set()
        self._cameras: dict[str, _Camera] = defaultdict(_Camera)
        self._encoded = self._reused = self._failed = self._late = 0
        self._closed = False
        self._process = os.getpid()

    def put(self, image: Images, camera: str, time: float) -> None:
        """Hand in a camera's newest frame, which takes the place of one that still waits."""
        with self._locked():
            self._require_open()
            state = self._cameras[camera]
            state.dropped += state.waiting is not None
            state.waiting = Frame(image, camera, state.put, time, state.dropped)
            state.put += 1
            self._frame_came.notify()

    def next_frames(self) -> list[Frame]:
        """Wait for frames and take all that wait, one of each camera at most; none when the exchange is closed."""
        with self._lock:
            while not (frames := self._take_frames()) and not self._closed:
                self._frame_came.wait()
            return frames

    def publish(self, frame: Frame, features: EncoderOutput, reused: bool = False) -> None:
        """Hand in a frame's features, which take the place of the camera's older ones."""
        with self._lock:
            self._cameras[frame.camera].result = _Result(frame, features, reused)
            self._encoded += not reused
            self._reused += reused
            self._announce()

    def fail(self, frame: Frame, error: BaseException) -> None:
        """Hand in what went wrong with a frame."""
        with self._lock:
            self._cameras[frame.camera].error = error
            self._failed += 1
            self._announce()

    def get(self, timeout: float | None, camera: str | None) -> StreamResult:
        """Wait for a result; see `Stream.get`."""
        end = math.inf if timeout is None else monotonic() + timeout
        with self._locked():
            while (result := self._take(camera)) is None:
                self._outcome_came.wait(self._seconds_until(end, timeout, camera))
            return result

    async def get_async(self, timeout: float | None, camera: str | None) -> StreamResult:
        """Wait for a result without holding up the event loop; a call that is cancelled takes none."""
        end = math.inf if timeout is None else monotonic() + timeout
        while True:
            with self._locked():
                if (result := self._take(camera)) is not None:
                    return result
                left = self._seconds_until(end, timeout, camera)
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                with self._lock:
                    self._waiters.discard(waiter)

    @property
    def totals(self) -> StreamTotals:
        """See `Stream.totals`."""
        with self._locked():
            put, dropped = (
                sum(getattr(state, name) for state in self._cameras.values()) for name in ("put", "dropped")
            )
            return StreamTotals(put, self._encoded, self._reused, dropped, self._failed, self._late)

    def close(self) -> None:
        """Take and give nothing more; in a forked process do nothing."""
        if os.getpid() != self._process:  # a lock that another thread held when it was forked is never let go
            return
        with self._lock:
            self._closed = True
            for state in self._cameras.values():
                state.dropped += state.waiting is not None
                state.waiting = None
            self._frame_came.notify_all()
            self._announce()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within, this thread alone changes what there is; refused in a process that was forked from the stream's."""
        refuse_forked(self._process, "this stream was opened")
        with self._lock:
            yield

    def _take_frames(self) -> list[Frame]:
        taken = []
        for state in self._cameras.values():
            if state.waiting is not None:
                if self._is_late(state.waiting):
                    state.dropped += 1
                else:
                    taken.append(state.waiting)
                state.waiting = None
        return taken

    def _take(self, camera: str | None) -> StreamResult | None:
        """Take a result of a camera, or of the one whose frame is the oldest; None if there is none yet."""
        self._require_open()
        states = [state for name, state in self._cameras.items() if camera in (None, name)]
        for state in states:
            if state.error is not None:
                error, state.error = state.error, None
                raise error
            if state.result is not None and self._is_late(state.result.frame):
                state.result = None
        found = [(state.result.frame.time, number) for number, state in enumerate(states) if state.result is not None]
        return states[min(found)[1]].take() if found else None

    def _is_late(self, frame: Frame) -> bool:
        late = monotonic() - frame.time > self._max_age
        self._late += late
        return late

    def _seconds_until(self, end: float, timeout: float | None, camera: str | None) -> float | None:
        """Return how long there is to wait; None for ever.

        Raises:
            TimeoutError: the time is over.
        """
        if end == math.inf:
            return None
        if (left := end - monotonic()) > 0:
            return min(left, threading.TIMEOUT_MAX)
        counts, whose = self.totals, "" if camera is None else f" of camera {camera!r}"
        late = f", {counts.late} dropped as older than {self._max_age} s" if self._max_age < math.inf else ""
        raise TimeoutError(
            f"no new features{whose} within {timeout} s; {counts.put} frames put, {counts.encoded} encoded so far{late}"
        )

    def _announce(self) -> None:
        """Wake all that wait for a result, each of which may want another camera's."""
        self._outcome_came.notify_all()
        for waiter in self._waiters:
            with suppress(RuntimeError):  # its event loop is closed
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
        self._waiters.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the stream is closed; open another with Stream(encoder)")


class _Result(NamedTuple):
    frame: Frame
    features: EncoderOutput
    reused: bool


@dataclass
class _Camera:
    """What there is of a camera."""

    put: int = 0
    dropped: int = 0
    dropped_at_last_result: int = 0
    waiting: Frame | None = None
    result: _Result | None = None
    error: BaseException | None = None

    def take(self) -> StreamResult:
        assert self.result is not None
        (frame, features, reused), self.result = self.result, None
        dropped = frame.dropped_before - self.dropped_at_last_result
        self.dropped_at_last_result = frame.dropped_before
        age = monotonic() - frame.time
        return StreamResult(features, frame.number, frame.time, age, dropped, reused, frame.camera)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
