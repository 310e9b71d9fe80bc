#!/usr/bin/env bash
# Sources the image's ROS 2 and hands its arguments to ./vla.
set -e
source /opt/ros/jazzy/setup.bash
exec /vla/vla "$@"
