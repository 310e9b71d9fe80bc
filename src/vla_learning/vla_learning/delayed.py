"""One episode of a policy whose inferences take a given time, on a virtual clock, and what the arm is asked to do.

The scheduler is the running system's; `naive` is what many systems do, switching to each new chunk at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.robot import Robot
from vla_learning.instructions import PLAIN
from vla_learning.rollout import DONE
from vla_learning.stage import COLOURS, Stage
from vla_policy_node.backends import Backend
from vla_policy_node.backends.flow import FlowBackend
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule
from vla_policy_node.core.shaping import Shaper
from vla_sim.core.controller import JointTrajectoryCommand
from vla_sim.core.scene import CUBE_SIZE, CUBES

Array = NDArray[np.float64]

TASKS = ("still", "sliding")
LIMITS = {"still": 25.0, "sliding": 15.0}  # s of an episode
TICK = 0.02  # s between two looks at what the controller is asked
_CAMERA_NS = 66_666_667
_DONE_IN_A_ROW = 3
_MARGIN = 0.04  # s from chunk to splice: no filter and no network here
_SEAM = 5  # ticks
_SWING, _PERIOD = 0.04, 6.0  # m and s: how the table top slides to and fro


@dataclass
class Trace:
    """What one episode showed, of the arm's joints (not the gripper's) at control ticks.

    Attributes:
        success: the named cube and no other lies in the tray.
        duration: s.
        starved: ticks without a set-point of the plan.
        boundary, inside: rad, largest step of a joint in a tick with a splice, and in each tick that is not within
            0.1 s after one (who catches up with a new chunk does it there).
        jump: rad, largest deviation in a tick with a splice from where the velocity before it would have led.
        kick: rad/s, largest change of a velocity in a tick with a splice.
        strain: largest ratio of a commanded velocity or acceleration to the arm's own limit. The real arm stops itself
            beyond 1; the simulated one does not.
    """

    success: bool = False
    duration: float = 0.0
    starved: int = 0
    boundary: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    jump: float = 0.0
    kick: float = 0.0
    strain: float = 0.0


class SlidingTable:
    """Everything that lies on the table goes to and fro along y, with up to 0.042 m/s: what was seen is soon not true.

    A cube that the fingers have is the robot's, and no longer moves by itself.
    """

    def __init__(self, stage: Stage, phase: float):
        self._cell, self._phase, self._shift = stage.cell, phase, 0.0
        model = self._cell.model
        self._places = {name: int(model.joint(name).qposadr[0]) + 1 for name in CUBES}

    def move(self) -> None:
        """Brings the table to where it is now."""
        angle = 2 * math.pi * self._cell.time_ns * 1e-9 / _PERIOD
        shift = _SWING * (math.sin(angle + self._phase) - math.sin(self._phase))
        by, self._shift = shift - self._shift, shift
        data, truths = self._cell.data, self._cell.truth()
        for name, address in self._places.items():
            if truths[name].in_tray or (not truths[name].held and truths[name].position[2] < 0.75 * CUBE_SIZE):
                data.qpos[address] += by
        data.mocap_pos[0, 1] += by
        mujoco.mj_kinematics(self._cell.model, data)


class Player:
    """One strategy between a policy and the cell's controller."""

    def __init__(self, robot: Robot, strategy: str):
        limits = robot.limits()
        gripper = None if robot.gripper is None else robot.joints.index(robot.gripper.joint)
        schedule = Schedule(margin=_MARGIN)
        self.scheduler = ChunkScheduler(limits, gripper, schedule)
        self.scheduler.choose("async" if strategy == "naive" else strategy)
        self._shaper = Shaper(limits, gripper, schedule.limit_share, schedule.blend, schedule.step)
        self._low, self._high = limits.min_position, limits.max_position
        self._naive = strategy == "naive"

    def motion(self, chunk: ActionChunk, observed: Array, now_ns: int, desired: Array) -> tuple[Trajectory, float]:
        """What to send, in s since the chunk's stamp, and when the new chunk begins in it.

        Raises:
            ChunkError: when the chunk's time has passed.
        """
        splice = self.scheduler.splice(chunk, observed, now_ns, Reality(desired))
        now = (now_ns - chunk.stamp_ns) * 1e-9
        if self._naive:
            times = chunk.trajectory.times
            ahead = times > now + 1e-3
            slopes = np.gradient(chunk.positions, times, axis=0)[ahead]
            return self._to_rest(Trajectory(times[ahead], chunk.positions[ahead], slopes)), now
        return self._to_rest(splice.chunk.trajectory), now + _MARGIN

    def _to_rest(self, motion: Trajectory) -> Trajectory:
        """Controllers want a trajectory to end at rest; this end is hardly ever reached."""
        assert motion.velocities is not None
        accelerations = np.zeros_like(motion.positions) if motion.accelerations is None else motion.accelerations
        state = motion.positions[-1], motion.velocities[-1], accelerations[-1]
        tail = self._shaper.brake(state, motion.end, self._low, self._high)
        assert tail.velocities is not None and tail.accelerations is not None
        parts = (
            (motion.times, tail.times),
            (motion.positions, tail.positions),
            (motion.velocities, tail.velocities),
            (accelerations, tail.accelerations),
        )
        columns = [np.concatenate([head, rest[1:]]) for head, rest in parts]
        return Trajectory(*columns[:3]) if motion.accelerations is None else Trajectory(*columns)


class Meter:
    """Fills a trace."""

    def __init__(self, robot: Robot, trace: Trace):
        self._trace = trace
        self._arm = np.array([robot.joints.index(joint) for joint in robot.arm_joints])
        limits = robot.limits()
        self._bounds = limits.max_velocity[self._arm], limits.max_acceleration[self._arm]
        self._since = _SEAM  # ticks since the last splice

    def note(self, before: Sequence[Array], after: Sequence[Array], splice: bool) -> None:
        """What the controller was asked for at the two ends of a tick: positions, velocities, … each (n,)."""
        trace = self._trace
        (q0, v0), (q1, v1) = ((state[0][self._arm], state[1][self._arm]) for state in (before, after))
        self._since = 0 if splice else self._since + 1
        if splice or self._since > _SEAM:
            (trace.boundary if splice else trace.inside).append(float(np.abs(q1 - q0).max()))
        velocity, acceleration = self._bounds
        strain = max((np.abs(v1) / velocity).max(), (np.abs(v1 - v0) / TICK / acceleration).max())
        trace.strain = max(trace.strain, float(strain))
        if splice:
            trace.jump = max(trace.jump, float(np.abs(q1 - q0 - TICK * v0).max()))
            trace.kick = max(trace.kick, float(np.abs(v1 - v0).max()))


class FreshNoise:
    """A flow policy that draws other noise for each chunk, as published ones do: its chunks disagree by some mm."""

    def __init__(self, policy: FlowBackend):
        self.metadata, self._policy, self._count = policy.metadata, policy, 0

    def reset(self) -> None:
        """A new task, with the same sequence of draws."""
        self._policy.reset()
        self._count = 0

    def infer(self, observation: Observation, prefix: Trajectory | None) -> ActionChunk:
        """As the policy's."""
        self._count += 1
        self._policy.draw(self._count)
        return self._policy.infer(observation, prefix)


def play(
    stage: Stage, policy: Backend, strategy: str, delay: float, seed: int, colour: str, task: str = "still"
) -> Trace:
    """One episode with every inference taking `delay` s."""
    stage.start(seed)
    stage.cell.run(TICK)  # not from time 0: to a controller a stamp of 0 means "now"
    policy.reset()
    player, trace, cell = Player(stage.robot, strategy), Trace(), stage.cell
    meter, tick_ns = Meter(stage.robot, trace), round(TICK * 1e9)
    table = SlidingTable(stage, phase=float(seed)) if task == "sliding" else None
    instruction = PLAIN.format(c=colour)
    pending: tuple[int, ActionChunk, Array] | None = None
    next_image, splice_ns, finished = 0, -1, 0
    before = cell.controller.desired
    while cell.time_ns < LIMITS[task] * 1e9 and finished < _DONE_IN_A_ROW:
        now = cell.time_ns
        if now >= next_image:
            next_image += _CAMERA_NS
            if pending is None and player.scheduler.due(now, now):
                seen = stage.observe(instruction)
                player.scheduler.begin(now)
                try:
                    answer = policy.infer(seen, player.scheduler.prefix(now, seen.positions))
                    pending = now + round(delay * 1e9), answer, seen.positions
                except InferenceError:
                    pass  # what plays goes on; the next observation decides
        if pending is not None and now >= pending[0]:
            _, chunk, observed = pending
            pending = None
            finished = finished + 1 if chunk.progress >= DONE else 0
            try:
                motion, start = player.motion(chunk, observed, now, cell.controller.desired[0])
                cell.command(_command(stage.robot, motion, chunk.stamp_ns))
                splice_ns = chunk.stamp_ns + round(start * 1e9)
            except ChunkError:
                pass  # its time has passed: the robot comes to rest
        queue = player.scheduler.queue(now)
        trace.starved += bool(np.isfinite(queue) and queue <= 0)
        cell.run(TICK)
        if table is not None:
            table.move()
        after = cell.controller.desired
        meter.note(before, after, now <= splice_ns < now + tick_ns)
        before = after
    trace.duration = cell.time_ns * 1e-9
    cell.run(0.5)
    trace.success = stage.placed() == (COLOURS[colour],)
    return trace


def _command(robot: Robot, motion: Trajectory, stamp_ns: int) -> JointTrajectoryCommand:
    return JointTrajectoryCommand.from_arrays(
        robot.joints, motion.times, motion.positions, motion.velocities, motion.accelerations, stamp_ns
    )
