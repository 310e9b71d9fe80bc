"""The way between a robot and a model in this process, as policy file and checkpoint folder describe it.

Nothing here needs torch: preflight builds the same interface as the backends, before any of them is loaded.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, MismatchError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import METADATA_FILE, PolicyMetadata, Statistics
from vla_contract.robot import Robot
from vla_policy_node.core.action_encoding import ActionEncoder, Encoded
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout, arm_width
from vla_policy_node.core.model_inputs import CameraEntry, ModelInputs, StateEntry, TextEntry

Array = NDArray[np.float64]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is a map.

    Raises:
        ConfigError: when it is missing or malformed.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' holds a {type(content).__name__}, expected a map")
    return content


@dataclass(frozen=True)
class Seen:
    """An observation as a model takes it: images (H, W, 3) uint8 in order, state (d,) in physical units, the text."""

    images: tuple[NDArray[np.uint8], ...]
    state: Array
    text: str


class Interface:
    """The way from an observation to the inputs of a model and from its rows to a chunk.

    Args:
        image_size: (height, width) that the model takes; (None, None): the backend resizes, in its own way; None: the
            backend checks the sizes itself.

    Raises:
        ConfigError: when a layout is malformed or does not fit the robot.
    """

    def __init__(
        self,
        robot: Robot,
        inputs: Mapping[str, Any],
        action: ActionLayout,
        image_size: tuple[int | None, int | None] | None = (None, None),
    ):
        self.robot = robot
        self.inputs = ModelInputs(inputs, robot)
        self.decoder = ActionDecoder(action, robot)
        self.encoder = ActionEncoder(action, robot)
        kinds: dict[type, list[str]] = {CameraEntry: [], StateEntry: [], TextEntry: []}
        for path, entry in self.inputs.entries():
            if type(entry) not in kinds or path not in inputs:
                raise ConfigError(f"inputs.{path}: expected a camera, state or text entry, not nested")
            kinds[type(entry)].append(path)
            if isinstance(entry, CameraEntry):
                _check_camera(path, entry, image_size)
        self._cameras, self._states, self._texts = kinds.values()
        if not self._cameras or len(self._states) > 1 or len(self._texts) > 1:
            raise ConfigError(
                f"inputs has {len(self._cameras)} camera, {len(self._states)} state and {len(self._texts)} text "
                "entries; expected at least one camera, and at most one state and one text"
            )

    @property
    def cameras(self) -> int:
        """Images that the model sees."""
        return len(self._cameras)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By key of the inputs: (3, height, width) of an image, (d,) of a vector; sentences have none."""
        found: dict[str, tuple[int, ...]] = {}
        for key, entry in self.inputs.entries():
            if isinstance(entry, CameraEntry):
                size = self.inputs.cameras[entry.camera]
                found[key] = (3, size.height, size.width)
            elif isinstance(entry, StateEntry):
                found[key] = (len(self.inputs.part_names(entry)),)
        return found

    @property
    def state_width(self) -> int:
        """Entries of the state."""
        return len(self.inputs.state_names)

    def check(self, metadata: PolicyMetadata) -> None:
        """Refuses a policy file that reads a checkpoint otherwise than the checkpoint says.

        Raises:
            MismatchError: with every misfit.
        """
        pairs: Sequence[tuple[str, object, object]] = (
            ("cameras", list(metadata.cameras.items()), list(self.inputs.cameras.items())),
            ("state", list(metadata.state), list(self.inputs.state_names)),
            ("action_space", metadata.action_space, self.decoder.layout.space),
            ("action", list(metadata.action), list(self.decoder.names)),
        )
        misfits = [
            f"{key}: {METADATA_FILE} says {expected}, the policy file {found}"
            for key, expected, found in pairs
            if expected != found
        ]
        if misfits:
            raise MismatchError(f"policy '{metadata.name}' does not fit its policy file", misfits)

    def physical(self, action: Statistics) -> Statistics:
        """Mean and deviation of a model's actions in the units that they have after `scale`: rad or m."""
        arm = arm_width(self.decoder.layout, self.decoder.width)
        if len(action.mean) != self.decoder.width or len(action.std) != self.decoder.width:
            return action  # refused for its length elsewhere
        mean, std = action.arrays()
        factors = np.ones(self.decoder.width)
        factors[:arm] = self.decoder.layout.scale
        factors[(mean == 0) & (std == 1)] = 1.0  # an entry that is not normalised says nothing of its range
        return Statistics(mean=tuple((mean * factors).tolist()), std=tuple((std * abs(factors)).tolist()))

    def see(self, observation: Observation) -> Seen:
        """What the model sees of an observation.

        Raises:
            InferenceError: when it lacks a camera, or its numbers are not finite.
        """
        fields = self.inputs.compose(observation)
        state = np.asarray(fields[self._states[0]], dtype=np.float64) if self._states else np.zeros(0)
        if not np.isfinite(state).all():
            raise InferenceError(f"the state is not finite: {state}")
        images = tuple(fields[path] for path in self._cameras)
        return Seen(images, state, fields[self._texts[0]] if self._texts else "")

    def encode(self, motion: ArrayLike, observation: Observation) -> Encoded:
        """The rows that mean the joint motion (K, n)."""
        return self.encoder.encode(motion, observation.positions)

    def chunk(
        self, metadata: PolicyMetadata, observation: Observation, rows: ArrayLike, started: float, hold: float = 0.0
    ) -> ActionChunk:
        """See `joint_chunk`."""
        return joint_chunk(self.decoder, metadata, observation, rows, started, hold)


def joint_chunk(
    decoder: ActionDecoder,
    metadata: PolicyMetadata,
    observation: Observation,
    rows: ArrayLike,
    started: float,
    hold: float = 0.0,
) -> ActionChunk:
    """Rows (K, d) in physical units as joint motion.

    Args:
        started: reading of `time.perf_counter`.
        hold: s after the observation until which the last point is kept, where the rows end before.

    Raises:
        InferenceError: when they are not finite, or the first is out of reach.
    """
    decoded = decoder.decode(rows, observation.positions)
    positions = decoder.reachable(decoded)
    shortened = decoded.shortened(len(positions))
    base = decoded.base_motion(len(positions), metadata.dt)
    points = max(len(positions), int(np.ceil(hold / metadata.dt - 1e-6)))
    positions = np.concatenate([positions, np.repeat(positions[-1:], points - len(positions), axis=0)])
    return ActionChunk(
        stamp_ns=observation.stamp_ns,
        joint_names=metadata.joints,
        trajectory=Trajectory(metadata.dt * np.arange(1, points + 1), positions),
        policy=metadata.name,
        policy_digest=metadata.digest,
        instruction=observation.instruction,
        inference_time=time.perf_counter() - started,
        base=base,
        shortened=shortened,
    )


def _check_camera(path: str, entry: CameraEntry, size: tuple[int | None, int | None] | None) -> None:
    expected = (entry.height, entry.width) if size is None else size
    if (entry.height, entry.width) != expected or entry.axes != "hwc":
        raise ConfigError(
            f"inputs.{path}: height {entry.height}, width {entry.width}, axes {entry.axes}; "
            f"this backend takes height {expected[0]}, width {expected[1]}, axes hwc"
        )
