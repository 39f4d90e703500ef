"""MCAP files made by the packages that write them: ROS 2, Foxglove's protobuf messages, and JSON."""

import base64
import io
import json
import pickle
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources import find_sources, look_for_sources
from video_distilled_encoder.sources.source import Asked

writer = pytest.importorskip("mcap.writer")
pytest.importorskip("rosbags.typesys")

INTERVAL = 0.05
START = 1_700_000_000 * 10**9 + 123_456_789
DELAY = 37_000_000
"""Nanoseconds from a capture to its recording."""
TIME = "builtin_interfaces/Time stamp\nstring frame_id\n"
HEADER = f"================\nMSG: std_msgs/Header\n{TIME}"
DEFINITIONS = {
    "sensor_msgs/msg/CompressedImage": f"std_msgs/Header header\nstring format\nuint8[] data\n{HEADER}",
    "sensor_msgs/msg/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\n"
    f"uint8 is_bigendian\nuint32 step\nuint8[] data\n{HEADER}",
}


def in_file(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def as_video(pictures, codec="libx264"):
    """Return a video's packets, one a picture, each with what its decoder needs, as Foxglove asks for."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = 64, 48, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 20), Fraction(20)
    context.options = {"bf": "0", "crf": "4", "g": "5", "tune": "zerolatency"}
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in pictures]
    for number, frame in enumerate(frames):
        frame.pts = number
    return [bytes(packet) for frame in [*frames, None] for packet in context.encode(frame)]


def seconds(stamp):
    return {"sec": stamp // 10**9, "nanosec": stamp % 10**9}


class Ros2:
    """CompressedImage and Image by mcap-ros2-support."""

    def __init__(self, kind):
        self.kind = f"sensor_msgs/msg/{kind}"

    def write(self, path, topics, stamps=None, encode=in_file):
        ros2 = pytest.importorskip("mcap_ros2.writer")
        with path.open("wb") as file, ros2.Writer(file) as out:
            schema = out.register_msgdef(self.kind, DEFINITIONS[self.kind])
            for number in range(max(map(len, topics.values()))):
                for topic, pictures in topics.items():
                    if number < len(pictures):
                        stamp = stamps[number] if stamps else START + round(number * INTERVAL * 1e9)
                        said = {"header": {"stamp": seconds(stamp), "frame_id": topic}}
                        said |= self.content(pictures[number], encode)
                        logged = START + round(number * INTERVAL * 1e9) + DELAY
                        out.write_message(topic, schema, said, log_time=logged, publish_time=logged)

    def content(self, image, encode):
        if self.kind.endswith("CompressedImage"):
            return {"format": "rgb8; jpeg compressed bgr8", "data": encode(image)}
        step = 3 * 64 + 8  # rows may be longer than what they show
        data = np.full((48, step), 255, np.uint8)
        data[:, : 3 * 64] = image[..., ::-1].reshape(48, -1)
        return {"height": 48, "width": 64, "encoding": "bgr8", "is_bigendian": 0, "step": step, "data": data.tobytes()}


class Foxglove:
    """CompressedImage, RawImage and CompressedVideo by mcap-protobuf-support and Foxglove's own classes."""

    def __init__(self, kind):
        self.kind = kind

    def write(self, path, topics, skip=0):
        protobuf = pytest.importorskip("mcap_protobuf.writer")
        schemas = pytest.importorskip(f"foxglove_schemas_protobuf.{self.kind}_pb2")
        with path.open("wb") as file, protobuf.Writer(file) as out:
            for topic, pictures in topics.items():
                video = as_video(pictures) if self.kind == "CompressedVideo" else None
                for number, image in [*enumerate(pictures)][skip:]:
                    stamp = START + round(number * INTERVAL * 1e9)
                    message = getattr(schemas, self.kind)(frame_id=topic)
                    message.timestamp.FromNanoseconds(stamp)
                    if video:
                        message.format, message.data = "h264", video[number]
                    elif self.kind == "RawImage":
                        message.width, message.height, message.step, message.encoding = 64, 48, 192, "rgb8"
                        message.data = image.tobytes()
                    else:
                        message.format, message.data = "png", in_file(image, "PNG")
                    out.write_message(topic, message, log_time=stamp + DELAY, publish_time=stamp)
            out.finish()


class Json:
    """Foxglove's CompressedImage in JSON, not in chunks, and without the summary that most files have."""

    def write(self, path, topics):
        with path.open("wb") as file:
            options = dict.fromkeys(("use_chunking", "use_statistics", "use_summary_offsets"), False)
            out = writer.Writer(file, **options, index_types=writer.IndexType.NONE, repeat_channels=False)
            out.start()
            schema = out.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
            for topic, pictures in topics.items():
                channel = out.register_channel(topic, "json", schema)
                for number, image in enumerate(pictures):
                    stamp = START + round(number * INTERVAL * 1e9)
                    said = {"timestamp": {"sec": stamp // 10**9, "nsec": stamp % 10**9}, "format": "jpeg"}
                    said["data"] = base64.b64encode(in_file(image)).decode()
                    out.add_message(channel, stamp + DELAY, json.dumps(said).encode(), stamp)
            out.finish()


KINDS = {
    "ros2-compressed": Ros2("CompressedImage"),
    "ros2-raw": Ros2("Image"),
    "protobuf-compressed": Foxglove("CompressedImage"),
    "protobuf-raw": Foxglove("RawImage"),
    "protobuf-video": Foxglove("CompressedVideo"),
    "json": Json(),
}
TOPICS = ("/left/image", "/right/image")


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_of_its_camera_recording_and_time(kind, coded, tmp_path):
    for episode, length in enumerate(coded.lengths):
        pictures = {
            topic: [coded.picture(camera, episode, frame) for frame in range(length)]
            for camera, topic in enumerate(TOPICS)
        }
        KINDS[kind].write(tmp_path / f"{episode}.mcap", pictures)
    sources = pickle.loads(pickle.dumps(find_sources([tmp_path])))
    assert [(source.path.name, source.camera) for source in sources] == [
        (f"{episode}.mcap", topic) for episode in range(3) for topic in TOPICS
    ]
    assert {source.group for source in sources} == {f"{tmp_path}{topic}" for topic in TOPICS}
    assert len({source.identity() for source in sources}) == 6
    for number, source in enumerate(sources):
        coded.check(source, number % 2, number // 2, INTERVAL)


@pytest.fixture
def record(coded, tmp_path):
    """Write a recording of one topic whose captures have some stamps."""

    def write(stamps, **options):
        pictures = [coded.picture(0, 0, frame) for frame in range(len(stamps))]
        nanoseconds = [START + round(1e9 * stamp) for stamp in stamps]
        Ros2("CompressedImage").write(tmp_path / "x.mcap", {TOPICS[0]: pictures}, nanoseconds, **options)
        return find_sources([tmp_path / "x.mcap"])[0]

    return write


def test_a_pause_begins_a_new_shot(record):
    frames = list(record([0, 0.05, 0.1, 0.15, 10, 10.05, 10.1]).frames())
    assert np.allclose([frame.time for frame in frames], [0, 0.05, 0.1, 0.15, 10, 10.05, 10.1], atol=1e-6)
    assert [frame.new_shot for frame in frames] == [False] * 4 + [True] + [False] * 2


@pytest.mark.parametrize("jump", [-500, 7200])
def test_time_goes_on_where_the_clock_was_set(record, coded, jump):
    stamps = [1000 + 0.05 * number + jump * (number >= 6) for number in range(12)]
    frames = list(record(stamps).frames())
    assert [coded.told(frame.image)[2] for frame in frames] == list(range(12))
    assert np.allclose([frame.time for frame in frames], 0.05 * np.arange(12), atol=1e-6)
    assert [number for number, frame in enumerate(frames) if frame.new_shot] == [6]


def test_late_messages_are_put_into_order_and_repeats_are_left_out(record, coded):
    source = record([0, 0.1, 0.05, 0.15, 0.15, 0.2])
    with pytest.warns(InputWarning, match="1 messages that repeat the time of another"):
        frames = list(source.frames())
    assert [coded.told(frame.image)[2] for frame in frames] == [0, 2, 1, 3, 5]
    assert np.allclose([frame.time for frame in frames], 0.05 * np.arange(5), atol=1e-6)


def test_messages_without_a_stamp_have_the_time_of_their_recording(coded, tmp_path):
    pictures = [coded.picture(0, 1, frame) for frame in range(9)]
    Ros2("CompressedImage").write(tmp_path / "x.mcap", {TOPICS[0]: pictures}, [0] * 9)
    (source,) = find_sources([tmp_path / "x.mcap"])
    coded.check(source, 0, 1, INTERVAL)


def test_a_video_that_begins_between_key_frames_tells_what_is_missing(coded, tmp_path):
    pictures = [coded.picture(0, 0, frame) for frame in range(12)]
    Foxglove("CompressedVideo").write(tmp_path / "x.mcap", {TOPICS[0]: pictures}, skip=1)  # the next key frame is 4
    (source,) = find_sources([tmp_path / "x.mcap"])
    with pytest.warns(InputWarning, match=r"/left/image: 3 messages hold video that cannot be decoded"):
        frames = list(source.frames())
    assert [coded.told(frame.image)[2] for frame in frames] == list(range(4, 12))
    assert np.allclose([frame.time for frame in frames], INTERVAL * np.arange(8), atol=1e-6)


def test_a_long_recording_is_read_in_little_memory(coded, tmp_path):
    picture = coded.picture(0, 0, 0)
    Ros2("Image").write(tmp_path / "x.mcap", {TOPICS[0]: [picture] * 1000})
    tracemalloc.start()
    (source,) = find_sources([tmp_path / "x.mcap"])
    assert sum(1 for _ in source.frames()) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000  # of 9,600,000 bytes


def test_topics_that_are_read_together_hold_little_though_one_comes_after_the_other(coded, tmp_path):
    image = coded.picture(0, 0, 0)
    ros2 = pytest.importorskip("mcap_ros2.writer")
    with (tmp_path / "x.mcap").open("wb") as file, ros2.Writer(file) as out:
        schema = out.register_msgdef("sensor_msgs/msg/Image", DEFINITIONS["sensor_msgs/msg/Image"])
        for number in range(2000):
            stamp = START + round(number * INTERVAL * 1e9)
            said = {"header": {"stamp": seconds(stamp), "frame_id": ""}, **Ros2("Image").content(image, None)}
            out.write_message(TOPICS[number // 1000], schema, said, log_time=stamp)
    sources = find_sources([tmp_path / "x.mcap"])
    tracemalloc.start()
    counts = type(sources[0]).together(sources, lambda source: sum(1 for _ in source.frames()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == [1000, 1000]
    assert peak < 6_000_000  # of 19,200,000 bytes


def test_who_wants_no_more_of_a_recording_does_not_hold_up_the_others(coded, tmp_path):
    pictures = [coded.picture(0, 0, frame) for frame in range(18)]
    Ros2("CompressedImage").write(tmp_path / "x.mcap", dict.fromkeys(TOPICS, pictures))
    sources = find_sources([tmp_path / "x.mcap"])

    def use(source):
        return len(list(source.frames())) if source.camera == TOPICS[1] else next(source.frames()).time

    assert type(sources[0]).together(sources, use) == [0.0, 18]
    assert type(sources[0]).together(sources, lambda source: source.camera) == list(TOPICS)
    whole = (tmp_path / "x.mcap").read_bytes()
    (tmp_path / "x.mcap").write_bytes(whole[: len(whole) // 2] + bytes(8) + whole[len(whole) // 2 + 8 :])
    with pytest.raises(InputError, match=r"x\.mcap is damaged"):
        type(sources[0]).together(sources, lambda source: len(list(source.frames())))


def test_depth_and_masks_are_left_out_and_named(coded, tmp_path):
    depth = io.BytesIO()
    Image.fromarray(np.full((48, 64), 1000, np.uint16)).save(depth, "PNG")
    pictures = [coded.picture(0, 0, 0)]
    names = ("/a/image", "/b/heat", "/c/mask", "/d/aligned_depth_to_color/image")
    file = (tmp_path / "x.mcap").open("wb")
    with file, pytest.importorskip("mcap_ros2.writer").Writer(file) as out:
        schema = out.register_msgdef("sensor_msgs/msg/CompressedImage", DEFINITIONS["sensor_msgs/msg/CompressedImage"])
        for name in names:
            said = {"header": {"stamp": seconds(START), "frame_id": ""}, "format": "png"}
            said["data"] = depth.getvalue() if name == "/b/heat" else in_file(pictures[0], "PNG")
            out.write_message(name, schema, said, log_time=START)
    found = look_for_sources([tmp_path])
    assert [source.camera for source in found.sources] == ["/a/image"]
    assert [line.split(": ", 1)[1] for line in found.left_out] == [
        "I;16 values, as of depth or heat, and no picture",
        "its name says mask; --cameras takes it",
        "its name says depth; --cameras takes it",
    ]
    with pytest.warns(InputWarning, match="left out: .*/b/heat: I;16 values"):
        chosen = find_sources([tmp_path], Asked(cameras="*mask"))
    assert [source.camera for source in chosen] == ["/c/mask"]


def test_damage_is_named(record, tmp_path):
    source = record([0, 0.05, 0.1], encode=lambda image: in_file(image)[:-200])
    with pytest.raises(InputError, match=r"x\.mcap, /left/image, message 0: the picture is damaged"):
        list(source.frames())
    path = tmp_path / "x.mcap"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"x\.mcap is damaged, or was not written to its end .* mcap recover"):
        find_sources([path])
    (tmp_path / "y.mcap").write_bytes(whole)
    cut, other = find_sources([tmp_path])
    assert other.path.name == "y.mcap"
    with pytest.raises(InputError, match=r"x\.mcap is damaged"):
        cut.identity()
    path.write_bytes(whole[: len(whole) // 4] + bytes(8) + whole[len(whole) // 4 + 8 :])
    with pytest.raises(InputError, match=r"x\.mcap is damaged"):
        list(find_sources([path])[0].frames())


def test_without_the_packages_the_extra_is_named(record, tmp_path, monkeypatch):
    record([0, 0.05])
    monkeypatch.setitem(sys.modules, "mcap.reader", None)
    with pytest.raises(InputError, match=r"mcap is not installed.*\[robot\]"):
        find_sources([tmp_path / "x.mcap"])
