"""P4: does the motion ever run out? The scheduler alone, on a virtual clock: the machine's own speed does not count."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_bringup.latency.stub import WARM_UP, Options, Stub
from vla_contract.errors import ChunkError
from vla_contract.observation import Observation
from vla_contract.robot import Robot
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule

TICK_NS = 10_000_000  # of the control loop
CAMERA_NS = 33_333_333
_JITTER_NS = 3_000_000  # of an image's arrival
_MEDIAN, _SIGMA = 0.1, 0.6  # s, of the lognormal delays
_SPIKES = 0.05  # of the inferences take anything up to half a horizon


@dataclass(frozen=True)
class Starvation:
    """What `ticks` of control showed.

    Attributes:
        starved: ticks without a valid setpoint: none, not finite, or one whose time is over.
        longest_delay: s, of an inference; `horizon`: s that a chunk reaches beyond its observation.
        refused: chunks that came too late to be used.
    """

    ticks: int
    starved: int
    chunks: int
    refused: int
    longest_delay: float
    horizon: float


def measure(robot: Robot, ticks: int, seed: int = 0, tick: Callable[[int], None] = lambda done: None) -> Starvation:
    """Plays `ticks` of control after the first chunk; delays with jitter and spikes up to half the horizon.

    Args:
        tick: called now and then with the number of ticks that are done.
    """
    random = np.random.default_rng(seed)
    stub = Stub(robot, Options())
    gripper = None if robot.gripper is None else robot.joints.index(robot.gripper.joint)
    scheduler = ChunkScheduler(robot.limits(), gripper, Schedule())
    horizon = stub.metadata.horizon * stub.metadata.dt
    home = np.array(robot.home)
    played, position = None, home
    newest, next_image = -1, 0
    pending: tuple[int, int, np.ndarray] | None = None
    now = done = starved = chunks = refused = 0
    longest = 0.0
    while done < ticks:
        now += TICK_NS
        if now >= next_image:
            newest, next_image = next_image, next_image + CAMERA_NS + int(random.integers(_JITTER_NS))
        if pending is None and newest >= 0 and scheduler.due(now, newest):
            scheduler.begin(newest)
            delay = _delay(random, horizon / 2)
            longest = max(longest, delay)
            # A delay counts from the observation, and is whole ticks: nobody could see less.
            ready = newest + round(delay * 1e9)
            pending = max(now, ready - ready % TICK_NS), newest, position
        if pending is not None and now >= pending[0]:
            _, stamp, observed = pending
            pending = None
            seen = Observation(stamp, {}, observed, np.zeros_like(home), WARM_UP)
            try:
                chunk = scheduler.splice(stub.infer(seen, None), observed, now, Reality(position)).chunk
                played, chunks = (chunk.stamp_ns, chunk.trajectory), chunks + 1
            except ChunkError:
                refused += 1
        if played is None:
            continue
        stamp, motion = played
        at = (now - stamp) * 1e-9
        done += 1
        if at <= motion.end:
            position = motion.sample(max(at, motion.start)).positions[0]
        starved += bool(at > motion.end or not np.isfinite(position).all())
        if done % 5000 == 0:
            tick(done)
    return Starvation(done, starved, chunks, refused, longest, horizon)


def _delay(random: np.random.Generator, most: float) -> float:
    """s."""
    if random.random() < _SPIKES:
        return float(random.uniform(0.0, most))
    return float(min(most, random.lognormal(np.log(_MEDIAN), _SIGMA)))
