"""Flow matching, and real-time chunking in it (Black, Galliker, Levine: "Real-Time Execution of Action Chunking Flow
Policies", arXiv 2506.07339).

Notation of the paper: tau in [0, 1] is the flow's time, x(0) noise, x(1) the chunk, v the velocity that the network
gives. While the network thinks, the robot goes on with the old chunk: the first `frozen` rows of the new one will not
be executed, and its next rows should agree with what the old one meant there. Both are an inpainting problem: the end
point that the network is heading for is pulled toward the known rows at every step of the flow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(x (B, H, A), tau) -> v (B, H, A). Differentiable in x where a guide is used."""


@dataclass(frozen=True)
class Guide:
    """Rows that are known.

    Attributes:
        target: (B, H, A), normalised as the network's actions are.
        weights: (H, A) in [0, 1]: how much each entry counts.
        strength: beta of the paper, the largest weight of the guidance.
    """

    target: Tensor
    weights: Tensor
    strength: float = 5.0


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
