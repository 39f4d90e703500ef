"""HDF5 files of pictures: a source is a camera's view of an episode.

ALOHA and ACT write a file an episode (`observations/images/CAMERA`, raw or as JPEGs), robomimic and LIBERO many into
one (`data/demo_7/obs/CAMERA`); other files are read whose arrays lie in groups of such names.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import counted, reading, sha256
from video_distilled_encoder.sources.arrays import ArrayEpisode, size_of, why_no_pictures
from video_distilled_encoder.sources.counted import WITHOUT_CLOCK
from video_distilled_encoder.sources.pictures import why_left_out
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, Unreadable, begins_with, identity_of

SUFFIXES = (".hdf5", ".h5")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_EPISODE = re.compile(r"(?:demo|episode|ep|traj|trajectory)[_-]?(\d+)")
_NO_CAMERA = {"data", "obs", "observation", "observations", "image", "images"}
"""Groups whose names tell nothing of the camera."""


@dataclass(frozen=True)
class Hdf5Episode(ArrayEpisode):
    """An array of an HDF5 file."""

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the file, the array and how it is read."""
        with reading(self.path):
            return identity_of(digest(self.path), self.key, self.fps, self.flip, self.bgr)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the array."""
        with _opened(self.path) as file:
            yield file[self.key]


def recognises(path: Path) -> bool:
    """Return whether a file begins as an HDF5 file does."""
    return begins_with(path, _MAGIC)


def find(path: Path, asked: Asked) -> Found:
    """Return the arrays of pictures in colour, if their rate is told.

    Raises:
        InputError: the file is damaged.
    """
    with _opened(path) as file:
        views, left_out = _views(path, file, asked)
        fps = _control_rate(file) or asked.fps
        if not views and not left_out:
            left_out.append(f"{path}: no arrays of pictures")
        if fps is None:
            return Found([], left_out + [f"{path}: {len(views)} arrays of pictures {WITHOUT_CLOCK}"] * bool(views))
        # as robosuite says of what OpenGL draws
        flip = any(group.attrs.get("macros_image_convention") == "opengl" for group in (file, file.get("data", file)))
        lengths: dict[str, dict[str, int]] = defaultdict(dict)
        for view in views:
            lengths[view.group][view.key] = view.length
        for group, told in lengths.items():
            if group and (samples := file[group].attrs.get("num_samples")) is not None:
                told["num_samples"] = int(samples)
        return Found([_source(path, view, lengths[view.group], fps, flip, asked) for view in views], left_out)


class _View(NamedTuple):
    key: str
    """Name of the array."""
    group: str
    """Of the episode; "" if the file is one."""
    camera: str
    episode: int | None
    length: int
    size: tuple[int, int]


def _view(path: Path, key: str, length: int, size: tuple[int, int]) -> _View:
    parts = key.split("/")
    place = next((number for number, part in enumerate(parts[:-1]) if _EPISODE.fullmatch(part)), -1)
    numbers = re.findall(r"\d+", parts[place] if place >= 0 else path.stem)
    camera = "/".join(part for part in parts[place + 1 :] if part not in _NO_CAMERA) or parts[-1]
    episode = int(numbers[-1]) if numbers else None
    return _View(key, "/".join(parts[: place + 1]), camera, episode, length, size)


def _views(path: Path, file: Any, asked: Asked) -> tuple[list[_View], list[str]]:
    """Return the arrays whose pictures are read, and why others are not, a line a camera."""
    views: list[_View] = []
    left_out: dict[str, None] = {}

    h5py = import_extra("h5py", "robot")

    def visit(name: bytes) -> None:
        found = h5py.h5o.open(file.id, name)
        if not isinstance(found, h5py.h5d.DatasetID) or (found.rank < 3 and found.dtype.kind in "fib"):
            return  # what h5py makes of it would take ten times as long
        item, key = h5py.Dataset(found), name.decode("utf-8", "surrogateescape")
        if (why := why_no_pictures(item)) is None:
            return
        view = _view(path, key, item.shape[0], size_of(item))
        step_later = "the same pictures, a step later" if "next_obs" in key else ""
        if why := why or step_later or why_left_out(view.camera, asked.cameras):
            left_out[f"{path}, {view.camera}: {why}"] = None
        else:
            views.append(view)

    h5py.h5o.visit(file.id, visit)
    return sorted(views, key=lambda view: counted(view.key)), list(left_out)


def _source(path: Path, view: _View, lengths: dict[str, int], fps: float, flip: bool, asked: Asked) -> Source:
    if view.group:
        name, group = f"{path.name}/{view.camera}/{view.group.rpartition('/')[2]}", f"{path}/{view.camera}"
    else:
        name, group = f"{path.parent.name}/{view.camera}/{path.stem}", f"{path.parent}/{view.camera}"
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        error = InputError(f"{path}, episode {view.episode}: its lengths differ: {told}; mend or leave it out")
        return Unreadable(path, name, group, error, camera=view.camera, episode=view.episode)
    return Hdf5Episode(
        path,
        name,
        group,
        fps,
        view.length,
        view.size,
        view.key,
        flip=flip,
        bgr=asked.bgr,
        camera=view.camera,
        episode=view.episode,
    )


def _control_rate(file: Any) -> float | None:
    """Return the steps a second that robomimic's description of the environment tells."""
    try:
        return float(json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"])
    except (LookupError, ValueError, TypeError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = import_extra("h5py", "robot")
    with reading(path):
        try:
            with h5py.File(path, "r", locking=False) as file:
                yield file
        except InputError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"{path} is damaged, or was not written to its end ({first_line(error)})") from error
