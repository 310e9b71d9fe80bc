"""Plays a recorded joint motion: for a robot's first steps under the filter, and for tests without a model.

The checkpoint is a file: `.npz` with arrays `joint_names` (n,), `times` (K,) s and `positions` (K, n), or `.yaml` with
the same keys; for a robot with a mobile base also `base_twists` (K, 3): m/s, m/s, rad/s. The motion starts where the
robot is: a straight lead-in goes to the first point at no more than `lead_in` rad/s.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk, BaseMotion
from vla_contract.errors import ChunkError, ConfigError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import CameraInput, PolicyMetadata, Statistics, file_digest
from vla_contract.robot import Robot, read_yaml
from vla_policy_node.backends.options import ReplayOptions, read_options

Array = NDArray[np.float64]

_UNFINISHED = 0.89  # largest progress before the end


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "ReplayBackend":
    """Reads a recording.

    Raises:
        ConfigError: when it cannot be read, or does not move exactly the robot's joints.
    """
    chosen = read_options(ReplayOptions, "replay", options)
    chosen.check("replay", robot)
    recording = _read(checkpoint, robot.joints)
    if recording.base is not None and robot.base is None:
        raise ConfigError(f"recording '{checkpoint}' holds base_twists, robot '{robot.name}' has no mobile base")
    return ReplayBackend(recording, file_digest(checkpoint), checkpoint.stem, robot, chosen)


class Recording(NamedTuple):
    """Joint motion, times from 0 s on; and the mobile base's, at the same times."""

    motion: Trajectory
    base: BaseMotion | None


def _read(path: Path, joints: tuple[str, ...]) -> Recording:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                content: dict[str, Any] = {key: archive[key] for key in archive.files}
        except (OSError, ValueError) as error:
            raise ConfigError(f"recording '{path}' cannot be read: {error}") from error
    elif path.suffix in (".yaml", ".yml"):
        content = read_yaml(path, "recording")
    else:
        raise ConfigError(f"recording '{path}' has suffix '{path.suffix}', expected .npz or .yaml")
    expected = {"joint_names", "times", "positions"}
    if set(content) - {"base_twists"} != expected:
        raise ConfigError(f"recording '{path}' holds {sorted(content)}, expected {sorted(expected)}")
    names = [str(name) for name in content["joint_names"]]
    if sorted(names) != sorted(joints):
        raise ConfigError(f"recording '{path}' moves {names}, the robot has {list(joints)}")
    try:
        order = [names.index(joint) for joint in joints]
        positions = np.asarray(content["positions"], dtype=np.float64)
        times = np.asarray(content["times"], dtype=np.float64)
        motion = Trajectory(times - times[0], positions[:, order])
        if "base_twists" not in content:
            return Recording(motion, None)
        return Recording(motion, BaseMotion(motion.times, np.asarray(content["base_twists"], dtype=np.float64)))
    except (ChunkError, ValueError, IndexError) as error:
        raise ConfigError(f"recording '{path}' is malformed: {error}") from error


def played_progress(elapsed: float, end: float, endless: bool) -> float:
    """[0, 1], of what is played for `end` s: below what ends a task (`done.progress`, 0.9 by default) until all of it
    has been played, and for ever where it begins again."""
    if endless:
        return 0.0
    return 1.0 if elapsed >= end else _UNFINISHED * max(0.0, elapsed / end)


def played_metadata(
    name: str, digest: str, robot: Robot, cameras: Sequence[str], horizon: int, dt: float
) -> PolicyMetadata:
    """Of a policy that plays joint positions of `robot` as they are, `horizon` of them `dt` s apart; it only waits for
    the `cameras`."""
    n = len(robot.joints)
    return PolicyMetadata(
        name=name,
        digest=digest,
        cameras={c: CameraInput(height=robot.cameras[c].height, width=robot.cameras[c].width) for c in cameras},
        joints=robot.joints,
        state=("joint_position[rad|m]",) * n,
        action_space="joint_position",
        action=("joint_position[rad|m]",) * n,
        horizon=horizon,
        dt=dt,
        statistics={key: Statistics(mean=(0.0,) * n, std=(1.0,) * n) for key in ("state", "action")},
    )


class ReplayBackend:
    """One recording; time runs from the first observation after `reset`."""

    def __init__(self, recording: Recording, digest: str, name: str, robot: Robot, options: ReplayOptions):
        self.recording = recording
        self.options = options
        self._start: int | None = None
        self._path, self._lead = recording.motion, 0.0
        self.metadata = played_metadata(f"replay:{name}", digest, robot, options.cameras, options.horizon, options.dt)

    def reset(self) -> None:
        """Plays from the start again."""
        self._start = None

    def infer(self, observation: Observation, prefix: Trajectory | None) -> ActionChunk:
        """The next `horizon` points of the recording."""
        if self._start is None:
            self._start = observation.stamp_ns
            self._path = self._with_lead_in(observation.positions)
        elapsed = (observation.stamp_ns - self._start) * 1e-9
        if self.options.at_end == "again" and elapsed > self._path.end:
            self._start = observation.stamp_ns
            self._path = self._with_lead_in(observation.positions)
            elapsed = 0.0
        times = self.options.dt * np.arange(1, self.options.horizon + 1)
        base = None
        if self.recording.base is not None:
            since = elapsed - self._lead
            # It stands during the lead-in, and drives as recorded behind it.
            twists = [self.recording.base.sample(t) * (t >= 0) for t in since + times]
            base = BaseMotion(times, np.stack(twists))
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self.metadata.joints,
            trajectory=Trajectory(times, self._path.sample(elapsed + times).positions),
            progress=played_progress(elapsed, self._path.end, endless=self.options.at_end == "again"),
            confidence=1.0,
            base=base,
        )

    def _with_lead_in(self, positions: Array) -> Trajectory:
        """The recording after a straight, smooth way from where the robot is."""
        recording = self.recording.motion
        first = recording.positions[0]
        # The smooth profile below peaks at 15/8 of its mean speed.
        duration = float(np.abs(first - positions).max()) * 1.875 / self.options.lead_in
        if duration < self.options.dt:
            self._lead = 0.0
            return recording
        self._lead = duration
        share = np.linspace(0.0, 1.0, max(2, int(np.ceil(duration / self.options.dt)) + 1))[:-1]
        profile = share**3 * (10 - 15 * share + 6 * share**2)
        lead = positions + profile[:, None] * (first - positions)
        times = np.concatenate([share * duration, recording.times + duration])
        return Trajectory(times, np.concatenate([lead, recording.positions]))
