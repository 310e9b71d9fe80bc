"""Client of policy servers that speak the openpi websocket protocol: Physical Intelligence's `serve_policy.py`, ours.

One connection, one message per observation, answers in order. The server greets with its metadata; a text frame is an
error. Where the metadata states joints, horizon, dt or action space, as our own server's does, they must be ours.
"""

import logging
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.robot import Robot
from vla_policy_node.backends.encodings import pack_openpi, unpack_openpi
from vla_policy_node.backends.options import read_options
from vla_policy_node.backends.remote import (
    LONGEST_MESSAGE,
    Answer,
    LinkError,
    RemoteBackend,
    RemoteOptions,
)

_log = logging.getLogger(__name__)


class OpenpiOptions(RemoteOptions):
    """See RemoteOptions; `tls`: wss instead of ws."""

    port: Annotated[int, Field(gt=0, le=65535)] = 8000
    tls: bool = False


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "OpenpiBackend":
    """Makes the client. The server need not be up yet; the checkpoint is the server's, `checkpoint` is not looked at.

    Raises:
        ConfigError: when an option is missing, unknown or wrong, or does not fit the robot.
    """
    return BACKEND(robot, read_options(OPTIONS, "openpi", options))


class OpenpiBackend(RemoteBackend):
    """A policy behind an openpi websocket."""

    def __init__(self, robot: Robot, options: OpenpiOptions):
        expected = {
            "joints": list(robot.joints),
            "horizon": options.horizon,
            "dt": options.dt,
            "action_space": options.action.space,
        }
        super().__init__(robot, options, OpenpiLink(options, expected))

    def _request(self, fields: dict[str, Any]) -> bytes:
        return pack_openpi(fields)

    def _answer(self, reply: bytes) -> Answer:
        message = unpack_openpi(reply)
        rows = message.get("actions")
        if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
            raise InferenceError(
                f"the reply's 'actions' are a {type(rows).__name__}, expected an array of numbers; "
                f"it holds {', '.join(map(str, message)) or 'nothing'}"
            )
        progress = message.get("progress")
        if not isinstance(progress, float | np.floating) or not 0.0 <= progress <= 1.0:
            progress = float("nan")  # openpi's own policies know none
        return Answer(rows, float(progress))


OPTIONS, BACKEND = OpenpiOptions, OpenpiBackend  # for preflight: see `declared`


class OpenpiLink:
    """A websocket. `expected`: what the server's metadata must say where it says anything of it."""

    def __init__(self, options: OpenpiOptions, expected: Mapping[str, Any]):
        self.address = f"{'wss' if options.tls else 'ws'}://{_bracketed(options.host)}:{options.port}"
        self.server_metadata: dict[str, Any] = {}
        self._options, self._expected = options, expected
        key = options.api_key()
        self._headers = {"Authorization": f"Api-Key {key}"} if key else {}
        self._held = ExitStack()
        self._socket: ClientConnection | None = None

    def open(self) -> None:
        """Connects and reads the server's metadata."""
        try:
            dialled = connect(
                self.address,
                compression=None,  # the server refuses it, and images do not get smaller by it
                max_size=LONGEST_MESSAGE,
                additional_headers=self._headers,
                open_timeout=self._options.connect_timeout,
                close_timeout=0.2,
                ping_interval=None,  # openpi's server answers no ping while it infers: our time-outs judge instead
                proxy=None,
            )
            self._socket = self._held.enter_context(dialled)
            self._limit_sending(self._options.timeout)
            greeting = self._socket.recv(timeout=self._options.connect_timeout)
        except InvalidStatus as error:
            refused = error.response.status_code in (401, 403)
            hint = "; the server refuses the API key" if refused else ""
            raise LinkError(f"the server answers HTTP {error.response.status_code}{hint}") from error
        except InvalidHandshake as error:
            raise LinkError(f"no openpi server there: {error}") from error
        except TimeoutError as error:
            raise LinkError(f"no answer to the connection for {self._options.connect_timeout:g} s") from error
        except (OSError, WebSocketException, EOFError) as error:
            raise LinkError(f"cannot connect: {error or type(error).__name__}") from error
        if isinstance(greeting, str):
            raise InferenceError(f"the server greets with an error: {_last_line(greeting)}")
        self.server_metadata = unpack_openpi(greeting)
        for key, expected in self._expected.items():
            found = self.server_metadata.get(key)
            if found is not None and not _same(found, expected):
                raise InferenceError(
                    f"the server's policy has {key} {found}, the policy file expects {expected}; "
                    "serve the policy that the file is for, or correct the file"
                )

    def _limit_sending(self, seconds: float) -> None:
        """A peer that stops reading must not hold `send` for ever; websockets itself sets no limit."""
        assert self._socket is not None
        whole = int(seconds)
        limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
        self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def exchange(self, request: bytes, timeout: float) -> bytes:
        """One observation, one answer."""
        if self._socket is None:
            raise LinkError("not connected", closed=True)
        self._expect_silence(self._socket)
        try:
            deadline = time.monotonic() + timeout
            self._socket.send(request)
            reply = self._socket.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise LinkError(f"no answer for {timeout:g} s") from error  # a late answer would be taken for the next
        except ConnectionClosed as error:
            raise LinkError(f"the server hung up ({error})", closed=True) from error
        except (OSError, WebSocketException) as error:
            raise LinkError(f"the connection broke: {error or type(error).__name__}", closed=True) from error
        if isinstance(reply, str):
            _log.warning("%s answers an error:\n%s", self.address, reply)
            raise LinkError(f"the server could not infer: {_last_line(reply)}", refused=True)  # and closes, by protocol
        return reply

    def _expect_silence(self, connection: ClientConnection) -> None:
        """Refuses to ask on a connection where a message waits: all later answers would be late by one question."""
        try:
            waiting = connection.recv(timeout=0)
        except TimeoutError:
            return
        except ConnectionClosed as error:
            raise LinkError(f"the server hung up ({error})", closed=True) from error
        except (OSError, WebSocketException) as error:
            raise LinkError(f"the connection broke: {error or type(error).__name__}", closed=True) from error
        words = (
            f"the server sent {len(waiting)} bytes that nobody had asked for, expected one answer for a question: "
            "they could not be told apart; correct the server"
        )
        _log.warning("%s: %s", self.address, words)
        raise LinkError(words, closed=True)

    def probe(self, timeout: float) -> None:
        """A ping: nothing infers for us now, so the server is free to answer it."""
        if self._socket is None:
            raise LinkError("not connected", closed=True)
        try:
            answered = self._socket.ping().wait(timeout)
        except (OSError, WebSocketException) as error:
            raise LinkError(f"the server hung up ({error})", closed=True) from error
        if self._socket.state is not State.OPEN:
            raise LinkError("the server hung up", closed=True)
        if not answered:
            raise LinkError(f"no answer to a ping for {timeout:g} s")
        self._expect_silence(self._socket)

    def close(self) -> None:
        """Hangs up."""
        self._socket = None
        self._held.close()


def _bracketed(host: str) -> str:
    if "/" in host or not host:
        raise ConfigError(
            f"host '{host}': expected a bare name or address, e.g. 127.0.0.1; use `port` and `tls` beside it"
        )
    return f"[{host}]" if ":" in host else host


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "(empty)"


def _same(found: Any, expected: Any) -> bool:
    found = found.tolist() if isinstance(found, np.ndarray | np.generic) else found
    if isinstance(expected, float):
        return isinstance(found, int | float) and abs(found - expected) < 1e-9
    return bool(found == expected)
