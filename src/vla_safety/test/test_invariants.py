"""The promises are all kept by somebody: every invariant and every regression case has a test named after it.

And the cases that belong to no single module: an infeasible projection (R19), the checkpoint's digest on record (I18).
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rig import BRINGUP, HOME, LIMITS, Rig, check_envelope, proposal, smooth_chunk
from test_audit import recorded_rig

from vla_safety.core.findings import Verdict
from vla_safety.core.modes import Mode

SOURCE = Path(__file__).resolve().parents[2]
NAMES = [*(f"i{n:02d}" for n in range(1, 22)), *(f"r{n:02d}" for n in range(1, 21))]


@pytest.mark.skipif(not BRINGUP.is_dir(), reason="the sources of the other packages are not here")
def test_every_invariant_and_every_regression_case_has_a_test():
    found: set[str] = set()
    for path in SOURCE.glob("*/test/test_*.py"):
        for prefix in re.findall(r"^def test_((?:[ir]\d\d_)+)", path.read_text(), re.MULTILINE):
            found |= set(prefix.strip("_").split("_"))
    missing = [name for name in NAMES if name not in found]
    assert not missing, f"no test is named after {', '.join(missing)}"
    assert found <= set(NAMES)


def zigzag(rig, size, dt):
    """Around where the robot is, to and fro, faster than any acceleration limit allows."""
    q = rig.controller.state[0]
    rows = q + size * np.where(np.arange(40) % 2, 1.0, -1.0)[:, None]
    rows[:, -1] = np.clip(q[-1], 0.01, 0.03)
    return proposal(rig.now, 0.08 + dt * np.arange(40), rows, sequence=9)


@pytest.mark.parametrize(("size", "dt"), [(0.15, 0.01), (0.19, 0.02), (0.1, 0.005)])
def test_r19_an_infeasible_projection_stops_and_is_never_relaxed(size, dt):
    """No slow-down that is allowed makes the chunk feasible: it is refused by a limit that is the robot's own, and what
    was verified before plays to its end at rest."""
    rig = Rig()
    goal = HOME.copy()
    goal[0] += 0.8
    goal[-1] = 0.03
    rig.propose(smooth_chunk(rig, goal, duration=1.2))
    rig.run(0.36)
    assert rig.controller.state[1, 0] > 0.5
    decision = rig.propose(zigzag(rig, size, dt))
    assert decision.verdict == Verdict.REFUSED and decision.points_accepted == 0
    kinds = {
        "joint_velocity": LIMITS.max_velocity,
        "joint_acceleration": LIMITS.max_acceleration,
        "joint_jerk": LIMITS.max_jerk,
    }
    finding = decision.finding
    assert finding is not None and finding.reason in kinds, finding
    assert finding.limit == kinds[finding.reason][LIMITS.names.index(finding.subject)], "not a relaxed limit"
    assert finding.value > finding.limit
    rig.run(2.0)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_r19_when_nothing_can_be_verified_the_committed_stop_plays():
    """From now on every plan is infeasible: the stop that was verified before is played, and no other."""
    rig = Rig()
    goal = HOME.copy()
    goal[0] += 0.8
    goal[-1] = 0.03
    rig.propose(smooth_chunk(rig, goal, duration=1.2))
    rig.run(0.36)
    promised = rig.filter.committed
    limits = rig.filter.verifier.limits
    tight = {n: getattr(limits, n) * 1e-3 for n in ("max_velocity", "max_acceleration", "max_jerk")}
    rig.filter.verifier.limits = replace(limits, **tight)
    rig.run(2.0)
    assert rig.filter.mode in (Mode.HOLD, Mode.ESTOP)
    assert not rig.controller.state[1:].any()
    assert np.allclose(rig.controller.state[0], promised.positions[-1])
    check_envelope(rig.controller)


def test_i18_the_checkpoints_digest_is_in_every_record_of_a_proposal(tmp_path):
    path = tmp_path / "audit.jsonl"
    rig = recorded_rig(path)
    for k in range(3):
        object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
        chunk = smooth_chunk(rig, HOME + 0.05 * (k + 1) * (np.arange(len(HOME)) == 0), sequence=k)
        object.__setattr__(chunk, "digest", "ab" * 32)
        rig.propose(chunk)
        rig.run(0.2)
    rig.filter.log.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    proposals = [record for record in records if record["k"] == "propose"]
    assert len(proposals) == 3 and all(record["p"]["digest"] == "ab" * 32 for record in proposals)
