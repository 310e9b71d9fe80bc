"""Client of the REST servers of OpenVLA (`vla-scripts/deploy.py`) and OpenVLA-OFT: `POST /act`, json-numpy arrays.

The server answers one action, or with OFT a list of them; the bare string "error" with status 200 means that it failed.
"""

import http.client
import json
import select
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vla_contract.errors import InferenceError
from vla_contract.robot import Robot
from vla_policy_node.backends.encodings import dumps_json, loads_json
from vla_policy_node.backends.remote import (
    LONGEST_MESSAGE,
    Answer,
    LinkError,
    RemoteBackend,
    RemoteOptions,
    read_options,
)

_PIECE = 1 << 20  # bytes
_COULD_NOT_INFER = (400, 413, 422, 500)


class OpenVlaOptions(RemoteOptions):
    """See RemoteOptions.

    Attributes:
        port: 8000; OFT's server listens at 8777.
        path: of the URL.
        encoding: `single`: arrays in the JSON itself. `double`: the JSON as text under the key `encoded`, for servers
            without json-numpy's patch; they answer in kind.
        tls: https instead of http.
    """

    port: Annotated[int, Field(gt=0, le=65535)] = 8000
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/act"
    encoding: Literal["single", "double"] = "single"
    tls: bool = False


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "OpenVlaBackend":
    """Makes the client. The server need not be up yet; the checkpoint is the server's, `checkpoint` is not looked at.

    Raises:
        ConfigError: when an option is missing, unknown or wrong, or does not fit the robot.
    """
    return OpenVlaBackend(robot, read_options(OpenVlaOptions, "openvla_rest", options))


class OpenVlaBackend(RemoteBackend):
    """A policy behind OpenVLA's REST server."""

    def __init__(self, robot: Robot, options: OpenVlaOptions):
        self._double = options.encoding == "double"
        super().__init__(robot, options, RestLink(options))

    def _request(self, fields: dict[str, Any]) -> bytes:
        text = dumps_json(fields)
        return (json.dumps({"encoded": text}) if self._double else text).encode()

    def _answer(self, reply: bytes) -> Answer:
        answer = loads_json(reply)
        if isinstance(answer, str) and answer != "error":
            answer = loads_json(answer)  # encoded twice, whatever we asked for
        if isinstance(answer, str) and answer == "error":
            raise InferenceError("the server could not infer; its log says why (it answers the word 'error' only)")
        actions = answer if isinstance(answer, list) and answer else [answer]
        if not all(isinstance(action, np.ndarray | list) for action in actions):
            raise InferenceError(f"the reply is a {type(answer).__name__}, expected an action or a list of actions")
        try:
            rows = np.asarray(actions, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise InferenceError(f"the reply's actions are not rows of numbers: {error}") from error
        return Answer(rows[0] if rows.ndim == 3 and len(rows) == 1 else rows)


class RestLink:
    """One HTTP connection that is kept open."""

    def __init__(self, options: OpenVlaOptions):
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.address = f"{'https' if options.tls else 'http'}://{host}:{options.port}{options.path}"
        self._options = options
        key = options.api_key()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._connection: http.client.HTTPConnection | None = None

    def open(self) -> None:
        """Connects."""
        options = self._options
        if options.tls:
            self._connection = http.client.HTTPSConnection(
                options.host, options.port, timeout=options.connect_timeout, context=ssl.create_default_context()
            )
        else:
            self._connection = http.client.HTTPConnection(options.host, options.port, timeout=options.connect_timeout)
        try:
            self._connection.connect()
        except TimeoutError as error:
            raise LinkError(f"no answer to the connection for {options.connect_timeout:g} s") from error
        except OSError as error:
            raise LinkError(f"cannot connect: {error}") from error

    def exchange(self, request: bytes, timeout: float) -> bytes:
        """One POST and its answer's body."""
        connection = self._connection
        if connection is None or connection.sock is None:
            raise LinkError("not connected", closed=True)
        deadline = time.monotonic() + timeout
        try:
            connection.sock.settimeout(timeout)
            connection.request("POST", self._options.path, request, self._headers)
            response = connection.getresponse()
            body = self._body(response, connection, deadline)
        except TimeoutError as error:
            raise LinkError(f"no answer for {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise LinkError(f"the connection broke: {error or type(error).__name__}", closed=True) from error
        if response.status != http.client.OK:
            shown = " ".join(body[:300].decode("utf-8", "replace").split())
            words = f"the server answers HTTP {response.status} {response.reason}: {shown}"
            # The others say that no policy is there, or none for us: a proxy's 502, a wrong path's 404.
            raise InferenceError(words) if response.status in _COULD_NOT_INFER else LinkError(words)
        return body

    def _body(
        self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float
    ) -> bytes:
        """Whole, in time and of bearable length, however the server portions it."""
        pieces, length = [], 0
        while piece := response.read1(_PIECE):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_MESSAGE:
                raise LinkError(f"an answer of more than {LONGEST_MESSAGE} bytes")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if connection.sock is not None:
                connection.sock.settimeout(left)
        response.close()  # else the connection refuses the next request
        return b"".join(pieces)

    def probe(self, timeout: float) -> None:
        """The protocol has no question for it; that the server hung up can be read."""
        connection = self._connection
        if connection is None or connection.sock is None or select.select([connection.sock], [], [], 0.0)[0]:
            raise LinkError("the server hung up", closed=True)

    def close(self) -> None:
        """Hangs up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
