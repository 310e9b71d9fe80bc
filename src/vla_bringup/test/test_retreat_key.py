"""A key that is held, from what a terminal repeats."""

import os
import pty
import subprocess
import sys

from vla_bringup.cli.retreat import HeldKey


def test_a_held_key_counts_until_shortly_after_its_last_repetition():
    key = HeldKey()
    assert not key.held(0.0)
    key.press(10.0)
    assert key.held(10.5), "a keyboard waits before it repeats"
    for repetition in range(30):
        key.press(10.6 + repetition * 0.03)
    last = 10.6 + 29 * 0.03
    assert key.held(last + 0.19) and not key.held(last + 0.21)


def test_a_single_touch_is_over_soon():
    key = HeldKey()
    key.press(3.0)
    assert not key.held(3.81)


def test_without_a_terminal_it_is_refused():
    run = subprocess.run(
        [sys.executable, "-m", "vla_bringup.cli", "retreat", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0 and "person at a terminal" in run.stdout + run.stderr


def test_q_ends_it(tmp_path):
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_bringup.cli", "retreat"], stdin=side, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "hold the space bar" in process.stdout.readline()
    os.write(main, b"q")
    assert process.wait(60) == 0
