"""Being asked to stop: SIGTERM and Ctrl-C end a run after its step, with all that a run leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_asked = False


def asked() -> bool:
    """Tell whether the process, which is listening, was asked to stop."""
    return _asked


@contextmanager
def listening() -> Iterator[None]:
    """Within, the two signals are only noted; a second Ctrl-C ends the process at once. For commands alone."""
    global _asked
    old = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        _asked = False
        for number, handler in old.items():
            signal.signal(number, handler)


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked = True
