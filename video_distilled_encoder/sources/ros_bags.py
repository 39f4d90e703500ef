"""ROS 1 bags and the folders of ROS 2 bags: a topic of pictures is a source. Read with rosbags, without ROS."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import reading
from video_distilled_encoder.sources.source import Asked, Found, begins_with
from video_distilled_encoder.sources.topics import Topic, find_topics

SUFFIXES = (".bag",)
_ROS_1, _SQLITE = b"#ROSBAG V2.0\n", b"SQLite format 3\0"
_METADATA = "metadata.yaml"


@dataclass(frozen=True)
class BagTopic(Topic):
    """A topic of a bag."""

    def recorded(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Read the messages in the order of their recording."""
        with _opened(self.path) as bag:
            yield from _recorded(bag, topics)


def recognises(path: Path) -> bool:
    """Return whether a file is a ROS 1 bag or the storage of a ROS 2 bag, or a folder holds the metadata of one."""
    if path.is_dir():
        return b"rosbag2_bagfile_information" in _beginning(path / _METADATA)
    return begins_with(path, _ROS_1) or (begins_with(path, _SQLITE) and _holds_messages(path))


def find(path: Path, asked: Asked) -> Found:
    """Return the topics of pictures in colour.

    Raises:
        InputError: the bag is damaged, or a part of it is missing.
    """
    if begins_with(path, _SQLITE):
        raise InputError(
            f"{path} is a part of a ROS 2 bag; give the folder that holds it and {_METADATA} (ros2 bag reindex writes "
            "one that is missing)"
        )
    written = "cdr" if path.is_dir() else "ros1"
    files = tuple(sorted(file for file in path.iterdir() if file.is_file())) if path.is_dir() else (path,)
    with _opened(path) as bag:
        rows = [(each.topic, each.msgtype, written, each.msgcount) for each in bag.connections]
        return find_topics(BagTopic, path, files, rows, partial(_recorded, bag), asked)


def _recorded(bag: Any, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
    connections = [connection for connection in bag.connections if connection.topic in topics]
    for connection, logged, content in bag.messages(connections):
        yield connection.topic, logged, content


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    kind, mend = ("rosbag2", "ros2 bag reindex") if path.is_dir() else ("rosbag1", "rosbag reindex")
    reader = import_extra(f"rosbags.{kind}", "robot")
    with reading(path):
        try:
            with reader.Reader(path) as bag:
                yield bag
        except (OSError, InputError):
            raise
        except Exception as error:  # rosbags passes on those of the packages that it stands on
            raise InputError(
                f"{path} is damaged, or was not written to its end ({first_line(error)}); mend it with: {mend}"
            ) from error


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _holds_messages(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {"topics", "messages"} <= {name for (name,) in rows}
    except sqlite3.Error:
        return False
