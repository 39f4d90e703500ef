"""Zarr, v2 and v3, in a folder or a ZIP file, as diffusion policy and UMI write it.

A source is a camera's view of an episode. `data/CAMERA` holds the pictures of all episodes, and `meta/episode_ends`
tells where each ends.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from video_distilled_encoder.errors import InputError, MissingExtra, first_line, import_extra
from video_distilled_encoder.files import reading, sha256
from video_distilled_encoder.sources.arrays import ArrayEpisode, size_of, why_no_pictures
from video_distilled_encoder.sources.counted import WITHOUT_CLOCK
from video_distilled_encoder.sources.pictures import why_left_out
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, Unreadable, begins_with, identity_of

SUFFIXES = (".zarr.zip",)
_GROUPS = (".zgroup", "zarr.json")
_ENDS = "meta/episode_ends"


@dataclass(frozen=True)
class ZarrEpisode(ArrayEpisode):
    """A stretch of an array."""

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the ZIP file, or of the chunks that hold the stretch, and of how it is read."""
        with reading(self.path):
            content = digest(*self._chunks()) if self.path.is_dir() else digest(self.path)
        return identity_of(content, self.key, self.begin, self.length, self.fps, self.bgr)

    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray | bytes]]:
        """Read the chunks; Zarr would show those that are missing as black."""
        if self.path.is_dir():
            self._chunks()
        yield from super().pictures(keeps)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the array."""
        with _opened(self.path) as group:
            yield group[self.key]

    def _chunks(self) -> list[Path]:
        """Return the array's description and the files that hold the stretch, by the names that Zarr gives them.

        Raises:
            InputError: one is missing.
        """
        folder = self.path / self.key
        facts = folder / ".zarray"
        with reading(self.path):
            if facts.is_file():
                said = json.loads(facts.read_text(encoding="utf-8"))
                sides, prefix, separator = said["chunks"], [], said.get("dimension_separator", ".")
            else:
                facts = folder / "zarr.json"
                said = json.loads(facts.read_text(encoding="utf-8"))
                sides, naming = said["chunk_grid"]["configuration"]["chunk_shape"], said["chunk_key_encoding"]
                prefix = ["c"] if naming["name"] == "default" else []
                separator = naming.get("configuration", {}).get("separator", "/" if prefix else ".")
        ranges = [range(-(-length // side)) for length, side in zip(said["shape"], sides, strict=True)]
        ranges[0] = range(self.begin // sides[0], -(-(self.begin + self.length) // sides[0]))
        files = [folder / separator.join([*prefix, *map(str, place)]) for place in product(*ranges)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise InputError(
                f"{self}: {missing[0].relative_to(self.path)} is missing, and {len(missing) - 1} more of its "
                f"{len(files)} chunks; copy the data set whole"
            )
        return [facts, *files]


def recognises(path: Path) -> bool:
    """Return whether a folder, or a ZIP file, holds a group of Zarr's."""
    if path.is_dir():
        return any((path / name).is_file() for name in _GROUPS)
    if not begins_with(path, b"PK\x03\x04"):
        return False
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name in _GROUPS for name in archive.namelist())
    with suppress(OSError), path.open("rb") as file:  # it is cut: its first name is left
        return any(name.encode() in file.read(100) for name in (*_GROUPS, ".zarray"))
    return False


def find(path: Path, asked: Asked) -> Found:
    """Return the episodes of the arrays of pictures in colour, if their rate is told.

    Raises:
        InputError: the data set is damaged, or does not tell where episodes end.
    """
    with _opened(path) as group:
        if _ENDS not in group:
            return Found([], [f"{path}: a Zarr without {_ENDS}, which tells where episodes end"])
        ends = np.asarray(group[_ENDS][:], np.int64)
        if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise InputError(f"{path}: {_ENDS} does not ascend; restore it")
        found = Found([])
        arrays = {}
        for name, array in sorted(group["data"].arrays()):
            why = why_no_pictures(array)
            if why == "":
                why = why_left_out(name, asked.cameras)
            if why:
                found.left_out.append(f"{path}, {name}: {why}")
            elif why is not None:
                arrays[name] = array.shape[0], size_of(array)
    if not arrays and not found.left_out:
        found.left_out.append(f"{path}: no arrays of pictures")
    if arrays and asked.fps is None:
        found.left_out.append(f"{path}: {len(arrays)} arrays of pictures {WITHOUT_CLOCK}")
        return found
    for name, (length, size) in arrays.items():
        found.sources += _episodes(path, name, length, size, ends.tolist(), asked)
        if length > ends[-1]:
            found.left_out.append(f"{path}, {name}: {length - ends[-1]} pictures behind the last episode's end")
    return found


def _episodes(
    path: Path, camera: str, length: int, size: tuple[int, int], ends: list[int], asked: Asked
) -> Iterator[Source]:
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        name, group = f"{path.name}/{camera}/episode_{number:06d}", f"{path}/{camera}"
        facts: dict[str, Any] = {"camera": camera, "episode": number}
        if end > length:
            error = InputError(
                f"{path}, episode {number}: {_ENDS} has it end at {end}, and {camera} holds {length} pictures; mend it"
            )
            yield Unreadable(path, name, group, error, **facts)
        else:
            yield ZarrEpisode(
                path, name, group, asked.fps or 0.0, end - begin, size, f"data/{camera}", begin, bgr=asked.bgr, **facts
            )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    zarr = import_extra("zarr", "robot")
    storage = import_extra("zarr.storage", "robot")
    with suppress(ImportError):  # the codecs of UMI's JPEG XL
        import_module("imagecodecs.numcodecs").register_codecs(verbose=False)
    with reading(path):
        try:
            store: Any = None if path.is_dir() else storage.ZipStore(path, mode="r")
            try:
                yield zarr.open_group(str(path) if store is None else store, mode="r")
            finally:
                with suppress(AttributeError):  # it was never opened, or is none
                    store.close()
        except (InputError, MissingExtra):
            raise
        except Exception as error:  # those of the codecs too
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = first_line(error)
            if "imagecodecs" in said:
                raise InputError(
                    f"{path} holds pictures of a codec that imagecodecs reads ({said}), which is not installed: pip "
                    "install 'video_distilled_encoder[robot]'"
                ) from error
            raise InputError(f"{path} is damaged, or was not written to its end ({said})") from error
