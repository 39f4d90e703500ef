"""Errors a user can mend, and how the commands report them."""

from __future__ import annotations

import errno
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Something handed in from outside is wrong; the message is one sentence: what, where, and the mend."""


class MissingExtra(InputError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'video_distilled_encoder[{extra}]'")


def first_line(error: Exception) -> str:
    """Return the first line of an error of another library, whose messages may be long, or empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(module.split(".")[0], extra) from error


def import_pyplot(extra: str) -> Any:
    """Import matplotlib's pyplot, drawing to files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    import_extra("matplotlib", extra).use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def command(main: Callable[[], None]) -> Callable[[], NoReturn]:
    """Turn `main` into a command: an `InputError`, or a full disk, becomes one line on stderr and exit status 1."""

    @functools.wraps(main)
    def run() -> NoReturn:
        try:
            main()
        except InputError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            if error.errno not in _FULL:
                raise
            sys.exit(f"error: cannot write {error.filename or 'a file'}: {error.strerror}; make room and run it again")
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(0)

    return run
