"""Client of GR00T policy servers (NVIDIA Isaac GR00T: `gr00t/policy/server_client.py`, N1.5 to N1.7).

ZeroMQ, one request and one reply, msgpack. On a new connection the server's modality configuration is read, and keys or
horizons that are not those of the policy file are refused. Requests are written in the form that every version reads;
replies are read in all three. Nothing is ever unpickled, and the endpoint `kill` is never used.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import zmq
from pydantic import Field

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.robot import Robot
from vla_policy_node.backends.encodings import pack_gr00t, unpack_gr00t
from vla_policy_node.backends.options import read_options
from vla_policy_node.backends.remote import (
    LONGEST_MESSAGE,
    Answer,
    LinkError,
    RemoteBackend,
    RemoteOptions,
)

_log = logging.getLogger(__name__)

Endpoint = Literal["ping", "get_action", "reset", "get_modality_config"]
_MODALITIES = ("video", "state", "language")


class Gr00tOptions(RemoteOptions):
    """See RemoteOptions. `inputs` holds the maps `video`, `state` and `language`.

    Attributes:
        actions: keys of the reply whose entries, one after the other, make a row.
        version: `n1.6` (also for N1.7): nested maps with batch and time axes; `n1.5`: flat keys (`video.front`,
            `action.arm`).
    """

    port: Annotated[int, Field(gt=0, le=65535)] = 5555
    actions: Annotated[tuple[str, ...], Field(min_length=1)]
    version: Literal["n1.5", "n1.6"] = "n1.6"


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "Gr00tBackend":
    """Makes the client. The server need not be up yet; the checkpoint is the server's, `checkpoint` is not looked at.

    Raises:
        ConfigError: when an option is missing, unknown or wrong, or does not fit the robot.
    """
    return BACKEND(robot, read_options(OPTIONS, "gr00t", options))


class Gr00tBackend(RemoteBackend):
    """A policy behind a GR00T server."""

    def __init__(self, robot: Robot, options: Gr00tOptions):
        wrong = [key for key in options.inputs if key not in _MODALITIES]
        if wrong:
            raise ConfigError(f"inputs of the gr00t backend: {', '.join(wrong)}; expected {', '.join(_MODALITIES)}")
        self._keys, self._flat = options.actions, options.version == "n1.5"
        self._episode_is_new = False
        super().__init__(robot, options, Gr00tLink(options))

    def _announce(self, deadline: float) -> None:
        """A new episode."""
        if self._episode_is_new:
            self.connection.ask(("reset", {"options": None}), infers=False, deadline=deadline)
            self._episode_is_new = False

    def reset(self) -> None:
        """The server hears of the new episode with its first observation: it may be away now."""
        self._episode_is_new = not self._flat

    def _request(self, fields: dict[str, Any]) -> tuple[Endpoint, dict[str, Any]]:
        if self._flat:
            message: dict[str, Any] = {}
            for modality, entries in fields.items():
                for key, value in entries.items():
                    name = key if modality == "language" else f"{modality}.{key}"
                    message[name] = [value] if isinstance(value, str) else value[None]
            return "get_action", message
        observation = {
            modality: {
                key: [[value]] if isinstance(value, str) else value[None, None] for key, value in entries.items()
            }
            for modality, entries in fields.items()
        }
        return "get_action", {"observation": observation, "options": None}

    def _answer(self, reply: Any) -> Answer:
        actions = reply
        if not self._flat:
            if not isinstance(reply, list) or not reply:
                raise InferenceError(f"the reply is a {type(reply).__name__}, expected a list of actions and info")
            actions = reply[0]
        if not isinstance(actions, dict):
            raise InferenceError(f"the reply's actions are a {type(actions).__name__}, expected a map")
        return Answer(np.concatenate([self._part(actions, key) for key in self._keys], axis=1))

    def _part(self, actions: Mapping[str, Any], key: str) -> Any:
        name = f"action.{key}" if self._flat else key
        part = actions.get(name)
        if not isinstance(part, np.ndarray) or part.dtype.kind not in "fiu":
            raise InferenceError(
                f"the reply's action '{name}' is a {type(part).__name__}, expected an array of numbers; "
                f"it holds {', '.join(map(str, actions)) or 'nothing'}"
            )
        if not self._flat:
            if part.ndim != 3 or part.shape[0] != 1:
                raise InferenceError(f"the reply's action '{name}' has shape {part.shape}, expected (1, T, D)")
            part = part[0]
        elif part.ndim == 1:
            part = part[:, None]  # N1.5 drops the axis of single numbers
        if part.ndim != 2 or len(part) < self._options.horizon:
            raise InferenceError(
                f"the reply's action '{name}' has shape {part.shape}, expected at least {self._options.horizon} rows"
            )
        return part[: self._options.horizon]


OPTIONS, BACKEND = Gr00tOptions, Gr00tBackend  # for preflight: see `declared`


class Gr00tLink:
    """A ZeroMQ REQ socket, made anew after every failure: it cannot be used again without its reply."""

    def __init__(self, options: Gr00tOptions):
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.address = f"tcp://{host}:{options.port}"
        self._options, self._token = options, options.api_key()
        self._socket: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        """Connects, and compares the server's modality configuration with the policy file."""
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket = socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.REQ_CORRELATE, 1)  # a second answer to an old question is thrown away
        socket.setsockopt(zmq.MAXMSGSIZE, LONGEST_MESSAGE)
        socket.setsockopt(zmq.IPV6, int(self.address.startswith("tcp://[")))
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise LinkError(f"cannot connect: {error}") from error
        config = self.exchange(("get_modality_config", None), self._options.connect_timeout)
        if isinstance(config, dict) and not config:
            _log.warning("%s tells no modality configuration: keys and horizons are not compared", self.address)
        else:
            _check_modalities(config, self._options)

    def exchange(self, request: tuple[Endpoint, Any], timeout: float) -> Any:
        """One request, one reply, decoded."""
        if self._socket is None:
            raise LinkError("not connected", closed=True)
        endpoint, data = request
        message: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            message["data"] = data
        if self._token:
            message["api_token"] = self._token
        try:
            self._socket.send(pack_gr00t(message), zmq.NOBLOCK)
            if not self._socket.poll(round(timeout * 1000), zmq.POLLIN):
                raise LinkError(f"no answer for {timeout:g} s")
            data = self._socket.recv(zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise LinkError(f"the connection broke: {error}") from error
        if data == b"ERROR":
            raise InferenceError("the server could not infer and does not say why")
        reply = unpack_gr00t(data)
        if isinstance(reply, dict) and "error" in reply:
            raise InferenceError(f"the server could not serve '{endpoint}': {str(reply['error'])[:500]}")
        return reply

    def probe(self, timeout: float) -> None:
        """The server's own ping."""
        self.exchange(("ping", None), timeout)

    def close(self) -> None:
        """Hangs up."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(linger=0)


def _check_modalities(config: Any, options: Gr00tOptions) -> None:
    """Refuses a server whose policy takes or gives something else than the policy file says."""
    if not isinstance(config, dict):
        raise InferenceError(f"the server's modality configuration is a {type(config).__name__}, expected a map")
    misfits = []
    for modality in (*_MODALITIES, "action"):
        served = config.get(modality)
        if not isinstance(served, dict):
            continue
        keys = _plain(modality, served.get("modality_keys"))
        ours = sorted(options.actions if modality == "action" else _plain(modality, options.inputs.get(modality, {})))
        # A policy may answer more than the robot takes; what it is told must be all that it was trained with.
        if not set(ours) <= set(keys) or (modality != "action" and set(ours) != set(keys)):
            misfits.append(
                f"{modality}: the server has {', '.join(keys)}, the policy file {', '.join(ours) or 'nothing'}"
            )
        steps = served.get("delta_indices")
        if not isinstance(steps, list):
            continue
        if modality in ("video", "state") and len(steps) > 1:
            misfits.append(f"{modality}: the server wants {len(steps)} instants {steps}, this client tells one")
        if modality == "action" and len(steps) < options.horizon:
            misfits.append(f"action: the server answers {len(steps)} rows, the policy file expects {options.horizon}")
    if misfits:
        raise InferenceError(f"the server's policy is not that of the policy file: {'; '.join(misfits)}")


def _plain(modality: str, keys: Any) -> list[str]:
    """Keys without the modality before them, which N1.5 writes."""
    if not isinstance(keys, list | tuple | dict):
        return []
    return sorted(str(key).removeprefix(f"{modality}.") for key in keys)
