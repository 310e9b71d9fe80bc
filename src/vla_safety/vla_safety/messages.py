"""Between ROS messages and the filter's own values."""

import array
from dataclasses import replace

from builtin_interfaces.msg import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from vla_msgs.msg import ActionChunk, SafetyDecision, SafetyState

from vla_node_base.conversions import time_msg, to_ns
from vla_safety.core.findings import Decision
from vla_safety.core.motion import NS, Motion
from vla_safety.core.records import Status
from vla_safety.core.validation import POLICY, Proposal


def proposal_from_chunk(message: ActionChunk, now_ns: int, max_points: int) -> Proposal:
    """A policy's chunk, unchecked."""
    proposal = _proposal(POLICY, message.sequence, message.header, message.trajectory, now_ns, max_points)
    return replace(proposal, digest=message.policy_digest)


def proposal_from_trajectory(
    source: str, message: JointTrajectory, sequence: int, now_ns: int, max_points: int
) -> Proposal:
    """A trajectory of a human or a planner, unchecked; `sequence` counts them."""
    return _proposal(source, sequence, message.header, message, now_ns, max_points)


def _proposal(source, sequence, header, trajectory, now_ns, max_points) -> Proposal:  # type: ignore[no-untyped-def]
    # An oversized trajectory is not converted: it is refused for its size, in bounded time.
    points = trajectory.points if len(trajectory.points) <= max_points else []
    return Proposal(
        source=source,
        sequence=int(sequence),
        stamp_ns=to_ns(header.stamp),
        frame=header.frame_id,
        joint_names=trajectory.joint_names,
        times_ns=[to_ns(point.time_from_start) for point in points],
        positions=[point.positions for point in points],
        velocities=[point.velocities for point in points],
        accelerations=[point.accelerations for point in points],
        points=len(trajectory.points),
        received_ns=now_ns,
    )


def motion_msg(motion: Motion, joints: tuple[str, ...]) -> JointTrajectory:
    """What the controller gets; the stamp is the first knot's time, which may lie in the past."""
    message = JointTrajectory(joint_names=list(joints))
    message.header.stamp = time_msg(motion.start)
    for k, time in enumerate(motion.times.tolist()):
        offset = time - motion.start
        message.points.append(
            JointTrajectoryPoint(
                # array.array passes rclpy's field check without a look at every element.
                positions=array.array("d", motion.positions[k].tobytes()),
                velocities=array.array("d", motion.velocities[k].tobytes()),
                accelerations=array.array("d", motion.accelerations[k].tobytes()),
                time_from_start=Duration(sec=offset // NS, nanosec=offset % NS),
            )
        )
    return message


def decision_msg(decision: Decision, frame: str) -> SafetyDecision:
    """A decision for people and recorders."""
    finding = decision.finding
    message = SafetyDecision(
        verdict=int(decision.verdict),
        source=decision.source,
        sequence=decision.sequence,
        points_requested=decision.points_requested,
        points_accepted=decision.points_accepted,
        value=float("nan"),
        limit=float("nan"),
        latency=Duration(sec=decision.latency_ns // NS, nanosec=decision.latency_ns % NS),
    )
    if finding is not None:
        message.reason, message.subject = finding.reason, finding.subject
        message.value, message.limit, message.remedy = finding.value, finding.limit, finding.remedy
    message.header.stamp = time_msg(decision.stamp_ns)
    message.header.frame_id = frame
    return message


def state_msg(status: Status, stamp_ns: int, frame: str) -> SafetyState:
    """The filter's state."""
    message = SafetyState(
        mode=int(status.mode),
        reason="" if status.finding is None else status.finding.reason,
        speed_scale=status.speed_scale,
        joint_margin=status.joint_margin,
        zone_clearance=status.zone_clearance,
        self_clearance=status.self_clearance,
        tracking_error=status.tracking_error,
    )
    message.accepted, message.slowed, message.trimmed, message.refused, message.stopped = status.counts
    message.header.stamp = time_msg(stamp_ns)
    message.header.frame_id = frame
    return message
