"""ANY proposal and ANY joint state, as the invariants mean it: all fields, NaN, infinities, denormals, 1e308, empty and
ragged arrays, joints that are missing, unknown, doubled or in another order, bad times, stamps, frames and sources.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_safety.core.validation import OVERRIDE, POLICY, Proposal
from vla_safety.proof.rig import HOME, LIMITS, MS, ROBOT, Rig

N = len(HOME)
NUMBERS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1e-300, 1.0, -1.0, 1e6, 2**53)
INTEGERS = (0, 1, -1, 10**8, 10**9, 10**10, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30, -(10**30))
Rows = list[Any]


def any_proposal(rng: np.random.Generator, rig: Rig) -> Proposal:
    """A plausible proposal with up to four things wrong, or none; sometimes nothing right at all."""
    given = _plausible(rng, rig)
    faults = int(rng.choice([0, 1, 1, 1, 2, 2, 3, 4]))
    for k in rng.integers(0, len(_FAULTS), faults).tolist():
        _FAULTS[k](rng, given, rig)
    return Proposal(**given)


def _plausible(rng: np.random.Generator, rig: Rig) -> dict[str, Any]:
    """From where the robot is, in any direction, at a speed between none and twice the limits."""
    count = int(rng.choice([1, 2, 3, 8, 20, 50]))
    times = rng.uniform(0.02, 0.2) + np.arange(count) * rng.choice([0.01, 0.02, 0.05, 0.1])
    speed = rng.normal(0, 1, N) * LIMITS.max_velocity * rng.choice([0.05, 0.3, 1.0, 2.0])
    wave = np.sin(np.outer(times, rng.uniform(0, 6, N)))
    rows = rig.controller.state[0] + np.outer(times, speed) * rng.choice([0.2, 1.0]) + wave * rng.choice([0.0, 0.05])
    v = np.gradient(rows, times, axis=0) if count > 1 and rng.random() < 0.4 else None
    a = np.gradient(v, times, axis=0) if v is not None and rng.random() < 0.5 else None
    return {
        "source": OVERRIDE if rng.random() < 0.01 else POLICY,
        "sequence": int(rng.integers(0, 2**63)),
        "stamp_ns": rig.now - int(rng.integers(0, 100 * MS)),
        "frame": "base",
        "joint_names": list(ROBOT.joints),
        "times_ns": [round(t * 1e9) for t in times.tolist()],
        "positions": rows.tolist(),
        "velocities": [] if v is None else v.tolist(),
        "accelerations": [] if a is None else a.tolist(),
        "points": count,
        "received_ns": rig.now,
    }


def _kind(rng: np.random.Generator) -> str:
    return ("positions", "velocities", "accelerations")[int(rng.integers(0, 3))]


def _number(rng: np.random.Generator) -> float:
    if rng.random() < 0.5:
        return float(NUMBERS[int(rng.integers(0, len(NUMBERS)))])
    return float(np.frombuffer(rng.bytes(8), dtype=np.float64)[0])  # any bits at all


def _integer(rng: np.random.Generator) -> int:
    if rng.random() < 0.7:
        return INTEGERS[int(rng.integers(0, len(INTEGERS)))]
    return int.from_bytes(rng.bytes(8), "little", signed=True)


def _cell(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows and len(rows[-1]):
        row = rows[int(rng.integers(0, len(rows)))]
        if len(row):
            row[int(rng.integers(0, len(row)))] = _number(rng)


def _row(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows:
        rows[int(rng.integers(0, len(rows)))] = [_number(rng) for _ in range(int(rng.integers(0, 12)))]


def _rows(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    count, width = int(rng.integers(0, 6)), int(rng.choice([0, 1, N - 1, N, N, N, N + 1]))
    given[_kind(rng)] = [[_number(rng) for _ in range(width)] for _ in range(count)]


def _ragged(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows:
        k = int(rng.integers(0, len(rows)))
        rows[k] = rows[k][:-1] if rng.random() < 0.5 else [*rows[k], 0.0]


def _count(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    kind = _kind(rng)
    rows: Rows = given[kind]
    given[kind] = rows[:-1] if rng.random() < 0.5 else rows * 2


def _points(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["points"] = int(rng.choice([0, 1, 401, 10**6, -1, 2**31]))


def _many(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    count = int(rng.choice([399, 400, 401, 5000], p=[0.02, 0.02, 0.48, 0.48]))
    if rng.random() < 0.01:
        count = 1_000_000
    given["times_ns"] = range(10**8, 10**8 + count * 10**6, 10**6)
    given["positions"] = [rig.controller.state[0].tolist()] * count
    given["points"] = count


def _names(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    names = given["joint_names"]
    what = int(rng.integers(0, 8))
    if what == 0 and names:
        names[int(rng.integers(0, len(names)))] = names[0]
    elif what == 1 and names:
        names[int(rng.integers(0, len(names)))] = ("", "nope", "fr3_joint1 ", "FR3_JOINT1", "\x00", "é" * 500)[
            int(rng.integers(0, 6))
        ]
    elif what == 2:
        names[:] = names[:-1]
    elif what == 3:
        names.append("extra")
    elif what == 4:
        names.clear()
    elif what == 5:
        names *= 20
    else:  # another order, all else unchanged: legal, and meant as it says
        order = rng.permutation(len(names)).tolist()
        given["joint_names"] = [names[k] for k in order]
        for kind in ("positions", "velocities", "accelerations"):
            rows = given[kind]
            given[kind] = [[row[k] for k in order] if len(row) == len(order) else row for row in rows]


def _times(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    times: Any = list(given["times_ns"][:1000])
    what = int(rng.integers(0, 6))
    if not times or any(type(t) is not int for t in times):
        return
    if what == 0:
        times[int(rng.integers(0, len(times)))] = _integer(rng)
    elif what == 1:
        times = times[::-1]
    elif what == 2:
        times = [times[0]] * len(times)
    elif what == 3:
        times = [t - 10**9 for t in times]
    elif what == 4:
        times = [t * int(rng.choice([0, 3, 1000, 10**12])) for t in times]
    else:
        times[int(rng.integers(0, len(times)))] = (1.5, np.nan, True, None, np.int64(3))[int(rng.integers(0, 5))]
    given["times_ns"] = times


def _stamp(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    shift = (0, 36 * 10**11, -36 * 10**11, 10**9, -(10**9), 9 * 10**7, 11 * 10**7, -99 * 10**7)
    given["stamp_ns"] = (
        _integer(rng) if rng.random() < 0.4 else given["stamp_ns"] + shift[int(rng.integers(0, len(shift)))]
    )


def _frame(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["frame"] = ("", "base", "map", "base ", "/base", "x" * 10_000, "\x00", "é")[int(rng.integers(0, 8))]


def _source(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["source"] = ("", "planner", "rogue", "POLICY", "x" * 10_000, OVERRIDE)[
        int(rng.choice(6, p=[0.2, 0.2, 0.2, 0.2, 0.19, 0.01]))
    ]


def _nothing(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    for key in ("times_ns", "positions", "velocities", "accelerations"):
        if rng.random() < 0.5:
            given[key] = []


_FAULTS: Sequence[Callable[[np.random.Generator, dict[str, Any], Rig], None]] = (
    _cell, _cell, _row, _rows, _ragged, _count, _points, _many, _names, _names, _times, _times, _stamp, _frame,
    _source, _nothing,
)  # fmt: skip


def any_joint_state(rng: np.random.Generator, rig: Rig) -> tuple[int, list[Any], list[Any], list[Any]]:
    """Stamp, names, positions, velocities: right but for a few things; seldom well-formed and wrong."""
    stamp, names = rig.now - int(rng.integers(1, 20 * MS)), list(ROBOT.joints)
    q, v = rig.controller.state[0].tolist(), rig.controller.state[1].tolist()
    lie = rng.random() < 0.004
    if lie:  # well-formed, and not where the robot is
        q = (rig.controller.state[0] + rng.normal(0, rng.choice([0.01, 0.1, 1.0]), N)).tolist()
        return rig.now, names, q, v
    for what in rng.integers(0, 8, int(rng.integers(1, 3))).tolist():
        values = q if rng.random() < 0.6 else v
        if what == 0:
            values[int(rng.integers(0, len(values)))] = (np.nan, np.inf, -np.inf)[int(rng.integers(0, 3))]
            if values is v:
                stamp = _integer(rng)  # an unknown speed alone is no reason to drop a state
        elif what == 1:
            stamp = _integer(rng)
        elif what == 2:
            stamp = rig.now + int(rng.choice([-(36 * 10**11), 36 * 10**11, 10**10, -(10**10)]))
        elif what == 3 and names:
            names[int(rng.integers(0, len(names)))] = ("", "nope", names[0])[int(rng.integers(0, 3))]
        elif what == 4:
            del q[-int(rng.integers(1, N + 1)) :]
        elif what == 5:
            names = names[: int(rng.integers(0, N))]
        elif what == 6:
            q, names = [], []
        else:
            names, q, v = names * 2, q * 2, v * 2
        if not q or not v:
            break
    return stamp, names, q, v
