"""One recording at a time: while a CUDA graph is recorded, no other runtime of this process uses a GPU.

torch allows a process one recording at a time, and CUDA breaks one off when any thread waits for the whole device; one
of ONNX Runtime, which records in CUDA's global mode, even when any thread allocates memory or waits for a stream. Only
runtimes of this package wait for one another: other code that uses a GPU in other threads should begin when each batch
size has been run once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Many threads may be inside together, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()
        self._alone: int | None = None
        self._wanting = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within, no other thread is alone."""
        me = threading.get_ident()
        if me == self._alone or me in self._inside:
            yield
            return
        with self._changed:
            # Who wants to be alone goes first, or others that come and go would keep it waiting.
            self._changed.wait_for(lambda: self._alone is None and not self._wanting)
            self._inside.add(me)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(me)
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no other thread is inside; one that is inside itself leaves until then, and is again afterwards."""
        me = threading.get_ident()
        with self._changed:
            was_inside = me in self._inside
            self._inside.discard(me)
            self._wanting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._alone is None and not self._inside)
            self._wanting -= 1
            self._alone = me
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                if was_inside:
                    self._inside.add(me)
                self._changed.notify_all()


gpus = Gate()
"""Of all GPUs of the process: CUDA's rules hold for all its threads, on whichever GPU they work."""
