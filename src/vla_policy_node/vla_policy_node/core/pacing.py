"""When the next inference must start: refill threshold and execution horizon from the latencies that were measured.

Notation of real-time chunking (Black et al., arXiv 2506.07339, section 3): a chunk reaches H s beyond its observation,
an inference takes d s, s of each chunk are executed before the next observation goes to the model. The motion never
runs out as long as d <= s <= H - d: the old chunk must reach to where the new one takes over, and inferences do not
overlap.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

_REMEMBERED = 20  # latencies
_SPARE = 0.5  # of a chunk: kept for an inference that takes longer than any before it


@dataclass(frozen=True)
class Refill:
    """Both in s.

    Attributes:
        horizon: of a chunk, that is executed before the next observation goes to the model.
        threshold: the next observation goes to the model at the latest when so little motion is left.
    """

    horizon: float
    threshold: float


class Pacer:
    """Learns how long inferences take.

    Args:
        execution_horizon: s, shortest that is wanted; longer where inferences take longer, shorter where a chunk would
            not last.
        margin: s between a chunk's publication and its splice.
        blend: s, shortest fade onto a new chunk.
    """

    def __init__(self, execution_horizon: float, margin: float, blend: float):
        self._horizon, self._margin, self._blend = execution_horizon, margin, blend
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._expected: float | None = 0.0  # None: to be computed

    def measured(self, latency: float) -> None:
        """An inference took `latency` s from its observation to its chunk."""
        self._latencies.append(max(0.0, latency))
        self._expected = None

    @property
    def expected(self) -> float:
        """s that the next inference should be expected to take, nine times in ten no more; 0: none measured."""
        if self._expected is None:  # asked for with every joint state and image, changed once for each chunk
            self._expected = float(np.quantile(self._latencies, 0.9))
        return self._expected

    @property
    def longest(self) -> float:
        """s, of the latencies remembered; 0: none measured."""
        return max(self._latencies, default=0.0)

    def refill(self, length: float) -> Refill:
        """For a chunk that reaches `length` s beyond its observation.

        Half of it is always kept in reserve: an inference that suddenly takes up to half a chunk, and another one right
        after it, leave no gap then (d <= H/2 and s = max(d, …) <= H/2 give s <= H - d). Of longer ones, d after an
        inference of d', the motion lasts for those with max(s, d') + d <= H, less the time to the next image. More
        cannot be had: what is not known before d' has passed cannot be inferred from, so that d' + d > H leaves a gap
        in every schedule that neither plays actions later than they are meant for, nor infers twice at once.
        """
        threshold = max(_SPARE * length, min(self.longest + self._margin + self._blend, length))
        return Refill(min(max(self._horizon, self.expected), length - threshold), threshold)
