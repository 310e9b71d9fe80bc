"""A process that is told to end goes on for a node that is busy, but not for ever."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vla_node_base.domains import free_domain

SCRIPT = """
    from dataclasses import dataclass
    from vla_node_base.node import VlaNode, run
    from vla_node_base.parameters import parameter

    @dataclass(frozen=True)
    class Parameters:
        rounds: int = parameter(0, "cycles after which it is not busy any more; 0: it stays busy")

    class Watch(VlaNode):
        Parameters = Parameters
        seen = 0

        def configure(self):
            self.create_timer(0.01, self.cycle)

        def activate(self):
            print("active", flush=True)

        def cycle(self):
            self.seen += not self.active

        def busy(self):
            return "watching" if not self.params.rounds or self.seen < self.params.rounds else ""

        def cleanup(self):
            print(f"seen {self.seen}", flush=True)

    run(lambda: Watch("watch"))
"""


@pytest.mark.parametrize("rounds", [5, 0])
def test_a_busy_node_is_given_time(tmp_path, rounds):
    script = tmp_path / "watch.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with free_domain() as domain:
        process = subprocess.Popen(
            [sys.executable, script, "--ros-args", "-p", f"rounds:={rounds}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        )
        try:
            assert process.stdout.readline().strip() == "active"
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    seen = int(output.split("seen ")[1])
    assert process.returncode == 0 and (seen == rounds if rounds else seen > 5)
