"""What a mobile base is told while the arm plays a chunk: the policy's twist for now, inside the base's limits.

Twists are velocities: they need no splice, only limits. A new chunk's twists count from the same instant as its arm
motion. Where no chunk says anything the base comes to rest.
"""

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import BaseMotion
from vla_contract.robot import MobileBase
from vla_policy_node.core.splicing import APART

Array = NDArray[np.float64]

_NS = 1e-9
_LONGEST = 0.1  # s between two commands that the acceleration limit counts; after a longer gap no leap


def alongside(motion: BaseMotion, shift: float, at: float, stretch: float, until: float) -> BaseMotion | None:
    """A chunk's base motion beside its arm motion as it was scheduled: both do the same at the same time, and the base
    rests where the arm has come to rest.

    Args:
        motion: times in s since the observation.
        shift: s by which the arm's motion was put off.
        at: s, the splice; before it another chunk counts.
        stretch: how many times slower the arm moves from the splice on.
        until: s that the arm moves to, before it was stretched.

    Returns:
        From the splice on; None: it has ended before.
    """
    times = motion.times + shift
    last = min(float(times[-1]), until)
    if last <= at:
        return None
    inside = times[(times > at + APART) & (times < last - APART)]
    chosen = np.concatenate([[at], inside, [last]])
    own = np.minimum(chosen - shift, motion.times[-1])  # rounding must not lead beyond its end, where it rests
    twists = np.stack([motion.sample(float(time)) for time in own]) / stretch
    return BaseMotion(at + (chosen - at) * stretch, twists)


class BaseDriver:
    """One robot's base.

    Attributes:
        limited: the last command was slower than the policy wanted, for the velocity limit.
    """

    def __init__(self, base: MobileBase):
        self._fastest, self._quickest = np.array(base.max_velocity), np.array(base.max_acceleration)
        self._motion: tuple[int, BaseMotion] | None = None
        self._next: tuple[int, tuple[int, BaseMotion] | None] | None = None
        self._twist, self._said_ns = np.zeros(3), 0
        self.limited = False

    @property
    def twist(self) -> Array:
        """(3,) m/s, m/s, rad/s, commanded last."""
        return self._twist.copy()

    def take(self, motion: BaseMotion | None, stamp_ns: int, from_ns: int) -> None:
        """Drives by `motion`, whose times count from `stamp_ns`, from the instant `from_ns` on; None: rests then."""
        self._next = from_ns, None if motion is None else (stamp_ns, motion)

    def release(self) -> None:
        """Nobody wants anything any more: to rest, as quickly as the limits allow."""
        self._motion = self._next = None

    def command(self, now_ns: int) -> Array:
        """(3,) m/s, m/s, rad/s: what to tell the base now. Call it at the base's rate."""
        if self._next is not None and now_ns >= self._next[0]:
            self._motion, self._next = self._next[1], None
        wanted = np.zeros(3)
        if self._motion is not None:
            stamp_ns, motion = self._motion
            wanted = motion.sample((now_ns - stamp_ns) * _NS)
        # All axes are slowed alike: the base keeps the curve that the policy wanted. What it cannot do at all is left
        # out.
        able = self._fastest > 0
        ratio = float((np.abs(wanted[able]) / self._fastest[able]).max(initial=0.0))
        self.limited = ratio > 1.0 or bool(np.abs(wanted[~able]).max(initial=0.0) > 0)
        wanted = np.where(able, wanted, 0.0) / max(ratio, 1.0)
        step = self._quickest * min(max((now_ns - self._said_ns) * _NS, 0.0), _LONGEST)
        self._twist = self._twist + np.clip(wanted - self._twist, -step, step)
        self._said_ns = now_ns
        return self.twist
