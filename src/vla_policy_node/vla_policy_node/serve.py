"""Serves a policy over the openpi websocket protocol, so that any openpi client can use it.

    python -m vla_policy_node.serve ROBOT_FILE POLICY_FILE [--host 127.0.0.1] [--port 8000] [--ray …]

A client sends the keys that the greeting lists under `inputs`, and gets `actions` (horizon, joints): joint positions in
rad or m, in the order of `joints`, row k meant for (k + 1) dt after the observation; `base` names the columns of a
mobile base behind them [m/s, rad/s]. `GET /healthz` answers OK.

Listens on loopback. Another address needs a key, in the environment variable VLA_SERVE_KEY: without one, everybody on
the network could use the policy.

With `--ray` the calls of several robots are answered together, by copies of the policy on Ray Serve: one pass of the
network for a batch, on this machine or on a cluster. A policy whose file names an `interpreter` runs in that one, in a
process of its own.
"""

import argparse
import asyncio
import hmac
import http
import ipaddress
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_contract.errors import ConfigError, InferenceError, VlaError
from vla_contract.observation import Observation
from vla_contract.robot import Robot, load_robot
from vla_policy_node.backends.encodings import pack_openpi, unpack_openpi
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.model_inputs import CameraEntry, ModelInputs, StateEntry, robot_layout
from vla_policy_node.serving.engine import Call, Engine, LocalEngine, Reply, drives, loaded
from vla_policy_node.serving.ray_engine import RayEngine, RayOptions
from vla_policy_node.worker.client import WorkerSpec

_log = logging.getLogger(__name__)

KEY_VARIABLE = "VLA_SERVE_KEY"
LONGEST_MESSAGE = 64 * 1024 * 1024  # bytes
MOST_CONNECTIONS = 64
_INTERNAL_ERROR = 1011  # of RFC 6455; what openpi's own server closes with


class PolicyServer:
    """One policy for many connections. Each connection is an episode of its own.

    Args:
        engine: answers the calls; the server closes it at its end.
        inputs: layout of the observations; default: the robot file's cameras and joints.
        key: what clients must send as `Authorization: Api-Key …`; empty: nothing.

    Raises:
        ConfigError: when the layout does not tell all that an observation needs, or the address is open to the network
            and no key is set.
    """

    def __init__(
        self,
        engine: Engine,
        robot: Robot,
        host: str = "127.0.0.1",
        port: int = 8000,
        key: str = "",
        inputs: Mapping[str, Any] | None = None,
    ):
        _check_address(host, key)
        self._engine, self._robot = engine, robot
        self._host, self._port, self._key = host, port, key
        cameras = engine.metadata.cameras
        layout = robot_layout(robot, tuple(cameras)) if inputs is None else inputs
        self._inputs = ModelInputs(layout, robot)
        self._inputs.readable(tuple(cameras))
        entries = self._inputs.entries()
        self._state_names = {path: self._inputs.part_names(e) for path, e in entries if isinstance(e, StateEntry)}
        if engine.metadata.history is not None:
            raise ConfigError(
                f"policy '{engine.metadata.name}' looks back at earlier observations, which this protocol does not "
                "tell; run it in the policy node"
            )
        self._greeting = pack_openpi(self._metadata())
        self._connections = self._answers = self._batched = 0

    def _metadata(self) -> dict[str, Any]:
        metadata, inputs = self._engine.metadata, {}
        for path, entry in self._inputs.entries():
            if isinstance(entry, CameraEntry):
                shape = ["height", "width", 3] if entry.axes == "hwc" else [3, "height", "width"]
                inputs[path] = {"dtype": "uint8", "shape": shape, "camera": entry.camera}
            elif isinstance(entry, StateEntry):
                names = self._inputs.part_names(entry)
                inputs[path] = {"dtype": entry.dtype, "shape": [len(names)], "entries": names}
            else:
                inputs[path] = {"dtype": "str"}
        return {
            "policy": metadata.name,
            "digest": metadata.digest,
            "joints": list(metadata.joints),
            "base": ["vx", "vy", "wz"] if drives(metadata) else [],
            "action_space": "joint_position",
            "horizon": metadata.horizon,
            "dt": metadata.dt,
            "inputs": inputs,
        }

    async def run(self, started: "asyncio.Future[int] | None" = None) -> None:
        """Serves until it is cancelled. `started` is given the port once the server listens."""
        server: Server = await serve_websockets(
            self._converse,
            self._host,
            self._port,
            compression=None,
            max_size=LONGEST_MESSAGE,
            process_request=self._admit,
            ping_interval=20.0,
            ping_timeout=60.0,
        )
        try:
            port = next(iter(server.sockets)).getsockname()[1]
            _log.info("policy '%s' is served on ws://%s:%d", self._engine.metadata.name, self._host, port)
            if started is not None:
                started.set_result(port)
            await server.wait_closed()
        finally:
            server.close()
            await server.wait_closed()
            self._engine.close()
            if self._answers:
                mean = self._batched / self._answers
                _log.info("%d answers, each in a pass with %.2f calls on average", self._answers, mean)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._key:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Api-Key {self._key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "this server needs Authorization: Api-Key …\n")
        if self._connections >= MOST_CONNECTIONS:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self._connections} clients are connected already\n"
            )
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        client = connection.remote_address
        self._connections += 1
        _log.info("client %s connected", client)
        try:
            await connection.send(self._greeting)
            previous: float | None = None
            episode, memory = uuid.uuid4().hex, None
            async for message in connection:
                received = time.monotonic()
                try:
                    observation = await asyncio.to_thread(self._parse, message)
                    answer = await self._engine.infer(Call(episode, observation, memory))
                except Exception as error:
                    known = isinstance(error, VlaError)
                    _log.warning("client %s: %s", client, error, exc_info=None if known else error)
                    # The protocol: an error is a text frame, then the connection ends. Our stack trace stays here.
                    await connection.send(str(error) if known else f"the policy failed: {type(error).__name__}")
                    await connection.close(_INTERNAL_ERROR, "the reason is in the text frame before")
                    return
                memory = answer.memory
                await connection.send(pack_openpi(self._reply(answer, previous)))
                previous = (time.monotonic() - received) * 1e3
        except ConnectionClosed:
            pass  # clients come and go
        finally:
            self._connections -= 1
            _log.info("client %s left", client)

    def _parse(self, message: str | bytes) -> Observation:
        if isinstance(message, str):
            raise InferenceError("an observation is a binary frame of msgpack; this is text")
        content = unpack_openpi(message)
        self._check_numbers(content)
        return self._inputs.parse(content, time.time_ns())

    def _check_numbers(self, content: Mapping[Any, Any], prefix: str = "") -> None:
        """Names the first number of a state that is not finite; whatever else may be wrong, `parse` says."""
        for key, value in content.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and any(name.startswith(f"{path}/") for name in self._state_names):
                self._check_numbers(value, f"{path}/")
            if path not in self._state_names:
                continue
            try:
                vector = np.asarray(value, dtype=np.float64).reshape(-1)
            except (TypeError, ValueError):
                continue
            for index, (name, number) in enumerate(zip(self._state_names[path], vector, strict=False)):
                if not np.isfinite(number):
                    raise InferenceError(
                        f"the observation's '{path}'[{index}], {name}, is {number}, expected a finite number; "
                        "send what the robot measures"
                    )

    def _reply(self, answer: Reply, previous: float | None) -> dict[str, Any]:
        self._answers += 1
        self._batched += answer.batch
        timing: dict[str, float] = {"infer_ms": answer.infer_ms, "batch": answer.batch}
        if previous is not None:
            timing["prev_total_ms"] = previous
        reply: dict[str, Any] = {"actions": answer.actions, "server_timing": timing}
        if np.isfinite(answer.progress):
            reply["progress"] = float(answer.progress)
        return reply


def _check_address(host: str, key: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not key and not loopback:
        raise ConfigError(
            f"serving on '{host}' opens the policy to the network; set a key in {KEY_VARIABLE}, or use 127.0.0.1"
        )


def _engine(chosen: argparse.Namespace, spec: WorkerSpec, robot: Robot) -> Engine:
    if not chosen.ray:
        return LocalEngine(loaded(spec, robot))
    options = RayOptions(chosen.ray_address, chosen.replicas, chosen.batch, chosen.batch_wait, chosen.gpus)
    return RayEngine(spec, options, f"vla-{chosen.policy.stem}")


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MOST_CONNECTIONS:
        raise ValueError(value)
    return value


def _quantity(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST_CONNECTIONS:
        raise ValueError(value)
    return value


async def _serve(server: PolicyServer) -> None:
    task = asyncio.ensure_future(server.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        _log.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("robot", type=Path, help="robot file")
    parser.add_argument("policy", type=Path, help="policy file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; other than loopback needs a key")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    ray = parser.add_argument_group("Ray Serve")
    ray.add_argument("--ray", action="store_true", help="answer the calls of several robots in one pass")
    ray.add_argument("--ray-address", default="", help="of a running cluster (default: start Ray here, on loopback)")
    ray.add_argument("--replicas", type=_count, default=1, help="copies of the policy (1)")
    ray.add_argument("--batch", type=_count, default=8, help="calls in one pass at most (8)")
    ray.add_argument("--batch-wait", type=_quantity, default=0.005, help="s that a first call waits for others (0.005)")
    ray.add_argument("--gpus", type=_quantity, default=None, help="of one replica (default: what there are, shared)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        key = os.environ.get(KEY_VARIABLE, "")
        _check_address(chosen.host, key)
        robot, policy = load_robot(chosen.robot), load_policy_file(chosen.policy)
        spec = policy.worker(robot.path.resolve())
        server = PolicyServer(_engine(chosen, spec, robot), robot, chosen.host, chosen.port, key)
        asyncio.run(_serve(server))
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
