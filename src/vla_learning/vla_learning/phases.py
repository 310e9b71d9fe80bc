"""One stretch of training in processes of its own, so that memory, threads and failures stay apart from the caller."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

import torch
import torch.distributed as dist

from vla_contract.errors import VlaError
from vla_learning.export import export
from vla_learning.frames import Frames
from vla_learning.helpers import belong_to
from vla_learning.training import Normalisation, Settings, Share, Trainer

STATE_FILE, CHECKPOINT = "training.pt", "checkpoint"
_SAVE_EVERY = 500  # steps


class TrainingFailed(VlaError):
    """A training process ended without finishing its steps."""


@dataclass(frozen=True)
class Phase:
    """Train in `folder` (which may hold an earlier state) on the frames of `data` up to step `until`."""

    folder: Path
    data: tuple[Path, ...]
    settings: Settings
    until: int
    world: int = 1


def train(phase: Phase, report: Callable[[dict[str, float]], None]) -> None:
    """Runs a phase to its end. The folder then holds the state and the exported checkpoint.

    Raises:
        TrainingFailed: when a process dies; what was saved last is still there, and another call goes on from it.
    """
    context = multiprocessing.get_context("spawn")
    queue: Queue[dict[str, float]] = context.Queue()
    meeting = phase.folder / f"meeting-{os.getpid()}-{phase.until}"
    meeting.unlink(missing_ok=True)
    processes = [
        context.Process(target=_run, args=(phase, rank, meeting, queue, os.getpid()), daemon=True)
        for rank in range(phase.world)
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            _drain(queue, report, 0.5)
            if any(process.exitcode for process in processes):
                break
        _drain(queue, report, 0.1)
        codes = [process.exitcode for process in processes]
        if any(codes):
            raise TrainingFailed(f"training processes ended with codes {codes} (see above); run again to go on")
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
        meeting.unlink(missing_ok=True)


def _drain(queue: "Queue[dict[str, float]]", report: Callable[[dict[str, float]], None], seconds: float) -> None:
    try:
        while True:
            report(queue.get(timeout=seconds))
    except Empty:
        return


def _run(phase: Phase, rank: int, meeting: Path, queue: "Queue[dict[str, float]]", parent: int) -> None:
    belong_to(parent)
    torch.set_num_threads(1 if phase.world > 1 else max(1, min(8, os.cpu_count() or 1)))
    if phase.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=phase.world)
    state = phase.folder / STATE_FILE
    share = Share(rank, phase.world)
    normalisation = _first_normalisation(phase.data)
    trainer = Trainer(phase.settings, Frames.open(phase.data), normalisation, share, cache=phase.folder)
    if state.exists():
        trainer.resume(state)
    while trainer.step < phase.until:
        following = min(phase.until, (trainer.step // _SAVE_EVERY + 1) * _SAVE_EVERY)
        trainer.run(following, queue.put if rank == 0 else _ignore)
        if rank == 0:
            trainer.save(state)
            export(phase.folder / CHECKPOINT, trainer, {})
    if phase.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def _first_normalisation(data: Sequence[Path]) -> Normalisation:
    """Measured on the first set alone, so that later sets do not shift what the network has learned."""
    return Normalisation.of(Frames.open(data[:1]))


def _ignore(_: dict[str, float]) -> None:
    """Only the first process reports."""
