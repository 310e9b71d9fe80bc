"""A node as a process: it starts by itself, says why it refuses, ends cleanly, and hides no error."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vla_node_base.domains import free_domain

SCRIPT = """
    import gc
    import sys
    from dataclasses import dataclass
    from vla_contract.errors import ConfigError
    from vla_node_base.node import VlaNode, run
    from vla_node_base.parameters import parameter

    @dataclass(frozen=True)
    class Parameters:
        fail: str = parameter("", "where to fail")
        rate: float = parameter(50.0, "rate", low=1.0, high=100.0)

    class Clerk(VlaNode):
        Parameters = Parameters

        def configure(self):
            if self.params.fail == "configure":
                raise ConfigError("joint 'a' has no limit; add it")
            self.create_timer(1 / self.params.rate, self.cycle)

        def activate(self):
            print("active", flush=True)

        def cycle(self):
            if self.params.fail == "cycle":
                raise RuntimeError("boom")

        def deactivate(self):
            print("rests", flush=True)
            print("frozen" if gc.get_freeze_count() > 10_000 else "not frozen", flush=True)

    run(lambda: Clerk("clerk"))
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "clerk.py"
    script.write_text(textwrap.dedent(SCRIPT))
    started = []

    def make(*parameters):
        arguments = [part for p in parameters for part in ("-p", p)]
        process = subprocess.Popen(
            [sys.executable, script, "--ros-args", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        )
        started.append(process)
        return process

    with free_domain() as domain:
        yield make
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly(start, number):
    process = start()
    assert process.stdout.readline().strip() == "active"
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "rests" in output and "Traceback" not in output
    assert "\nfrozen" in output  # the garbage collector leaves alone what was there when work began


def test_refused_configuration(start):
    output, _ = (process := start("fail:=configure")).communicate(timeout=20)
    assert process.returncode == 2 and "cannot configure: joint 'a' has no limit; add it" in output


def test_refused_parameter(start):
    output, _ = (process := start("rate:=1000.0")).communicate(timeout=20)
    assert process.returncode == 2 and "parameter 'rate' of node 'clerk'" in output


def test_errors_in_callbacks_are_not_hidden(start):
    output, _ = (process := start("fail:=cycle")).communicate(timeout=20)
    assert process.returncode not in (0, None) and "error in Clerk.cycle" in output and "boom" in output


def test_waits_for_a_manager(start):
    process = start("autostart:=false")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert "active" not in output
