"""How old what comes in is: the middleware sends again what was lost, and a process that slept finds full queues."""

from collections.abc import Mapping

from vla_safety.core.wakefulness import Wakefulness

LATE_NS = 300_000_000  # sooner, what has no stamp is meant for now
_EARLY_NS = 100_000_000  # by which the clock of a sender may be ahead; as the window of joint states


def age_ns(info: Mapping[str, int], wakefulness: Wakefulness, wall_ns: int, steady_ns: int) -> int:
    """How old a message is at least, ns. Negative: its sender's clock is ahead by more than 0.1 s, so nobody knows.

    Args:
        info: what rclpy gives to a callback beside the message: stamps of the wall clock. A middleware that does not
            know one gives 0 or less.
        wall_ns, steady_ns: now.
    """
    sent, received = info.get("source_timestamp", 0), info.get("received_timestamp", 0)
    age = wall_ns - sent if sent > 0 else 0
    if age < -_EARLY_NS:
        return age
    waited = max(0, wall_ns - received) if received > 0 else 0
    return max(0, age, wakefulness.age_ns(steady_ns - waited))
