"""A filter that is recorded, and the replay of such a record: the same inputs give the same answers, bit for bit."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_contract.limits import JointLimits
from vla_contract.robot import Robot
from vla_safety.building import Parts, Setup, assemble, make_verifier
from vla_safety.core.advice import Advice
from vla_safety.core.audit import AuditError, AuditLog, read
from vla_safety.core.config import SafetyConfig
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Decision, Finding
from vla_safety.core.motion import Motion
from vla_safety.core.records import Answer, Output
from vla_safety.core.validation import Proposal
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant

FORMAT = 5


class RecordedFilter:
    """Passes every call on to a filter and records it with what came out. A record that fails stops the robot.

    Every call is recorded before it is made, but for a proposal: that is the call whose answer a robot waits for. It is
    recorded with its answer, as one record, when `settle` is called after the answer has been sent, and in any case
    before the next call is made. So of a process that is killed at any moment one record is lost at the most (I19): the
    one of the call in hand.
    """

    def __init__(self, inner: SafetyFilter, log: AuditLog, parts: Parts):
        self.inner = inner
        self.log = log
        self._failed = ""
        self._told = False
        self._held: tuple[Proposal, Instant] | None = None
        self._answer: Output | None = None
        log.write("start", {"format": FORMAT, "mode": int(inner.mode), "parts": _parts_record(parts)})

    def observe(
        self,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        now: Instant,
    ) -> Finding | None:
        """See SafetyFilter."""
        self._write("observe", now, s=stamp_ns, j=list(names), q=_floats(positions), v=_floats(velocities))
        return self.inner.observe(stamp_ns, names, positions, velocities, now)

    def propose(self, proposal: Proposal, now: Instant) -> Decision:
        """See SafetyFilter."""
        self.settle()
        self._held = proposal, now
        return self.inner.propose(proposal, now)

    def settle(self) -> None:
        """Writes what was not written yet; to be called when the answer to a proposal has been sent."""
        if self._held is None:
            return
        (proposal, now), answer = self._held, self._answer
        self._held = self._answer = None
        out = {} if answer is None else {"out": _output_record(answer)}
        self._write("propose", now, p=_proposal_record(proposal), **out)

    def cycle(self, now: Instant) -> None:
        """See SafetyFilter."""
        self._write("cycle", now)
        self.inner.cycle(now)

    def report(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """See SafetyFilter."""
        self._write("report", now, cause=cause, finding=None if finding is None else asdict(finding))
        self.inner.report(cause, finding, now)

    def reconfigure(self, verifier: Verifier, now: Instant, *, finding: Finding, setup: Setup) -> Answer:
        """See SafetyFilter. `verifier` must be what `make_verifier` makes of the parts and `setup`."""
        self._write("reconfigure", now, finding=asdict(finding), setup=setup.model_dump(mode="json"))
        return self.inner.reconfigure(verifier, now, finding=finding, setup=setup)

    def deadman(self, held: bool, now: Instant) -> None:
        """See SafetyFilter."""
        self._write("deadman", now, held=held)
        self.inner.deadman(held, now)

    def advise(self, advice: Advice, now: Instant) -> None:
        """See SafetyFilter."""
        stop = None if advice.stop is None else asdict(advice.stop)
        self._write("advise", now, monitor=advice.monitor, cap=advice.cap, stop=stop)
        self.inner.advise(advice, now)

    def retreat(self, now: Instant) -> Answer:
        """See SafetyFilter."""
        self._write("retreat", now)
        return self.inner.retreat(now)

    @property
    def pending(self) -> tuple[Motion, ...]:
        """See SafetyFilter."""
        return self.inner.pending

    def retract(self, now: Instant, again: bool = True) -> None:
        """See SafetyFilter."""
        self._write("retract", now, again=again)
        self.inner.retract(now, again)

    def arm(self, now: Instant) -> Answer:
        """See SafetyFilter."""
        self._write("arm", now)
        return self.inner.arm(now)

    def disarm(self, now: Instant, who: str = "operator") -> Answer:
        """See SafetyFilter."""
        self._write("disarm", now, who=who)
        return self.inner.disarm(now, who)

    def estop(self, now: Instant, who: str = "operator") -> Answer:
        """See SafetyFilter."""
        self._write("estop", now, who=who)
        return self.inner.estop(now, who)

    def reset(self, now: Instant) -> Answer:
        """See SafetyFilter."""
        self._write("reset", now)
        return self.inner.reset(now)

    def drain(self) -> Output:
        """See SafetyFilter."""
        output = self.inner.drain()
        if output.motions or output.decisions:
            if self._held is not None and self._answer is None:
                self._answer = output
            else:
                self._write("out", None, **_output_record(output))
        return output

    def _write(self, kind: str, now: Instant | None, **data: Any) -> None:
        self.settle()
        if not self._failed:
            instant = {} if now is None else {"t": now.clock_ns, "w": now.watch_ns}
            try:
                self.log.write(kind, {**instant, **data})
            except AuditError as error:
                self._failed = str(error)[:200] or "no record"
        if self._failed and not self._told and now is not None:  # what comes out has no time: the next call stops
            self._told = True
            self.inner.report("audit", Finding("audit", self._failed), now)


@dataclass(frozen=True)
class Replay:
    """What a replay found. `different` is the number of the first record whose answer differs; None: all agree."""

    records: int
    decisions: int
    different: int | None


def replay(path: str | Path | Sequence[str | Path]) -> Replay:
    """Feeds a record (its file, or all files that it was continued in) to a new filter and compares every answer.

    Raises:
        AuditError: when the file is not a sound record.
    """
    safety: SafetyFilter | None = None
    parts: Parts | None = None
    records = decisions = 0
    for record in read(path):
        records += 1
        if record["k"] == "start":
            if record["format"] != FORMAT:
                raise AuditError(f"{path}: format {record['format']}, this program reads {FORMAT}; use its own version")
            parts, before = _parts(record["parts"]), safety
            safety = assemble(parts)
            if before is not None:
                safety.inherit(before)
            if record["mode"] != int(safety.mode):
                safety.estop(Instant(0, 0), "an earlier run")
                safety.drain()
            continue
        if safety is None or parts is None:
            raise AuditError(
                f"{path}: does not begin with a start record; give all files of the record, from its first on"
            )
        if record["k"] != "out":
            _apply(safety, parts, record)
        answer = record if record["k"] == "out" else record.get("out")
        if answer is not None:
            decisions += len(answer["decisions"])
            again = json.loads(json.dumps(_output_record(safety.drain())))
            expected = {key: answer[key] for key in again}
            if json.dumps(again) != json.dumps(expected):
                return Replay(records, decisions, record["n"])
    return Replay(records, decisions, None)


def _apply(safety: SafetyFilter, parts: Parts, record: dict[str, Any]) -> None:
    now = Instant(record["t"], record["w"])
    match record["k"]:
        case "observe":
            safety.observe(record["s"], record["j"], record["q"], record["v"], now)
        case "propose":
            safety.propose(Proposal(**record["p"]), now)
        case "cycle":
            safety.cycle(now)
        case "report":
            finding = record["finding"]
            safety.report(record["cause"], None if finding is None else Finding(**finding), now)
        case "reconfigure":
            setup = Setup.model_validate(record["setup"])
            verifier = make_verifier(parts, setup)
            safety.reconfigure(verifier, now, finding=Finding(**record["finding"]), setup=setup)
        case "deadman":
            safety.deadman(record["held"], now)
        case "advise":
            stop = record["stop"]
            safety.advise(Advice(record["monitor"], record["cap"], None if stop is None else Finding(**stop)), now)
        case "retreat":
            safety.retreat(now)
        case "retract":
            safety.retract(now, record["again"])
        case "arm":
            safety.arm(now)
        case "disarm":
            safety.disarm(now, record["who"])
        case "estop":
            safety.estop(now, record["who"])
        case "reset":
            safety.reset(now)
        case other:
            raise AuditError(f"record {record['n']} is of unknown kind '{other}'")


def _proposal_record(proposal: Proposal) -> dict[str, Any]:
    record = {name: getattr(proposal, name) for name in Proposal.__dataclass_fields__}
    for name in ("positions", "velocities", "accelerations"):
        record[name] = [_floats(row) for row in record[name]]
    return {**record, "joint_names": list(proposal.joint_names), "times_ns": [int(t) for t in proposal.times_ns]}


def _output_record(output: Output) -> dict[str, Any]:
    decisions = [
        {
            "verdict": int(d.verdict),
            "source": d.source,
            "sequence": d.sequence,
            "finding": None if d.finding is None else asdict(d.finding),
            "accepted": d.points_accepted,
            "scale": d.speed_scale,
        }
        for d in output.decisions
    ]
    return {"decisions": decisions, "motions": [motion_digest(motion) for motion in output.motions]}


def motion_digest(motion: Motion) -> str:
    """sha256 over all bits of a motion, hex."""
    digest = hashlib.sha256(np.ascontiguousarray(motion.times).tobytes())
    for values in (motion.positions, motion.velocities, motion.accelerations):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _floats(values: Sequence[float]) -> list[float]:
    return [float(x) for x in values]


def _parts_record(parts: Parts) -> dict[str, Any]:
    limits = {
        name: getattr(parts.limits, name).tolist() for name in JointLimits.__dataclass_fields__ if name != "names"
    }
    return {
        "limits": {"names": list(parts.limits.names), **limits},
        "urdf": parts.urdf,
        "srdf": parts.srdf,
        "config": parts.config.model_dump(mode="json"),
        "robot": parts.robot.model_dump(mode="json"),
        "shadow": parts.shadow,
        "setup": parts.setup.model_dump(mode="json"),
    }


def _parts(record: dict[str, Any]) -> Parts:
    limits = {k: np.array(v) for k, v in record["limits"].items() if k != "names"}
    return Parts(
        robot=Robot.model_validate(record["robot"]),
        limits=JointLimits(names=tuple(record["limits"]["names"]), **limits),
        urdf=record["urdf"],
        srdf=record["srdf"],
        config=SafetyConfig.model_validate(record["config"]),
        shadow=record["shadow"],
        setup=Setup.model_validate(record["setup"]),
    )
