"""Topics of recordings: a camera's messages as ROS and Foxglove define them, with the times of capture.

`mcap_files` and `ros_bags` open the recordings; what a message says is read here.
"""

from __future__ import annotations

import base64
import json
import struct
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from heapq import heappop, heappush
from itertools import chain, islice
from pathlib import Path
from queue import Full, Queue
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from video_distilled_encoder.errors import InputError, first_line, import_extra, warn
from video_distilled_encoder.files import reading, sha256
from video_distilled_encoder.sources.pictures import (
    decode_file,
    decode_pixels,
    open_file,
    why_left_out,
    why_no_file,
    why_no_picture,
)
from video_distilled_encoder.sources.protobuf import read_fields
from video_distilled_encoder.sources.source import Asked, Digest, Found, Source, identity_of
from video_distilled_encoder.video import Pace, VideoFrame, VideoInfo

_T = TypeVar("_T")
_KINDS = {
    **{f"sensor_msgs/{name}": name for name in ("CompressedImage", "Image")},
    **{
        f"{where}{name}": name.replace("Raw", "")
        for where in ("foxglove_msgs/", "foxglove.")
        for name in ("CompressedImage", "RawImage", "CompressedVideo")
    },
}
_WRITTEN = ("cdr", "ros1", "protobuf", "json")
_CODECS = {"h264": "h264", "h265": "hevc", "hevc": "hevc", "vp9": "vp9", "av1": "av1"}
_AHEAD = 4
"""Messages of a topic that are read before they are wanted."""
_HELD = 16
"""Messages that wait until none that was taken before them can come."""
_LATE = 4
"""Times the messages that are looked at first; topics that begin behind them are looked at by themselves."""
_ROOM = 100_000_000
"""Bytes of messages that are looked at first."""
_BACK = 1_000_000_000
"""Nanoseconds that a clock may go back before it is taken to have been set."""
_PAUSE = 5
"""Times the usual interval; a longer one begins a new shot."""
_LONGEST_PAUSE = 3600 * 1_000_000_000
"""Nanoseconds; a longer one is taken for a jump of the clock."""

_FOXGLOVE = {
    "CompressedImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    "CompressedVideo": "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    "RawImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n"
    "uint32 step\nuint8[] data\n",
}
"""Foxglove's messages in ROS 2, of which rosbags' own type store has none."""
_NUMBERS = {
    "CompressedImage": {1: "timestamp", 2: "data", 3: "format"},
    "CompressedVideo": {1: "timestamp", 3: "data", 4: "format"},
    "RawImage": {1: "timestamp", 2: "width", 3: "height", 4: "encoding", 5: "step", 6: "data"},
}
"""Fields of Foxglove's messages in protobuf."""


class Message(NamedTuple):
    """What a camera's message says, whatever it is written in."""

    stamp: int
    """Nanoseconds of the capture; 0 if it tells none."""
    kind: str
    """CompressedImage, Image or CompressedVideo."""
    format: str
    """Of compressed pictures and video, or the encoding of pixels."""
    data: Any
    width: int = 0
    height: int = 0
    step: int = 0

    @property
    def codec(self) -> str:
        """FFmpeg's name for the video of which this is a frame; "" if it is a picture of its own."""
        return "" if self.kind == "Image" else _CODECS.get(self.format.lower(), "")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; (0, 0) of video."""
        if self.codec:
            return 0, 0
        if self.kind == "Image":
            return self.width, self.height
        with open_file(self.data) as image:
            return image.size

    def why_left_out(self) -> str:
        """Return why its pictures are not read; "" if they are."""
        if self.kind == "Image":
            return why_no_picture(self.format)
        if self.kind == "CompressedVideo" and not self.codec:
            return f"video in {self.format!r}, which is not read"
        pixels, _, compression = self.format.partition(";")  # as image_transport writes: rgb8; jpeg compressed bgr8
        if compression and pixels and (why := why_no_picture(pixels)):
            return why
        return "" if self.codec else why_no_file(self.data)


@dataclass(frozen=True)
class Topic(Source):
    """A camera's messages in a recording.

    Args:
        files: the recording's, in their order.
        kind: type of the messages.
        written: how they are: cdr, ros1, protobuf or json.
        count: number of messages.
    """

    files: tuple[Path, ...]
    kind: str
    written: str
    count: int
    feed: Iterable[tuple[int, bytes]] | None = field(default=None, compare=False, repr=False)
    """What gives the messages, if another reads the recording."""
    known: VideoInfo | None = field(default=None, compare=False, repr=False)
    """What the first messages say, if they were read."""
    in_one_pass: ClassVar[bool] = True

    @abstractmethod
    def recorded(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield the messages of some topics in the order of recording: topic, nanoseconds of that, and content."""

    @classmethod
    def together(cls, sources: Sequence[Any], use: Callable[[Any], _T]) -> list[_T]:
        """Read the recording once, and let each topic be used in a thread of its own."""
        feeds = [Feed() for _ in sources]

        def follow(topic: Topic, feed: Feed) -> _T:
            try:
                return use(topic.having(feed=feed))
            finally:
                feed.close()

        with ThreadPoolExecutor(len(feeds)) as pool:
            jobs = [pool.submit(follow, topic, feed) for topic, feed in zip(sources, feeds, strict=True)]
            _distribute(sources[0], {topic.camera: feed for topic, feed in zip(sources, feeds, strict=True)})
        return [job.result() for job in jobs]

    def identity(self, digest: Digest = sha256) -> str:
        """Return the SHA-256 of the files and the topic."""
        with reading(self.path):
            return identity_of(digest(*self.files), self.camera)

    def info(self) -> VideoInfo:
        """Return what the first messages say; a rate is that of the captures between them."""
        return self.known or self.having(feed=None)._look()

    def _look(self) -> VideoInfo:
        first = list(islice(self._read(), _HELD))
        usual = _usual(stamp for stamp, _ in first)
        message = first[0][1]
        if message.codec:
            size = _size_of_video(self._read(), str(self))
        else:
            with self._named(0):
                size = message.size
        return VideoInfo(*size, 1e9 / usual if usual else 0.0, self.count)

    def told(self) -> VideoInfo | None:
        """Return what `info` does of pictures in messages, unless they are damaged, as whoever reads them learns."""
        with suppress(InputError):
            return None if next(self._read())[1].codec else self._look()
        return None

    def why_left_out(self) -> str:
        """Return why its pictures are not read; "" if they are, or the first is damaged, as whoever reads it learns."""
        with suppress(InputError):
            return next(self._read())[1].why_left_out()
        return ""

    def frames(self, min_interval: float = 0.0) -> Iterator[VideoFrame]:
        """Decode the messages in the order of their captures; a pause, and a clock that was set, begin a new shot."""
        messages = self._read()
        first = next(messages)
        messages = chain([first], messages)
        items = _video(messages, str(self)) if first[1].codec else _pictures(messages)
        pace: Pace | None = None
        new_shot, shape = False, None
        for moment in _in_order(items, str(self)):
            new_shot |= moment.new_shot
            pace = pace or Pace(min_interval, moment.usual)
            if not pace.keeps(moment.time):
                continue
            with self._named(moment.number):
                image = moment.picture()
                shape = shape or image.shape
                if image.shape != shape:
                    raise InputError(f"it is {image.shape[1]}x{image.shape[0]}, the first {shape[1]}x{shape[0]}")
            yield VideoFrame(moment.time, image, new_shot)
            new_shot = False

    def _read(self) -> Iterator[tuple[int, Message]]:
        """Yield messages and the nanoseconds of their capture, or, where the first tells none, of their recording."""
        stamped = None
        number = -1
        for number, (logged, content) in enumerate(self.feed or self._alone()):
            with self._named(number):
                message = parse(self.kind, self.written, content)
            stamped = bool(message.stamp) if stamped is None else stamped
            yield message.stamp if stamped else logged, message
        if number + 1 != self.count:
            raise InputError(f"{self}: it holds {number + 1} messages, and its index tells {self.count}; it is damaged")

    def _alone(self) -> Iterator[tuple[int, bytes]]:
        return ((logged, content) for _, logged, content in self.recorded([self.camera]))

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self}, message {number}: {error}") from error


def _distribute(topic: Topic, feeds: dict[str, Feed]) -> None:
    """Read a topic's recording and hand the messages to whom they are for, until no one wants more."""
    end: BaseException | None = None
    try:
        for name, logged, content in topic.recorded(feeds):
            feeds[name].put((logged, content))
            if all(feed.closed for feed in feeds.values()):
                break
    except BaseException as error:
        end = error
    for feed in feeds.values():
        feed.put(end)


class Feed:
    """A topic's messages as one thread reads them for another, a few ahead."""

    def __init__(self) -> None:
        self.closed = False
        self._queue: Queue[tuple[int, bytes] | BaseException | None] = Queue(_AHEAD)

    def put(self, item: tuple[int, bytes] | BaseException | None) -> None:
        """Hand over a message, what went wrong, or None at the end; wait while there are enough."""
        while not self.closed:
            with suppress(Full):
                return self._queue.put(item, timeout=0.1)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Want no more."""
        self.closed = True


_Item = tuple[int, int, Callable[[], np.ndarray]]
"""Nanoseconds of the capture, number of the message, and what returns its picture."""


class _Moment(NamedTuple):
    time: float
    """Seconds since the first."""
    usual: float
    """Seconds between two, as those around it have it."""
    new_shot: bool
    number: int
    picture: Callable[[], np.ndarray]


def find_topics(
    kind: type[Topic],
    path: Path,
    files: tuple[Path, ...],
    rows: Iterable[tuple[str, str, str, int]],
    recorded: Callable[[Collection[str]], Iterable[tuple[str, int, bytes]]],
    asked: Asked,
) -> Found:
    """Return the topics of a recording whose pictures are read, by name, and why others are not.

    Args:
        kind: what reads them.
        path: the recording.
        files: its files, in their order.
        rows: name, type, writing and number of messages of its channels; a topic may have several.
        recorded: what reads it, `Topic.recorded` with the recording open.
        asked: cameras that are asked for.
    """
    cameras: dict[str, Topic] = {}
    found = Found([])
    for name, messages, written, count in rows:
        if messages.replace("/msg/", "/") not in _KINDS:
            continue
        if written not in _WRITTEN:
            found.left_out.append(f"{path}, {name}: messages in {written!r}, which are not read")
            continue
        place = name.strip("/")
        before = cameras[name].count if name in cameras else 0
        cameras[name] = kind(
            path,
            f"{path.name}/{place}",
            f"{path.parent}/{place}",
            camera=name,
            files=files,
            kind=messages,
            written=written,
            count=before + count,
        )
    beginnings = _beginnings({name: min(topic.count, _HELD) for name, topic in cameras.items()}, recorded)
    for name, topic in sorted(cameras.items()):
        begun = topic.having(feed=beginnings[name]) if name in beginnings else topic
        why = "no messages" if not topic.count else why_left_out(topic.camera, asked.cameras) or begun.why_left_out()
        if why:
            found.left_out.append(f"{topic}: {why}")
        else:
            found.sources.append(topic.having(known=begun.told()) if begun is not topic else topic)
    if not cameras and not found.left_out:
        found.left_out.append(f"{path}: no topic of pictures")
    return found


def _beginnings(
    wanted: dict[str, int], recorded: Callable[[Collection[str]], Iterable[tuple[str, int, bytes]]]
) -> dict[str, list[tuple[int, bytes]]]:
    """Return the first messages of topics, so many of each; none of those that come late, are large or damaged."""
    begun: dict[str, list[tuple[int, bytes]]] = {name: [] for name, count in wanted.items() if count}
    left, room = sum(wanted.values()), _ROOM
    # whoever reads it learns of the damage
    with suppress(Exception):
        for name, logged, content in islice(recorded(begun) if begun else (), _LATE * left):
            if len(begun[name]) < wanted[name]:
                begun[name].append((logged, content))
                left, room = left - 1, room - len(content)
            if not left or room < 0:
                break
    return {name: messages for name, messages in begun.items() if len(messages) == wanted[name]}


def parse(kind: str, written: str, content: bytes) -> Message:
    """Read a camera's message.

    Args:
        kind: name of its type.
        written: how it is: cdr, ros1, protobuf or json.
        content: its bytes.

    Raises:
        InputError: it is malformed.
    """
    name = kind.replace("/msg/", "/")
    try:
        if written in ("cdr", "ros1"):
            said = _from_ros(name.replace("/", "/msg/"), written, content)
        elif written == "protobuf":
            said = _from_protobuf(_NUMBERS[name.rpartition(".")[2]], content)
        else:
            said = json.loads(content)
            said["data"] = base64.b64decode(said["data"])
        time = said.get("timestamp", {})
        stamp = int(time.get("sec", 0)) * 1_000_000_000 + int(time.get("nsec", 0))
        shape = (int(said.get(side, 0)) for side in ("width", "height", "step"))
        return Message(stamp, _KINDS[name], str(said.get("format", said.get("encoding", ""))), said["data"], *shape)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"it is no {kind} in {written} ({first_line(error)})") from error


def _from_ros(name: str, written: str, content: bytes) -> dict[str, Any]:
    store = _types(written)
    said = (store.deserialize_ros1 if written == "ros1" else store.deserialize_cdr)(content, name)
    time = said.timestamp if hasattr(said, "timestamp") else said.header.stamp
    return {**vars(said), "timestamp": {"sec": time.sec, "nsec": time.nanosec}}


def _from_protobuf(names: dict[int, str], content: bytes) -> dict[str, Any]:
    said: dict[str, Any] = {names[number]: value for number, value in read_fields(content) if number in names}
    said.update({name: str(said[name], "utf-8") for name in ("format", "encoding") if name in said})
    time = dict(read_fields(said.get("timestamp", b"")))
    return {**said, "timestamp": {"sec": time.get(1, 0), "nsec": time.get(2, 0)}}


@cache
def _types(written: str) -> Any:
    """Return rosbags' types of ROS 1 or ROS 2, with Foxglove's added."""
    typesys = import_extra("rosbags.typesys", "robot")
    store = typesys.get_typestore(typesys.Stores.ROS1_NOETIC if written == "ros1" else typesys.Stores.ROS2_HUMBLE)
    for name, definition in _FOXGLOVE.items():
        store.register(typesys.get_types_from_msg(definition, f"foxglove_msgs/msg/{name}"))
    return store


def _usual(stamps: Iterable[int]) -> float:
    """Return the usual nanoseconds between two of some stamps, 0 of a single one."""
    intervals = np.diff(np.unique(list(stamps)))
    return float(np.median(intervals)) if len(intervals) else 0.0


def _in_order(items: Iterable[_Item], name: str) -> Iterator[_Moment]:
    """Yield the moments of captures, sorted, as far as late ones come soon enough.

    Where a clock was set, back or far ahead, time goes on with the next capture.
    """
    held: list[tuple[int, int, int, Any]] = []
    era, newest = 0, None
    timeline = _Timeline()
    for stamp, number, picture in items:
        if newest is not None and not newest - _BACK <= stamp <= newest + _LONGEST_PAUSE:
            era, newest = era + 1, stamp
        newest = stamp if newest is None else max(newest, stamp)
        heappush(held, (era, stamp, number, picture))
        if len(held) > _HELD:
            yield from timeline.read(held)
    while held:
        yield from timeline.read(held)
    if timeline.left_out:
        warn(f"{name}: {timeline.left_out} messages that repeat the time of another, or come late, are left out")


class _Timeline:
    """Seconds since the first capture."""

    def __init__(self) -> None:
        self.left_out = 0
        self._era, self._time, self._usual = -1, 0.0, 0.0
        self._before: deque[int] = deque(maxlen=_HELD)

    def read(self, held: list[tuple[int, int, int, Any]]) -> Iterator[_Moment]:
        """Take the earliest capture, and yield its moment, if it is a new one."""
        era, stamp, number, picture = heappop(held)
        begins = era != self._era
        last = self._before[-1] if self._before else stamp
        if begins:
            self._before.clear()
        elif stamp <= last:
            self.left_out += 1
            return
        self._before.append(stamp)
        around = [other[1] for other in held if other[0] == era]
        self._usual = _usual([*self._before, *around]) or self._usual
        if era > 0 and begins:
            self._time += self._usual
        elif not begins:
            self._time += stamp - last
            begins = stamp - last > _PAUSE * self._usual
        else:
            begins = False
        self._era = era
        yield _Moment(self._time / 1e9, self._usual / 1e9, begins, number, picture)


def _pictures(messages: Iterable[tuple[int, Message]]) -> Iterator[_Item]:
    for number, (stamp, message) in enumerate(messages):
        yield stamp, number, partial(_decode, message)


def _decode(message: Message) -> np.ndarray:
    if message.kind == "Image":
        if why := message.why_left_out():
            raise InputError(f"it holds {why}")
        return decode_pixels(message.data, message.format, message.size, message.step)
    return decode_file(message.data)


def _video(messages: Iterable[tuple[int, Message | None]], name: str) -> Iterator[_Item]:
    """Decode the frames of a video, a message each, in the order of recording, which is that of showing too.

    Those before the first key frame cannot be; a warning counts them.
    """
    av = import_extra("av", "robot")
    decoder: Any = None
    stamps: list[int] = []
    count = damaged = 0
    for number, (stamp, message) in enumerate(chain(messages, [(0, None)])):
        packet = None  # the last one, which asks for what the decoder holds back
        if message:
            decoder = decoder or av.CodecContext.create(message.codec, "r")
            stamps.append(stamp)
            packet = av.Packet(bytes(message.data))
            packet.pts = number
        try:
            frames = list(decoder.decode(packet))
        except av.error.FFmpegError as error:
            if count:
                raise InputError(f"{name}, message {number}: the video is damaged ({first_line(error)})") from error
            continue
        count += len(frames)
        for frame in frames:
            damaged += frame.is_corrupt
            yield stamps[frame.pts], frame.pts, partial(frame.to_ndarray, format="rgb24")
    if not count:
        raise InputError(f"{name}: no frame of its video can be decoded; it holds no key frame, or is damaged")
    if count < len(stamps):
        warn(f"{name}: {len(stamps) - count} messages hold video that cannot be decoded, as before the first key frame")
    if damaged:
        warn(f"{name}: {damaged} frames of its video are damaged; what is missing of them, and after, is made up")


def _size_of_video(messages: Iterable[tuple[int, Message]], name: str) -> tuple[int, int]:
    _, _, picture = next(_video(messages, name))
    height, width, _ = picture().shape
    return width, height
