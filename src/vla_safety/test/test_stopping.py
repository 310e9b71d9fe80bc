import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, MS, Rig, proposal, smooth_chunk
from rig import check_envelope as check_played
from scipy.interpolate import BPoly

from vla_safety.core.findings import Verdict
from vla_safety.core.limits import check_envelope, extent_of, speed_scale
from vla_safety.core.motion import Motion, State, rest
from vla_safety.core.stopping import stop, stop_along, stopping_distance
from vla_safety.proof.oracle import envelope_faults

N = len(HOME)
MIDDLE = (LIMITS.max_position + LIMITS.min_position) / 2


def random_state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    v = rng.uniform(-1, 1, N) * LIMITS.max_velocity * rng.choice([0, 0.1, 1])
    a = rng.uniform(-1, 1, N) * LIMITS.max_acceleration * rng.choice([0, 0.1, 1])
    return State(MIDDLE.copy(), v, a)


def test_known_value_of_joint_1():
    """FR3 joint 1 at 2.62 rad/s stops in 0.264 s and 0.346 rad; with 200 ms of reaction in 0.870 rad."""
    v = np.zeros(N)
    v[0] = 2.62
    motion = stop(State(MIDDLE, v, np.zeros(N)), 0, LIMITS)
    assert motion.duration == pytest.approx(0.264, abs=5e-4)
    assert motion.positions[-1, 0] - MIDDLE[0] == pytest.approx(0.346, abs=5e-4)
    assert stopping_distance(2.62, 10, 5000, 0.2) == pytest.approx(0.870, abs=5e-4)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.9, 1.0]))
def test_i02_stop_keeps_limits_and_ends_at_rest(seed, fraction):
    state = random_state(seed)
    motion = stop(state, 1234, LIMITS, fraction)
    for kind in ("position", "velocity", "acceleration"):
        assert np.array_equal(getattr(motion.knot(0), kind), getattr(state, kind))
    if len(motion) == 1:
        assert state.at_rest
        return
    assert motion.knot(len(motion) - 1).at_rest
    t = (motion.times - motion.times[0]) * 1e-9
    knots = [[motion.positions[k], motion.velocities[k], motion.accelerations[k]] for k in range(len(motion))]
    curve = BPoly.from_derivatives(t, knots)
    s = np.linspace(0, t[-1], 3000)[1:-1]
    a = np.maximum(LIMITS.max_acceleration * fraction, np.abs(state.acceleration))
    assert (np.abs(curve.derivative(2)(s)) <= a * (1 + 1e-6)).all()
    assert (np.abs(curve.derivative(3)(s)) <= LIMITS.max_jerk * fraction * 1.001).all()
    # A joint may still gain speed while its acceleration is led to zero, no more than that.
    extra = state.acceleration**2 / (2 * LIMITS.max_jerk * fraction)
    ramp = t[-1]
    assert (np.abs(curve.derivative(1)(s)) <= np.abs(state.velocity) + np.maximum(extra, a * ramp / 2) + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_r17_negative_directions_mirror_positive_ones(seed):
    state = random_state(seed)
    mirrored = State(state.position, -state.velocity, -state.acceleration)
    there, back = stop(state, 0, LIMITS), stop(mirrored, 0, LIMITS)
    assert np.array_equal(there.times, back.times)
    assert np.allclose(there.positions - MIDDLE, -(back.positions - MIDDLE), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 1), st.integers(0, N - 1))
def test_distance_keeps_the_sufficient_bound(share, joint):
    v = np.zeros(N)
    v[joint] = LIMITS.max_velocity[joint] * share
    motion = stop(State(MIDDLE, v, np.zeros(N)), 0, LIMITS)
    distance = motion.positions[-1, joint] - MIDDLE[joint]
    reaction = 2.1e-3  # a phase is not shorter than 2 ms
    bound = stopping_distance(v[joint], LIMITS.max_acceleration[joint], LIMITS.max_jerk[joint], reaction)
    assert 0 < distance <= bound


def test_at_rest_there_is_nothing_to_stop():
    assert len(stop(rest(HOME), 5, LIMITS)) == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_r06_reversal_at_full_speed_is_a_stop_within_the_acceleration_limit(sign):
    """Full speed one way while accelerating the other way: the stop never exceeds a limit, and by no means another
    one. Judged by the oracle, on the curve that scipy makes of the knots."""
    state = State(MIDDLE, sign * LIMITS.max_velocity, -sign * LIMITS.max_acceleration)
    motion = stop(state, 0, LIMITS, groups=[np.arange(N - 1), np.array([N - 1])])  # a gripper has no room to wait
    t = np.arange(0, motion.duration, 1e-4)
    curve = curve_of(motion)
    rows = np.stack([curve(t), *(curve.derivative(order)(t) for order in (1, 2, 3))], axis=1)
    assert not envelope_faults(t, rows, LIMITS)
    assert motion.knot(len(motion) - 1).at_rest and motion.duration > 0.2


@pytest.mark.parametrize("back", [2.0, 0.4])
def test_r06_a_reversal_at_full_speed_that_is_proposed_keeps_the_envelope(back):
    """At nine tenths of joint 1's speed one way, a chunk comes that begins there at full speed the other way and leads
    back by `back` rad."""
    rig = Rig()
    for goal, seconds in ((-1.2, 2.4), (1.2, 1.05)):
        away = np.append(HOME[:-1], 0.03)
        away[0] = goal
        assert rig.propose(smooth_chunk(rig, away, duration=max(seconds, 2.0))).verdict == Verdict.ACCEPTED
        rig.run(seconds)
    full = LIMITS.max_velocity[0]
    assert rig.controller.state[1, 0] > 0.8 * full
    t = np.arange(1, 31) * back / full / 30
    start = rig.filter.committed.state(rig.now + 80 * MS).position
    rows, speeds = np.repeat(start[None], 30, 0), np.zeros((30, N))
    rows[:, 0] -= full * t
    speeds[:, 0] = -full
    decision = rig.propose(proposal(rig.now, 0.08 + t, rows, speeds))
    assert decision.verdict >= Verdict.SLOWED and decision.finding is not None
    rig.run(2.0)
    check_played(rig.controller)
    assert not rig.controller.state[1:].any()


def test_a_group_of_its_own_does_not_wait_for_the_others():
    v = np.zeros(N)
    v[0], v[-1] = 2.6, 0.1
    arm, hand = np.arange(N - 1), np.array([N - 1])
    motion = stop(State(MIDDLE, v, np.zeros(N)), 0, LIMITS, groups=[arm, hand])
    together = stop(State(MIDDLE, v, np.zeros(N)), 0, LIMITS)
    own = motion.positions[-1, -1] - MIDDLE[-1]
    assert own < 0.0035 < 0.012 < together.positions[-1, -1] - MIDDLE[-1]
    assert np.isclose(motion.positions[-1, 0], together.positions[-1, 0])
    assert np.diff(motion.times).min() >= 1_000_000
    t = motion.times * 1e-9
    knots = [[motion.positions[k], motion.velocities[k], motion.accelerations[k]] for k in range(len(motion))]
    curve = BPoly.from_derivatives(t, knots)
    s = np.linspace(0, t[-1], 5000)[1:-1]
    assert (np.abs(curve.derivative(2)(s)) <= LIMITS.max_acceleration * 1.000001).all()
    assert (np.abs(curve.derivative(3)(s)) <= LIMITS.max_jerk * 1.001).all()


def curve_of(motion: Motion) -> BPoly:
    """What the controller plays, by scipy; times in s since the first knot."""
    rows = zip(motion.positions, motion.velocities, motion.accelerations, strict=True)
    return BPoly.from_derivatives((motion.times - motion.times[0]) * 1e-9, [list(row) for row in rows])


def random_path(seed: int) -> Motion:
    """A curved path through random knots, at up to full speed, within the limits."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 12))
    durations = rng.uniform(0.02, 0.3, count - 1)
    times = np.concatenate([[0], np.cumsum(durations)])
    phase = np.outer(times, rng.uniform(0.5, 6, N)) + rng.uniform(0, 6, N)
    size = rng.uniform(0, 0.5, N) * ([1.0] * (N - 1) + [0.03])
    w = np.gradient(phase, times, axis=0)
    path = Motion(
        np.round(times * 1e9).astype(np.int64), MIDDLE + size * np.sin(phase), size * w * np.cos(phase),
        -size * w**2 * np.sin(phase),
    )  # fmt: skip
    scale, _ = speed_scale(extent_of(path), LIMITS)
    scale *= rng.choice([0.3, 0.8, 0.95])
    stretched = np.round(times / scale * 1e9).astype(np.int64)
    return Motion(stretched, path.positions, path.velocities * scale, path.accelerations * scale**2)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.9), st.sampled_from([0.9, 1.0]), st.sampled_from([1, -1]))
def test_i02_a_stop_along_the_path_keeps_limits_and_the_path(seed, share, fraction, sign):
    path = random_path(seed)
    if sign < 0:  # R17: the mirror image stops alike
        path = Motion(path.times, 2 * MIDDLE - path.positions, -path.velocities, -path.accelerations)
    at = int(path.times[0] + share * (path.end - path.start))
    motion = stop_along(path, at, LIMITS, fraction)
    if motion is None or check_envelope(motion, extent_of(motion), LIMITS)[1] is not None:
        return  # the filter then stops joint by joint
    first, state = motion.knot(0), path.state(at)
    for kind in ("position", "velocity", "acceleration"):
        assert np.array_equal(getattr(first, kind), getattr(state, kind))
    assert motion.start == at and motion.knot(len(motion) - 1).at_rest and motion.end <= path.end + 2 * (path.end - at)
    assert np.diff(motion.times).min() >= 4_900_000
    curve, own = curve_of(motion), curve_of(path)
    s = np.arange(0.0, motion.duration, 1e-3)
    assert (np.abs(curve.derivative(1)(s)) <= LIMITS.max_velocity * 1.001).all()
    assert (np.abs(curve.derivative(2)(s)) <= LIMITS.max_acceleration * 1.001).all()
    assert (np.abs(curve.derivative(3)(s)) <= LIMITS.max_jerk * 1.001).all()
    # Every place is one of the path's, in order and not too late.
    ways = np.linspace((at - path.start) * 1e-9, path.duration, 4000)
    places = own(ways)
    reached = 0
    for row in curve(s):
        gaps = np.abs(places[reached : reached + 400] - row).max(axis=1)
        reached += int(np.argmin(gaps))
        step = np.abs(np.diff(places[max(0, reached - 1) : reached + 2], axis=0)).max(initial=0.0)
        assert gaps.min() <= 1e-4 + step


def test_a_stop_along_the_path_is_found_for_usual_motion():
    paths = [random_path(seed) for seed in range(100)]
    stops = [stop_along(path, path.start + (path.end - path.start) // 10, LIMITS, 0.9) for path in paths]
    found = [motion for motion in stops if motion is not None]
    kept = [motion for motion in found if check_envelope(motion, extent_of(motion), LIMITS)[1] is None]
    assert len(found) >= 50 and len(kept) >= 0.9 * len(found), "what is sent is nearly always what was meant"


def test_a_stop_along_the_path_needs_path():
    path = random_path(1)
    assert stop_along(path, path.end, LIMITS) is None
    assert stop_along(path, path.end - 6_000_000, LIMITS) is None
    assert stop_along(Motion.at(0, rest(HOME)), 0, LIMITS) is None


@pytest.mark.parametrize("speed", [0.6, 1.2])
@pytest.mark.parametrize("push", [-0.8, 0.5])
def test_i02_the_knots_of_a_stop_along_a_path_belong_together(speed, push):
    """On q(s) = speed s + push s^2 / 2 the rate u follows from the velocity, its change r from the acceleration. With
    constant jerk between two knots, u changes by the mean of r, and s by the u between."""
    s = np.array([0.0, 0.4, 0.7])
    q, v, a = np.repeat(MIDDLE[None], 3, 0), np.zeros((3, N)), np.zeros((3, N))
    q[:, 2] += speed * s + push * s**2 / 2
    v[:, 2], a[:, 2] = speed + push * s, push
    motion = stop_along(Motion(np.round(s * 1e9).astype(np.int64), q, v, a), 0, LIMITS, 0.9)
    t = (motion.times - motion.start) * 1e-9
    way = (np.sqrt(speed**2 + 2 * push * (motion.positions[:, 2] - MIDDLE[2])) - speed) / push
    there = speed + push * way
    u = motion.velocities[:, 2] / there
    r = (motion.accelerations[:, 2] - push * u**2) / there
    assert u[0] == pytest.approx(1.0) and u[-1] == r[-1] == 0.0 and len(t) >= 4
    assert (np.diff(u) < 0).all() and (r <= 1e-9).all()
    for k in range(len(t) - 2):  # the last one holds the end of the phase of even braking, which is too near to the end
        since, change = t[k + 1] - t[k], r[k + 1] - r[k]
        assert u[k + 1] - u[k] == pytest.approx(since * (r[k + 1] + r[k]) / 2, abs=1e-6)
        assert way[k + 1] - way[k] == pytest.approx(since * (u[k + 1] + u[k]) / 2 - since**2 * change / 12, abs=1e-7)
    assert not np.delete(motion.velocities, 2, axis=1).any()


def test_along_a_straight_path_at_full_speed_it_takes_as_long_as_the_known_value():
    """Joint 1 of an FR3 at 2.62 rad/s: 0.264 s and 0.346 rad, whichever the shape."""
    v = np.zeros(N)
    v[0] = 2.62
    start = MIDDLE - v * 0.2
    path = Motion(np.array([0, 1_000_000_000]), np.array([start, start + v]), np.array([v, v]), np.zeros((2, N)))
    motion = stop_along(path, 0, LIMITS)
    assert motion.duration == pytest.approx(0.264, abs=5e-3)
    assert motion.positions[-1, 0] - start[0] == pytest.approx(0.346, abs=5e-3)
    kept, finding = check_envelope(motion, extent_of(motion), LIMITS)
    assert finding is None


@pytest.mark.parametrize("fraction", [0.5, 0.8, 1.0])
def test_a_stop_along_the_path_uses_its_fraction_of_the_limits_and_no_more(fraction):
    v = np.zeros(N)
    v[0] = 2.0
    start = MIDDLE - v * 0.4
    path = Motion(np.array([0, 1_000_000_000]), np.array([start, start + v]), np.array([v, v]), np.zeros((2, N)))
    curve = curve_of(stop_along(path, 0, LIMITS, fraction))
    s = np.arange(0.0, curve.x[-1], 1e-4)
    deceleration, jerk = (float(np.abs(curve.derivative(k)(s)).max()) for k in (2, 3))
    assert deceleration == pytest.approx(fraction * LIMITS.max_acceleration[0], rel=0.02)
    assert jerk <= fraction * LIMITS.max_jerk[0] * 1.001


@pytest.mark.parametrize("cut", np.linspace(0.02, 1.9, 15).tolist())
def test_i04_a_stop_along_a_path_takes_little_longer_than_the_limits_need(cut):
    """A path that is slow at first and fast later: whoever stops in the slow part is not led through the fast one."""
    t = np.linspace(0, 3, 61)
    phase = np.pi * t / 3
    q = np.repeat(HOME[None], len(t), 0)
    v, a = np.zeros_like(q), np.zeros_like(q)
    q[:, 6] = HOME[6] + 2.0 * np.sin(phase) ** 2 - 0.4 * np.sin(phase)
    v[:, 6] = np.pi / 3 * (2.0 * np.sin(2 * phase) - 0.4 * np.cos(phase))
    a[:, 6] = (np.pi / 3) ** 2 * (4.0 * np.cos(2 * phase) + 0.4 * np.sin(phase))
    path = Motion(np.round(t * 1e9).astype(np.int64), q, v, a)
    at = round(cut * 1e9)
    along = stop_along(path, at, LIMITS, 0.9)
    if along is not None:
        joint = stop(path.state(at), at, LIMITS, 0.9)
        assert along.duration <= 1.6 * joint.duration + 0.11
        assert np.abs(along.velocities).max() <= np.abs(path.state(at).velocity).max() + 0.5
