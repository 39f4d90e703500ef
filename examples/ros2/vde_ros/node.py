"""The node: parameters, topics and messages; what it does lies in `features.py`."""

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from vde_ros.features import FeatureStream, Published, encode_options, load, seconds_since
from video_distilled_encoder.hub import DEFAULT_RELEASE

PARAMETERS = {
    "topic": "image",
    "compressed": False,
    "model": DEFAULT_RELEASE,
    "runtime": "",
    "device": "",
    "size": [0],
    "crop_mode": "",
    "picture": True,
}


class EncoderNode(Node):
    """Publishes `~/grid`, `~/cls`, `~/picture` with the stamp of the capture, and age and drops on `/diagnostics`."""

    def __init__(self) -> None:
        super().__init__("encoder")
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        said = {name: self.get_parameter(name).value for name in PARAMETERS}
        self._publishers_of = {
            name: self.create_publisher(Image, f"~/{name}", qos_profile_sensor_data)
            for name in ("grid", "cls", "picture")
            if name != "picture" or said["picture"]
        }
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._stream = FeatureStream(
            load(said["model"], said["runtime"], said["device"]),
            self._publish,
            self._fail,
            said["picture"],
            **encode_options(list(said["size"]), said["crop_mode"]),
        )
        compressed = said["compressed"] or said["topic"].endswith("/compressed")
        kind = CompressedImage if compressed else Image
        self.create_subscription(kind, said["topic"], self._take, qos_profile_sensor_data)

    def _take(self, message) -> None:
        now = self.get_clock().now().to_msg()
        self._stream.put(message, seconds_since(message.header.stamp, now))

    def _publish(self, result: Published) -> None:
        for name, publisher in self._publishers_of.items():
            publisher.publish(Image(header=result.header, **getattr(result, name)))
        values = {"age_ms": f"{1000 * result.age:.1f}", "dropped": str(result.dropped)}
        pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name=self.get_fully_qualified_name(), values=pairs)
        self._diagnostics.publish(DiagnosticArray(header=result.header, status=[status]))

    def _fail(self, error: Exception) -> None:
        self.get_logger().error(str(error), throttle_duration_sec=1.0)

    def close(self) -> None:
        """Stop encoding."""
        self._stream.close()


def main() -> None:
    """Run the node until it is told to stop."""
    rclpy.init()
    node = EncoderNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
