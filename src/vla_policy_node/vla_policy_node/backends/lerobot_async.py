"""Client of LeRobot's policy server (`python -m lerobot.async_inference.policy_server`): ACT, Diffusion, SmolVLA, π0, …

gRPC. On a new connection the server is told which policy to load; then each observation is sent with `must_go`, so that
the server infers even if the robot has hardly moved, and its chunk is fetched. LeRobot itself is not needed here; torch
is, to read the tensors.
"""

import importlib.util
import itertools
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import grpc
import numpy as np
from pydantic import Field, field_validator

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.robot import Robot
from vla_policy_node.backends.lerobot_wire import (
    Record,
    actions_data,
    dumps,
    loads_actions,
    observation_frames,
    setup_frame,
)
from vla_policy_node.backends.options import read_options
from vla_policy_node.backends.remote import (
    LONGEST_MESSAGE,
    Answer,
    LinkError,
    RemoteBackend,
    RemoteOptions,
)
from vla_policy_node.core.model_inputs import CameraEntry, ModelInputs, StateEntry, TextEntry

STATE, IMAGES, TASK = "observation.state", "observation.images.", "task"
_EMPTY = b""
_CONNECTED = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.CONNECTING)


class LerobotOptions(RemoteOptions):
    """See RemoteOptions. `inputs` has the keys `observation.state`, `observation.images.<name>` and `task`.

    Attributes:
        policy_type: as LeRobot names it.
        pretrained: name or path of the checkpoint, as seen by the server.
        device: the server's.
        load_timeout: s for the server to load the policy.
    """

    port: Annotated[int, Field(gt=0, le=65535)] = 8080
    policy_type: Literal["act", "smolvla", "diffusion", "tdmpc", "vqbet", "pi0", "pi05", "groot"]
    pretrained: Annotated[str, Field(min_length=1)]
    device: str = "cuda"
    load_timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0

    @field_validator("policy_type")
    @classmethod
    def _needs_no_past(cls, kind: str) -> str:
        """The server asks for a chunk without filling the policy's queues of the past: those that read them fail."""
        if kind in ("diffusion", "vqbet"):
            raise ValueError(f"LeRobot's server cannot run '{kind}', it keeps no past for it; use backend lerobot")
        return kind

    @property
    def opening(self) -> float:
        """s that it takes at most to connect and to have the policy loaded."""
        return self.connect_timeout + self.load_timeout


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "LerobotBackend":
    """Makes the client. The server need not be up yet; `pretrained` is the server's, `checkpoint` is not looked at.

    Raises:
        ConfigError: when an option is missing, unknown or wrong, does not fit the robot, or torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("lerobot_async needs torch to read the server's tensors; name an interpreter that has it")
    return BACKEND(robot, read_options(OPTIONS, "lerobot_async", options))


class LerobotBackend(RemoteBackend):
    """A policy behind LeRobot's policy server."""

    def __init__(self, robot: Robot, options: LerobotOptions):
        features, self._names = _features(ModelInputs(options.inputs, robot), robot)
        self._steps = itertools.count()
        self._stamp = 0.0
        setup = Record(
            "RemotePolicyConfig",
            {
                "policy_type": options.policy_type,
                "pretrained_name_or_path": options.pretrained,
                "lerobot_features": features,
                "actions_per_chunk": options.horizon,
                "device": options.device,
                "rename_map": {},
            },
        )
        super().__init__(robot, options, LerobotLink(options, setup))

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """As RemoteBackend."""
        self._stamp = observation.stamp_ns * 1e-9
        return super().infer(observation, prefix)

    def _request(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        raw: dict[str, Any] = {}
        for key, value in fields.items():
            if key == STATE:
                raw |= {name: float(number) for name, number in zip(self._names, value, strict=True)}
            else:
                raw[key.removeprefix(IMAGES)] = value
        step = next(self._steps)
        record = {"timestamp": self._stamp, "timestep": step, "observation": raw, "must_go": True}
        return step, dumps(Record("TimedObservation", record))

    def _answer(self, reply: list[tuple[int, np.ndarray[Any, Any]]]) -> Answer:
        widths = {len(row) for _, row in reply}
        if len(widths) != 1:
            raise InferenceError(f"the reply's actions have {sorted(widths)} entries, expected the same number in each")
        return Answer(np.stack([row for _, row in reply]))


OPTIONS, BACKEND = LerobotOptions, LerobotBackend  # for preflight: see `declared`; neither needs torch


def _features(inputs: ModelInputs, robot: Robot) -> tuple[dict[str, Any], list[str]]:
    """LeRobot's description of the observation, and the names of the state's numbers."""
    features: dict[str, Any] = {}
    names: list[str] = []
    for path, entry in inputs.entries():
        if path == STATE and isinstance(entry, StateEntry):
            names = inputs.part_names(entry)
            features[path] = {"dtype": "float32", "shape": (len(names),), "names": names}
        elif path.startswith(IMAGES) and isinstance(entry, CameraEntry) and entry.axes == "hwc":
            native = robot.cameras[entry.camera]
            shape = (entry.height or native.height, entry.width or native.width, 3)
            features[path] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
        elif path != TASK or not isinstance(entry, TextEntry):
            raise ConfigError(
                f"inputs: '{path}' is no entry of LeRobot's; expected '{STATE}' (state), '{IMAGES}<name>' (camera with "
                f"axes hwc) and '{TASK}' (text)"
            )
    if not names:
        raise ConfigError(f"inputs: '{STATE}' is missing; LeRobot's server always reads it")
    return features, names


class LerobotLink:
    """A gRPC channel to one server, which has been told what to load."""

    def __init__(self, options: LerobotOptions, setup: Record):
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.address = f"grpc://{host}:{options.port}"
        self._options, self._setup = options, setup_frame(dumps(setup))
        self._channel: grpc.Channel | None = None
        self._broken = threading.Event()

    def open(self) -> None:
        """Connects and lets the server load the policy."""
        self._channel = grpc.insecure_channel(
            self.address.removeprefix("grpc://"),
            options=[
                ("grpc.max_receive_message_length", LONGEST_MESSAGE),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
            ],
        )
        self._call("Ready", _EMPTY, self._options.connect_timeout)
        try:
            self._call("SendPolicyInstructions", self._setup, self._options.load_timeout)
        except InferenceError as error:
            raise LinkError(f"the server could not load '{self._options.pretrained}': {error}") from error
        # gRPC connects again without a word, to a server that has no policy loaded.
        broken = self._broken = threading.Event()
        self._channel.subscribe(lambda state: None if state in _CONNECTED else broken.set())

    def exchange(self, request: tuple[int, bytes], timeout: float) -> list[tuple[int, np.ndarray[Any, Any]]]:
        """One observation, and the chunk that was computed from it."""
        step, pickled = request
        self.probe(timeout)
        deadline = time.monotonic() + timeout
        self._call("SendObservations", observation_frames(pickled), timeout)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LinkError(f"no answer for {timeout:g} s")
            data = actions_data(self._call("GetActions", _EMPTY, left))
            if not data:
                raise InferenceError("the server has no actions for the observation; its log says why")
            actions = loads_actions(data)
            if actions and actions[0][0] == step:
                return actions
            # The chunk of an observation that we have given up waiting for.

    def _call(self, method: str, request: Any, timeout: float) -> bytes:
        if self._channel is None:
            raise LinkError("not connected", closed=True)
        path = f"/transport.AsyncInference/{method}"
        streams = method == "SendObservations"
        # The frames are bytes already: no generated code, no version of protobuf to agree on.
        call = self._channel.stream_unary(path) if streams else self._channel.unary_unary(path)
        try:
            return bytes(call(request, timeout=timeout))
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details())[:300]
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise LinkError(f"no answer for {timeout:g} s")
        if code == grpc.StatusCode.UNAVAILABLE:
            raise LinkError(f"cannot connect: {details}", closed=True)
        if code == grpc.StatusCode.UNIMPLEMENTED:
            raise LinkError("no LeRobot policy server there")
        raise InferenceError(f"the server answers {code.name} to {method}: {details}")

    def probe(self, timeout: float) -> None:
        """Whether the connection has ever ended: the protocol's `Ready` would forget the episode."""
        if self._channel is None or self._broken.is_set():
            raise LinkError("the server hung up", closed=True)

    def close(self) -> None:
        """Hangs up."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
