"""I12: what may be taken away while armed: a tool, a payload, an obstacle. It begins no motion, and limits stay."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, ROBOT, Rig, check_envelope, smooth_chunk

from vla_safety.building import Setup, make_verifier, read_parts
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.speed import cap_everywhere
from vla_safety.core.tools import ToolShape, ToolSpec
from vla_safety.core.zones import Box, Sphere, ZoneSpec

ROD = ToolSpec(parent="fr3_hand", shapes=(ToolShape(sphere=Sphere(center=(0, 0, 0.2), radius=0.03)),), mass=0.2)
BRICK = ROD.model_copy(update={"parent": "rod", "mass": 1.0, "allowed_contacts": ("rod",)})
SHIPPED = read_parts(ROBOT)
PARTS = replace(SHIPPED, config=SHIPPED.config.model_copy(update={"tools": {"rod": ROD}, "payloads": {"brick": BRICK}}))
CRATE = ZoneSpec(name="crate", kind="keep_out", box=Box(center=(0.3, 0.55, 0.4), size=(0.3, 0.3, 0.6)))
ALL = Setup(tool="rod", payload="brick", obstacles=(CRATE,), reduced=True)
AWAY = HOME + np.array([0.5, 0, 0, 0, 0, 0, 0, -0.01])


def change(rig, setup):
    answer = rig.filter.reconfigure(
        make_verifier(PARTS, setup), rig.instant, finding=Finding("tool", "other"), setup=setup
    )
    return answer, rig.collect()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(
    "fewer",
    [{"payload": ""}, {"tool": "", "payload": ""}, {"obstacles": ()}],
    ids=["payload", "tool", "obstacle"],
)
def test_i12_what_is_taken_away_begins_no_motion_and_loosens_no_limit(fewer, moving):
    rig = Rig()
    assert change(rig, ALL)[0].success and rig.filter.mode == Mode.ARMED
    if moving:
        assert rig.propose(smooth_chunk(rig, HOME + (AWAY - HOME) / 4)).verdict <= Verdict.SLOWED
        rig.run(0.4)
        assert rig.controller.state[1].any()
    before, old = rig.filter.committed, rig.filter.verifier
    answer, output = change(rig, ALL.model_copy(update=fewer))
    assert answer.success and rig.filter.mode == Mode.ARMED
    assert rig.filter.committed is before and not output.motions
    new = rig.filter.verifier
    assert new is not old and cap_everywhere(new.caps) == cap_everywhere(old.caps) < 1
    for name in ("min_position", "max_position", "max_velocity", "max_acceleration", "max_jerk"):
        assert np.array_equal(getattr(new.limits, name), getattr(old.limits, name))
    rig.run(1.5)
    check_envelope(rig.controller)


def test_i12_what_is_sent_after_a_change_is_judged_by_it():
    """The crate is in the way; when it is gone the same motion is taken, when it is back it is not."""
    rig, verdicts = Rig(), []
    for obstacles in ((CRATE,), (), (CRATE,)):
        assert change(rig, Setup(obstacles=obstacles))[0].success
        decision = rig.propose(smooth_chunk(rig, AWAY + (AWAY - HOME), duration=3.0))
        verdicts.append(decision.verdict if decision.finding is None else decision.finding.reason)
        rig.filter.disarm(rig.instant)
        rig.collect()
        rig.arm_again()
    assert verdicts == ["zone:crate", Verdict.ACCEPTED, "zone:crate"]
