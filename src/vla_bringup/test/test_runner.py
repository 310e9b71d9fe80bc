"""Processes: real ones, from a made-up install prefix."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vla_bringup import runner as runner_module
from vla_bringup.runner import NodeDied, Runner
from vla_bringup.system import NodeSpec
from vla_contract.errors import ConfigError

OBEDIENT = """
    import signal, sys
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    print("up", flush=True)
    while True:
        signal.pause()
"""
DEAF = """
    import signal, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print(child.pid, flush=True)
    while True:
        signal.pause()
"""


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """Installs `name: source` as executables of package `fake`."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "install"))
    folder = tmp_path / "install" / "lib" / "fake"
    folder.mkdir(parents=True)

    def install(**sources):
        for name, source in sources.items():
            path = folder / name
            path.write_text(f"#!{sys.executable}\n{textwrap.dedent(source)}")
            path.chmod(0o755)
        return tuple(NodeSpec("fake", name, name) for name in sources)

    return install


def until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"\0" in Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else False


def test_nodes_start_and_stop(prefix, tmp_path):
    system = prefix(one=OBEDIENT, two=OBEDIENT)
    with Runner(system, tmp_path / "log") as runner:
        until(lambda: all("up" in runner.log_tail(name) for name in ("one", "two")))
        runner.check()
        pids = runner.pids()
    assert not any(alive(pid) for pid in pids.values())


def test_a_node_gets_its_parameters_name_and_remappings(prefix, tmp_path):
    prefix(echo="import sys; print(sys.argv[1:])")
    spec = NodeSpec(
        "fake", "echo", "me", {"rate": 2.5, "on": True, "names": ("a", "b")}, (("from", "to"),), required=False
    )
    with Runner((spec,), tmp_path) as runner:
        until(lambda: "argv" not in runner.log_tail("me") and "__node:=me" in runner.log_tail("me"))
        assert "from:=to" in runner.log_tail("me")
    assert (
        tmp_path / "me.yaml"
    ).read_text() == "/me:\n  ros__parameters:\n    names:\n    - a\n    - b\n    'on': true\n    rate: 2.5\n"


def test_what_ignores_every_signal_is_killed_with_its_children(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "INTERRUPT_TIMEOUT", 0.2)
    monkeypatch.setattr(runner_module, "TERMINATE_TIMEOUT", 0.2)
    with Runner(prefix(deaf=DEAF), tmp_path) as runner:
        until(lambda: "|" in runner.log_tail("deaf"))
        grandchild = int(runner.log_tail("deaf").split("|")[1])
        pid = runner.pid("deaf")
    until(lambda: not alive(pid) and not alive(grandchild))


def test_a_stopped_node_is_ended_too(prefix, tmp_path):
    with Runner(prefix(one=OBEDIENT), tmp_path) as runner:
        until(lambda: "up" in runner.log_tail("one"))
        pid = runner.pid("one")
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


def test_the_death_of_a_required_node_is_reported_with_its_log(prefix, tmp_path):
    runner = Runner(prefix(dies="print('my last words'); raise SystemExit(7)"), tmp_path)
    with runner, pytest.raises(NodeDied, match="dies ended with status 7(.|\n)*my last words"):
        runner.wait()


def test_a_gate_that_refuses_starts_nothing_more(prefix, tmp_path):
    first, gate, last = prefix(first=OBEDIENT, gate="raise SystemExit(3)", last=OBEDIENT)
    gate = NodeSpec("fake", "gate", "gate", required=False, gate=True)
    runner = Runner((first, gate, last), tmp_path)
    with pytest.raises(NodeDied, match="gate ended with status 3"):
        runner.start()
    assert set(runner.pids()) == {"first", "gate"}
    assert not alive(runner.pid("first"))


def test_a_gate_that_opens_lets_the_rest_start(prefix, tmp_path):
    prefix(gate="pass")
    gate = NodeSpec("fake", "gate", "gate", required=False, gate=True)
    with Runner((gate, *prefix(last=OBEDIENT)), tmp_path) as runner:
        assert set(runner.pids()) == {"gate", "last"}


def test_a_missing_executable_is_named_before_anything_starts(prefix, tmp_path):
    prefix(one=OBEDIENT)
    runner = Runner((NodeSpec("fake", "one", "one"), NodeSpec("fake", "other", "other")), tmp_path)
    with pytest.raises(ConfigError, match="'other' of package 'fake'(.|\n)*vla setup"):
        runner.start()
    assert not runner.pids()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_node_outlives_the_runner(prefix, tmp_path, number):
    prefix(one=OBEDIENT)
    script = (
        "import signal, sys\nfrom pathlib import Path\nfrom vla_bringup.runner import Runner\n"
        "from vla_bringup.system import NodeSpec\n"
        f"with Runner((NodeSpec('fake', 'one', 'one'),), Path({str(tmp_path)!r})) as runner:\n"
        "    print(runner.pid('one'), flush=True)\n    signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.send_signal(number)
    process.wait(20)
    until(lambda: not alive(pid))
