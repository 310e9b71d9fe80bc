"""What all clients of policy servers promise the worker: their server's address, their patience, and a check."""

import signal
from pathlib import Path

import numpy as np
import pytest
from remote import Server, answered, observation, remote_backend, until

from vla_contract.errors import InferenceError, Unavailable
from vla_policy_node.backends import ServedBackend
from vla_policy_node.backends.remote import Answer
from vla_policy_node.worker.wire import chunk_map, chunk_of

HERE = Path(__file__).parent
DOUBLES = {
    "gr00t": ("tcp", "gr00t_policy_server.py", "{port}", "n1.6"),
    "openvla": ("http", "openvla_policy_server.py", "{port}"),
    "lerobot_async": ("grpc", "lerobot_policy_server.py", "{port}"),
    "openpi_droid": ("ws", "openpi_policy_server.py", "{port}"),
}


@pytest.fixture(params=DOUBLES)
def served(request):
    if request.param == "openpi_droid":
        pytest.importorskip("openpi_server", reason="openpi-server is not installed")
    scheme, script, *arguments = DOUBLES[request.param]
    server = Server(str(HERE / script), *arguments)
    backend = remote_backend(request.param, server.port, timeout=2.0)  # ZeroMQ learns of a dead peer by it
    yield server, backend, f"{scheme}://127.0.0.1:{server.port}"
    backend.close()
    server.kill()


def there(backend):
    try:
        backend.check()
    except Unavailable:
        return False
    return True


def test_a_check_sees_the_server_go_and_come(served):
    server, backend, address = served
    assert isinstance(backend, ServedBackend) and backend.server.startswith(address)
    backend.check()
    backend.check()
    answered(backend, observation())
    backend.check()
    for _ in range(2):
        server.kill()
        until(lambda: not there(backend))
        with pytest.raises(Unavailable, match=rf"^{address}.*next attempt in"):
            backend.check()
        with pytest.raises(Unavailable, match=rf"^{address}.*next attempt in"):
            backend.infer(observation(), None)
        server.start()
        until(lambda: there(backend))
        assert len(backend.infer(observation(), None).positions) > 0


def test_another_server_at_the_address_is_told_everything_again(served):
    """It came up while nobody asked anything, so the client never met a closed door."""
    server, backend, _ = served
    answered(backend, observation())
    server.kill()
    server.start()
    chunks = []

    def attempt():
        try:
            chunks.append(backend.infer(observation(), None))
        except Unavailable:
            return False  # InferenceErrors fail the test: the server is there and could infer
        return True

    until(attempt)


@pytest.mark.parametrize("policy", ["gr00t", "openvla", "lerobot_async", "openpi_droid", "served"])
def test_the_patience_covers_every_time_out_of_the_file(policy):
    options = {"connect_timeout": 3.0, "timeout": 4.0, "first_timeout": 50.0}
    if policy == "lerobot_async":
        options["load_timeout"] = 70.0
    backend = remote_backend(policy, 1, **options)
    assert backend.patience >= sum(options.values())


@pytest.mark.parametrize("status", [401, 403, 404, 502, 503])
def test_an_http_status_that_means_no_policy_is_no_failure_of_the_policy(status):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Front(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(self.server.status)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Front)
    server.status = status
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(Unavailable, match=f"HTTP {status}.*; next attempt in"):
            remote_backend("openvla", server.server_port).infer(observation(), None)
        server.status = 500
        with pytest.raises(InferenceError, match="HTTP 500") as caught:
            remote_backend("openvla", server.server_port).infer(observation(), None)
        assert not isinstance(caught.value, Unavailable)
    finally:
        server.shutdown()
        server.server_close()


def test_a_ping_finds_a_frozen_server():
    pytest.importorskip("openpi_server", reason="openpi-server is not installed")
    server = Server(str(HERE / "openpi_policy_server.py"), "{port}")
    backend = remote_backend("openpi_droid", server.port, timeout=0.5)
    try:
        answered(backend, observation())
        server.signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match=r"no answer to a ping for 0\.5 s; next attempt in"):
            backend.check()
        server.signal(signal.SIGCONT)
        until(lambda: there(backend))
    finally:
        backend.close()
        server.kill()


def test_a_chunk_that_ends_before_its_place_out_of_reach_says_so():
    """The tool is led a metre away in ten steps; joints of the arm end before that."""
    backend = remote_backend("openpi_libero", 1)
    rows = np.zeros((10, 7))
    rows[:, 0] = 2.0  # 0.1 m each
    backend._answer = lambda reply: Answer(rows)
    backend.connection.ask = lambda request, deadline: None
    chunk = backend.infer(observation(), None)
    assert 0 < len(chunk.positions) < 10
    assert chunk.shortened.startswith(f"the answer leaves the robot's reach at point {len(chunk.positions)} of 10 by ")
    assert chunk_of(chunk_map(chunk)).shortened == chunk.shortened, "and says so in the node too"
    rows[:] = 0.0
    assert backend.infer(observation(), None).shortened == ""
