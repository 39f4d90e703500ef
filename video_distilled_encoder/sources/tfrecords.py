"""RLDS data sets as TFDS writes them, read without TensorFlow: a source is a camera's view of an episode.

`features.json` names what a step holds, and each record of the `tfrecord` files is an episode: a `tf.train.Example`
whose `steps/observation/CAMERA` lists the pictures as JPEG or PNG files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import reading, sha256
from video_distilled_encoder.sources.counted import WITHOUT_CLOCK, Counted
from video_distilled_encoder.sources.pictures import why_left_out
from video_distilled_encoder.sources.protobuf import read_fields, read_varint
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, Unreadable, identity_of
from video_distilled_encoder.video import VideoInfo

_BYTES_LIST, _INT64_LIST = 1, 3
_STEPS = "steps/is_first"
"""Every step has it."""
_HEAD, _TAIL = 12, 4
"""Bytes before and behind a record's content: its length and the length's checksum, and the content's."""


@dataclass(frozen=True)
class RecordEpisode(Counted):
    """A list of picture files in a record."""

    file: Path
    key: str
    """Of the list in the record: steps/observation/CAMERA."""
    offset: int
    """Of the record's content in the file."""
    size: int
    """Of the content, in bytes."""
    shape: tuple[int, int]
    """Width and height in pixels, 0 if they are not told."""

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the file, the record and how it is read."""
        with reading(self.file):
            return identity_of(digest(self.file), self.key, self.offset, self.fps, self.bgr)

    def pictures(self, keeps: Callable[[int], bool]) -> Iterator[tuple[int, bytes]]:
        """Read the record, and compare its checksum."""
        with reading(self.file), self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size + _TAIL)
        checksum = import_extra("google_crc32c", "robot").value(content[: self.size])
        if _masked(checksum) != int.from_bytes(content[self.size :], "little"):
            raise InputError(f"its record in {self.file} is damaged: the checksum is another; restore the file")
        for number, picture in enumerate(_pictures(content[: self.size], self.key)):
            if keeps(number):
                yield number, bytes(picture)

    def info(self) -> VideoInfo:
        """Return the size that `features.json` tells, and the number of steps in the record."""
        with self._named(), reading(self.file), self.file.open("rb") as file:
            return VideoInfo(*self.shape, self.fps, _count_steps(file, self.offset, self.offset + self.size))


def recognises(path: Path) -> bool:
    """Return whether a folder holds TFDS's description of a data set, or a half of it beside records."""
    there = [(path / name).is_file() for name in ("features.json", "dataset_info.json")]
    return all(there) or (any(there) and any(path.glob("*.tfrecord-*")))


def find(path: Path, asked: Asked) -> Found:
    """Return the episodes of each camera, if their rate is told.

    Raises:
        InputError: the descriptions are damaged, or there are no records.
    """
    try:
        features, facts = _described(path / "features.json"), _described(path / "dataset_info.json")
        cameras, left_out = _cameras(path, features, asked)
        lengths = {split["name"]: list(map(int, split["shardLengths"])) for split in facts["splits"]}
        if facts.get("fileFormat", "tfrecord") != "tfrecord" or not facts["name"]:
            raise InputError(f"{path} holds {facts['fileFormat']} files, and tfrecord files are read; convert it")
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: features.json or dataset_info.json is malformed ({error!r}); restore it") from error
    if cameras and asked.fps is None:
        return Found([], [*left_out, f"{path}: {', '.join(cameras)} {WITHOUT_CLOCK}"])
    found = Found([], left_out or [f"{path}: no pictures in its steps"] * (not cameras))
    episode = 0
    for split, shards in lengths.items():
        for shard, length in enumerate(shards):
            file = path / f"{facts['name']}-{split}.tfrecord-{shard:05d}-of-{len(shards):05d}"
            found.sources += _episodes(path, file, episode, length, cameras, asked)
            episode += length
    return found


def _described(file: Path) -> Any:
    with reading(file):
        return json.loads(file.read_text(encoding="utf-8"))


def _cameras(path: Path, features: dict[str, Any], asked: Asked) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return the pictures in colour of a step with their (width, height), and what is left out."""
    cameras, left_out = {}, []
    for key, said in _images(features, ()):
        if not key.startswith("steps/"):
            continue
        height, width, channels = (
            int(side) if side not in (None, "None") else 0 for side in said["shape"]["dimensions"]
        )
        why = why_left_out(key, asked.cameras)
        if channels not in (0, 3, 4) or said.get("dtype", "uint8") != "uint8":
            why = f"{said.get('dtype')} in {channels} channels, no picture in colour"
        if why:
            left_out.append(f"{path}, {key}: {why}")
        else:
            cameras[key] = width, height
    return cameras, left_out


def _images(feature: dict[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the places and descriptions of all pictures below a feature."""
    if "image" in feature:
        yield "/".join(place), feature["image"]
    if "sequence" in feature:
        yield from _images(feature["sequence"]["feature"], place)
    for name, inner in feature.get("featuresDict", {}).get("features", {}).items():
        yield from _images(inner, (*place, name))


def _episodes(
    path: Path, file: Path, first: int, length: int, cameras: dict[str, tuple[int, int]], asked: Asked
) -> Iterator[Source]:
    """Yield the episodes of a file, numbered from the first; those that are missing say so when they are read."""
    records: list[tuple[int, int]] = []
    error = InputError(f"{file} is missing, and with it the episodes {first} to {first + length - 1}; restore it")
    try:
        with reading(file), file.open("rb") as stream:
            records.extend(_records(stream, file.stat().st_size))
        error = InputError(f"{file} holds {len(records)} episodes, and dataset_info.json tells {length}; restore it")
    except InputError as damage:
        error = damage if file.exists() else error
    if len(records) > length:
        yield Unreadable(path, file.name, str(path), error)
    for number in range(length):
        for camera, shape in cameras.items():
            name = camera.rpartition("/")[2]
            where = path, f"{path.name}/{name}/episode_{first + number:06d}", f"{path}/{name}"
            facts: dict[str, Any] = {"camera": name, "episode": first + number}
            if number >= len(records):
                yield Unreadable(*where, error, **facts)
            else:
                yield RecordEpisode(
                    *where, asked.fps or 0.0, file, camera, *records[number], shape, bgr=asked.bgr, **facts
                )


def _records(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield place and size of the content of each record; contents are not read.

    Raises:
        InputError: the file is damaged, or ends within a record.
    """
    place = 0
    while place < end:
        head = file.read(_HEAD)
        size = int.from_bytes(head[:8], "little")
        if len(head) == _HEAD and _masked(_crc32c(head[:8])) != int.from_bytes(head[8:], "little"):
            raise InputError(f"{file.name} is damaged from byte {place} on; restore it")
        if len(head) < _HEAD or place + _HEAD + size + _TAIL > end:
            raise InputError(f"{file.name} is cut within a record; restore it")
        yield place + _HEAD, size
        place = file.seek(place + _HEAD + size + _TAIL)


def _masked(checksum: int) -> int:
    """Return what TFRecord stores of a CRC-32C."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    """Return Castagnoli's checksum of a few bytes."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ 0x82F63B78 * (checksum & 1)
    return checksum ^ 0xFFFFFFFF


def _pictures(content: bytes, key: str) -> list[memoryview]:
    """Return the picture files that an Example lists under a key.

    Raises:
        InputError: it lists none, or is malformed.
    """
    try:
        for _, features in read_fields(content):
            for _, entry in read_fields(_bytes(features)):
                facts = dict(read_fields(_bytes(entry)))
                if bytes(_bytes(facts[1])) == key.encode():
                    kinds = dict(read_fields(_bytes(facts[2])))
                    return [_bytes(picture) for _, picture in read_fields(_bytes(kinds[_BYTES_LIST]))]
    except (LookupError, ValueError, TypeError) as error:
        raise InputError(f"its record is no tf.train.Example with pictures ({first_line(error)})") from error
    raise InputError(f"its record holds no {key}")


def _count_steps(file: BinaryIO, begin: int, end: int) -> int:
    """Return how many steps an Example holds, of which no more is read than the names of its features; 0 if none tells.

    Raises:
        InputError: it is malformed.
    """
    try:
        place = begin + _message(_read(file, begin))[0]
        while place < end:
            head = _read(file, place)
            at, size = _message(head)
            next_place = place + at + size
            key, length = _message(head, at)
            if bytes(head[key : key + length]) == _STEPS.encode():
                value, size = _message(head, key + length)
                kinds = dict(read_fields(_read(file, place + value, size)))
                values = dict(read_fields(_bytes(kinds[_INT64_LIST])))
                return sum(byte < 0x80 for byte in _bytes(values[1]))
            place = next_place
    except (LookupError, ValueError, TypeError) as error:
        raise InputError(f"its record is no tf.train.Example of steps ({first_line(error)})") from error
    return 0


def _read(file: BinaryIO, place: int, size: int = 512) -> memoryview:
    file.seek(place)
    return memoryview(file.read(size))


def _message(data: memoryview, at: int = 0) -> tuple[int, int]:
    """Return where the content of a field begins, and its length."""
    _, at = read_varint(data, at)
    length, at = read_varint(data, at)
    return at, length


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message ought to be")
    return value
