"""The ROS 2 node: what it does on the message types of ROS 2, and, where rclpy is installed (`ros2.sh`), itself."""

import io
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_distilled_encoder import Encoder, InputError

ROOT = Path(__file__).parents[2] / "examples" / "ros2"
sys.path.insert(0, str(ROOT))
from vde_ros.features import FeatureStream, decode, encode_options, image_fields, load, seconds_since  # noqa: E402


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_pretrained("nota/vfd-vits16")


@pytest.fixture(scope="module")
def types():
    """Return the message types of ROS 2 Humble."""
    typesys = pytest.importorskip("rosbags.typesys")
    return typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)


def header(types, number=0):
    stamp = types.types["builtin_interfaces/msg/Time"](sec=number, nanosec=5)
    return types.types["std_msgs/msg/Header"](stamp=stamp, frame_id="wrist")


def picture(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC))


def raw(types, pixels, number=0, encoding="rgb8", pad=0):
    """Return a sensor_msgs/Image as a camera driver makes it, with `pad` bytes after each row."""
    rows = pixels.reshape(len(pixels), -1)
    data = np.pad(rows, ((0, 0), (0, pad))).reshape(-1)
    kind = types.types["sensor_msgs/msg/Image"]
    said = {"height": pixels.shape[0], "width": pixels.shape[1], "encoding": encoding, "is_bigendian": 0}
    return kind(header=header(types, number), **said, step=rows.shape[1] + pad, data=data)


def compressed(types, pixels, number=0):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = np.frombuffer(file.getvalue(), np.uint8)
    kind = types.types["sensor_msgs/msg/CompressedImage"]
    return kind(header=header(types, number), format="rgb8; png compressed rgb8", data=data)


def test_pictures_of_every_message_are_the_camera_s(types):
    pixels = picture()
    assert np.array_equal(decode(raw(types, pixels)), pixels)
    assert np.array_equal(decode(raw(types, pixels[..., ::-1], encoding="bgr8", pad=5)), pixels)
    assert np.array_equal(decode(raw(types, pixels[..., :1], encoding="mono8")), pixels[..., :1].repeat(3, -1))
    assert np.array_equal(decode(compressed(types, pixels)), pixels)
    with pytest.raises(InputError, match="colour camera"):
        decode(raw(types, np.zeros((4, 4, 4), np.uint8), encoding="32FC1"))
    with pytest.raises(InputError, match="damaged"):
        decode(types.types["sensor_msgs/msg/CompressedImage"](header(types), "jpeg", np.zeros(9, np.uint8)))


def test_features_come_as_messages_of_ros_with_the_capture_s_header(types, encoder):
    pixels, results, errors, done = picture(), [], [], threading.Event()
    stream = FeatureStream(encoder, lambda it: (results.append(it), done.set()), errors.append, size=(64, 96))
    stream.put(compressed(types, pixels, number=7), age=0.25)
    assert done.wait(60)
    stream.close()
    result = results[0]
    assert (result.header.stamp.sec, result.header.frame_id) == (7, "wrist")
    assert 0.25 <= result.age < 60
    kind, expected = types.types["sensor_msgs/msg/Image"], encoder.encode(pixels, size=(64, 96))
    for name, wanted in {"grid": expected.grid[0].movedim(0, -1), "cls": expected.cls[:, None]}.items():
        fields = getattr(result, name)
        said = kind(header=result.header, **{**fields, "data": np.frombuffer(fields["data"], np.uint8)})
        there = types.deserialize_cdr(types.serialize_cdr(said, kind.__msgtype__), kind.__msgtype__)
        assert there.encoding == "32FC384"
        assert there.step == there.width * 384 * 4
        got = torch.from_numpy(there.data.view("<f4").reshape(there.height, there.width, 384).copy())
        torch.testing.assert_close(got, wanted)
    assert (result.picture["encoding"], result.picture["height"], result.picture["width"]) == ("rgb8", 64, 96)
    assert len(set(result.picture["data"])) > 20


class Slow:
    """An encoder that waits to be told; it counts what it was given."""

    def __init__(self, encoder):
        self.encoder, self.seen, self.go = encoder, [], threading.Semaphore(0)

    def encode(self, image, **options):
        self.seen.append(image)
        assert self.go.acquire(timeout=60)
        return self.encoder.encode(image, size=32)


def test_only_the_newest_is_encoded_and_a_bad_message_is_not_the_end(types, encoder):
    slow, results, errors, arrived = Slow(encoder), [], [], threading.Semaphore(0)
    stream = FeatureStream(
        slow, lambda it: (results.append(it), arrived.release()), lambda it: (errors.append(it), arrived.release())
    )
    stream.put(raw(types, picture(0), 0))
    while not slow.seen:
        time.sleep(0.01)
    for number in range(1, 6):
        stream.put(raw(types, picture(number), number))
    slow.go.release(2)
    assert arrived.acquire(timeout=60)
    while len(slow.seen) < 2:
        time.sleep(0.01)
    assert arrived.acquire(timeout=60)
    assert [it.header.stamp.sec for it in results] == [0, 5]
    assert [it.dropped for it in results] == [0, 4]
    assert np.array_equal(slow.seen[1], picture(5))
    stream.put(raw(types, picture(0), encoding="16UC1"))
    assert arrived.acquire(timeout=60)
    assert "depth" in str(errors[0])
    slow.go.release()
    stream.put(raw(types, picture(9), 9))
    assert arrived.acquire(timeout=60)
    assert results[-1].header.stamp.sec == 9
    stream.close()


def test_the_age_is_that_of_the_capture(types):
    time_of = types.types["builtin_interfaces/msg/Time"]
    assert seconds_since(time_of(10, 900_000_000), time_of(11, 100_000_000)) == pytest.approx(0.2)
    assert seconds_since(time_of(0, 0), time_of(1_700_000_000, 0)) == 0  # not stamped
    assert seconds_since(time_of(12, 0), time_of(11, 0)) == 0  # of a clock that is ahead


def test_parameters(encoder, tmp_path):
    assert encode_options([0], "") == {}
    assert encode_options([224], "squash") == {"size": 224, "crop_mode": "squash"}
    assert encode_options([64, 96], "") == {"size": (64, 96)}
    with pytest.raises(InputError, match="height, width"):
        encode_options([1, 2, 3], "")
    assert isinstance(load("nota/vfd-vits16", "", ""), Encoder)
    with pytest.raises(InputError, match="does not exist"):
        load("nota/vfd-vits16", str(tmp_path / "encoder.onnx"), "cpu")
    assert image_fields(np.zeros((2, 3, 5), np.float32))["step"] == 60


def test_the_node_itself(encoder):
    """Publish two kinds of pictures to the real node and read what it publishes."""
    rclpy = pytest.importorskip("rclpy")
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage
    from sensor_msgs.msg import Image as RosImage
    from vde_ros.node import EncoderNode

    for kind, topic in ((RosImage, "front"), (CompressedImage, "front/compressed")):
        rclpy.init(args=["--ros-args", "-p", f"topic:={topic}", "-p", "size:=[64, 96]"])
        node, tester, got = EncoderNode(), rclpy.create_node("tester"), {}
        names = {f"/encoder/{name}": RosImage for name in ("grid", "cls", "picture")}
        for name, type_ in {**names, "/diagnostics": DiagnosticArray}.items():
            tester.create_subscription(type_, name, partial(got.__setitem__, name), qos_profile_sensor_data)
        publisher = tester.create_publisher(kind, topic, qos_profile_sensor_data)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.add_node(tester)
        message = kind()
        message.header.frame_id = "wrist"
        if kind is RosImage:
            for name, value in image_fields(picture()).items():
                setattr(message, name, value)
        else:
            file = io.BytesIO()
            Image.fromarray(picture()).save(file, "PNG")
            message.format, message.data = "png", file.getvalue()
        sent, end = {}, time.monotonic() + 90
        while len(got) < 4 and time.monotonic() < end:
            message.header.stamp = tester.get_clock().now().to_msg()
            sent[message.header.stamp.nanosec] = message.header.stamp.sec
            publisher.publish(message)
            executor.spin_once(timeout_sec=0.2)
        assert len(got) == 4, list(got)
        grid = got["/encoder/grid"]
        assert sent[grid.header.stamp.nanosec] == grid.header.stamp.sec
        assert grid.header.frame_id == "wrist"
        values = torch.from_numpy(np.frombuffer(grid.data, "<f4").reshape(4, 6, 384).copy())
        torch.testing.assert_close(values, encoder.encode(picture(), size=(64, 96)).grid[0].movedim(0, -1))
        told = {pair.key: float(pair.value) for pair in got["/diagnostics"].status[0].values}
        assert 0 < told["age_ms"] < 60_000
        assert "dropped" in told
        node.close()
        executor.shutdown()
        node.destroy_node()
        tester.destroy_node()
        rclpy.shutdown()
