import coal
import numpy as np
import pinocchio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, ROBOT, Rig, check_envelope, smooth_chunk
from test_zones import MODEL, ORACLE

from vla_contract.errors import ConfigError
from vla_safety.core.findings import Verdict
from vla_safety.core.selfcollision import SelfCollision, allowed_contacts

SRDF = ROBOT.resolve(ROBOT.description.srdf).read_text()
CHECK = SelfCollision(MODEL, allowed_contacts(SRDF), 0.01)
N = len(HOME)


def truth(q, pair):
    """The distance of two links by Pinocchio and coal."""
    full = pinocchio.neutral(ORACLE.model)
    for name, value in [*zip(ROBOT.joints, q, strict=True), ("fr3_finger_joint2", q[-1])]:
        full[ORACLE.model.joints[ORACLE.model.getJointId(name)].idx_q] = value
    pinocchio.framesForwardKinematics(ORACLE.model, ORACLE.data, full)

    def bodies(link):
        frame = ORACLE.data.oMf[ORACLE.model.getFrameId(link)]
        world = coal.Transform3s(frame.rotation, frame.translation)
        return [(geometry, world * pose) for name, geometry, pose in ORACLE.bodies if name == link]

    first, second = pair.split("/")
    return min(
        coal.distance(g1, p1, g2, p2, coal.DistanceRequest(), coal.DistanceResult())
        for g1, p1 in bodies(first)
        for g2, p2 in bodies(second)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_clearance_is_never_more_than_the_true_distance(seed):
    q = np.random.default_rng(seed).uniform(LIMITS.min_position, LIMITS.max_position)
    values, labels = CHECK.clearances(MODEL.place(q[None]))
    ours = {}
    for column in range(len(CHECK)):
        reason, pair = CHECK.describe(column, int(labels[0, column]))
        assert reason == "self_collision"
        ours[pair] = min(ours.get(pair, np.inf), values[0, column])
    for pair, value in ours.items():
        real = truth(q, pair)
        assert value <= max(real, 0) + 1e-6, pair


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-4, 0.3))
def test_distances_shrink_no_faster_than_the_relative_reach_says(seed, size):
    rng = np.random.default_rng(seed)
    q = rng.uniform(LIMITS.min_position, LIMITS.max_position)
    step = rng.normal(0, size, N)
    step[-1] = np.clip(q[-1] + step[-1], 0, 0.04) - q[-1]
    values, _ = CHECK.clearances(MODEL.place(np.array([q, q + step])))
    assert (np.abs(values[1] - values[0]) <= CHECK.reach @ np.abs(step) + 1e-9).all()


def test_home_is_free_and_pairs_are_those_of_the_srdf():
    values, _ = CHECK.clearances(MODEL.place(HOME[None]))
    assert values.min() > 0.03
    pairs = {CHECK.describe(c, 0)[1] for c in range(len(CHECK))}
    assert "fr3_link2/fr3_hand" in pairs and not any({"fr3_link1", "fr3_link2"} == set(p.split("/")) for p in pairs)


def test_a_chunk_that_folds_the_arm_onto_itself_is_trimmed():
    rig = Rig()
    goal = HOME.copy()
    goal[1], goal[3], goal[5], goal[-1] = -1.2, -3.0, 1.0, 0.03
    decision = rig.propose(smooth_chunk(rig, goal, duration=3.0, points=40))
    assert decision.verdict in (Verdict.TRIMMED, Verdict.SLOWED, Verdict.REFUSED)
    rig.run(4)
    check_envelope(rig.controller)
    values, _ = CHECK.clearances(MODEL.place(rig.controller.state[0][None]))
    assert values.min() >= 0.01 - 1e-6
    if decision.verdict == Verdict.TRIMMED:
        assert decision.finding.reason == "self_collision" and "/" in decision.finding.subject


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<robot", "not XML"),
        ('<robot><disable_collisions link1="a"/></robot>', "name two links"),
        ('<robot><disable_collisions link1="a" link2="b"/></robot>', "unknown link 'a'"),
    ],
)
def test_a_wrong_srdf_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        SelfCollision(MODEL, allowed_contacts(text), 0.01)
