"""I1 and the malformed proposals of R1 to R4 and R20: ANY input gets a verdict."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import HOME, ROBOT, START, Rig, make_filter, proposal, smooth_chunk

from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.reasons import REASONS
from vla_safety.core.validation import OVERRIDE, PLANNER, POLICY, Chunk, Form, Proposal, validate
from vla_safety.core.watchdogs import Instant

N = len(HOME)
FORM = Form(ROBOT.joints, "base", 400, 10.0, 1.0, 0.1)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from(
    [1e308, -1e308, 5e-324, math.nan, math.inf]
)
ANY_INT = st.integers() | st.integers(-(10**10), 10**11)
NAMES = st.lists(st.sampled_from([*ROBOT.joints, "nope", ""]), max_size=12) | st.permutations(ROBOT.joints)
ROWS = st.lists(st.lists(ANY_FLOAT, max_size=10) | st.just(HOME.tolist()), max_size=6)

ANY_PROPOSAL = st.builds(
    Proposal,
    source=st.sampled_from([POLICY, OVERRIDE, "", "rogue"]),
    sequence=st.integers(0, 2**64 - 1),
    stamp_ns=st.sampled_from([0, START, START + 10**8, START - 10**8, START + 36 * 10**11]) | ANY_INT,
    frame=st.sampled_from(["", "base", "map"]) | st.text(max_size=5),
    joint_names=NAMES,
    times_ns=st.lists(ANY_INT, max_size=6) | st.just([10**8, 2 * 10**8, 3 * 10**8]),
    positions=ROWS | st.just([HOME.tolist()] * 3),
    velocities=ROWS | st.just([]),
    accelerations=ROWS | st.just([]),
    points=st.sampled_from([0, 1, 3, 10**6]),
    received_ns=st.just(START),
)


UNARMED = make_filter()


@pytest.fixture(scope="module")
def armed():
    rig = Rig()
    rig.base = rig.now
    return rig


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_PROPOSAL)
def test_i01_any_proposal_gets_a_verdict(armed, p):
    """No exception, no e-stop by an internal error, nothing that is not finite comes out."""
    shift = armed.now - START
    p = Proposal(**{**{f: getattr(p, f) for f in Proposal.__dataclass_fields__}, "received_ns": armed.now})
    if abs(p.stamp_ns) < 2**62 and p.stamp_ns:
        object.__setattr__(p, "stamp_ns", p.stamp_ns + shift)
    decision = armed.filter.propose(p, armed.instant)
    assert armed.filter.finding is None or armed.filter.finding.reason != "internal", armed.filter.finding
    assert decision.verdict in tuple(Verdict)
    for motion in armed.filter.drain().motions:
        for values in (motion.positions, motion.velocities, motion.accelerations):
            assert np.isfinite(values).all()
    if decision.verdict == Verdict.REFUSED:
        assert decision.finding is not None and decision.finding.sentence and decision.finding.remedy
        assert decision.points_accepted == 0


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([*ROBOT.joints, "nope"]), max_size=10) | st.just(list(ROBOT.joints)),
    st.lists(ANY_FLOAT, max_size=10) | st.just(HOME.tolist()),
    st.lists(ANY_FLOAT, max_size=10) | st.just([0.0] * N),
    ANY_INT,
)
def test_i01_any_joint_state_is_usable_or_dropped(names, positions, velocities, stamp):
    UNARMED.monitor.forget()
    now = Instant(START, START)
    finding = UNARMED.observe(stamp, names, positions, velocities, now)
    newest = UNARMED.monitor.newest
    assert (finding is None) == (newest is not None)
    if newest is not None:
        assert np.isfinite(newest.position).all() and not np.isnan(newest.velocity).any()
    if UNARMED.arm(now).success:
        UNARMED.cycle(now)
        UNARMED.disarm(now)


def test_i01_a_million_points_are_refused_in_no_time():
    million = [HOME.tolist()] * 1_000_000
    p = Proposal(POLICY, 1, START, "base", ROBOT.joints, range(1, 1_000_001), million, (), (), 0, START)
    began = time.perf_counter()
    finding = validate(p, FORM)
    assert time.perf_counter() - began < 0.05
    assert isinstance(finding, Finding) and finding.reason == "points" and finding.value == 1_000_000


def good(**changes):
    times = changes.pop("times", [0.1, 0.2, 0.3])
    q = np.repeat(HOME[None], len(times), 0)
    return proposal(START, times, changes.pop("q", q), changes.pop("v", q * 0), changes.pop("a", q * 0), **changes)


def reason(p) -> str:
    result = validate(p, FORM)
    return "" if isinstance(result, Chunk) else result.reason


def test_a_good_proposal_is_a_chunk():
    chunk = validate(good(), FORM)
    assert isinstance(chunk, Chunk) and chunk.requested == 3
    assert chunk.times.tolist() == [START + 10**8, START + 2 * 10**8, START + 3 * 10**8]


@pytest.mark.parametrize("field", ["q", "v", "a"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("joint", range(N))
def test_r01_nan_and_infinity_in_every_field(field, value, joint):
    rows = np.repeat(HOME[None], 3, 0) * (field == "q")
    rows[1, joint] = value
    result = validate(good(**{field: rows}), FORM)
    assert result.reason == "not_finite" and ROBOT.joints[joint] in result.subject


def test_r02_duplicate_unknown_and_missing_joints():
    a = list(ROBOT.joints)
    assert reason(good(names=[a[0], *a[:7]])) == "joint_names"
    assert reason(good(names=[*a[:7], "nope"])) == "joint_names"
    assert reason(good(names=a[:7])) == "joint_names"
    assert reason(good(names=[])) == "joint_names"


def test_r03_a_stamp_one_hour_ahead_or_behind():
    for hours in (1, -1):
        p = good()
        object.__setattr__(p, "stamp_ns", START + hours * 3600 * 10**9)
        assert reason(p) == ("future_stamp" if hours > 0 else "stale_stamp")
    p = good()
    object.__setattr__(p, "stamp_ns", 0)
    assert reason(p) == "stale_stamp"


@pytest.mark.parametrize("times", [[0.1, 0.1, 0.2], [0.3, 0.2, 0.1], [-0.1, 0.1, 0.2], [0.1, 0.2, 11.0]])
def test_r04_times_that_do_not_increase_or_never_end(times):
    assert reason(good(times=times)) in ("times", "horizon")


def test_r20_rows_of_the_wrong_length():
    q = [HOME.tolist(), HOME.tolist()[:-1], HOME.tolist()]
    p = good()
    object.__setattr__(p, "positions", q)
    assert reason(p) == "shape"
    object.__setattr__(p, "positions", [HOME.tolist()] * 2)
    assert reason(p) == "shape"
    p = good(source="override")
    object.__setattr__(p, "velocities", [[0.0] * N, [], [0.0] * N])
    assert reason(p) == "shape"


@pytest.mark.parametrize("rows", ["positions", "velocities", "accelerations"])
@pytest.mark.parametrize("wrong", ["short", "long", "empty", "fewer", "more"])
def test_r20_an_override_of_the_wrong_length_takes_nothing_over(rows, wrong):
    """While the policy moves the robot: its motion goes on, bit by bit, and the mode stays."""
    rig, undisturbed = Rig(), Rig()
    for each in (rig, undisturbed):
        assert each.propose(smooth_chunk(each, HOME + 0.4 * (np.arange(N) == 0), duration=1.2)).points_accepted
        each.run(0.4)
    p = smooth_chunk(rig, HOME, duration=1.0, source="override")
    given = [list(row) for row in getattr(p, rows)]
    spoilt = {
        "short": [given[0], given[1][:-1], *given[2:]],
        "long": [given[0], [*given[1], 0.0], *given[2:]],
        "empty": [given[0], [], *given[2:]],
        "fewer": given[:-1],
        "more": [*given, given[-1]],
    }[wrong]
    decision = rig.propose(replace(p, **{rows: spoilt}))
    assert (decision.verdict, decision.finding.reason) == (Verdict.REFUSED, "shape")
    for each in (rig, undisturbed):
        each.run(1.4)
    assert rig.filter.mode == undisturbed.filter.mode == Mode.ARMED
    np.testing.assert_array_equal(rig.controller.state, undisturbed.controller.state)
    assert len(rig.controller.messages) == len(undisturbed.controller.messages)


TWO = Form(("a", "b"), "base", 4, 2.0, 1.0, 0.5)
PAIR = Proposal(
    POLICY, 7, START, "base", ("b", "a"), (10**9, 2 * 10**9), ((1.0, 2.0), (3.0, 4.0)), received_ns=START
)  # fmt: skip
LONG = "n" * 100


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"points": 5}, Finding("points", "trajectory", 5, 4)),
        ({"times_ns": (), "positions": ()}, Finding("points", "trajectory", 0, 4)),
        ({"positions": PAIR.positions * 3}, Finding("points", "trajectory", 6, 4)),
        ({"points": 3}, Finding("shape", "times", 2, 3)),
        ({"positions": PAIR.positions[:1]}, Finding("shape", "times", 2, 2)),
        ({"times_ns": (10**9,)}, Finding("shape", "times", 1, 2)),
        ({"joint_names": (LONG,) * 21}, Finding("joint_names", LONG[:80], 21, 2)),
        ({"joint_names": (LONG,) * 20}, Finding("joint_names", LONG[:80], 20, 2)),
        ({"joint_names": ("a", "c")}, Finding("joint_names", "c", 2, 2)),
        ({"joint_names": ("b",)}, Finding("joint_names", "a", 1, 2)),
        ({"joint_names": ("a", "b", "b")}, Finding("joint_names", "b", 3, 2)),
        ({"frame": LONG}, Finding("frame", LONG[:80])),
        ({"stamp_ns": START - 10**9}, None),
        ({"stamp_ns": START - 15 * 10**8}, Finding("stale_stamp", POLICY, 1.5, 1.0)),
        ({"stamp_ns": START + 5 * 10**8}, None),
        ({"stamp_ns": START + 75 * 10**7}, Finding("future_stamp", POLICY, 0.75, 0.5)),
        ({"stamp_ns": 0, "source": OVERRIDE}, None),
        ({"stamp_ns": 0, "source": PLANNER}, None),
        ({"stamp_ns": 0, "received_ns": 4 * 10**9}, Finding("stale_stamp", POLICY, 4.0, 1.0)),
        ({"stamp_ns": -(10**40)}, Finding("stale_stamp", POLICY, 1e21, 1.0)),
        ({"stamp_ns": 10**40}, Finding("future_stamp", POLICY, 1e21, 0.5)),
        ({"times_ns": (0, 2 * 10**9)}, None),
        ({"times_ns": (-1, 10**9)}, Finding("times", "times[0]", -1e-9, 0.0)),
        ({"times_ns": (10**9, 10**9)}, Finding("times", "times[1]", 1.0, 1.0)),
        ({"times_ns": (10**9, -(10**40))}, Finding("times", "times[1]", -1e21, 1.0)),
        ({"times_ns": (10**9, 2 * 10**9 + 1)}, Finding("horizon", "trajectory", 2.000000001, 2.0)),
        ({"times_ns": (10**9, 1.5e9)}, Finding("times", "times[1]", math.nan, 0.0)),
        ({"times_ns": (False, True)}, Finding("times", "times[0]", math.nan, 0.0)),
        ({"velocities": PAIR.positions[:1]}, Finding("shape", "velocities", 1, 2)),
        ({"positions": ((1.0, 2.0), (3.0,))}, Finding("shape", "positions[1]", 1, 2)),
        ({"positions": ((1.0, 2.0), 3.0)}, Finding("shape", "positions[1]", -1, 2)),
        ({"positions": (((1.0,), (2.0,)), ((3.0,), (4.0,)))}, Finding("shape", "positions", 3, 2)),
        ({"positions": ((1.0, 2.0), (10**400, 4.0))}, Finding("not_finite", "positions")),
        ({"positions": ((1.0, 2.0), ("x", 4.0))}, Finding("not_finite", "positions")),
        ({"velocities": ((1.0, object()), (3.0, 4.0))}, Finding("not_finite", "velocities")),
        ({"positions": ((1.0, 2.0), (3.0, -math.inf))}, Finding("not_finite", "positions[1] of a", -math.inf)),
        ({"velocities": ((math.inf, 2.0), (3.0, math.inf))}, Finding("not_finite", "velocities[0] of b", math.inf)),
        ({"accelerations": PAIR.positions}, Finding("shape", "velocities", 0, 2)),
    ],
)
def test_i21_what_is_wrong_with_a_proposal_is_said_with_name_and_numbers(changes, finding):
    result = validate(replace(PAIR, **changes), TWO)
    assert isinstance(result, Chunk) if finding is None else result == finding


def test_a_chunk_is_the_proposal_in_the_robots_order():
    chunk = validate(replace(PAIR, velocities=((5, 6), (7, 8)), accelerations=((9, 10), (11, 12)), points=2), TWO)
    assert (chunk.source, chunk.sequence, chunk.requested) == (POLICY, 7, 2)
    assert chunk.times.tolist() == [START + 10**9, START + 2 * 10**9]
    assert chunk.positions.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert chunk.velocities.tolist() == [[6.0, 5.0], [8.0, 7.0]]
    assert chunk.accelerations.tolist() == [[10.0, 9.0], [12.0, 11.0]]
    now = validate(replace(PAIR, source=OVERRIDE, stamp_ns=0, received_ns=START + 5), TWO)
    assert now.times.tolist() == [START + 5 + 10**9, START + 5 + 2 * 10**9]
    assert now.velocities is None and now.accelerations is None


def test_foreign_frames_are_refused():
    assert reason(good(frame="map")) == "frame"
    assert reason(good(frame="")) == ""


@settings(max_examples=60, deadline=None)
@given(st.permutations(list(range(N))), st.integers(0, 2**32))
def test_i08_the_order_of_joints_means_nothing(order, seed):
    rng = np.random.default_rng(seed)
    q, v, a = (rng.normal(0, 1, (3, N)) for _ in range(3))
    names = [ROBOT.joints[k] for k in order]
    straight = validate(good(q=q, v=v, a=a), FORM)
    mixed = validate(good(q=q[:, order], v=v[:, order], a=a[:, order], names=names), FORM)
    for field in ("times", "positions", "velocities", "accelerations"):
        assert np.array_equal(getattr(straight, field), getattr(mixed, field))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**8))
def test_i08_a_shift_of_stamp_and_times_means_nothing(shift):
    p = good(times=[0.2, 0.3, 0.4])
    moved = Proposal(**{f: getattr(p, f) for f in Proposal.__dataclass_fields__})
    object.__setattr__(moved, "stamp_ns", p.stamp_ns - shift)
    object.__setattr__(moved, "times_ns", [t + shift for t in p.times_ns])
    assert np.array_equal(validate(p, FORM).times, validate(moved, FORM).times)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_i21_every_reason_explains_itself(name):
    finding = Finding(f"{name}:somewhere", "something", 1.5, 2.5)
    assert "{" not in finding.sentence and finding.sentence
    entry = REASONS[name]
    assert entry.meaning and entry.remedy and entry.remedy == finding.remedy
    if "{value}" in entry.sentence:
        assert "1.5" in finding.sentence
    if "{subject}" in entry.sentence:
        assert "something" in finding.sentence
