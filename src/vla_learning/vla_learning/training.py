"""Fitting the flow policy to labelled frames, on a CPU or a GPU.

A step draws everything random from (seed, step) alone, so a training that was interrupted goes on exactly as if it
had not been.

On a CPU, several processes of one thread each share a batch and average their gradients once per step: threads inside
one process would wait for each other at every layer, which a busy machine makes slow.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_contract.errors import ConfigError
from vla_learning.frames import Frames
from vla_learning.instructions import trained
from vla_learning.stage import COLOURS
from vla_policy_node.backends.flow.model import FlowConfig, FlowPolicy, Reading
from vla_policy_node.backends.flow.text import SentenceEncoder

NOISES = 3  # noise samples of the flow per observation: the head is cheap beside the encoders
WARM_UP = 300  # steps
_SMOOTHING = 0.999  # of the averaged weights
_BLANK = 0.08  # share of frames whose sentence is empty
_SENTENCE_NOISE = 0.01  # per entry of an embedding of norm 1
_JOINT_NOISE, _TOOL_NOISE = 0.004, 0.002  # rad, m
_WEIGHTS = {"flow": 1.0, "places": 1.0, "flags": 0.3, "progress": 0.3, "colour": 0.1}


@dataclass(frozen=True)
class Settings:
    """How long and how hard to train. `steps` fixes the schedule: constant rate, then a cosine down to zero."""

    steps: int = 12_000
    batch: int = 64
    rate: float = 1e-3
    decay_from: float = 0.35  # share of the steps after which the rate falls
    seed: int = 0
    device: str = "cpu"
    network: FlowConfig = FlowConfig()


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std for state (11,) and action (4,); `step_scale` (H, 4) is the scale at each step beside `std`."""

    state_mean: np.ndarray
    state_std: np.ndarray
    action_mean: np.ndarray
    action_std: np.ndarray
    step_scale: np.ndarray

    @staticmethod
    def of(frames: Frames) -> "Normalisation":
        """Measured on `frames`; the gripper's entry is fixed at [0, 1] -> [-1, 1]."""
        state = np.concatenate([frames.joints, frames.tool], 1).astype(np.float64)
        moves = frames.chunks[..., :3].astype(np.float64)
        mean, std = np.zeros(4), np.full(4, 0.5)
        std[:3] = moves.reshape(-1, 3).std(0)
        mean[3] = 0.5
        scale = np.ones(frames.chunks.shape[2:])
        scale[:, :3] = np.sqrt((moves**2).mean((0, 1))) / std[:3]
        return Normalisation(state.mean(0), np.maximum(state.std(0), 1e-3), mean, std, np.maximum(scale, 0.02))


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process works on: `rank` of `world`. With world > 1, torch.distributed is up."""

    rank: int = 0
    world: int = 1

    def average(self, model: FlowPolicy) -> None:
        """Replaces the gradients by their mean over all processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


class Trainer:
    """A network, its optimiser and its averaged weights."""

    def __init__(
        self,
        settings: Settings,
        frames: Frames,
        normalisation: Normalisation | None = None,
        share: Share | None = None,
        cache: Path | None = None,
    ):
        self.settings, self.frames, self.share = settings, frames, share or Share()
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.normalisation = normalisation or Normalisation.of(frames)
        self.model = FlowPolicy(settings.network)
        self.model.step_scale.copy_(torch.tensor(self.normalisation.step_scale))
        self.model.to(self.device, memory_format=torch.channels_last)
        self.average = FlowPolicy(settings.network).to(self.device)
        self.average.load_state_dict(self.model.state_dict())
        self._optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.rate, weight_decay=1e-3)
        self._banks = _sentence_banks(cache)
        self.step = 0

    def run(self, until: int, report: Callable[[dict[str, float]], None], stop: Callable[[], bool] = bool) -> None:
        """Trains up to step `until`, or until `stop()`. Reports averages of the losses every 50 steps."""
        sums: dict[str, float] = {}
        since, first = time.monotonic(), self.step
        self.model.train()
        while self.step < until and not stop():
            for name, value in self._one_step().items():
                sums[name] = sums.get(name, 0.0) + value
            if self.step % 50 == 0 or self.step == until:
                count = self.step - first
                rate = count * self.settings.batch / (time.monotonic() - since)
                report({"step": self.step, "samples_per_s": rate, **{k: v / count for k, v in sums.items()}})
                sums, since, first = {}, time.monotonic(), self.step

    def save(self, path: Path) -> None:
        """Everything that `resume` needs, in one file that replaces the old one at once."""
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "normalisation": {k: torch.tensor(v) for k, v in vars(self.normalisation).items()},
            },
            partial,
        )
        partial.rename(path)

    def resume(self, path: Path) -> None:
        """Goes on from what `save` wrote.

        Raises:
            ConfigError: when the file is of another network.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self._optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(f"'{path}' is of another network: {error}; start over in an empty folder") from error
        self.normalisation = Normalisation(**{k: v.numpy() for k, v in state["normalisation"].items()})
        self.step = int(state["step"])

    def _one_step(self) -> dict[str, float]:
        settings = self.settings
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate * _schedule(self.step, settings)
        batch = self._batch(np.random.default_rng([settings.seed, self.step, self.share.rank]))
        generator = torch.Generator().manual_seed(
            (settings.seed * 1_000_003 + self.step) * self.share.world + self.share.rank
        )
        losses, readings = self._losses(batch, generator)
        total = sum(_WEIGHTS[name] * loss for name, loss in losses.items())
        self._optimiser.zero_grad(set_to_none=True)
        assert isinstance(total, Tensor)
        total.backward()
        self.share.average(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        self._smooth()
        return {name: float(loss.detach()) for name, loss in losses.items()} | readings

    @torch.no_grad()
    def _smooth(self) -> None:
        keep = min(_SMOOTHING, (1 + self.step) / (10 + self.step))
        old, new = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(old, new, 1 - keep)

    def _batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        frames, norm = self.frames, self.normalisation
        size = self.settings.batch // self.share.world
        rows = np.sort(rng.integers(len(frames), size=size))
        colour = _choose_colours(rng, frames.held[rows], frames.placed[rows])
        blank = rng.random(size) < _BLANK
        colour = np.where(blank, _nearest(frames, rows), colour)
        tool = frames.tool[rows]
        joints = frames.joints[rows] + rng.normal(0, _JOINT_NOISE, (size, 8)) * ([1] * 7 + [0.1])
        seen = tool + rng.normal(0, _TOOL_NOISE, (size, 3))
        state = (np.concatenate([joints, seen], 1) - norm.state_mean) / norm.state_std
        chunk = (frames.chunks[rows, colour] - norm.action_mean) / (norm.step_scale * norm.action_std)
        banks = [self._banks[k] for k in np.where(blank, len(COLOURS), colour)]
        text = torch.stack([bank[_pick(rng, len(bank))] for bank in banks])
        text = text + torch.from_numpy(rng.normal(0, _SENTENCE_NOISE, text.shape).astype(np.float32))
        arrays = {
            "state": state,
            "tool": seen,
            "chunk": chunk,
            "places": np.concatenate([frames.cubes[rows], frames.tray[rows, None]], 1),
            "held": frames.held[rows, None] == np.arange(3),
            "placed": frames.placed[rows],
            "progress": frames.progress[rows, colour],
            "named": ~blank,
        }
        batch = {k: torch.from_numpy(np.asarray(v, dtype=np.float32)) for k, v in arrays.items()}
        batch |= {"text": text, "colour": torch.from_numpy(colour), "images": _jitter(rng, frames.images[rows])}
        return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def _losses(
        self, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        model, kind = self.model, self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=_has_bfloat16(kind)):
            reading = model.read(batch["images"], batch["state"], batch["text"], batch["tool"])
        target = batch["chunk"].repeat(NOISES, 1, 1)
        noise = torch.randn(target.shape, generator=generator).to(self.device)
        # More of the early times: there the sentence and the images decide, later the path itself tells where it leads.
        tau = torch.rand(len(target), generator=generator).to(self.device) ** 1.5 * 0.98
        x = (1 - tau)[:, None, None] * noise + tau[:, None, None] * target
        with torch.autocast(kind, torch.bfloat16, enabled=_has_bfloat16(kind)):
            end = model.predict(x, tau, reading.context.repeat(NOISES, 1))
        losses = {"flow": F.mse_loss(end.float(), target), **_reading_losses(model, reading, batch)}
        cubes = (reading.cubes - batch["places"][:, :3]).detach().norm(dim=-1)
        named = cubes.gather(1, batch["colour"][:, None])
        return losses, {
            "cube_error_m": float(named.mean()),
            "tray_error_m": float((reading.tray - batch["places"][:, 3]).detach().norm(dim=-1).mean()),
        }


def _reading_losses(model: FlowPolicy, reading: Reading, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    named, spread = batch["named"], model.place_std
    read = torch.cat([reading.cubes, reading.tray[:, None]], 1)
    logits, truths = torch.cat([reading.held, reading.placed], 1), torch.cat([batch["held"], batch["placed"]], 1)
    progress = F.binary_cross_entropy_with_logits(reading.progress, batch["progress"], reduction="none")
    colour = F.cross_entropy(reading.colour, batch["colour"], reduction="none")
    return {
        "places": F.smooth_l1_loss(read / spread, batch["places"] / spread, beta=0.1),
        "flags": F.binary_cross_entropy_with_logits(logits, truths),
        "progress": progress.mean(),
        "colour": (colour * named).mean(),
    }


def _schedule(step: int, settings: Settings) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    share = step / max(1, settings.steps)
    if share < settings.decay_from:
        return 1.0
    fallen = min(1.0, (share - settings.decay_from) / (1 - settings.decay_from))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen))


def _choose_colours(rng: np.random.Generator, held: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """(B,) whose label to learn: mostly the held cube's, less often one that lies in the tray already."""
    weights = np.where(placed, 0.5, 1.0)
    holding = held >= 0
    weights[holding] = 0.05
    weights[holding, held[holding]] = 0.9
    edges = np.cumsum(weights, 1)
    return (rng.random((len(held), 1)) * edges[:, -1:] > edges).sum(1).clip(0, 2)


def _nearest(frames: Frames, rows: np.ndarray) -> np.ndarray:
    """(B,) the colour that an empty sentence means: the held cube, else the one nearest to the tool. So an empty
    sentence sets the arm in motion and names each colour equally often, without wavering between them."""
    away = np.linalg.norm(frames.cubes[rows, :, :2] - frames.tool[rows, None, :2], axis=-1)
    return np.where(frames.held[rows] >= 0, frames.held[rows], away.argmin(1))


def _pick(rng: np.random.Generator, count: int) -> int:
    """Index of a sentence; the first one, the plain one, is more frequent."""
    return 0 if rng.random() < 0.1 else int(rng.integers(count))


def _jitter(rng: np.random.Generator, images: np.ndarray) -> Tensor:
    """uint8 (B, C, H, W, 3) -> float (B, C, 3, H, W) in [0, 1] with other light: too little to change a hue."""
    size, cameras = images.shape[:2]
    gain = rng.uniform(0.8, 1.2, (size, 1, 1, 1, 1)) * rng.uniform(0.93, 1.07, (size, cameras, 3, 1, 1))
    shift = rng.uniform(-0.06, 0.06, (size, cameras, 1, 1, 1))
    pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3).float() / 255
    pixels = pixels * torch.from_numpy(gain.astype(np.float32)) + torch.from_numpy(shift.astype(np.float32))
    return pixels.clamp_(0, 1)


def _sentence_banks(cache: Path | None) -> list[Tensor]:
    """Embeddings of all training sentences: one (S, 384) per colour, and the empty sentence's (1, 384).

    Kept in folder `cache` under a name that follows from the sentences: computing them takes seconds.
    """
    sentences = [*(list(trained(colour)) for colour in COLOURS), [""]]
    digest = hashlib.sha256("\n".join(s for bank in sentences for s in bank).encode()).hexdigest()
    path = None if cache is None else cache / f"sentences-{digest[:16]}.safetensors"
    if path is not None and path.exists():
        stored = load_file(path)
        return [stored[str(i)] for i in range(len(sentences))]
    encoder = SentenceEncoder()
    banks = [encoder.embed_all(bank) for bank in sentences]
    if path is not None:
        partial = path.with_suffix(f".{os.getpid()}")  # other processes may be writing the same
        save_file({str(i): bank for i, bank in enumerate(banks)}, partial)
        partial.rename(path)
    return banks


def _has_bfloat16(kind: str) -> bool:
    """Whether bfloat16 is fast there; on a CPU without the instructions it would be slower than float32."""
    return torch.cuda.is_bf16_supported() if kind == "cuda" else torch.cpu._is_avx512_bf16_supported()
