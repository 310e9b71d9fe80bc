"""Serves a policy over the openpi websocket protocol, so that any openpi client can use it.

    python -m vla_policy_node.serve ROBOT_FILE POLICY_FILE [--host 127.0.0.1] [--port 8000]

A client sends the keys that the greeting lists under `inputs`, and gets `actions` (horizon, joints): joint positions in
rad or m, in the order of `joints`, row k meant for (k + 1) dt after the observation. `GET /healthz` answers OK.

Listens on loopback. Another address needs a key, in the environment variable VLA_SERVE_KEY: without one, everybody on
the network could use the policy.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_contract.errors import ConfigError, InferenceError, VlaError
from vla_contract.robot import Robot, load_robot
from vla_policy_node.backends import Backend, load_backend
from vla_policy_node.backends.encodings import pack_openpi, unpack_openpi
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.model_inputs import CameraEntry, ModelInputs, StateEntry, robot_layout

_log = logging.getLogger(__name__)

KEY_VARIABLE = "VLA_SERVE_KEY"
LONGEST_MESSAGE = 64 * 1024 * 1024  # bytes
MOST_CONNECTIONS = 64
_INTERNAL_ERROR = 1011  # of RFC 6455; what openpi's own server closes with


class PolicyServer:
    """One backend for many connections. Its inferences run one after the other on a thread of their own, so that the
    event loop goes on answering pings, `/healthz` and new connections.

    Args:
        inputs: layout of the observations; default: the robot file's cameras and joints.
        key: what clients must send as `Authorization: Api-Key …`; empty: nothing.

    Raises:
        ConfigError: when the layout does not tell all that an observation needs, or the address is open to the network
            and no key is set.
    """

    def __init__(
        self,
        backend: Backend,
        robot: Robot,
        host: str = "127.0.0.1",
        port: int = 8000,
        key: str = "",
        inputs: Mapping[str, Any] | None = None,
    ):
        if not key and not _is_loopback(host):
            raise ConfigError(
                f"serving on '{host}' opens the policy to the network; set a key in {KEY_VARIABLE}, or use 127.0.0.1"
            )
        self._backend, self._robot = backend, robot
        self._host, self._port, self._key = host, port, key
        cameras = backend.metadata.cameras
        layout = robot_layout(robot, tuple(cameras)) if inputs is None else inputs
        self._inputs = ModelInputs(layout, robot)
        self._inputs.readable(tuple(cameras))
        self._greeting = pack_openpi(self._metadata())
        self._inference = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._speaker: object = None
        self._connections = 0

    def _metadata(self) -> dict[str, Any]:
        metadata, inputs = self._backend.metadata, {}
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
            _log.info("policy '%s' is served on ws://%s:%d", self._backend.metadata.name, self._host, port)
            if started is not None:
                started.set_result(port)
            await server.wait_closed()
        finally:
            server.close()
            await server.wait_closed()
            self._inference.shutdown(wait=False, cancel_futures=True)

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
            async for message in connection:
                received = time.monotonic()
                try:
                    reply = await self._reply(connection, message)
                except Exception as error:
                    known = isinstance(error, VlaError)
                    _log.warning("client %s: %s", client, error, exc_info=None if known else error)
                    # The protocol: an error is a text frame, then the connection ends. Our stack trace stays here.
                    await connection.send(str(error) if known else f"the policy failed: {type(error).__name__}")
                    await connection.close(_INTERNAL_ERROR, "the reason is in the text frame before")
                    return
                if previous is not None:
                    reply["server_timing"]["prev_total_ms"] = previous
                await connection.send(pack_openpi(reply))
                previous = (time.monotonic() - received) * 1e3
        except ConnectionClosed:
            pass  # clients come and go
        finally:
            self._connections -= 1
            _log.info("client %s left", client)

    async def _reply(self, connection: object, message: str | bytes) -> dict[str, Any]:
        if isinstance(message, str):
            raise InferenceError("an observation is a binary frame of msgpack; this is text")
        return await asyncio.get_running_loop().run_in_executor(self._inference, self._infer, connection, message)

    def _infer(self, connection: object, message: bytes) -> dict[str, Any]:
        """On the inference thread."""
        observation = self._inputs.parse(unpack_openpi(message), time.time_ns())
        if self._speaker is not connection:
            # What the backend remembers is another client's episode; the protocol itself has no reset.
            self._backend.reset()
            self._speaker = connection
        started = time.perf_counter()
        chunk = self._backend.infer(observation, None)
        reply: dict[str, Any] = {"server_timing": {"infer_ms": (time.perf_counter() - started) * 1e3}}
        metadata = self._backend.metadata
        times = metadata.dt * np.arange(1, metadata.horizon + 1)
        # A chunk that ends early stays at its last point; a client of this protocol counts rows, not times.
        reply["actions"] = chunk.trajectory.sample(times).positions
        if np.isfinite(chunk.progress):
            reply["progress"] = float(chunk.progress)
        return reply


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        robot, policy = load_robot(chosen.robot), load_policy_file(chosen.policy)
        spec = policy.worker(robot.path)
        if spec.interpreter:
            raise ConfigError(
                f"{policy.path}: the policy runs in '{spec.interpreter}'; start this command with that interpreter "
                "and a policy file without the key"
            )
        backend = load_backend(spec.backend, spec.checkpoint, robot, spec.options)
        server = PolicyServer(backend, robot, chosen.host, chosen.port, os.environ.get(KEY_VARIABLE, ""))
        asyncio.run(_serve(server))
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
