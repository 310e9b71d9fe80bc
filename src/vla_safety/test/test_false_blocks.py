"""I14: how often a stop is refused that truly keeps its distance. Many cases, so each must be cheap."""

import coal
import numpy as np
import pytest
from rig import HOME, LIMITS, ROBOT
from scipy.stats import binomtest
from volumes import Oracle, coal_volume, moved, random_zone

from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import State
from vla_safety.core.stopping import stop
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import SHAPES, ZoneSet

N = len(HOME)
ARM = np.arange(N) < 7
MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)
ORACLE = Oracle()
MARGIN = 0.004  # m
CASES = 620  # of each shape: none of so many refused means less than 0.5 % (95 %)
ZONES = 4  # around each path


class Path:
    """A motion every 10 ms: all bodies of the robot, where coal sees them."""

    def __init__(self, positions):
        self.placed = []
        for q in positions:
            ORACLE.place(q)
            links = {link: ORACLE.link(link) for link in {link for link, _, _ in ORACLE.bodies}}
            self.placed += [(geometry, links[link] * pose) for link, geometry, pose in ORACLE.bodies]
        for _, geometry, _ in ORACLE.bodies:
            geometry.computeLocalAABB()
        self.middles = np.array([place.transform(geometry.aabb_center) for geometry, place in self.placed])
        self.radii = np.array([geometry.aabb_radius for geometry, _ in self.placed])

    def nearest(self, zone):
        """Signed distance of the nearest body, and the unit vector from the zone to it. Balls around both tell which
        ones need not be looked at."""
        volume, place = coal_volume(zone)
        volume.computeLocalAABB()
        bounds = np.linalg.norm(self.middles - place.transform(volume.aabb_center), axis=1)
        bounds -= self.radii + volume.aabb_radius
        best, away = np.inf, np.zeros(3)
        for k in np.argsort(bounds):
            if bounds[k] >= best:
                break
            geometry, at = self.placed[k]
            answer = coal.DistanceResult()
            distance = coal.distance(geometry, at, volume, place, coal.DistanceRequest(), answer)
            if distance < best:
                best, away = distance, answer.getNearestPoint1() - answer.getNearestPoint2()
        return best, away / max(np.linalg.norm(away), 1e-12)


def a_stop(rng):
    """From up to 0.6 of full speed, within the joints' ranges."""
    while True:
        q = rng.uniform(0.7, 1.0) * HOME + rng.normal(0, 0.3, N) * ARM
        q = np.clip(q, LIMITS.min_position, LIMITS.max_position)
        motion = stop(State(q, LIMITS.max_velocity * rng.uniform(-0.6, 0.6, N) * ARM, np.zeros(N)), 0, LIMITS)
        if (motion.positions >= LIMITS.min_position).all() and (motion.positions <= LIMITS.max_position).all():
            return motion


def cases(shape, room):
    """Stops and zones that they come close to somewhere: at least `room` m, at most 2.5 mm more."""
    rng = np.random.default_rng(SHAPES.index(shape))
    while True:
        motion = a_stop(rng)
        path = Path(motion.curve.sample(np.arange(0, motion.duration, 0.01)).positions)
        for _ in range(ZONES):
            zone = random_zone(rng, shape)
            distance, away = path.nearest(zone)
            if distance > 0:
                zone = moved(zone, away * (distance - room - 0.0025))
                if path.nearest(zone)[0] >= room:
                    yield motion, zone


@pytest.mark.parametrize("shape", SHAPES)
def test_i14_stops_that_keep_clear_are_not_refused(shape):
    """With the margin and 2.5 mm more they are refused in less than 0.5 % of all cases, for each shape of a zone."""
    blocked = 0
    for _, (motion, zone) in zip(range(CASES), cases(shape, MARGIN + 0.0025), strict=False):
        finding = Verifier(LIMITS, MODEL, [ZoneSet([zone], MODEL, MARGIN)]).verify(motion).finding
        blocked += finding is not None
    assert binomtest(blocked, CASES).proportion_ci(0.9, method="exact").high < 0.005, f"{blocked} of {CASES}"


def test_i14_stops_that_touch_are_refused():
    """The cases are hard ones: a little nearer, and every one of them is refused."""
    for shape in SHAPES:
        for _, (motion, zone) in zip(range(10), cases(shape, MARGIN - 0.0035), strict=False):
            finding = Verifier(LIMITS, MODEL, [ZoneSet([zone], MODEL, MARGIN)]).verify(motion).finding
            assert finding is not None and finding.reason == "zone:z"
