"""MuJoCo robot cell that speaks what ros2_control and camera drivers speak."""
