"""Bags of ROS 1 and ROS 2 made by rosbags' own writers."""

import io
import shutil
import sqlite3
import sys

import numpy as np
import pytest
from PIL import Image

from video_distilled_encoder.errors import InputError
from video_distilled_encoder.sources import find_sources, look_for_sources
from video_distilled_encoder.sources.source import Asked

pytest.importorskip("rosbags.typesys")
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

INTERVAL = 0.05
START = 1_700_000_000 * 10**9 + 5_000_000
TOPICS = ("/left/image", "/right/image")
KINDS = ("ros1", "sqlite3", "mcap")


def write(path, kind, topics, encoding="bgr8"):
    """Write a bag: pixels of the first topic as they are, the others as JPEGs, and beside them another message."""
    store = get_typestore(Stores.ROS1_NOETIC if kind == "ros1" else Stores.ROS2_HUMBLE)
    types = store.types
    out = Writer1(path) if kind == "ros1" else Writer2(path, version=9, storage_plugin=StoragePlugin[kind.upper()])
    serialize = store.serialize_ros1 if kind == "ros1" else store.serialize_cdr
    with out as bag:

        def connect(topic, name):
            return bag.add_connection(topic, name, typestore=store), name

        raw, compressed = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
        channels = {topic: connect(topic, compressed if number else raw) for number, topic in enumerate(topics)}
        words = connect("/words", "std_msgs/msg/String")
        for number in range(max(map(len, topics.values()))):
            stamp = START + round(number * INTERVAL * 1e9)
            moment = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
            sequence = {"seq": number} if kind == "ros1" else {}
            header = types["std_msgs/msg/Header"](stamp=moment, frame_id="x", **sequence)
            for topic, pictures in topics.items():
                channel, name = channels[topic]
                if number >= len(pictures):
                    continue
                image = pictures[number]
                if name == raw:
                    depth = image if image.ndim == 2 else image[..., ::-1]
                    facts = {"height": 48, "width": 64, "encoding": encoding, "is_bigendian": 0}
                    data = np.ascontiguousarray(depth).view(np.uint8).reshape(-1)
                    message = types[raw](header=header, step=len(data) // 48, data=data, **facts)
                else:
                    buffer = io.BytesIO()
                    Image.fromarray(image).save(buffer, "JPEG", quality=95)
                    data = np.frombuffer(buffer.getvalue(), np.uint8)
                    message = types[compressed](header=header, format="jpeg", data=data)
                bag.write(channel, stamp + 40_000_000, serialize(message, name))
            bag.write(words[0], stamp, serialize(types["std_msgs/msg/String"](data="hello"), words[1]))
    return path


def name(kind, episode):
    return f"{episode}.bag" if kind == "ros1" else f"{episode}"


@pytest.fixture(params=KINDS)
def bags(request, coded, tmp_path):
    for episode, length in enumerate(coded.lengths):
        pictures = {
            topic: [coded.picture(camera, episode, frame) for frame in range(length)]
            for camera, topic in enumerate(TOPICS)
        }
        write(tmp_path / name(request.param, episode), request.param, pictures)
    return tmp_path


def test_every_frame_is_of_its_camera_bag_and_time(bags, coded):
    sources = find_sources([bags])
    assert [source.camera for source in sources] == [*TOPICS] * 3
    assert {source.group for source in sources} == {f"{bags}{topic}" for topic in TOPICS}
    assert len({source.identity() for source in sources}) == 6
    for number, source in enumerate(sources):
        coded.check(source, number % 2, number // 2, INTERVAL)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_left_out_and_a_bag_without_cameras_is_named(kind, tmp_path):
    depth = [np.full((48, 64), 1000, np.uint16)] * 3
    path = write(tmp_path / name(kind, 0), kind, {"/camera/image": depth}, "16UC1")
    with pytest.raises(InputError, match=r"nothing is left .*camera/image: 16UC1 values, as of depth, heat or labels"):
        look_for_sources([path])
    path = write(tmp_path / name(kind, 1), kind, {"/mask": []})
    with pytest.raises(InputError, match="/mask: no messages"):
        look_for_sources([path], Asked(cameras="*mask"))


def files_of(path):
    return [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in (".db3", ".mcap")]


def test_a_bag_that_is_cut_or_lacks_a_part_is_named(bags):
    (path,) = (path for path in bags.iterdir() if path.name.startswith("1"))
    (file,) = files_of(path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{path.name} is damaged, or was not written to its end .*reindex"):
        [list(source.frames()) for source in find_sources([path])]
    if path.is_dir():
        file.unlink()
        with pytest.raises(InputError, match=rf"{path.name} is damaged, or .*missing.*reindex"):
            find_sources([path])


def test_a_part_of_a_bag_is_sent_to_its_folder(coded, tmp_path):
    path = write(tmp_path / "bag", "sqlite3", {TOPICS[0]: [coded.picture(0, 0, 0)]})
    (file,) = files_of(path)
    shutil.move(file, tmp_path / "alone")
    with pytest.raises(InputError, match=r"alone is a part of a ROS 2 bag; give the folder that holds it"):
        find_sources([tmp_path / "alone"])
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE messages (x)").connection.close()
    with pytest.raises(InputError, match=r"other\.db cannot be read as a video"):
        list(find_sources([tmp_path / "other.db"])[0].frames())


def test_without_rosbags_the_extra_is_named(tmp_path, coded, monkeypatch):
    path = write(tmp_path / "bag", "mcap", {TOPICS[0]: [coded.picture(0, 0, 0)]})
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)
    with pytest.raises(InputError, match=r"rosbags is not installed.*\[robot\]"):
        find_sources([path])
