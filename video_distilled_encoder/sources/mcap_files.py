"""MCAP files: a topic of pictures is a source. Read with the package `mcap`; ROS need not be there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL
from functools import partial
from pathlib import Path
from typing import Any

from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import Opener, reading
from video_distilled_encoder.sources.source import Asked, Found, begins_with
from video_distilled_encoder.sources.topics import Topic, find_topics

SUFFIXES = (".mcap",)
_MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True)
class McapTopic(Topic):
    """A topic of an MCAP file."""

    @property
    def read_whole(self) -> bool:
        """The file is."""
        return True

    def recorded(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Read the chunks that hold the topics, from front to back; their checksums are compared."""
        with _opened(self.path, self.opener) as reader:
            yield from _recorded(reader, topics)


def recognises(path: Path) -> bool:
    """Return whether a file begins as an MCAP file does."""
    return begins_with(path, _MAGIC)


def find(path: Path, asked: Asked) -> Found:
    """Return the topics of pictures in colour.

    Raises:
        InputError: the file is damaged, or was not written to its end.
    """
    with _opened(path) as reader:
        return find_topics(McapTopic, path, (path,), _topics(reader), partial(_recorded, reader), asked)


def _topics(reader: Any) -> Iterable[tuple[str, str, str, int]]:
    """Yield name, type, writing and number of messages of the channels."""
    summary = reader.get_summary()
    seen: dict[int, list[Any]] = {}
    if summary and summary.statistics:
        counts = summary.statistics.channel_message_counts
        for number, channel in summary.channels.items():
            seen[number] = [summary.schemas.get(channel.schema_id), channel, counts.get(number, 0)]
    if not seen or any(schema is None and channel.schema_id for schema, channel, _ in seen.values()):
        # the summary does not tell all: the file has to be read
        seen = {}
        for schema, channel, _ in _messages(reader, None):
            seen.setdefault(channel.id, [schema, channel, 0])[2] += 1
    for schema, channel, count in seen.values():
        if schema:
            yield channel.topic, schema.name, channel.message_encoding, count


def _recorded(reader: Any, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
    for _, channel, message in _messages(reader, list(topics)):
        yield channel.topic, message.log_time, message.data


def _messages(reader: Any, topics: list[str] | None) -> Iterable[tuple[Any, Any, Any]]:
    """Return schemas, channels and messages, chunk by chunk, or front to back where no index tells of chunks.

    The other way round mcap holds the whole file in memory.
    """
    summary = reader.get_summary()
    messages: Iterable[tuple[Any, Any, Any]] = reader.iter_messages(
        topics, log_time_order=bool(summary and summary.chunk_indexes)
    )
    return messages


@contextmanager
def _opened(path: Path, opener: Opener | None = None) -> Iterator[Any]:
    mcap = import_extra("mcap.reader", "robot")
    with reading(path), opener(path) if opener else path.open("rb") as file:
        try:
            yield mcap.make_reader(file, validate_crcs=True)
        except InputError:
            raise
        except Exception as error:  # those of what decompresses chunks too
            if isinstance(error, OSError) and error.errno != EINVAL:  # that of leaps to before the beginning
                raise
            raise InputError(
                f"{path} is damaged, or was not written to its end ({first_line(error)}); mend it with: mcap recover"
            ) from error
