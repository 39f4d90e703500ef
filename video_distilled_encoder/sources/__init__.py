"""Sources of frames, one reader a file, found by what the data is.

A reader's module has what no other here has:

    recognises(path)        whether it reads the file or folder, told by what is in it; it opens little for that
    find(path, asked)       the sources there, and what is left out (`source.Found`), before anything is decoded

and optionally SUFFIXES, of files that it ought to recognise: those of which nothing is left are named, not passed over.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from video_distilled_encoder.errors import InputError, MissingExtra, warn
from video_distilled_encoder.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from video_distilled_encoder.sources.source import Asked, Found, Source, Unreadable

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
_LAST = "video_files"
"""Takes any file, so it is asked when no other reader knows it."""
_PICTURES = "frame_folders"
_PICTURE_FILES = IMAGE_SUFFIXES - VIDEO_SUFFIXES
_NAMED = 5
"""So many of the things left out are named one by one."""


def find_sources(paths: Iterable[Path], asked: Asked | None = None, each: Each = map) -> list[Source]:
    """Return the sources that paths hold; folders are searched. A warning names what is left out.

    Args:
        paths: files and folders.
        asked: cameras and episodes, and the rate of what has no clock.
        each: `map`, or what does the same in several processes.

    Raises:
        InputError: a path does not exist or holds no source, nothing of it is asked for, or the only data set there is
            damaged; of several, those that are damaged say so when they are read.
    """
    found = look_for_sources(paths, asked, each)
    if found.left_out:
        more = len(found.left_out) - _NAMED
        lines = found.left_out[:_NAMED] + [f"and {more} more, which --list names"] * (more > 0)
        warn("left out: " + "; ".join(lines))
    return found.sources


def look_for_sources(paths: Iterable[Path], asked: Asked | None = None, each: Each = map) -> Found:
    """Return the sources that paths hold, and what is left out.

    Raises:
        InputError: as `find_sources`.
    """
    asked = asked or Asked()
    found, paths, places = Found([]), list(paths), []
    for path in paths:
        inside = find_files(path, VIDEO_SUFFIXES, known)
        if not inside:
            raise InputError(f"the directory {path} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        places += inside
    for here in each(partial(_find, asked=asked, alone=len(places) == 1), places):
        found.sources += here.sources
        found.left_out += here.left_out
    where = ", ".join(map(str, paths))
    if not found.sources:
        raise InputError(f"nothing is left to read in {where}: {'; '.join(found.left_out[:_NAMED])}")
    return Found(_chosen(where, found.sources, asked), found.left_out)


def is_data_set(path: Path) -> bool:
    """Return whether a file or folder is a robot's recording or data set: neither a video nor a folder of pictures."""
    readers = (reader for reader in _readers()[:-1] if reader.__name__.rpartition(".")[2] != _PICTURES)
    return _is_called_so(path) or any(reader.recognises(path) for reader in readers)


def known(path: Path) -> bool:
    """Return whether a reader other than that of video files knows what a file or folder holds."""
    # of many pictures none need be opened for it
    return path.suffix.lower() not in _PICTURE_FILES and (
        _is_called_so(path) or any(reader.recognises(path) for reader in _readers()[:-1])
    )


def _is_called_so(path: Path) -> bool:
    """Return whether a file has a recording's name, whatever is left of it."""
    return path.name.lower().endswith(_suffixes()) and path.is_file()


@cache
def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for reader in _readers() for suffix in getattr(reader, "SUFFIXES", ()))


def _find(path: Path, asked: Asked, alone: bool) -> Found:
    """Return what a reader finds; one of several recordings that is damaged stands among them until it is read."""
    try:
        return _reader(path).find(path, asked)
    except MissingExtra:
        raise
    except InputError as error:
        if alone:
            raise
        return Found([Unreadable(path, path.name, str(path.parent), error)])


def _reader(path: Path) -> ModuleType:
    # a folder that cannot be listed stands among the files too: the last reader says why
    return next((reader for reader in _readers() if reader.recognises(path)), _readers()[-1])


def _chosen(where: str, sources: list[Source], asked: Asked) -> list[Source]:
    """Return the sources whose camera and episode are asked for; what has none is always."""
    cameras = sorted({source.camera for source in sources})
    chosen = [source for source in sources if not source.camera or fnmatchcase(source.camera, asked.cameras)]
    if not chosen:
        raise InputError(f"no camera of {where} is called {asked.cameras!r}; there are: {', '.join(cameras)}")
    episodes = [source.episode for source in chosen if source.episode is not None]
    chosen = [s for s in chosen if s.episode is None or asked.episodes is None or s.episode in asked.episodes]
    if not chosen and asked.episodes is not None:
        raise InputError(
            f"{where} has none of the episodes asked for; its episodes are {min(episodes)} to {max(episodes)}"
        )
    return chosen


@cache
def _readers() -> list[ModuleType]:
    names = sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name == _LAST, name))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [module for module in modules if hasattr(module, "recognises")]
