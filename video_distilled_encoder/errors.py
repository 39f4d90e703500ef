"""Errors a user can mend, and how the commands report them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Something handed in from outside is wrong; the message is one sentence: what, where, and the mend."""


class MissingExtra(InputError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'video_distilled_encoder[{extra}]'")


def command(main: Callable[[], None]) -> Callable[[], NoReturn]:
    """Turn `main` into a command: an `InputError` becomes one line on stderr and exit status 1."""

    @functools.wraps(main)
    def run() -> NoReturn:
        try:
            main()
        except InputError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(0)

    return run
