"""I3, I4, I11, R8, R12, R13: the robot stays in its fence whatever the source does and whenever the filter dies."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import BRINGUP, HOME, LIMITS, ROBOT, Rig, check_envelope, proposal, smooth_chunk
from test_zones import ORACLE

from vla_safety.core.config import load_safety
from vla_safety.core.findings import Verdict
from vla_safety.core.modes import Mode

N = len(HOME)
ZONES = load_safety(BRINGUP / "config/safety/cell.yaml", ROBOT).zones


def outside_fence(q) -> float:
    """How deep any link is in a keep-out zone, by Pinocchio and coal; 0: it is not."""
    depth = 0.0
    for zone in ZONES:
        if zone.kind == "keep_out":
            distances = ORACLE.distances(q, zone)
            depth = max([depth, *(-d for link, d in distances.items() if link not in zone.except_links)])
    return depth


def hostile_chunk(rng: np.random.Generator, rig: Rig, sequence: int):
    """Towards the table, a limit or anywhere, at any speed, with or without derivatives."""
    points = int(rng.integers(1, 25))
    dt = float(rng.choice([0.01, 0.05, 0.1, 0.2]))
    times = rng.uniform(0, 0.1) + np.arange(1, points + 1) * dt
    q = rig.controller.state[0]
    kind = rng.integers(0, 5)
    if kind == 0:  # down onto the table
        direction = np.array([0, 1.0, 0, rng.uniform(-0.5, 0.5), 0, rng.uniform(-0.3, 0.3), 0, 0])
    elif kind == 1:  # all joints at a limit
        direction = rng.choice([-1.0, 1.0], N)
    elif kind == 2:
        direction = rng.normal(0, 1, N)
    elif kind == 3:
        return smooth_chunk(rig, np.clip(q + rng.normal(0, 0.5, N), LIMITS.min_position, LIMITS.max_position), 0.5)
    else:
        direction = -np.sign(rig.controller.state[1]) * rng.uniform(0, 3, N)
    rows = (
        q + np.outer(times, direction * LIMITS.max_velocity * rng.uniform(0.05, 1.5)) + rng.normal(0, 0.01, (points, N))
    )
    v = rng.normal(0, 1, rows.shape) if rng.random() < 0.2 else None
    source = "override" if rng.random() < 0.1 else "policy"
    return proposal(rig.now, times, rows, v, None, source=source, sequence=sequence)


def run_hostile(seed: int, chunks: int) -> Rig:
    rng = np.random.default_rng(seed)
    rig = Rig(delay=int(rng.integers(0, 20)))
    for k in range(chunks):
        rig.propose(hostile_chunk(rng, rig, k))
        rig.run(float(rng.choice([0.04, 0.08, 0.2, 0.4])))
        if rig.filter.mode == Mode.DISARMED:
            rig.run(1.0)
            assert rig.filter.arm(rig.instant).success
            rig.collect()
            rig.run(0.4)
    return rig


@pytest.mark.parametrize("seed", range(3))
def test_i03_a_hostile_policy_never_leaves_the_envelope_or_the_fence(seed):
    rig = run_hostile(seed, 40)
    rig.run(1.0)
    check_envelope(rig.controller)
    _, q, _, _, _ = rig.controller.trace.arrays()
    assert np.ptp(q, axis=0).max() > 0.3, "the policy must get somewhere, else nothing is shown"
    for row in q[:: max(1, len(q) // 150)]:
        assert outside_fence(row) <= 1e-6
    assert {d.verdict.name for d in rig.decisions} >= {"SLOWED", "TRIMMED", "STOPPED"}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_i03_it_can_be_cut_off_at_any_cycle(seed):
    rig = run_hostile(seed, 6)
    rig.offline.clear()  # the filter is killed: nothing more arrives
    rig.advance(2.0)
    assert not rig.controller.state[1:].any(), "at rest"
    check_envelope(rig.controller)
    assert outside_fence(rig.controller.state[0]) <= 1e-6


@pytest.mark.parametrize("upper", [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 0, 0]])
def test_r13_all_joints_at_several_limits_at_once(upper, tmp_path):
    """Every joint is driven beyond its position limit, four times as hard as its acceleration limit allows: it gets as
    far and as fast as the limits are, and no further. There are no zones; the links of the two poses are clear of each
    other."""
    safety = tmp_path / "free.yaml"
    cell = yaml.safe_load((BRINGUP / "config/safety/cell.yaml").read_text())
    safety.write_text(yaml.safe_dump({**cell, "zones": []}))
    room = np.append(np.full(N - 1, 0.2), 0.005)
    sign = np.where(upper, 1.0, -1.0)
    limit = np.where(upper, LIMITS.max_position, LIMITS.min_position)
    rig = Rig(safety, q=limit - sign * room)
    s = np.linspace(0, 1, 41)[1:]
    shape = 10 * s**3 - 15 * s**4 + 6 * s**5
    rows = limit - sign * room + np.outer(shape, sign * room * 3.0)
    decision = rig.propose(proposal(rig.now, 0.08 + 0.3 * s, rows))
    assert decision.verdict == Verdict.TRIMMED and decision.finding.reason == "joint_position", decision
    assert decision.speed_scale < 0.6, "and it is slowed down"
    rig.run(4)
    check_envelope(rig.controller)
    assert not rig.controller.state[1:].any()
    left = sign * (limit - rig.controller.state[0])
    assert (left[:-1] < 0.1).all() and (left[:-1] >= 0).all(), "all joints have moved, up to their limits"
    _, _, _, a, _ = rig.controller.trace.arrays()
    assert (np.abs(a[:, :-1]).max(axis=0) > 0.8 * LIMITS.max_acceleration[:-1]).all(), "at their limits as well"


@pytest.mark.parametrize("shape", ["path", "joint"])
def test_r12_a_stop_on_a_curved_path_stays_in_the_fence(shape, tmp_path):
    """Circles just above the table, cut off everywhere: a stop joint by joint leaves the path, and is verified too."""
    safety = tmp_path / "cell.yaml"
    safety.write_text((BRINGUP / "config/safety/cell.yaml").read_text() + f"\ncycle: {{stop: {shape}}}\n")
    rig = Rig(safety)
    low = HOME.copy()
    low[1] += 0.75
    low[3] -= 0.1
    low[-1] = 0.03
    rig.propose(smooth_chunk(rig, low, duration=2.0, points=30))
    rig.run(2.4)
    start = rig.controller.state[0].copy()
    for cut in range(6):
        times = np.arange(1, 31) * 0.05
        phase = 6 * times
        rows = np.repeat(start[None], 30, 0)
        rows[:, 0] += 0.1 * np.sin(phase)
        rows[:, 1] += 0.04 * (1 - np.cos(phase))
        rig.propose(proposal(rig.now, times, rows, sequence=cut))
        rig.run(0.12 + 0.12 * cut)
        rig.offline.clear()
        rig.advance(1.0)
        assert not rig.controller.state[1:].any()
        assert outside_fence(rig.controller.state[0]) <= 1e-6
        rig.run(0.4)
    check_envelope(rig.controller)


def test_i11_switching_between_sources_leaks_nothing():
    """While a human has the robot no chunk of the policy is taken, and the motion has no step."""
    rng = np.random.default_rng(5)
    rig = Rig()
    for k in range(40):
        source = "override" if rng.random() < 0.4 else "policy"
        before = rig.filter.mode
        goal = HOME + rng.normal(0, 0.15, N) * np.array([1] * 7 + [0])
        goal[-1] = 0.02
        decision = rig.propose(smooth_chunk(rig, goal, 0.6, source=source, sequence=k))
        if before == Mode.OVERRIDE and source == "policy":
            assert decision.finding.reason == "authority" and decision.points_accepted == 0
        if before == Mode.DISARMED:
            assert decision.finding.reason == "mode"
        rig.run(float(rng.choice([0.08, 0.2, 0.6])))
        if rig.filter.mode == Mode.DISARMED:
            rig.run(0.6)
            assert rig.filter.arm(rig.instant).success
            rig.collect()
            rig.run(0.4)
    check_envelope(rig.controller)
