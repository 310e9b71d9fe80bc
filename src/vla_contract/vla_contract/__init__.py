"""The words everyone in the suite shares, without ROS.

Units are SI and radians, frames follow REP-103 and REP-105, times are seconds, stamps are integer nanoseconds since
the epoch of the clock in use. Arrays are float64 unless said otherwise; the joint axis is always the last one and
always in the order of the robot file.
"""
