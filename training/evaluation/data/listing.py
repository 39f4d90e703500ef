"""What stands in lists, and files by their names."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from video_distilled_encoder.errors import InputError


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return paths by their names without suffix.

    Raises:
        InputError: two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path.name} have one name; remove the one that is not meant")
        found[path.stem] = path
    return found


def read_list(path: Path) -> list[str]:
    """Return the lines of a list that are not empty, without the white space around them.

    A byte-order mark is no part of the first line; names may hold spaces, and bytes that are no UTF-8.

    Raises:
        InputError: the list is missing.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16", "replace") if utf16 else content.decode("utf-8-sig", "surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_use(line: str) -> tuple[str, str]:
    """Return the name of a video in a list, which may hold spaces, and the word behind it that says what it is for."""
    name, *use = line.rsplit(maxsplit=1)
    return name, use[0] if use else ""
