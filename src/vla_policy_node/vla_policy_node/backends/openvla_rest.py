"""Client of the REST servers of OpenVLA (`vla-scripts/deploy.py`) and OpenVLA-OFT: `POST /act`, json-numpy arrays.

The server answers one action, or with OFT a list of them; the bare string "error" with status 200 means that it failed.
"""

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vla_contract.errors import InferenceError
from vla_contract.robot import Robot
from vla_policy_node.backends.encodings import dumps_json, loads_json
from vla_policy_node.backends.options import read_options
from vla_policy_node.backends.remote import (
    LONGEST_MESSAGE,
    Answer,
    LinkError,
    RemoteBackend,
    RemoteOptions,
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
    return BACKEND(robot, read_options(OPTIONS, "openvla_rest", options))


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
        except (ValueError, TypeError, OverflowError) as error:
            raise InferenceError(f"the reply's actions are not rows of numbers: {error}") from error
        return Answer(rows[0] if rows.ndim == 3 and len(rows) == 1 else rows)


OPTIONS, BACKEND = OpenVlaOptions, OpenVlaBackend  # for preflight: see `declared`


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
        self.probe(timeout)
        try:
            with _Cutoff(connection.sock, timeout):
                connection.sock.settimeout(timeout)
                connection.request("POST", self._options.path, request, self._headers)
                response = connection.getresponse()
                body = _body(response)
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

    def probe(self, timeout: float) -> None:
        """The protocol has no question for it; that the server hung up, or speaks unasked, can be read."""
        connection = self._connection
        if connection is None or connection.sock is None:
            raise LinkError("not connected", closed=True)
        try:
            connection.sock.settimeout(0)
            found = connection.sock.recv(1)  # not select: TLS has words of its own to say, which are no answer
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise LinkError(f"the connection broke: {error or type(error).__name__}", closed=True) from error
        if found:  # its answers could not be told apart any more
            raise LinkError("the server sent more than one answer for a question; correct the server", closed=True)
        raise LinkError("the server hung up", closed=True)

    def close(self) -> None:
        """Hangs up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _body(response: http.client.HTTPResponse) -> bytes:
    """Whole and of bearable length, however the server portions it."""
    pieces, length = [], 0
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST_MESSAGE:
            raise LinkError(f"an answer of more than {LONGEST_MESSAGE} bytes; let the server answer less")
    response.close()  # else the connection refuses the next request
    return b"".join(pieces)


class _Cutoff:
    """Ends what a block does with a socket after `seconds`, by TimeoutError.

    A time-out of the socket is one for each of its reads: who sends a byte now and then is never late by it.
    """

    def __init__(self, connected: socket.socket, seconds: float):
        self._socket = connected
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._late = False

    def _cut(self) -> None:
        self._late = True
        with suppress(OSError):  # it may have ended by itself
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, whose reader is at work

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        if self._late:
            raise TimeoutError
