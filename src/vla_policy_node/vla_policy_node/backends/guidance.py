"""Flow matching, and real-time chunking in it (Black, Galliker, Levine: "Real-Time Execution of Action Chunking Flow
Policies", arXiv 2506.07339).

Notation of the paper: tau in [0, 1] is the flow's time, x(0) noise, x(1) the chunk, v the velocity that the network
gives. While the network thinks, the robot goes on with the old chunk: the first `frozen` rows of the new one will not
be executed, and its next rows should agree with what the old one meant there. Both are an inpainting problem: the end
point that the network is heading for is pulled toward the known rows at every step of the flow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory

_SAME_TIME = 1e-6  # s; times of rows are sums of dt

Velocity = Callable[[Tensor, float], Tensor]
"""(x (B, H, A), tau) -> v (B, H, A). Differentiable in x where a guide is used."""


@dataclass(frozen=True)
class Guide:
    """Rows that are known.

    Attributes:
        target: (B, H, A), normalised as the network's actions are.
        weights: (H, A) or (B, H, A) in [0, 1]: how much each entry counts.
        strength: beta of the paper, the largest weight of the guidance.
    """

    target: Tensor
    weights: Tensor
    strength: float = 5.0


def together(guides: Sequence[Guide | None]) -> Guide | None:
    """One guide for a batch of chunks, of guides for one each; None leaves its chunk free, and all None is none."""
    first = next((guide for guide in guides if guide is not None), None)
    if first is None:
        return None
    free = Guide(torch.zeros_like(first.target), torch.zeros_like(first.weights))
    each = [guide or free for guide in guides]
    return Guide(torch.cat([g.target for g in each]), torch.stack([g.weights for g in each]), first.strength)


@dataclass(frozen=True)
class Known:
    """What is known of a chunk before it is computed.

    Attributes:
        motion: (H, n) rad or m, joint positions at the chunk's rows; those from `reached` on mean nothing.
        frozen: rows that will be executed as they are here, whatever the policy says.
        reached: rows that are known, the frozen ones included.
    """

    motion: NDArray[np.float64]
    frozen: int
    reached: int

    def weights(self) -> NDArray[np.float64]:
        """(H,): how much each row counts."""
        return soft_mask(self.frozen, self.reached, len(self.motion))


class Memory:
    """What an episode's last chunk meant, for real-time chunking; rows are `times` (H,) s after their observation."""

    def __init__(self, times: NDArray[np.float64], last: ActionChunk | None = None):
        self._times = times
        self._last = last

    @property
    def last(self) -> ActionChunk | None:
        """The last chunk: all that there is to remember."""
        return self._last

    def forget(self) -> None:
        """A new task: the last chunk no longer counts."""
        self._last = None

    def known(self, stamp_ns: int, prefix: Trajectory) -> Known:
        """Of the chunk for the observation of `stamp_ns`: `prefix` (s since then) for certain, then what the last chunk
        meant."""
        motion = prefix.sample(self._times).positions
        frozen = reached = self._frozen(prefix)
        if self._last is not None and frozen < len(self._times):
            since = (stamp_ns - self._last.stamp_ns) * 1e-9
            last = self._last.trajectory
            told = int((self._times + since <= last.end + _SAME_TIME).sum()) if since >= 0 else 0
            if told > frozen:
                reached = told
                motion[frozen:told] = last.sample(self._times[frozen:told] + since).positions
        return Known(motion, frozen, reached)

    def keep(self, chunk: ActionChunk, prefix: Trajectory | None) -> ActionChunk:
        """`chunk` with `prefix` as its first rows, exactly: the guidance only makes the rest fit to it. Remembered."""
        if prefix is not None:
            frozen = min(self._frozen(prefix), len(chunk.positions))
            positions = chunk.positions.copy()
            positions[:frozen] = prefix.sample(self._times[:frozen]).positions
            chunk = chunk.with_trajectory(Trajectory(chunk.trajectory.times, positions))
        self._last = chunk
        return chunk

    def _frozen(self, prefix: Trajectory) -> int:
        return int((self._times <= prefix.end + _SAME_TIME).sum())


def soft_mask(frozen: int, known: int, horizon: int) -> NDArray[np.float64]:
    """(horizon,): 1 for the frozen rows, then down to 0 where nothing is known any more (equation 5 of the paper).

    Args:
        frozen: rows that will be executed from the old chunk whatever the new one says.
        known: rows that the old chunk reaches to, the frozen ones included.
    """
    frozen = min(max(frozen, 0), horizon)
    known = min(max(known, frozen), horizon)
    rows = np.arange(horizon)
    share = (known - rows) / (known - frozen + 1)
    weights = share * np.expm1(share) / np.expm1(1.0)
    return np.where(rows < frozen, 1.0, np.where(rows < known, weights, 0.0))


def guidance_weight(tau: float, strength: float) -> float:
    """min(beta, (1 - tau) / (tau r²)) with r² = (1 - tau)² / (tau² + (1 - tau)²); beta at both ends of the flow."""
    remaining = 1.0 - tau
    if tau <= 0.0 or remaining <= 0.0:
        return strength
    return min(strength, (tau**2 + remaining**2) / (tau * remaining))


def integrate(velocity: Velocity, noise: Tensor, steps: int, guide: Guide | None = None) -> Tensor:
    """The chunk (B, H, A) that `steps` Euler steps lead to from `noise`. The same noise gives the same chunk."""
    x = noise
    for step in range(steps):
        tau = step / steps
        v = velocity(x, tau) if guide is None else _guided(velocity, x, tau, guide)
        x = x + v / steps
    return x


def _guided(velocity: Velocity, x: Tensor, tau: float, guide: Guide) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, tau)
        end = x + (1.0 - tau) * v
        error = (guide.target - end).detach() * guide.weights
        (pull,) = torch.autograd.grad(end, x, error)
    return v.detach() + guidance_weight(tau, guide.strength) * pull
