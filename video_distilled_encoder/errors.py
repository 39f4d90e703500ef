"""Errors a user can mend, and how the commands report them."""

from __future__ import annotations

import errno
import functools
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Something handed in from outside is wrong; the message is one sentence: what, where, and the mend."""


class CannotWrite(InputError):
    """A result cannot be written: of several inputs the next would fail as well."""


class InputWarning(UserWarning):
    """Something handed in is used otherwise than its owner may expect; the message is one sentence that says how."""


class MissingExtra(InputError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        self._arguments = package, extra
        super().__init__(f"{package} is not installed; install it with: pip install 'video_distilled_encoder[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, self._arguments  # so that it comes back from another process


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
    except (ImportError, OSError) as error:
        lacks = "" if isinstance(error, ModuleNotFoundError) else f" with its libraries ({first_line(error)})"
        raise MissingExtra(module.split(".")[0] + lacks, extra) from error


def import_pyplot(extra: str) -> Any:
    """Import matplotlib's pyplot, drawing to files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    import_extra("matplotlib", extra).use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def warn(message: str) -> None:
    """Say in one sentence how something handed in is used."""
    warnings.warn(message, InputWarning, stacklevel=2)


def refuse_failed(failed: Sequence[InputError], total: int, what: str) -> None:
    """Name the inputs that failed, when all others of `total` are done.

    Raises:
        InputError: there are some.
    """
    if failed and total == 1:
        raise failed[0]
    if failed:
        lines = "\n  ".join(dict.fromkeys(map(str, failed)))
        raise InputError(f"{len(failed)} of {total} {what}:\n  {lines}")


def refuse_forked(process: int, what: str) -> None:
    """Refuse to use, in a process that was forked, what its parent has made: threads and locks do not come along.

    Args:
        process: number of the process that made it.
        what: it was, and how.

    Raises:
        InputError: this is another process.
    """
    if os.getpid() != process:
        raise InputError(
            f"{what} before this process was forked, and its threads stayed behind; do that in the process that uses "
            "it, and start processes with multiprocessing.get_context('spawn')"
        )


_usual_format = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, InputWarning):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def prepare_output() -> None:
    """Have any character printed in any encoding, and an `InputWarning` as one line, without its place in the code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _format_warning


def tidy_at_sigterm() -> None:
    """Have SIGTERM, which schedulers and containers send, end the process as Ctrl-C does: nothing half-made stays."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def command(main: Callable[[], None]) -> Callable[[], NoReturn]:
    """Turn `main` into a command: an `InputError`, or a full disk, becomes one line on stderr and exit status 1."""

    @functools.wraps(main)
    def run() -> NoReturn:
        prepare_output()
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
