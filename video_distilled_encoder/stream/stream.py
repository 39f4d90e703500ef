"""The face of a stream: put, get, close."""

from __future__ import annotations

import atexit
import ctypes
import threading
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.preprocessing import Images
from video_distilled_encoder.stream.exchange import Closed, Exchange, StreamResult, StreamTotals
from video_distilled_encoder.stream.work import copy_image, work

_AHEAD = 1.0
"""Seconds that a camera's clock may be ahead."""
_LAST_CALL = 2.0
"""Seconds that the end of the process waits for calls of encoders that still run."""


class Encodes(Protocol):
    """An `Encoder`, a `Runtime`, or anything else that encodes images."""

    @property
    def encode(self) -> Callable[..., EncoderOutput]:
        """Return the features of images, given with options."""


class Stream:
    """Encodes the newest frames in a thread of its own. Every method may be called from any thread.

    A stream encodes from the moment it is made until `close`, which the end of a `with` block calls, or until nobody
    holds it any more.

    Args:
        encoder: an `Encoder`, a `Runtime`, or anything with their `encode`. Frames of several cameras reach it as a
            list; where that call fails, as for cameras whose images come out at different sizes, one after another.
        max_age: seconds after which a frame is no longer encoded, and a result no longer given; both are counted.
        options: of `encode`, such as `size` and `crop_mode`.

    Raises:
        InputError: `max_age` is not more than 0.
    """

    def __init__(self, encoder: Encodes, *, max_age: float | None = None, **options: Any) -> None:
        self._exchange = Exchange(max_age)
        self._thread = threading.Thread(
            target=work, args=(self._exchange, partial(encoder.encode, **options)), name="encoder stream", daemon=True
        )
        self._thread.start()
        _running[self._thread] = self._exchange
        weakref.finalize(self, self._exchange.close).atexit = False

    def put(self, frame: Images, time: float | None = None, *, camera: str = "", copy: bool = True) -> None:
        """Hand in a camera's newest frame; it takes the place of one that still waits. Does not wait for the encoder.

        Args:
            frame: anything `encode` takes: an array (H, W, 3), a tensor (3, H, W), a list of frames of one moment, …;
                on a GPU it must have been made on the default CUDA stream.
            time: when it was taken, in seconds on the clock `time.monotonic` (on Linux CLOCK_MONOTONIC, which camera
                drivers use too); now by default. A time up to a second ahead, as of a device whose clock runs a
                little fast, counts as now.
            camera: its name, where there are several.
            copy: cameras write the next frame into the same memory, so the frame is copied here. False saves that
                for memory that nobody writes to again.

        Raises:
            InputError: the stream is closed, or this process was forked from the one that opened it, or the time lies
                more than a second in the future, so it is of another clock.
        """
        now = monotonic()
        time = now if time is None else float(time)
        if not time <= now + _AHEAD:
            raise InputError(
                f"the frame's time {time} lies in the future ({now} now); give it on the clock time.monotonic()"
            )
        self._exchange.put(copy_image(frame) if copy else frame, camera, min(time, now))

    def get(self, timeout: float | None = None, *, camera: str | None = None) -> StreamResult:
        """Wait for a result newer than the last one taken, and take the newest.

        Each result is returned once, also to several threads that wait.

        Args:
            timeout: seconds to wait at most; without it, until there is one.
            camera: whose; by default of any camera, the one with the oldest frame first.

        Raises:
            TimeoutError: there was none in time: the camera delivers no frames, or `encode` is slower than that.
            InputError: the stream is closed, or this process was forked from the one that opened it.
            Exception: what `encode` raised since the last call; each is raised once (of several of a camera the
                newest), and the stream goes on.
        """
        return self._exchange.get(timeout, camera)

    async def get_async(self, timeout: float | None = None, *, camera: str | None = None) -> StreamResult:
        """Await what `get` waits for, in asyncio; arguments and errors as there.

        No thread waits for it. A call that is cancelled has taken no result.
        """
        return await self._exchange.get_async(timeout, camera)

    @property
    def totals(self) -> StreamTotals:
        """How many frames were put, encoded, reused, dropped, failed and late so far; also after `close`.

        Raises:
            InputError: this process was forked from the one that opened the stream.
        """
        return self._exchange.totals

    def close(self, timeout: float | None = None) -> bool:
        """Stop, and wait for the call of the encoder that is running.

        In a process forked from the one that opened the stream nothing runs, and nothing is done.

        Args:
            timeout: seconds to wait at most; without it, until the call is over.

        Returns:
            Whether it is over, so that nothing uses the encoder any more. If not, its thread ends when it is, and the
            process need not wait for it.
        """
        self._exchange.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

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
        except Closed:
            raise StopIteration from None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> StreamResult:
        """Return `await get_async()`; the iteration ends when the stream is closed."""
        try:
            return await self.get_async()
        except Closed:
            raise StopAsyncIteration from None


_running: weakref.WeakKeyDictionary[threading.Thread, Exchange] = weakref.WeakKeyDictionary()


@atexit.register
def _end_all() -> None:
    """Close streams that nobody has closed.

    A thread that returns from C++ code when the interpreter is gone ends the process by abort. So calls that run get a
    little time, then an exception where they come back to Python; those that do not are not waited for.
    """
    for exchange in list(_running.values()):
        exchange.close()
    _join_all(_LAST_CALL)
    for thread in list(_running):
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    _join_all(_LAST_CALL / 4)


def _join_all(seconds: float) -> None:
    end = monotonic() + seconds
    for thread in list(_running):
        thread.join(max(0, end - monotonic()))
