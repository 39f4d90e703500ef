"""A ROS 2 node that publishes an encoder's features of a camera's newest frame."""
