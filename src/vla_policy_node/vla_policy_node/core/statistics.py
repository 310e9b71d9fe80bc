"""What the node says about its own health."""

from collections import deque

import numpy as np

_WINDOW_NS = 5_000_000_000


class Meter:
    """Inference times and publication rate of the last moments."""

    def __init__(self) -> None:
        self.chunks = 0
        self._inferences: deque[float] = deque(maxlen=200)
        self._published: deque[int] = deque(maxlen=1000)

    def inferred(self, duration: float) -> None:
        """An inference took `duration` s."""
        self._inferences.append(duration)

    def published(self, now_ns: int) -> None:
        """A chunk was published."""
        self.chunks += 1
        self._published.append(now_ns)

    def rate(self, now_ns: int) -> float:
        """Hz over the last five seconds."""
        recent = [t for t in self._published if now_ns - t <= _WINDOW_NS]
        return len(recent) / (_WINDOW_NS * 1e-9)

    def quantiles(self) -> tuple[float, float, float]:
        """Inference p50, p95, p99 in s; NaN: none yet."""
        if not self._inferences:
            return (float("nan"),) * 3
        p50, p95, p99 = np.quantile(self._inferences, (0.5, 0.95, 0.99))
        return float(p50), float(p95), float(p99)


class Arrivals:
    """How many messages of a stream came, and how long the last ones were on their way."""

    def __init__(self) -> None:
        self.count = 0
        self._delays: deque[float] = deque(maxlen=300)

    def came(self, delay: float) -> None:
        """A message came `delay` s after its stamp."""
        self.count += 1
        self._delays.append(delay)

    def quantiles(self) -> tuple[float, float]:
        """Delay p50, p99 in s; NaN: none came."""
        if not self._delays:
            return (float("nan"),) * 2
        p50, p99 = np.quantile(self._delays, (0.5, 0.99))
        return float(p50), float(p99)
