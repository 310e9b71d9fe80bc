"""Shared memory of the transport that dead processes have left behind.

Fast DDS keeps a segment of shared memory for each process (64 MiB with the suite's profile), and nobody frees that of a
process that was killed. Its owner holds a lock on a file beside it as long as it lives; so does `fastdds shm clean` of
eProsima's tools tell the living from the dead.
"""

import fcntl
import os
import re
import time
from pathlib import Path

_LOCK = re.compile(r"fastrtps_[0-9a-f]{16}_el")
_YOUNG = 5.0  # s: so long a segment may exist before its owner has locked it


def free_abandoned(folder: Path = Path("/dev/shm")) -> int:
    """Removes the segments that this user's processes have left there and nobody holds; returns how many bytes that
    freed. What cannot be looked at stays."""
    freed = 0
    for lock in folder.glob("fastrtps_*_el"):
        try:
            with lock.open("rb") as held:
                found = os.fstat(held.fileno())
                mine = found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG
                if not mine or not _LOCK.fullmatch(lock.name):
                    continue
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                segment = lock.with_name(lock.name.removesuffix("_el"))
                if segment.exists():
                    freed += segment.stat().st_size
                    segment.unlink()
                lock.unlink()
        except OSError:  # it is in use, or somebody else was faster
            continue
    return freed
