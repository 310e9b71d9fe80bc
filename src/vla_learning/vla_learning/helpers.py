"""Manners of helper processes."""

import os
import signal
import threading
import time

_LOOK = 1.0  # s between two looks at the parent


def belong_to(parent: int) -> None:
    """Called first in a helper process: Ctrl-C is the parent's to answer, and without the parent the helper ends too.

    Args:
        parent: process id of the process that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)
