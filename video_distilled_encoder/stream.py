"""Features of the newest camera frame, encoded in the background, with their age and what was dropped.

>>> with Stream(encoder) as stream:       # an Encoder, or what load_runtime returns
...     camera.on_frame(stream.put)       # does not wait for the encoder
...     for result in stream:             # or stream.get(timeout=0.1)
...         act(result.features, result.age)

A camera is mostly faster than an encoder, or now and then. Frames that queue up grow old, and a robot that acts on old
features acts wrongly; so a newer frame takes the place of one that still waits, and a newer result that of one that
nobody has taken.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.errors import InputError, refuse_forked
from video_distilled_encoder.preprocessing import Images

_AHEAD = 1.0
"""Seconds that a camera's clock may be ahead."""
_OPENED = "this stream was opened"


class Encodes(Protocol):
    """An `Encoder`, a `Runtime`, or anything else that encodes images."""

    @property
    def encode(self) -> Callable[..., EncoderOutput]:
        """Return the features of images, given with options."""


class StreamResult(NamedTuple):
    """Features of one frame, as `Stream.get` returns them."""

    features: EncoderOutput
    """What `encode` returned; on a GPU the computation is over."""
    number: int
    """Which frame this is, counted from 0 in the order of `put`."""
    frame_time: float
    """Seconds on the clock `time.monotonic`: when the frame was put, or the time given with it."""
    age: float
    """Seconds from `frame_time` until the result was taken."""
    dropped: int
    """Frames since the previous result taken that were never encoded, since a newer one came while they waited."""


class StreamTotals(NamedTuple):
    """Counts of frames since the stream was opened.

    What is put is later encoded, dropped or failed; at most two frames are none of these yet: one waits, one is being
    encoded.
    """

    put: int
    encoded: int
    """Also those whose result was replaced by a newer one before it was taken."""
    dropped: int
    """Never encoded: replaced while waiting, or still waiting at `close`."""
    failed: int
    """`encode` raised an error."""


class Stream:
    """Encodes the newest frame in a thread of its own. Every method may be called from any thread.

    A stream encodes from the moment it is made until `close`, which the end of a `with` block calls.

    Args:
        encoder: an `Encoder`, a `Runtime`, or anything with their `encode`.
        options: of `encode`, such as `size` and `crop_mode`.
    """

    def __init__(self, encoder: Encodes, **options: Any) -> None:
        self._encode = partial(encoder.encode, **options)
        self._lock = threading.Lock()
        self._frame_changed = threading.Condition(self._lock)
        self._outcome_changed = threading.Condition(self._lock)
        self._waiting: _Frame | None = None
        self._result: _Result | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._put = self._encoded = self._dropped = self._failed = 0
        self._dropped_at_last_result = 0
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="encoder stream", daemon=True)
        self._thread.start()

    def put(self, frame: Images, time: float | None = None, *, copy: bool = True) -> None:
        """Hand in the newest frame; it takes the place of one that still waits. Does not wait for the encoder.

        Args:
            frame: anything `encode` takes: an array (H, W, 3), a tensor (3, H, W), a list of cameras' frames, …;
                on a GPU it must have been made on the default CUDA stream.
            time: when it was taken, in seconds on the clock `time.monotonic` (on Linux CLOCK_MONOTONIC, which camera
                drivers use too); now by default. A time up to a second ahead, as of a device whose clock runs a
                little fast, counts as now.
            copy: cameras write the next frame into the same memory, so the frame is copied here. False saves that
                for memory that nobody writes to again.

        Raises:
            InputError: the stream is closed, or this process was forked from the one that opened it, or the time lies
                more than a second in the future, so it is of another clock.
        """
        refuse_forked(self._process, _OPENED)
        now = monotonic()
        time = now if time is None else float(time)
        if not time <= now + _AHEAD:
            raise InputError(
                f"the frame's time {time} lies in the future ({now} now); give it on the clock time.monotonic()"
            )
        time = min(time, now)
        image = _copy(frame) if copy else frame
        with self._lock:
            self._require_open()
            self._dropped += self._waiting is not None
            self._waiting = _Frame(image, self._put, time)
            self._put += 1
            self._frame_changed.notify()

    def get(self, timeout: float | None = None) -> StreamResult:
        """Wait for a result newer than the last one taken, and take the newest.

        Each result is returned once, also to several threads that wait.

        Args:
            timeout: seconds to wait at most; without it, until there is one.

        Raises:
            TimeoutError: there was none in time: the camera delivers no frames, or `encode` is slower than that.
            InputError: the stream is closed, or this process was forked from the one that opened it.
            Exception: what `encode` raised since the last call; each is raised once (of several the newest), and the
                stream goes on.
        """
        refuse_forked(self._process, _OPENED)
        with self._lock:
            self._outcome_changed.wait_for(self._has_outcome, timeout)
            self._require_open()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._result is None:
                raise TimeoutError(
                    f"no new features within {timeout} s; {self._put} frames put, {self._encoded} encoded so far"
                )
            result, self._result = self._result, None
            dropped = result.dropped_before - self._dropped_at_last_result
            self._dropped_at_last_result = result.dropped_before
        return StreamResult(result.features, result.number, result.time, monotonic() - result.time, dropped)

    @property
    def totals(self) -> StreamTotals:
        """How many frames were put, encoded, dropped and failed so far; also after `close`.

        Raises:
            InputError: this process was forked from the one that opened the stream.
        """
        refuse_forked(self._process, _OPENED)
        with self._lock:
            return StreamTotals(self._put, self._encoded, self._dropped, self._failed)

    def close(self) -> None:
        """Stop. Waits for the one frame being encoded, so that afterwards nothing uses the encoder any more.

        In a process forked from the one that opened the stream nothing runs, and nothing is done.
        """
        if os.getpid() != self._process:  # a lock that another thread held when it was forked is never let go
            return
        with self._lock:
            self._closed = True
            self._dropped += self._waiting is not None
            self._waiting = None
            self._frame_changed.notify_all()
            self._outcome_changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> StreamResult:
        """Return `get()`; the iteration ends when the stream is closed."""
        try:
            return self.get()
        except _Closed:
            raise StopIteration from None

    def _work(self) -> None:
        """Encode frames until the stream is closed; the body of the thread."""
        while (taken := self._next_frame()) is not None:
            frame, dropped_before = taken
            try:
                features = self._encode(frame.image)
                _wait_for_gpu(features)
            except BaseException as error:  # else the thread would end, and get() wait for ever
                self._publish(error=error)
            else:
                self._publish(_Result(features, frame.number, frame.time, dropped_before))

    def _publish(self, result: _Result | None = None, error: BaseException | None = None) -> None:
        with self._lock:
            if result is not None:
                self._result = result
                self._encoded += 1
            else:
                self._error = error
                self._failed += 1
            self._outcome_changed.notify()

    def _next_frame(self) -> tuple[_Frame, int] | None:
        """Wait for a frame and take it, with the count of those dropped before it; None when closed."""
        with self._lock:
            self._frame_changed.wait_for(lambda: self._closed or self._waiting is not None)
            if self._waiting is None:
                return None
            frame, self._waiting = self._waiting, None
            return frame, self._dropped

    def _has_outcome(self) -> bool:
        return self._closed or self._error is not None or self._result is not None

    def _require_open(self) -> None:
        if self._closed:
            raise _Closed("the stream is closed; open another with Stream(encoder)")


class _Closed(InputError):
    pass


class _Frame(NamedTuple):
    image: Images
    number: int
    time: float


class _Result(NamedTuple):
    features: EncoderOutput
    number: int
    time: float
    dropped_before: int
    """Of all frames put before this one."""


def _copy(frame: Images) -> Images:
    """Copy what a camera may overwrite; a path is left as it is."""
    if isinstance(frame, Tensor):
        return frame.detach().clone()
    if isinstance(frame, (np.ndarray, Image.Image)):
        return frame.copy()
    if isinstance(frame, (list, tuple)):
        return [_copy(part) for part in frame]
    return frame


def _wait_for_gpu(features: EncoderOutput) -> None:
    """Wait until features are computed: a GPU's are handed out before, and would seem younger than they are."""
    if features.cls.is_cuda:
        torch.cuda.current_stream(features.cls.device).synchronize()
