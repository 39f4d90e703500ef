"""LeRobotDataset v2.0, v2.1 and v3.0: a source is a camera's view of an episode.

`meta/info.json` names the features and the files. Of v2 every episode and camera has an mp4; of v3 an mp4 holds many
episodes, and `meta/episodes` tells where in it each begins and ends. Features of dtype `image` are pictures in the
parquet files. Read with json and pyarrow; the package `lerobot` is not needed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from video_distilled_encoder.errors import InputError, first_line, import_extra, warn
from video_distilled_encoder.files import reading, sha256
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.sources.pictures import why_left_out
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, Unreadable, identity_of
from video_distilled_encoder.video import Pace, VideoFrame, VideoInfo, probe, read_frames

_BATCH = 32
"""Rows of pictures that are read at once."""


@dataclass(frozen=True)
class Episode(Source):
    """A camera's view of an episode.

    Args:
        file: the mp4, or the parquet file, that holds it.
        size: (width, height) as `info.json` has it.
        fps: rate of the data set.
        length: number of frames.
    """

    file: Path
    size: tuple[int, int]
    fps: float
    length: int

    def info(self) -> VideoInfo:
        """Return what the tables say; no file is opened."""
        return VideoInfo(*self.size, self.fps, self.length)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.camera}, episode {self.episode} of {self.path}: {error}") from error


@dataclass(frozen=True)
class VideoEpisode(Episode):
    """A stretch of an mp4, which begins at `begin` seconds of its clock, or all of it."""

    begin: float = 0.0
    alone: bool = False

    @property
    def read_whole(self) -> bool:
        """Whether it is alone in the mp4."""
        return self.alone

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the mp4 and the stretch."""
        with self._named(), reading(self.file):
            return identity_of(digest(self.file), self.begin, self.length, self.fps)

    def begins_within(self, other: VideoEpisode) -> bool:
        """Return whether it begins before another, which begins before it, ends."""
        end = other.begin + (other.length - 0.5) / other.fps
        return (self.camera, self.file) == (other.camera, other.file) and self.begin < end

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the stretch: half a frame before its first frame to half a frame before the next episode's."""
        begin, end = ((self.begin * self.fps + frame - 0.5) / self.fps for frame in (0, self.length))
        with self._named():
            if self.alone and (count := probe(self.file).frames) > self.length:
                warn(f"{self}: the last {count - self.length} frames of {self.file} are left out, as meta/ has it")
            yield from read_frames(self.file, min_interval, (begin, end), self.opener)


@dataclass(frozen=True)
class PictureEpisode(Episode):
    """A column of pictures in a parquet file, in the rows of the episode."""

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the parquet file, the column and the episode; of pictures beside it, of their paths."""
        with self._named(), reading(self.file):
            return identity_of(digest(self.file), self.camera, self.episode)

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the pictures; their times are those of the table."""
        pace, count, begin, size = Pace(min_interval, 1 / self.fps), 0, 0.0, None
        with self._named():
            for count, row in enumerate(self._rows(), 1):
                begin = row["timestamp"] if count == 1 else begin
                if not pace.keeps(row["timestamp"] - begin):
                    continue
                image = self._decode(row)
                size = size or image.shape
                if image.shape != size:
                    raise InputError(f"frame {count - 1} in {self.file} is not of the first one's size")
                yield VideoFrame(row["timestamp"] - begin, image)
            if count != self.length:
                raise InputError(f"{self.file} has {count} of its frames, and meta/ says {self.length}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        columns = ["episode_index", "timestamp", self.camera]
        with _tables(self.file) as parquet:
            file = parquet.ParquetFile(self.file)
            for group in range(file.num_row_groups):
                if not self._may_be_in(file.metadata.row_group(group)):
                    continue
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                    yield from (row for row in batch.to_pylist() if row["episode_index"] == self.episode)

    def _may_be_in(self, group: Any) -> bool:
        """Return whether this episode lies between the least and the greatest of a group of rows, if they are told."""
        columns = map(group.column, range(group.num_columns))
        ends = next((column.statistics for column in columns if column.path_in_schema == "episode_index"), None)
        return ends is None or not ends.has_min_max or bool(ends.min <= self.episode <= ends.max)

    def _decode(self, row: dict[str, Any]) -> np.ndarray:
        held = row[self.camera]
        if held.get("bytes") is None:
            return np.asarray(open_image(self.path / held["path"]))
        try:
            return np.asarray(Image.open(io.BytesIO(held["bytes"])).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"a picture in {self.file} is damaged ({first_line(error)})") from error


def recognises(path: Path) -> bool:
    """Return whether `meta/info.json` tells a version of the code base, or tables stand where it ought to.

    Without it the mp4s of v3 would pass for recordings of their own, whose clips jump from episode to episode.
    """
    if not path.is_dir():
        return False
    if any(
        (path / "meta" / table).exists() for table in ("episodes", "episodes.jsonl", "tasks.parquet", "tasks.jsonl")
    ):
        return True
    try:
        return "codebase_version" in json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def find(path: Path, asked: Asked) -> Found:
    """Return the episodes of every camera; depth is left out.

    Raises:
        InputError: a table is missing or malformed, or the version is another.
    """
    info_file = path / "meta" / "info.json"
    try:
        with reading(info_file):
            info = json.loads(info_file.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if version not in ("v2.0", "v2.1") and not version.startswith("v3."):
            raise InputError(f"{path} is a LeRobot data set of {version}; v2.0, v2.1 and v3 are read: convert it")
        cameras, left_out = _cameras(path, info["features"], asked)
        rows = list((_episodes_3 if version.startswith("v3.") else _episodes_2)(path, cameras))
        fps = float(info["fps"])
        if not fps > 0:
            raise InputError(f"{info_file} tells {fps:g} frames a second; mend it")
        sources = [_source(path, info, fps, camera, row) for camera in cameras for row in rows]
        told = int(info.get("total_episodes", len(rows)))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the tables in {path / 'meta'} are malformed ({error!r}); restore them") from error
    if cameras and not sources:
        raise InputError(f"{path / 'meta'} names no episode; restore its tables")
    found = Found(list(_apart(sorted(sources, key=_place))), left_out)
    if told != len(rows):
        few = InputError(f"{path / 'meta'} names {len(rows)} episodes, and info.json tells {told}; restore its tables")
        found.sources.append(Unreadable(path, path.name, str(path), few))
    return found


def _apart(sources: Iterable[Source]) -> Iterator[Source]:
    """Yield the sources; of stretches of an mp4 that overlap, as damaged tables have them, the later says so."""
    before: Source | None = None
    for source in sources:
        if isinstance(before, VideoEpisode) and isinstance(source, VideoEpisode) and source.begins_within(before):
            said = f"{source} begins before episode {before.episode} ends in {source.file}; restore the tables in meta/"
            yield _unreadable(source, InputError(said))
        else:
            yield source
        before = source


def _unreadable(source: Source, error: InputError) -> Unreadable:
    where = source.path, source.name, source.group
    return Unreadable(*where, error, camera=source.camera, episode=source.episode)


def _place(source: Any) -> tuple[str, str, float, int]:
    """Return what orders the sources: files are read from front to back."""
    return source.camera, str(getattr(source, "file", "")), getattr(source, "begin", 0.0), source.episode


def _cameras(path: Path, features: dict[str, Any], asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Return the features that are pictures in colour, and what is left out."""
    cameras: dict[str, Any] = {}
    left_out = []
    for key, feature in features.items():
        if feature["dtype"] not in ("video", "image"):
            continue
        facts = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        if facts.get("video.is_depth_map") or facts.get("is_depth_map"):
            left_out.append(f"{path}, {key}: depth")
        elif why := why_left_out(key, asked.cameras):
            left_out.append(f"{path}, {key}: {why}")
        else:
            cameras[key] = feature
    if not cameras:
        left_out.append(f"{path}: a LeRobot data set without pictures")
    return cameras, left_out


def _source(path: Path, info: dict[str, Any], fps: float, camera: str, row: dict[str, Any]) -> Source:
    feature, number, length = info["features"][camera], int(row["episode_index"]), int(row["length"])
    size = dict(zip(feature.get("names") or (), feature["shape"], strict=False))
    height, width = (size.get(side, feature["shape"][place]) for place, side in enumerate(("height", "width")))
    is_video = feature["dtype"] == "video"
    prefix = f"videos/{camera}/" if is_video else "data/"
    file = info["video_path" if is_video else "data_path"].format(
        video_key=camera,
        episode_index=number,
        episode_chunk=number // int(info.get("chunks_size", 1000)),
        chunk_index=row.get(f"{prefix}chunk_index"),
        file_index=row.get(f"{prefix}file_index"),
    )
    facts: dict[str, Any] = {"camera": camera, "episode": number, "file": path / file, "fps": fps, "length": length}
    where = path, f"{path.name}/{camera}/episode_{number:06d}", f"{path}/{camera}"
    if not is_video:
        return PictureEpisode(*where, **facts, size=(width, height))
    begin = float(row.get(f"{prefix}from_timestamp", 0.0))
    seconds = float(row.get(f"{prefix}to_timestamp", length / fps)) - begin
    alone = f"{prefix}from_timestamp" not in row
    source = VideoEpisode(*where, **facts, size=(width, height), begin=begin, alone=alone)
    if abs(seconds * fps - length) <= 0.5:
        return source
    said = (
        f"{path / 'meta'} says of episode {number} that it has {length} frames, and that {camera} shows it for "
        f"{seconds:g} s, which are {seconds * fps:g} frames at {fps:g} a second; restore its tables"
    )
    return _unreadable(source, InputError(said))


def _episodes_2(path: Path, cameras: Iterable[str]) -> Iterator[dict[str, Any]]:
    table = path / "meta" / "episodes.jsonl"
    with reading(table), table.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _episodes_3(path: Path, cameras: Iterable[str]) -> Iterator[dict[str, Any]]:
    folder = path / "meta" / "episodes"
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no table of episodes (*.parquet); restore it")
    for file in files:
        with _tables(file) as parquet:
            table = parquet.ParquetFile(file)
            wanted = [name for name in table.schema_arrow.names if not name.startswith(("stats/", "tasks"))]
            yield from table.read(columns=wanted).to_pylist()


@contextmanager
def _tables(file: Path) -> Iterator[Any]:
    """Yield pyarrow's parquet, its errors over a file turned into sentences."""
    arrow = import_extra("pyarrow", "robot")
    parquet = import_extra("pyarrow.parquet", "robot")
    with reading(file):
        try:
            yield parquet
        except OSError as error:  # pyarrow's own mean damaged pages
            if error.errno is not None:
                raise
            raise InputError(f"{file} is damaged ({first_line(error)}); restore it") from error
        except (arrow.ArrowException, KeyError) as error:
            raise InputError(f"{file} is damaged or no such table ({first_line(error)}); restore it") from error
