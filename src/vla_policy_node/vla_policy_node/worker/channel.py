"""The node's end of the socket to a worker process: anybody's requests go out, one thread hears the answers.

Only that thread ever waits. Whoever asks may be the thread that all callbacks of a node run on, and the process may
hang: what the socket does not take at once is sent on by the thread that waits for the answers.
"""

import itertools
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vla_policy_node.worker import wire

_PART = 1 << 18  # bytes that are read at once


class Channel:
    """To the processes of one worker, one after the other. `ask` and `wake` are for all threads, the rest is for one.

    Attributes:
        asked: id, and what is to be done, of every request whose answer is not waited for yet.
        inferring: an inference is asked for; whoever hears the answer sets it back.
    """

    def __init__(self) -> None:
        self.asked: deque[tuple[int, str]] = deque()
        self.inferring = False
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # of all that is here; nobody waits for the process while holding it
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._connection: socket.socket | None = None
        self._frames: deque[memoryview] = deque()  # not sent yet; of the first perhaps a part
        self._read = bytearray()

    @contextmanager
    def over(self, connection: socket.socket, first: bytes) -> Iterator[None]:
        """Requests go to this process meanwhile, after the frame `first`; without a process they are dropped."""
        with self._lock:
            self._connection = connection
            self._frames.append(memoryview(first))
            self._push()
        try:
            yield
        finally:
            with self._lock:
                self._connection, self.inferring = None, False
                self._frames.clear()
                self.asked.clear()
                self._read.clear()

    def ask(self, request: dict[str, Any]) -> int:
        """Sends a request, as far as that goes at once; its id.

        Raises:
            WireError: when it is too long, or holds what cannot be sent.
        """
        identifier = next(self._numbers)
        frame = wire.pack({**request, "id": identifier})
        with self._lock:
            if self._connection is not None:
                if request["do"] == "infer":
                    self.inferring = True
                self.asked.append((identifier, request["do"]))
                self._frames.append(memoryview(frame))
                self._push()
        self.wake()
        return identifier

    def wake(self) -> None:
        """Ends `wait`."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def wait(self, timeout: float | None) -> tuple[bool, bool]:
        """Until the process says something, somebody asks or wakes, or `timeout` s (None: for ever) are over.

        Returns: whether the process says something; whether nothing happened.
        """
        connection = self._connection
        readers = [self._wake] if connection is None else [self._wake, connection]
        told, free, _ = select.select(readers, [connection] if self._frames else [], [], timeout)
        if free:
            with self._lock:
                self._push()
        if self._wake in told:
            os.eventfd_read(self._wake)
        return connection in told, not told and not free

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """What the process says next; None: `wait` ended before it was said whole.

        Raises:
            EOFError: when the process has ended.
            WireError: when it says what is not ours.
        """
        message = wire.take(self._read)
        if message is None and self.wait(timeout)[0]:
            assert self._connection is not None
            try:
                part = self._connection.recv(_PART, socket.MSG_DONTWAIT)
            except OSError:  # reset: it ended with requests unread
                part = b""
            if not part:
                raise EOFError
            self._read += part
            message = wire.take(self._read)
        return message

    def close(self) -> None:
        """Frees what it holds; nothing is sent any more."""
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _push(self) -> None:
        """Sends what the socket takes; needs the lock."""
        try:
            while self._frames:
                assert self._connection is not None
                rest = self._frames[0][self._connection.send(self._frames[0], socket.MSG_DONTWAIT) :]
                if rest:
                    self._frames[0] = rest
                else:
                    self._frames.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._frames.clear()  # the process has ended: who waits for its answers will notice
