"""The command line of the suite: `./vla COMMAND`, or `python -m vla_bringup.cli COMMAND`.

Exit codes: 0 done; 1 the task, trial or request failed; 2 usage or configuration; 3 the system is not ready or went
down; 130 interrupted by Ctrl-C.
"""

import time

STARTED = time.monotonic()  # s; "startup" in reports counts from here
