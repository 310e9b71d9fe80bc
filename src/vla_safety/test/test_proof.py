"""The oracle itself: it sees what it must see, and shares nothing with what it judges."""

import ast
from pathlib import Path

import numpy as np
import pytest
from rig import HOME, LIMITS, MS, Controller, Rig, check_envelope, smooth_chunk
from scipy.interpolate import BPoly

import vla_safety.proof
from vla_safety.core.authority import Authority
from vla_safety.proof.adversary import Adversary
from vla_safety.proof.cases import run_block
from vla_safety.proof.oracle import Curve, Fence, envelope_faults, read_zones
from vla_safety.proof.rig import ROBOT, SAFETY_FILE, shipped_fence
from vla_safety.proof.switching import Switches
from vla_safety.proof.tally import Tally

N = len(HOME)


def test_the_oracle_imports_nothing_of_the_core():
    source = Path(vla_safety.proof.__file__).with_name("oracle.py").read_text()
    names = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert names and not [name for name in names if name.startswith("vla_safety")]


def test_the_oracle_sees_table_workspace_and_the_arm_itself():
    fence = shipped_fence()
    assert fence.nearest(HOME).distance > 0.05
    down, out, folded = HOME.copy(), HOME.copy(), HOME.copy()
    down[1] += 0.95
    out[0], out[1], out[3] = 1.57, 1.2, -0.5
    folded[1], folded[3], folded[5] = -1.2, -3.0, 0.6
    for q, what in ((down, "/table"), (out, "/workspace"), (folded, "fr3_")):
        touch = fence.nearest(q)
        assert touch.distance < 0 and what in touch.what, touch


def test_distances_of_the_oracle_are_those_of_geometry():
    """A sphere of the elbow over a slab: the height of the joint's origin, less the radius."""
    slab = {
        "name": "slab",
        "kind": "keep_out",
        "box": {"center": [0, 0, -1], "size": [10, 10, 1]},
        "links": ["fr3_hand"],
    }
    fence = Fence(ROBOT, [slab], own=False)
    lower = {**slab, "box": {"center": [0, 0, -1.1], "size": [10, 10, 1]}}
    near, far = fence.nearest(HOME).distance, Fence(ROBOT, [lower], own=False).nearest(HOME).distance
    assert far - near == pytest.approx(0.1, abs=1e-6)
    inside = {"name": "cell", "kind": "keep_in", "box": {"center": [0, 0, 0], "size": [4, 4, 4]}}
    room = Fence(ROBOT, [inside], own=False).nearest(HOME).distance
    tight = {**inside, "box": {"center": [0, 0, 0], "size": [4, 4, 3.8]}}
    assert room - Fence(ROBOT, [tight], own=False).nearest(HOME).distance == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    "zone",
    [
        {"name": "z", "kind": "keep_in", "sphere": {"center": [0, 0, 0], "radius": 1}},
        {"name": "z", "kind": "keep_out", "cone": {}},
    ],
)
def test_a_zone_that_the_oracle_cannot_judge_is_refused(zone):
    with pytest.raises(ValueError, match="oracle"):
        Fence(ROBOT, [zone])


def test_no_sample_that_touches_is_skipped():
    fence = Fence(ROBOT, read_zones(SAFETY_FILE))
    rng = np.random.default_rng(3)
    for _ in range(20):
        v = rng.uniform(-1, 1, N) * LIMITS.max_velocity
        t = np.arange(0, 0.6, 1e-3)
        q = np.clip(HOME + np.outer(t, v), LIMITS.min_position, LIMITS.max_position)
        every = min(fence.nearest(row).distance for row in q)
        found = fence.deepest(q, np.repeat(v[None], len(t), 0), 1e-3).distance
        assert (found < 0) == (every < 0)


def test_curves_of_the_oracle_are_those_of_scipy():
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.01, 0.2, 9))
    knots = rng.normal(0, 1, (9, 3, N))
    reference, curve = BPoly.from_derivatives(times, list(knots)), Curve(times, knots)
    at = np.linspace(times[0], times[-1], 200)
    rows = curve.rows(at)
    for order in range(4):
        expected = reference.derivative(order)(at) if order else reference(at)
        assert np.allclose(rows[:-1, order], expected[:-1], rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_a_step_in_any_derivative_is_seen():
    for order in range(3):
        controller = Controller(HOME)
        controller.play(0, 10 * MS)
        controller.state[order] += 0.3 * (1, 1, 100)[order]
        controller.play(10 * MS, 20 * MS)
        with pytest.raises(AssertionError):
            check_envelope(controller)
    times, rows = np.arange(3) * 1e-3, np.full((3, 4, N), np.nan)
    assert envelope_faults(times, rows, LIMITS)


def test_every_kind_of_limit_that_is_broken_is_named():
    times = np.arange(2) * 1.0
    for order, name in enumerate(("position", "velocity", "acceleration", "jerk")):
        rows = np.zeros((2, 4, N))
        rows[:, 0] = HOME
        rows[:, order, 2] = 1e4
        assert any(fault.startswith(f"{name} of {LIMITS.names[2]}") for fault in envelope_faults(times, rows, LIMITS))


def test_i01_a_block_of_property_cases_has_no_violation():
    tally = run_block(7, 0, 400)
    assert tally.counts["cases"] == 400 and not tally.violations
    assert tally.counts["verdict refused"] > 100
    assert tally.counts["verdict accepted"] + tally.counts["verdict slowed"] + tally.counts["verdict trimmed"] > 3


def test_i11_a_block_switches_between_sources_and_nothing_leaks():
    """As often as a campaign of 1e6 cases needs for 1e5 switches."""
    tally = run_block(11, 3, 400)
    assert tally.counts["switches"] >= 40 and tally.counts["leaks"] == 0 and not tally.violations
    assert tally.counts["switches from policy to planner"] > 10 and tally.counts["switches from planner to policy"] > 10
    assert tally.counts["proposals of a source without authority"] > 100


@pytest.mark.parametrize("broken", ["nobody holds", "given back at once", "nobody is asked"])
def test_i11_a_filter_that_mixes_its_sources_up_leaks(monkeypatch, broken):
    """The campaign's own alarm works."""
    if broken == "nobody holds":
        monkeypatch.setattr(Authority, "take", lambda self, source, now: None)
    elif broken == "given back at once":
        asked = Authority.against

        def against(self, source, now):
            self.give_back("planner")
            return asked(self, source, now)

        monkeypatch.setattr(Authority, "against", against)
    else:
        monkeypatch.setattr(Authority, "against", lambda self, source, now: None)
    tally = run_block(11, 3, 60)
    assert tally.counts["leaks"] > 0 and "has the robot" in tally.violations[0]["what"]


def test_i11_a_message_of_a_cycle_that_belongs_to_another_source_is_a_leak():
    rig, tally = Rig(), Tally()
    switches = Switches(tally)
    chunk = smooth_chunk(rig, np.append(HOME[:-1] + 0.1, 0.03), source="planner")
    decision = rig.filter.propose(chunk, rig.instant)
    assert switches.proposed(chunk, decision, rig.collect(), rig.controller.state) is None
    rig.advance(0.04)
    rig.observe()
    rig.filter.cycle(rig.instant)
    output = rig.collect()
    assert output.motions and switches.cycled("planner", output) is None and switches.cycled(None, output) is None
    assert "policy, while planner has the robot" in switches.cycled("policy", output) and tally.counts["leaks"] == 1


def test_a_block_repeats_bit_by_bit():
    first, second = run_block(3, 5, 120), run_block(3, 5, 120)
    times = "CPU seconds of a call"
    first.most.pop(times)
    second.most.pop(times)
    assert first.record() == second.record()


def test_i03_an_adversary_comes_close_and_stays_outside():
    adversary = Adversary(2, 0)
    tally = adversary.generation(3)
    assert tally.counts["violations"] == 0 and tally.counts["fence exits"] == 0
    assert tally.counts["at rest after"] == tally.counts["attacks"] == 3
    assert 0 < tally.least["clearance m"] < 0.08
    again = Adversary(2, 0)
    again.restore({"mean": [0.5] * 6, "deviation": [0.35] * 6, "done": 0})
    assert again.generation(3).counts == tally.counts
    assert again.record() == adversary.record()


def test_an_oracle_that_is_lied_to_finds_the_fault():
    """A controller that does not stop is a violation: the campaign's own alarm works."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, np.append(HOME[:-1] + 0.2, 0.03)))
    rig.run(0.4)
    rig.controller.state = rig.controller.state * 1.2
    rig.controller.curve = None
    rig.advance(0.1)
    times, rows = rig.controller.trace.samples()
    assert envelope_faults(times, rows, LIMITS)


def test_tallies_add_up_and_survive_json():
    first, second = Tally(), Tally()
    first.low("x", 1.0)
    second.low("x", 0.5)
    second.violated("y", {"seed": 1})
    first.add(Tally.of(second.record()))
    assert first.least == {"x": 0.5} and first.counts["violations"] == 1 and first.violations[0]["what"] == "y"
