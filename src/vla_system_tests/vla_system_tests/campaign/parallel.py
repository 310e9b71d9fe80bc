"""The parts without processes of their own: property cases and adversaries, spread over worker processes."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from vla_safety.proof.adversary import Adversary
from vla_safety.proof.cases import BLOCK, run_block
from vla_safety.proof.tally import Tally
from vla_system_tests.campaign.state import Keeper

ADVERSARIES = 4  # that learn side by side; a constant, so that the seed alone decides what they do


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_cases(keeper: Keeper, jobs: int) -> None:
    """Property cases, block by block; blocks are independent, so their order does not matter."""
    progress = keeper.progress
    finished = set(progress.memory.get("blocks_beyond", []))  # done, above the first that is missing
    first = int(progress.memory.get("first_block", 0))
    total = -(-progress.goal // BLOCK)
    waiting = [block for block in range(first, total) if block not in finished]
    with _pool(jobs) as pool:
        running: dict[Future[Tally], int] = {}
        while waiting or running:
            while waiting and len(running) < 2 * jobs:
                block = waiting.pop(0)
                running[pool.submit(run_block, progress.seed, block)] = block
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished.add(running.pop(future))
                while first in finished:
                    finished.remove(first)
                    first += 1
                progress.memory.update(first_block=first, blocks_beyond=sorted(finished))
                keeper.advance(BLOCK, future.result())


def _generation(seed: int, number: int, record: dict[str, Any] | None) -> tuple[int, dict[str, Any], Tally]:
    adversary = Adversary(seed, number)
    if record is not None:
        adversary.restore(record)
    tally = adversary.generation()
    return number, adversary.record(), tally


def run_adversaries(keeper: Keeper, jobs: int) -> None:
    """Adversaries, generation by generation, until their cycles reach the goal."""
    progress = keeper.progress
    learned: dict[str, Any] = progress.memory.setdefault("adversaries", {})
    with _pool(jobs) as pool:
        running: set[Future[tuple[int, dict[str, Any], Tally]]] = set()
        idle = list(range(ADVERSARIES))
        while not progress.complete:
            while idle and len(running) < jobs:
                number = idle.pop(0)
                running.add(pool.submit(_generation, progress.seed, number, learned.get(str(number))))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, record, tally = future.result()
                learned[str(number)] = record
                idle.append(number)
                keeper.advance(tally.counts["cycles"], tally)
