"""What RViz shows: the zones, and the way of the tool along the committed motion."""

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Quaternion
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import Motion
from vla_safety.core.zones import ZoneSpec

_COLOURS = {"keep_in": (0.1, 0.7, 0.2, 0.08), "keep_out": (0.9, 0.1, 0.1, 0.25)}


def markers(
    zones: tuple[ZoneSpec, ...], motion: Motion | None, model: RobotModel, tool: str, base: str, stamp: Time
) -> MarkerArray:
    """All markers; the committed way is sampled every 20 ms."""
    result = [_zone(k, zone, base, stamp) for k, zone in enumerate(zones)]
    if motion is not None and len(motion) > 1:
        way = Marker(ns="committed", id=0, type=Marker.LINE_STRIP, action=Marker.ADD)
        way.header.frame_id, way.header.stamp = base, stamp
        way.scale.x = 0.004
        way.color = ColorRGBA(r=0.1, g=0.4, b=1.0, a=0.9)
        way.pose.orientation.w = 1.0
        times = np.arange(0.0, motion.duration, 0.02)
        placement = model.place(motion.curve.sample(times).positions)
        way.points = [Point(x=x, y=y, z=z) for x, y, z in model.link_pose(tool, placement)[1].tolist()]
        result.append(way)
    return MarkerArray(markers=result)


def _zone(k: int, zone: ZoneSpec, base: str, stamp: Time) -> Marker:
    marker = Marker(ns="zones", id=k, type=Marker.CUBE, action=Marker.ADD, text=zone.name)
    marker.header.frame_id, marker.header.stamp = zone.frame or base, stamp
    marker.frame_locked = bool(zone.frame)
    marker.scale.x, marker.scale.y, marker.scale.z = zone.box.size
    marker.pose.position.x, marker.pose.position.y, marker.pose.position.z = zone.box.center
    marker.pose.orientation = _quaternion(*zone.box.rpy)
    r, g, b, a = _COLOURS[zone.kind]
    marker.color = ColorRGBA(r=r, g=g, b=b, a=a)
    return marker


def _quaternion(roll: float, pitch: float, yaw: float) -> Quaternion:
    (sr, sp, sy), (cr, cp, cy) = np.sin([roll / 2, pitch / 2, yaw / 2]), np.cos([roll / 2, pitch / 2, yaw / 2])
    return Quaternion(
        x=float(sr * cp * cy - cr * sp * sy),
        y=float(cr * sp * cy + sr * cp * sy),
        z=float(cr * cp * sy - sr * sp * cy),
        w=float(cr * cp * cy + sr * sp * sy),
    )
