"""ROS domains for systems that must not meet others on the same machine."""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from vla_contract.errors import VlaError

# DDS maps domain d to the ports from 7400 + 250 d; above 101 they reach into Linux's ephemeral ports.
_FIRST, _LAST = 1, 101


@contextmanager
def free_domain() -> Iterator[int]:
    """A ROS domain that nobody on this machine uses, kept until the context ends.

    Raises:
        VlaError: when all are taken.
    """
    domains = list(range(_FIRST, _LAST + 1))
    random.Random(os.getpid() ^ int.from_bytes(os.urandom(4))).shuffle(domains)
    for domain in domains:
        lock = _lock(domain)
        if lock is None:
            continue
        try:
            if _silent(domain):
                yield domain
                return
        finally:
            os.close(lock)
    raise VlaError(f"no free ROS domain in {_FIRST}..{_LAST}: other systems use them all; end some, or give --domain")


def _lock(domain: int) -> int | None:
    """A lock that the kernel frees with the process; None when another process has it."""
    path = os.path.join(tempfile.gettempdir(), f"vla-domain-{os.getuid()}-{domain}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _silent(domain: int) -> bool:
    """No participant on this machine listens on the discovery port of the domain."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", 7400 + 250 * domain))
        except OSError:
            return False
    return True
