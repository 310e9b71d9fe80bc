"""Making frames: the expert (perturbed) or a policy steers, the expert labels.

Every episode is a function of its seed and of who steers, so a set can be made again, in any number of processes.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_contract.observation import Observation
from vla_contract.resampling import resize_image
from vla_contract.robot import load_robot
from vla_learning.frames import CAMERAS, IMAGE, Frames
from vla_learning.helpers import belong_to
from vla_learning.instructions import trained
from vla_learning.stage import COLOURS, DT, HORIZON, Pace, Stage
from vla_sim.core.expert import Situation

Array = NDArray[np.float64]
TIME_LIMIT = 11.0  # s of an episode
_GRACE = 3  # observations after the task is done
_FLOOR = 0.012  # m, lowest tool height of a perturbed chunk


@dataclass(frozen=True)
class Recipe:
    """How to make a set of episodes.

    Attributes:
        robot: path of the robot file.
        policy: folder of the checkpoint that steers; None: the expert, perturbed.
    """

    robot: str
    policy: str | None = None


def make(recipe: Recipe, seeds: Sequence[int], processes: int, report: Callable[[int], None]) -> Frames:
    """Plays one episode per seed; calls `report(frames so far)` after each."""
    results: dict[int, Frames] = {}
    total = 0
    for seed, frames in _each(recipe, seeds, processes):
        results[seed] = frames
        total += len(frames)
        report(total)
    return Frames.concatenate([results[seed] for seed in seeds])


def _each(recipe: Recipe, seeds: Sequence[int], processes: int) -> Iterator[tuple[int, Frames]]:
    if processes <= 1:
        player = _Player(recipe)
        try:
            for seed in seeds:
                yield seed, player.play(seed)
        finally:
            player.stage.close()
        return
    # Spawned, not forked: neither OpenGL contexts nor torch's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(recipe, os.getpid())) as pool:
        futures = {pool.submit(_play, seed): seed for seed in seeds}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BaseException:  # Ctrl-C as well: the episodes that have not begun are not worth waiting for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_player: "_Player | None" = None  # of a worker process


def _start(recipe: Recipe, parent: int) -> None:
    global _player
    belong_to(parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _player = _Player(recipe)


def _play(seed: int) -> Frames:
    assert _player is not None
    return _player.play(seed)


class _Player:
    """Plays episodes in one process."""

    def __init__(self, recipe: Recipe):
        self.stage = Stage(load_robot(recipe.robot))
        self.policy = None
        if recipe.policy is not None:
            from vla_learning.rollout import load_policy  # torch, which the expert's episodes do without

            self.policy = load_policy(Path(recipe.policy), self.stage, threads=1)

    def play(self, seed: int) -> Frames:
        rng = np.random.default_rng([seed, 17])
        stage, colours = self.stage, list(COLOURS)
        colour = colours[int(rng.integers(3))]
        stage.start(seed, rng if rng.random() < 0.7 else None)
        pace = Pace(period=float(rng.choice([0.2, 0.4, 0.5])), latency=float(rng.uniform(0.06, 0.2)))
        if self.policy is not None:
            self.policy.reset()
        sentences = trained(colour)
        sentence = "" if rng.random() < 0.1 else sentences[int(rng.integers(len(sentences)))]
        disturbance = _Disturbance(rng)
        rows: list[dict[str, object]] = []
        done = 0
        while stage.cell.time_ns < TIME_LIMIT * 1e9 and done < _GRACE:
            observation, situation = stage.observe(sentence), stage.situation()
            if not all(_near_table(p) for p in (situation.tool, *(c.position for c in situation.cubes.values()))):
                break  # knocked away: nothing to learn, and a far position would drown every other lesson
            rows.append(self._label(observation, situation, seed))
            done += rows[-1]["progress"][colours.index(colour)] >= 1  # type: ignore[index]
            if self.policy is None:
                chunk = np.asarray(rows[-1]["chunks"])[colours.index(colour)]
                tool, gripper = situation.tool + chunk[:, :3], chunk[:, 3]
            else:
                tool, gripper, _ = self.policy.infer_tool(observation)
            positions = stage.joints_for(*disturbance.apply(tool, gripper))
            stage.advance(positions, pace)
        return _stack(rows)

    def _label(self, observation: Observation, situation: Situation, seed: int) -> dict[str, object]:
        stage, velocity = self.stage, self.stage.tool_velocity()
        chunks, progress = [], []
        for name in COLOURS.values():
            plan = stage.expert.plan(situation, name, velocity, HORIZON, DT)
            chunks.append(np.column_stack([plan.tool - situation.tool, plan.gripper]))
            progress.append(stage.expert.command(situation, name).progress)
        names = list(COLOURS.values())
        held, placed = stage.expert.held(situation), stage.expert.placed(situation)
        return {
            "images": np.stack([resize_image(observation.images[c], IMAGE, IMAGE) for c in CAMERAS]),
            "joints": observation.positions,
            "tool": situation.tool,
            "chunks": np.stack(chunks),
            "progress": np.array(progress),
            "cubes": np.stack([situation.cubes[name].position for name in names]),
            "tray": situation.tray.position,
            "held": -1 if held is None else names.index(held),
            "placed": np.array([name in placed for name in names]),
            "episode": seed,
        }


def _near_table(position: Array) -> bool:
    x, y, z = position
    return bool(0.2 < x < 0.8 and abs(y) < 0.45 and -0.02 < z < 0.55)


class _Disturbance:
    """Wandering offsets of the tool and slips of the gripper, so that demonstrations also show how to recover."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._size = float(rng.choice([0.0, 0.008, 0.02, 0.04], p=[0.25, 0.3, 0.3, 0.15]))  # m
        self._slips = 0.04 if self._size else 0.0
        self._offset = np.zeros(3)

    def apply(self, tool: Array, gripper: Array) -> tuple[Array, Array]:
        """Disturbed tool positions (K, 3) m and gripper (K,)."""
        self._offset = 0.6 * self._offset + self._rng.normal(0.0, self._size or 1e-12, 3)
        grown = np.minimum(np.arange(1, len(tool) + 1) / 4, 1.0)[:, None]
        disturbed = tool + grown * self._offset
        disturbed[:, 2] = np.maximum(disturbed[:, 2], np.minimum(tool[:, 2], _FLOOR))
        if self._rng.random() < self._slips:
            gripper = np.full_like(gripper, self._rng.integers(2))
        return disturbed, gripper


def _stack(rows: Sequence[dict[str, object]]) -> Frames:
    like = Frames.empty()
    return Frames(**{k: np.stack([r[k] for r in rows]).astype(getattr(like, k).dtype) for k in rows[0]})  # type: ignore[arg-type]
