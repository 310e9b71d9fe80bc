"""What a worker has to say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError
from vla_contract.policy import PolicyMetadata
from vla_policy_node.worker import wire


@dataclass(frozen=True)
class Ready:
    """Loaded and warm after `seconds`; `gpu_memory` as in `Answer`."""

    metadata: PolicyMetadata
    seconds: float
    gpu_memory: float = float("nan")


@dataclass(frozen=True)
class Answer:
    """To the request `id`; `seconds` is the inference alone. `path` (K, 3) m: the tool at the chunk's points, in the
    base frame; None: nobody wanted it, or the worker's interpreter has no kinematics. `gpu_memory`: bytes that the
    worker holds on GPUs; NaN: it uses none."""

    id: int
    chunk: ActionChunk
    seconds: float
    path: NDArray[np.float64] | None = None
    gpu_memory: float = float("nan")


@dataclass(frozen=True)
class Refusal:
    """The backend had no answer to the request `id`; it lives on. `unavailable`: because of an outage elsewhere."""

    id: int
    reason: str
    unavailable: bool = False


@dataclass(frozen=True)
class Down:
    """The process ended, hung or could not load. It starts again in `restart_in` s, or never (None)."""

    reason: str
    restart_in: float | None


Event = Ready | Answer | Refusal | Down


def event_of(identifier: int, answer: dict[str, Any]) -> Answer | Refusal:
    """From the worker's answer to the inference `identifier`."""
    if "error" in answer:
        return Refusal(identifier, with_trace(answer), bool(answer.get("unavailable")))
    try:
        return Answer(
            identifier,
            wire.chunk_of(answer["chunk"]),
            float(answer["seconds"]),
            answer.get("path"),
            gpu_memory_of(answer),
        )
    except Exception as error:  # a backend may answer anything
        words = str(error) if isinstance(error, ChunkError) else f"{type(error).__name__}: {error}"
        return Refusal(identifier, f"the backend's chunk is malformed: {words}")


def gpu_memory_of(answer: dict[str, Any]) -> float:
    """Bytes that the worker holds on GPUs; NaN: it uses none."""
    found = answer.get("gpu")
    return float("nan") if found is None else float(found)


def with_trace(answer: dict[str, Any]) -> str:
    """The error that an answer reports, in words."""
    trace = answer.get("trace", "")
    return f"{answer['error']}\n{trace}" if trace else str(answer["error"])
