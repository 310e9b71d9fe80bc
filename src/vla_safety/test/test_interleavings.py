"""I10, I11: everything that people, devices, sources and the network can do to the filter, in any order.

What must hold is kept beside the filter by a small model of its own; the motion is judged by the oracle, and the whole
story must replay bit for bit.
"""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from rig import HOME, LIMITS, ROBOT, Rig, smooth_chunk

from vla_safety.building import Setup, assemble, make_verifier, read_parts
from vla_safety.core.advice import Advice
from vla_safety.core.audit import AuditLog
from vla_safety.core.authority import PRIORITY
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import ENABLED, Mode
from vla_safety.core.tools import ToolShape, ToolSpec
from vla_safety.core.ways import TOUCHES
from vla_safety.core.zones import Box, Sphere, ZoneSpec
from vla_safety.proof.oracle import TOUCH, envelope_faults
from vla_safety.proof.rig import GRIPPER_SLACK, shipped_fence
from vla_safety.recording import RecordedFilter, replay

SHIPPED = read_parts(ROBOT)
DEADMAN = 0.25  # s
ROD = ToolSpec(parent="fr3_hand", shapes=(ToolShape(sphere=Sphere(center=(0, 0, 0.2), radius=0.03)),), mass=0.2)
PARTS = replace(
    SHIPPED,
    config=SHIPPED.config.model_copy(
        update={
            "tools": {"rod": ROD},
            "watchdogs": SHIPPED.config.watchdogs.model_copy(update={"deadman": DEADMAN}),
        }
    ),
)
BOX = ZoneSpec(name="crate", kind="keep_out", box=Box(center=(0.45, 0.3, 0.45), size=(0.2, 0.2, 0.2)))
SETUPS = [
    Setup(tool=tool, reduced=reduced, obstacles=zones)
    for tool in ("", "rod")
    for reduced in (False, True)
    for zones in ((), (BOX,))
]
VERIFIERS = [make_verifier(PARTS, setup) for setup in SETUPS]
CAUSES = {
    "button": Finding("estop_input", "button"),
    "contact": Finding("contact_force", "wrench", 80.0, 50.0),
    "rogue": Finding("bypass", "rogue"),
}
SETTLED = 1.0  # s after which every stop is over
ACTIONS = {
    "arm": 0.08, "reset": 0.05, "disarm": 0.01, "estop": 0.012, "retreat": 0.25, "hold": 0.02, "press": 0.012,
    "release": 0.06, "reconfigure": 0.03, "advise": 0.03, "silence": 0.008, "push": 0.006,
    "policy": 0.3, "planner": 0.05, "override": 0.1,
}  # fmt: skip


@dataclass
class Model:
    """What an onlooker knows."""

    causes: dict[str, Finding] = field(default_factory=dict)
    latched: bool = False
    rank: int = 0  # of the source that has the robot to itself
    held: bool = False
    shown: float = -np.inf  # s, when the switch was heard
    since: float = 0.0  # s, since which nobody may move it
    calm: float = 0.0  # s, since which a cause is there that forbids every motion


class Story(Rig):
    """A rig to which anything happens."""

    def __init__(self, seed, path):
        super().__init__(arm=False, delay=seed % 20)
        self.rng = np.random.default_rng(seed)
        self.safety = assemble(PARTS)
        self.filter = RecordedFilter(self.safety, AuditLog(path), PARTS)
        self.model = Model()
        self.sequence = 0
        self.seen = set()

    @property
    def clock(self):
        return self.now * 1e-9

    def present(self):
        return self.model.held and self.clock - self.model.shown <= DEADMAN

    def steps(self, count):
        for _ in range(count):
            self.advance(self.safety.config.cycle.period)
            self.observe()
            if self.model.held:
                self.filter.deadman(True, self.instant)
                self.model.shown = self.clock
            for name, probability in ACTIONS.items():
                if self.rng.random() < probability:
                    getattr(self, name, lambda n=name: self.move(n))()
                    self.late(0.02)
                    self.said()
            self.filter.cycle(self.instant)
            self.late(0.01)
            self.said()

    # -- what happens

    def arm(self):
        was = self.safety.mode
        if self.filter.arm(self.instant).success:
            assert not self.model.latched and not self.model.causes
            assert was in ENABLED or not self.controller.state[1].any()
            if was in (Mode.DISARMED, Mode.HOLD):
                self.model.rank = 0

    def reset(self):
        was = self.safety.mode
        if self.filter.reset(self.instant).success and was == Mode.ESTOP:
            assert not self.model.causes and not self.controller.state[1].any()
            assert self.safety.mode == Mode.DISARMED
            self.model.latched = False

    def disarm(self):
        self.filter.disarm(self.instant)
        assert self.safety.mode in (Mode.DISARMED, Mode.ESTOP)

    def estop(self):
        self.filter.estop(self.instant)
        self.model.latched = True

    def retreat(self):
        if self.rng.random() < 0.5:
            self.hold(True)
        answer = self.filter.retreat(self.instant)
        if answer.success:
            assert self.present() and not {c.reason for c in self.model.causes.values()} - TOUCHES

    def hold(self, held=None):
        self.model.held = bool(self.rng.random() < 0.7) if held is None else held
        self.model.shown = self.clock
        self.filter.deadman(self.model.held, self.instant)

    def press(self):
        name = str(self.rng.choice(list(CAUSES)))
        if not self.model.causes or CAUSES[name].reason not in TOUCHES:
            self.model.calm = self.clock
        self.model.causes[name] = CAUSES[name]
        self.model.latched = True
        self.filter.report(name, CAUSES[name], self.instant)

    def release(self):
        for name in list(self.model.causes):
            del self.model.causes[name]
            self.filter.report(name, None, self.instant)

    def reconfigure(self):
        k = int(self.rng.integers(len(SETUPS)))
        self.filter.reconfigure(VERIFIERS[k], self.instant, finding=Finding("tool", "other/none"), setup=SETUPS[k])
        committed, mode = self.safety.committed, self.safety.mode
        if self.safety.verifier is VERIFIERS[k] and mode in ENABLED:
            assert VERIFIERS[k].verify(committed.since(self.now)).safe, "rules that what is committed breaks"

    def advise(self):
        self.filter.advise(Advice("anomaly", float(self.rng.uniform(0.2, 1.0))), self.instant)

    def silence(self):
        self.silent = not self.silent

    def push(self):
        size = self.rng.choice([0.0, 0.01, 0.03, 0.08])
        self.measured_offset[:7] = self.rng.uniform(-size, size, 7)

    def late(self, probability):
        if self.rng.random() < probability and self.filter.pending:
            self.filter.retract(self.instant, again=bool(self.rng.random() < 0.7))

    def move(self, source):
        self.sequence += 1
        goal = np.clip(self.controller.state[0] + self.rng.normal(0, 0.4, len(HOME)), *self.range())
        if self.rng.random() < 0.3:
            goal = HOME + self.rng.normal(0, 0.05, len(HOME))
        shim = SimpleNamespace(now=self.now, filter=self.safety, controller=self.controller)
        chunk = smooth_chunk(shim, goal, float(self.rng.uniform(0.3, 2.0)), source=source, sequence=self.sequence)
        plan = self.safety.plan
        decision = self.filter.propose(chunk, self.instant)
        if decision.verdict > Verdict.TRIMMED:
            return
        assert not self.model.latched and not self.model.causes
        assert PRIORITY[source] >= self.model.rank, f"{source} moves what rank {self.model.rank} has"
        assert plan is None or PRIORITY[source] >= PRIORITY[plan.source]
        assert source != "override" or self.present()
        if source == "override":
            self.model.rank = PRIORITY[source]

    def range(self):
        return LIMITS.min_position, LIMITS.max_position

    # -- what must hold

    def said(self):
        safety, model = self.safety, self.model
        output = self.collect()
        plan, mode = safety.plan, safety.mode
        leading = plan is not None and plan.source == "retreat"
        self.seen |= {mode.name, *(d.finding.reason for d in output.decisions if d.finding)}
        self.seen |= {plan.source} if plan else set()
        assert safety.finding is None or safety.finding.reason != "internal", safety.finding
        model.latched |= mode == Mode.ESTOP
        assert (mode == Mode.ESTOP) == model.latched
        assert not model.causes or mode == Mode.ESTOP
        assert plan is None or leading == (mode not in ENABLED)
        assert not leading or self.present()
        for motion in output.motions:
            assert not motion.velocities[-1].any() and not motion.accelerations[-1].any()
            assert np.isfinite(motion.positions).all()
            if mode in ENABLED:
                assert safety.verifier.verify(motion.since(self.now)).safe, (mode, safety.finding)
        if mode in ENABLED or leading:
            model.since = self.clock
        if not {cause.reason for cause in model.causes.values()} - TOUCHES:
            model.calm = self.clock
        moving = self.controller.state[1].any()
        assert not moving or self.clock - model.calm <= SETTLED, "it moves although a button is pressed"
        touched = mode == Mode.ESTOP and safety.finding.reason in TOUCHES
        assert not moving or touched or self.clock - model.since <= SETTLED, "it moves although nobody leads it"


@pytest.mark.parametrize("seed", range(4))
def test_i10_i11_nothing_that_happens_in_any_order_breaks_the_rules(seed, tmp_path):
    story = Story(seed, tmp_path / "story.jsonl")
    for _ in range(12):
        story.steps(60)
        times, rows = story.controller.trace.samples()
        faults = envelope_faults(times, rows, LIMITS, GRIPPER_SLACK)
        assert not faults, faults
        touch = shipped_fence().deepest(rows[:, 0], rows[:, 1], 1e-3)
        assert touch.distance >= -TOUCH, touch
        story.forget()
    assert {"ARMED", "ESTOP", "DISARMED", "policy", "override", "retreat"} <= story.seen, story.seen
    again = replay(tmp_path / "story.jsonl")
    assert again.different is None and again.decisions > 100
