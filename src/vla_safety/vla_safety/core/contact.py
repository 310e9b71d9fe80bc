"""Contact: the force sensor against a limit, two samples at the most from touch to stop.

Weight that the readings contain is computed from masses and orientation and taken out; what then is left when the robot
is armed, if it is within `max_offset` of the limits, is the sensor's own offset and is taken out as well.
"""

import math
from collections.abc import Collection

import numpy as np

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.config import ContactLimits
from vla_safety.core.findings import Finding
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import Array, seconds
from vla_safety.core.urdf import Description
from vla_safety.core.watchdogs import Instant


class Weight:
    """What a sensor feels of the weight behind it: for a force f = sum m g at the loads' centers c, turned into the
    sensor's axes, (f, sum c x m g).

    Args:
        description: the robot with what it carries.
        frame: link that the sensor measures at.
        only: links whose loads count; None: all that are further from the base than the sensor.
        gravity: m/s^2 (3,), in the base frame.

    Raises:
        ConfigError: when there is no such link.
    """

    def __init__(
        self,
        description: Description,
        model: RobotModel,
        frame: str,
        gravity: tuple[float, float, float],
        only: Collection[str] | None = None,
    ):
        if frame not in description.links:
            raise ConfigError(f"contact.frame: {unknown('link', frame, description.links)}")
        beyond = {frame}
        for joint in description.joints:  # parents come before their children
            if joint.parent in beyond:
                beyond.add(joint.child)
        chosen = [load for load in description.loads if load.link in beyond and (only is None or load.link in only)]
        self._loads = tuple(chosen)
        self._model = model
        self._frame = frame
        self._gravity: Array = np.array(gravity)

    def wrench(self, q: Array) -> Array:
        """(6,) N and Nm in the sensor's frame, at configuration `q` (n,)."""
        result = np.zeros(6)
        if not self._loads:
            return result
        placement = self._model.place(q[None])
        axes, origin = (part[0] for part in self._model.link_pose(self._frame, placement))
        for load in self._loads:
            rotation, translation = (part[0] for part in self._model.link_pose(load.link, placement))
            force = axes.T @ (load.mass * self._gravity)
            lever = axes.T @ (translation + rotation @ load.center - origin)
            result[:3] += force
            result[3:] += np.cross(lever, force)
        return result


class ContactMonitor:
    """Judges wrenches as they come.

    Args:
        weight: what the readings contain of the weight behind the sensor; None: nothing.
    """

    def __init__(self, limits: ContactLimits, weight: Weight | None = None):
        self._limits = limits
        self._weight = weight
        self._expected: Array | None = np.zeros(6) if weight is None else None
        self._zero: Array = np.zeros(6)
        self._newest: Array | None = None
        self._heard: int | None = None
        self._stamp_ns: int | None = None
        self._above = 0
        self._finding: Finding | None = None

    @property
    def force(self) -> float:
        """N, of the newest reading without weight and offset; NaN before the first."""
        return float("nan") if self._newest is None else float(np.linalg.norm((self._newest - self._zero)[:3]))

    def carry(self, weight: Weight | None) -> None:
        """Another tool or payload; its weight is known from the next posture on."""
        self._weight = weight
        self._expected = np.zeros(6) if weight is None else None

    def pose(self, q: Array) -> None:
        """Where the robot is measured to be, q (n,): for the weight."""
        if self._weight is not None:
            self._expected = self._weight.wrench(q)

    def zero(self) -> Finding | None:
        """What is measured now is the sensor's own offset, if it is small; else a finding, and nothing changes."""
        if self._newest is None:
            return None
        _, value, limit = self._worst(self._newest)
        if not value <= self._limits.max_offset * limit:
            return Finding("offset", "wrench", value, self._limits.max_offset * limit)
        self._zero = self._newest
        return None

    def _worst(self, wrench: Array) -> tuple[str, float, float]:
        """Force or torque, which is the larger part of its limit: reason, value and limit."""
        push, twist = math.hypot(*wrench[:3].tolist()), math.hypot(*wrench[3:].tolist())
        force, torque = self._limits.max_force, self._limits.max_torque
        if twist / torque > push / force:
            return "contact_torque", twist, torque
        return "contact_force", push, force

    def receive(
        self,
        force: tuple[float, float, float],
        torque: tuple[float, float, float],
        now: Instant,
        frame: str = "",
        stamp_ns: int | None = None,
    ) -> Finding | None:
        """Takes a wrench (N, Nm); a finding when it is the second in a row that is too large.

        Unusable is one that is not finite, or in another frame than the limits name, or whose weight is not known yet,
        or whose stamp is not newer than the one before or further from now than `timeout`. It counts as silence and
        changes nothing: a contact that was found stays.

        Args:
            stamp_ns: when it was measured; from then on silence counts. None: now.
        """
        age = 0 if stamp_ns is None else now.clock_ns - stamp_ns
        if stamp_ns is not None and not self._is_news(stamp_ns, now):
            return self._finding
        wrench = np.array((*force, *torque), dtype=np.float64)
        strange = bool(self._limits.frame and frame and frame != self._limits.frame)
        if strange or self._expected is None or not np.isfinite(wrench).all():
            return self._finding
        self._newest, self._heard = wrench - self._expected, now.watch_ns - max(0, age)
        reason, value, limit = self._worst(self._newest - self._zero)
        self._above = 0 if value <= limit else self._above + 1
        if not self._above:
            self._finding = None
        elif self._above >= self._limits.samples:
            self._finding = Finding(reason, "wrench", value, limit)
        return self._finding

    def _is_news(self, stamp_ns: int, now: Instant) -> bool:
        """Whether a wrench was measured lately, and after the one before."""
        newest, limit = self._stamp_ns, self._limits.timeout
        if newest is not None and seconds(newest - now.clock_ns) > limit:
            newest = None  # the clock went back: nothing would be newer for as long
        if not abs(seconds(now.clock_ns - stamp_ns)) <= limit or (newest is not None and stamp_ns <= newest):
            return False
        self._stamp_ns = stamp_ns
        return True

    def check(self, now: Instant) -> Finding | None:
        """Whether the sensor is alive."""
        age = math.inf if self._heard is None else seconds(now.watch_ns - self._heard)
        if -self._limits.timeout <= age <= self._limits.timeout:
            return None
        return Finding("stale_wrench", "wrench", age, self._limits.timeout)
