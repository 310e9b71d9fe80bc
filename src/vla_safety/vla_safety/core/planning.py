"""Verified pieces of motion: the longest prefix of a plan, its next segment, the soonest stop. Pure functions."""

from collections.abc import Iterator

import numpy as np

from vla_safety.core.config import Cycle
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Array, Motion, nanoseconds, rest
from vla_safety.core.splicing import GAP_NS, Splice
from vla_safety.core.stopping import stop, stop_along
from vla_safety.core.verification import Report, Verifier

_TRIM_ATTEMPTS = 12
_SEGMENT_SHARES = (1.0, 0.5, 0.25)  # of the segment, tried until one verifies with its stop


def with_stop(motion: Motion, verifier: Verifier, fraction: float) -> Motion:
    """The motion, then the stop from its last knot, joint by joint."""
    return motion.then(stop(motion.knot(len(motion) - 1), motion.end, verifier.limits, fraction, verifier.groups))


def _with_stops(motion: Motion, plan: Motion, verifier: Verifier, cycle: Cycle) -> Iterator[Motion]:
    """The motion with each stop that it may end in, the one along the rest of its plan first."""
    if cycle.stop == "path":
        tail = stop_along(plan, motion.end, verifier.limits, cycle.stop_fraction)
        if tail is not None:
            yield motion.then(tail)
    yield with_stop(motion, verifier, cycle.stop_fraction)


def longest_prefix(
    spliced: Splice, verifier: Verifier, fraction: float, report: Report | None = None
) -> tuple[Motion | None, Finding | None]:
    """The longest part of a plan, to one of its knots, that verifies together with its stop; and what ended it.

    Args:
        report: the verdict on the whole of it with its stop, if that is known.

    Returns:
        None for the part when not even the first knot behind the splice has a stop that verifies.
    """
    motion = spliced.motion
    report = report or verifier.verify(with_stop(motion, verifier, fraction))
    if report.safe:
        return motion, None
    first = int(np.searchsorted(motion.times, spliced.splice_ns, side="right"))
    last = min(int(np.searchsorted(motion.times, report.safe_until, side="right")), len(motion)) - 1
    if last < first:
        return None, report.finding
    for k in np.unique(np.linspace(last, first, _TRIM_ATTEMPTS).round().astype(int))[::-1]:
        end = motion.knots(int(k), int(k))
        if verifier.verify(with_stop(end, verifier, fraction)).safe:
            return motion.knots(0, int(k)), report.finding
    return None, report.finding


def at_once(
    spliced: Splice, now_ns: int, splice_ns: int, verifier: Verifier, cycle: Cycle
) -> tuple[Motion, int] | Report | None:
    """The usual case in one look: a plan that verifies whole with its stop, and its longest first message.

    Up to the last knot that they share, the message is the plan itself, bit by bit: what is judged of it is the rest.

    Returns:
        The message, and the time up to which it follows the plan; else the verdict on the plan with its stop, if that
        was looked at.
    """
    plan = spliced.motion
    end = _segment_end(plan, splice_ns + nanoseconds(cycle.segment))
    if end <= spliced.splice_ns:
        return None
    message = next(_with_stops(plan.since(now_ns).until(end), plan, verifier, cycle))
    shared = int(np.searchsorted(message.times, end, side="right")) - 1
    if end not in plan.times:
        shared -= 1
    rest_of_it = message.knots(shared, len(message) - 1)
    whole, first = verifier.verify_all([with_stop(plan, verifier, cycle.stop_fraction), rest_of_it])
    return (message, end) if whole.safe and first.safe else whole


def next_message(
    plan: Motion, followed_ns: int, now_ns: int, splice_ns: int, verifier: Verifier, cycle: Cycle
) -> tuple[Motion | None, int, Finding | None]:
    """A message that follows the plan further than `followed_ns`, and stops.

    Returns:
        The message (None: there is none that verifies, or nothing is left of the plan), the time up to which it follows
        the plan, and what was against the longest one.
    """
    blocked = None
    for share in _SEGMENT_SHARES:
        end = _segment_end(plan, splice_ns + nanoseconds(cycle.segment * share))
        if end <= followed_ns:
            break
        finding = None
        for message in _with_stops(plan.since(now_ns).until(end), plan, verifier, cycle):
            finding = verifier.verify(message).finding
            if finding is None:
                return message, end, None
        blocked = blocked or finding
    return None, followed_ns, blocked


def _segment_end(plan: Motion, wanted: int) -> int:
    """The end of the next segment, not so close behind a knot that rounding would turn into jerk."""
    if wanted >= plan.end:
        return plan.end
    k = int(np.searchsorted(plan.times, wanted, side="right")) - 1
    return int(plan.times[k]) if wanted - int(plan.times[k]) < GAP_NS else wanted


def hold_at(measured: Array, time_ns: int, verifier: Verifier, slack: float) -> Motion | Finding:
    """To rest where the robot was measured (n,), from `time_ns` on: a single knot, to which the controller leads from
    where it is. Up to `slack` beyond a limit counts as at the limit."""
    limits = verifier.limits
    held = np.clip(measured, limits.min_position, limits.max_position)
    held = np.where(np.abs(held - measured) <= slack, held, measured)
    motion = Motion.at(time_ns, rest(held))
    return verifier.verify(motion).finding or motion


def soonest_stop(committed: Motion, now_ns: int, splice_ns: int, verifier: Verifier, fraction: float) -> Motion:
    """What is committed up to the splice, then a stop; or what is committed, if that stop is not safe."""
    at = max(splice_ns, committed.start)
    ahead = committed.since(now_ns)
    if at >= committed.end:
        # Nothing is left to be stopped sooner. The end of what plays is sent whole: a single knot would replace it by a
        # curve that nobody has verified.
        held = Motion.at(at, rest(committed.positions[-1]))
        return held if now_ns >= committed.end else ahead.then(held)
    k = int(np.searchsorted(ahead.times, at, side="right")) - 1
    if at - int(ahead.times[k]) < GAP_NS:
        at = int(ahead.times[k])
    candidate = with_stop(ahead.until(at), verifier, fraction)
    return candidate if verifier.verify(candidate).safe else ahead
