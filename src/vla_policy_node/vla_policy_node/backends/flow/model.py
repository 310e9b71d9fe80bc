"""The network: two small image encoders steered by the sentence, and a flow-matching head over whole chunks.

Notation of flow matching: tau in [0, 1] is the flow's time; x(0) is Gaussian noise, x(1) the action chunk, and on the
straight path x(tau) = (1 - tau) x(0) + tau x(1). The head predicts x(1); the velocity is (x(1) - x) / (1 - tau).
Predicting the end point keeps chunks accurate to the millimetre with few Euler steps, for the last step lands on it.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_policy_node.backends.guidance import Guide, integrate

IMAGE = 96  # pixels, height and width of every camera's input
COLOURS = 3  # cubes that a sentence can name: red, green, blue


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the network."""

    cameras: int = 2
    state: int = 11
    text: int = 384
    horizon: int = 16
    action: int = 4
    low: int = 32  # channels at a quarter of the image's resolution
    high: int = 64  # channels at an eighth
    maps: int = 24  # attention maps per camera
    context: int = 256
    hidden: int = 256
    blocks: int = 3

    def as_dict(self) -> dict[str, int]:
        """For the metadata of a checkpoint."""
        return asdict(self)


class Reading(NamedTuple):
    """What the network reads off an observation. Colours in the order red, green, blue.

    Attributes:
        context: (B, context), all that the flow head needs.
        cubes: (B, 3, 3) m in the base frame, each colour's cube.
        tray: (B, 3) m in the base frame.
        held, placed: (B, 3) logits: that cube is in the gripper, lies in the tray.
        progress: (B,) logit of the task's progress in [0, 1].
        colour: (B, 3) logits: which cube the sentence names.
    """

    context: Tensor
    cubes: Tensor
    tray: Tensor
    held: Tensor
    placed: Tensor
    progress: Tensor
    colour: Tensor


class FlowPolicy(nn.Module):
    """Observation and sentence -> distribution over chunks of normalised actions."""

    def __init__(self, config: FlowConfig | None = None):
        super().__init__()
        self.config = config = config or FlowConfig()
        self.sentence = nn.Sequential(nn.Linear(config.text, 96), nn.SiLU(), nn.Linear(96, 32), nn.SiLU())
        self.colour = nn.Linear(32, COLOURS)
        # What steers the images passes through the three colour scores and a few free numbers.
        self.steer = nn.Sequential(nn.Linear(COLOURS + 32, 64), nn.SiLU())
        self.eyes = nn.ModuleList(_Eye(config, steer=64) for _ in range(config.cameras))
        seen = config.cameras * self.eyes[0].width
        self.see = nn.Sequential(nn.Linear(seen + config.state, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        # Every cube is read, whichever is named: three times the lessons per image. The sentence then selects.
        self.places = nn.Linear(256, 3 * (COLOURS + 1))
        self.flags = nn.Linear(256, 2 * COLOURS)
        # Tray and named cube relative to the tool, next to the raw reading: the task's geometry in a few numbers.
        self.join = nn.Sequential(
            nn.Linear(256 + 64 + config.state + 4 * 3 + 2 + COLOURS, config.context),
            nn.SiLU(),
            nn.Linear(config.context, config.context),
            nn.SiLU(),
        )
        self.progress = nn.Linear(config.context, 1)
        self.head = _FlowHead(config)
        # Scale of the actions at each step of the horizon, beside the metadata's scale per entry.
        self.register_buffer("step_scale", torch.ones(config.horizon, config.action))
        # Centre and spread of places on the table [m].
        self.register_buffer("place_mean", torch.tensor([0.48, 0.0, 0.03]))
        self.register_buffer("place_std", torch.tensor([0.08, 0.16, 0.05]))

    def read(self, images: Tensor, state: Tensor, text: Tensor, tool: Tensor) -> Reading:
        """Runs once per observation.

        Args:
            images: (B, cameras, 3, 96, 96) in [0, 1].
            state: (B, state), normalised.
            text: (B, 384) sentence embedding.
            tool: (B, 3) m, tool in the base frame.
        """
        sentence = self.sentence(text)
        colour = self.colour(sentence)
        steer = self.steer(torch.cat([colour.softmax(-1), 0.3 * sentence], -1))
        seen = [eye(images[:, i] * 2 - 1, steer) for i, eye in enumerate(self.eyes)]
        reading = self.see(torch.cat([*seen, state], -1))
        places = self.places(reading).unflatten(-1, (COLOURS + 1, 3)).float() * self.place_std + self.place_mean
        cubes, tray = places[:, :COLOURS], places[:, COLOURS]
        held, placed = self.flags(reading).float().unflatten(-1, (2, COLOURS)).unbind(1)
        named = colour.float().softmax(-1)
        flags = torch.stack([(named * held.sigmoid()).sum(-1), (named * placed.sigmoid()).sum(-1)], -1)
        relative = torch.cat([(named[..., None] * cubes).sum(1) - tool, tray - tool], -1)
        # Once near, millimetres count: the same offsets again, magnified and bounded.
        geometry = torch.cat([relative / 0.15, torch.tanh(relative / 0.02)], -1)
        context = self.join(torch.cat([reading, steer, state, geometry, flags, named], -1))
        progress = self.progress(context).float()[:, 0]
        return Reading(context.float(), cubes, tray, held, placed, progress, colour.float())

    def predict(self, x: Tensor, tau: Tensor, context: Tensor) -> Tensor:
        """End point x(1) of the flow through x: (B, H, A), for tau (B,) in [0, 1) and context (B, context)."""
        return self.head(x, tau, context)

    def velocity(self, x: Tensor, tau: Tensor, context: Tensor) -> Tensor:
        """dx/dtau, (B, H, A)."""
        return (self.predict(x, tau, context) - x) / (1 - tau)[:, None, None]

    @torch.no_grad()
    def sample(self, context: Tensor, noise: Tensor, steps: int = 5, guide: Guide | None = None) -> Tensor:
        """Integrates the flow with `steps` Euler steps from `noise` (B, H, A). The same noise gives the same chunk.

        Args:
            guide: draws the end point toward rows that are known, at every step (real-time chunking).
        """

        def velocity(x: Tensor, tau: float) -> Tensor:
            return self.velocity(x, torch.full((len(x),), tau, dtype=x.dtype, device=x.device), context)

        return integrate(velocity, noise, steps, guide)


class _Eye(nn.Module):
    """One camera: features at 24² and 12², steered by the sentence, read out as places and contents of attention."""

    def __init__(self, config: FlowConfig, steer: int):
        super().__init__()
        low, high, maps = config.low, config.high, config.maps
        self.maps, self.pooled = maps, 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, low, 3, 2, 1), nn.ReLU())
        self.near = _Plain(low)
        self.down = nn.Conv2d(low, high, 3, 2, 1)
        self.far = _Steered(high, steer)
        self.back = nn.Conv2d(high, low, 1)
        self.attend = nn.Conv2d(low, maps, 1)
        side = IMAGE // 4
        line = torch.linspace(-1, 1, side)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        self.register_buffer("grid", grid, persistent=False)
        self.width = 3 * maps + self.pooled * low + high

    def forward(self, image: Tensor, steer: Tensor) -> Tensor:
        """(B, 3, 96, 96) in [-1, 1], (B, steer) -> (B, width)."""
        fine = self.near(self.stem(image))
        coarse = self.far(F.relu(self.down(fine)), steer)
        both = F.relu(fine + F.interpolate(self.back(coarse), scale_factor=2, mode="nearest"))
        scores = self.attend(both).flatten(2).float()  # (B, maps, 576)
        weights = scores.softmax(-1)
        places = (weights @ self.grid).flatten(1)
        strength = scores.logsumexp(-1) / 5
        contents = (weights[:, : self.pooled].to(both.dtype) @ both.flatten(2).transpose(1, 2)).flatten(1)
        return torch.cat([places, strength, contents.float(), coarse.mean((2, 3)).float()], -1)


class _Plain(nn.Module):
    """A residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class _Steered(_Plain):
    """A residual block whose channels the sentence scales and shifts (FiLM)."""

    def __init__(self, channels: int, steer: int):
        super().__init__(channels)
        self.norm = nn.GroupNorm(8, channels)
        self.film = nn.Linear(steer, 2 * channels)

    def forward(self, x: Tensor, steer: Tensor) -> Tensor:  # type: ignore[override]
        scale, shift = self.film(steer)[:, :, None, None].chunk(2, 1)
        return x + self.second(F.relu(self.norm(self.first(x)) * (1 + scale) + shift))


class _FlowHead(nn.Module):
    """A residual MLP over the flattened chunk, modulated by context and flow time."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.shape = (config.horizon, config.action)
        flat, hidden = config.horizon * config.action, config.hidden
        self.enter = nn.Linear(flat, hidden)
        self.condition = nn.Sequential(nn.Linear(config.context + 32, hidden), nn.SiLU())
        self.blocks = nn.ModuleList(_HeadBlock(hidden) for _ in range(config.blocks))
        self.leave = nn.Linear(hidden, flat)

    def forward(self, x: Tensor, tau: Tensor, context: Tensor) -> Tensor:
        condition = self.condition(torch.cat([context, _waves(tau)], -1))
        h = self.enter(x.flatten(1)) + condition
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(h).unflatten(-1, self.shape)


class _HeadBlock(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.body = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).chunk(2, -1)
        return h + self.body(self.norm(h) * (1 + scale) + shift)


def _waves(tau: Tensor) -> Tensor:
    """(B,) -> (B, 32) sines and cosines."""
    frequencies = math.pi * 2 ** torch.linspace(0, 5, 16, device=tau.device, dtype=tau.dtype)
    angles = tau[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
