"""The manners of our server towards many clients, with the server in this process."""

import asyncio
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from remote import FR3, observation, until
from test_serve import get, our_client

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.policy import CameraInput, History, PolicyMetadata, Statistics
from vla_policy_node.backends.encodings import pack_openpi
from vla_policy_node.core.model_inputs import robot_layout
from vla_policy_node.serve import PolicyServer
from vla_policy_node.serving.engine import LocalEngine

# openpi-client 0.1.2 opens its connection in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


class EchoBackend:
    """Row k: the observed positions plus 0.001 (k + 1). Notes who asked what."""

    def __init__(self, horizon=4, rows=None):
        n = len(FR3.joints)
        unit = Statistics(mean=(0.0,) * n, std=(1.0,) * n)
        self.metadata = PolicyMetadata(
            name="echo", cameras={"front": CameraInput(height=8, width=8)}, joints=FR3.joints, state=("q",) * n,
            action_space="joint_position", action=("q",) * n, horizon=horizon, dt=0.1,
            statistics={"state": unit, "action": unit},
        )  # fmt: skip
        self.rows = rows or horizon
        self.gate = threading.Event()
        self.gate.set()
        self.log = []

    def infer(self, observation, prefix):
        self.gate.wait(20)
        self.log.append(observation.instruction)
        if observation.instruction == "fail":
            raise InferenceError("no such task")
        if observation.instruction == "crash":
            raise RuntimeError("secret of the server's memory")
        times = 0.1 * np.arange(1, self.rows + 1)
        return ActionChunk(
            observation.stamp_ns,
            FR3.joints,
            Trajectory(times, observation.positions + 0.01 * times[:, None]),
            progress=0.25,
        )

    def reset(self):
        self.log.append("reset")


class Running:
    """A PolicyServer on an event loop of its own."""

    def __init__(self, backend, **options):
        self.server = PolicyServer(LocalEngine(backend), FR3, port=0, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.port = port

    async def _start(self):
        started = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self.server.run(started))
        return await started

    def stop(self):
        self._loop.call_soon_threadsafe(self._task.cancel)
        until(self._task.done)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def running():
    started = []

    def start(backend, **options):
        started.append(Running(backend, **options))
        return started[-1].port

    yield start
    for server in started:
        server.stop()


def test_what_a_backend_answers_arrives_unchanged(running):
    backend = EchoBackend()
    seen = observation()
    expected = backend.infer(seen, None)
    chunk = our_client(running(backend), horizon=4, inputs=robot_layout(FR3, ("front",))).infer(seen)
    assert np.array_equal(chunk.positions, expected.positions)
    assert np.allclose(chunk.trajectory.times, expected.trajectory.times)
    assert chunk.progress == 0.25 and chunk.stamp_ns == seen.stamp_ns


def test_a_chunk_that_ends_early_stays_at_its_end(running):
    port = running(EchoBackend(horizon=6, rows=2))
    actions = our_client(port, horizon=6, inputs=robot_layout(FR3, ("front",))).infer(observation()).positions
    assert (actions[2:] == actions[1]).all() and (actions[1] != actions[0]).all()


def test_a_client_with_another_policy_in_mind_is_told_so(running):
    with pytest.raises(InferenceError, match="policy has horizon 4, the policy file expects 16"):
        our_client(running(EchoBackend())).infer(observation())


def test_an_error_of_the_policy_reaches_the_client_without_the_server_s_secrets(running):
    client = our_client(running(EchoBackend()), horizon=4, inputs=robot_layout(FR3, ("front",)))
    with pytest.raises(InferenceError, match="could not infer: no such task"):
        client.infer(observation(instruction="fail"))
    until(lambda: _refusal(client, "crash").count("the policy failed: RuntimeError"))


def _refusal(client, instruction):
    try:
        client.infer(observation(instruction=instruction))
    except InferenceError as error:
        return str(error)
    return ""


def test_each_change_of_client_begins_a_new_episode(running):
    backend = EchoBackend()
    port = running(backend)
    first, second = (our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",))) for _ in range(2))
    for client, instruction in ((first, "a"), (first, "b"), (second, "c"), (first, "d")):
        client.infer(observation(instruction=instruction))
    assert backend.log == ["reset", "a", "b", "reset", "c", "reset", "d"]


def test_health_is_answered_while_a_model_thinks(running):
    backend = EchoBackend()
    port = running(backend)
    backend.gate.clear()
    client = our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",)), first_timeout=10.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.infer, observation())
        for _ in range(3):
            assert get(port) == (200, b"OK\n")
        assert not waiting.done()
        backend.gate.set()
        assert waiting.result(10).positions.shape == (4, 8)


@pytest.mark.parametrize("message", ["text", b"\xc1", b"\x90", pack_openpi({})])
def test_nonsense_ends_its_own_connection_and_no_other(running, message):
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    port = running(EchoBackend())
    good = our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",)))
    good.infer(observation())
    with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as bad:
        bad.recv(timeout=5)
        bad.send(message)
        assert isinstance(bad.recv(timeout=5), str), "an error is a text frame"
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(timeout=5)
        assert closed.value.rcvd.code == 1011
    assert good.infer(observation()).positions.shape == (4, 8)


def test_there_is_a_most_number_of_clients(running, monkeypatch):
    monkeypatch.setattr("vla_policy_node.serve.MOST_CONNECTIONS", 1)
    port = running(EchoBackend())
    first = our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",)))
    first.infer(observation())
    with pytest.raises(InferenceError, match="HTTP 503"):
        our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",))).infer(observation())
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(port, "/")
    first.close()


def test_a_client_that_says_nothing_does_not_stop_the_others(running):
    from websockets.sync.client import connect

    port = running(EchoBackend())
    with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None):
        assert our_client(port, horizon=4, inputs=robot_layout(FR3, ("front",))).infer(observation())


def test_a_policy_that_looks_back_is_not_served():
    backend = EchoBackend()
    backend.metadata = backend.metadata.model_copy(update={"history": History(steps=1, dt=0.05)})
    with pytest.raises(ConfigError, match="'echo' looks back at earlier observations.*run it in the policy node"):
        PolicyServer(LocalEngine(backend), FR3)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "robot.example.com"])
def test_without_a_key_nothing_listens_beyond_this_machine(host):
    with pytest.raises(ConfigError, match="set a key in VLA_SERVE_KEY"):
        PolicyServer(LocalEngine(EchoBackend()), FR3, host=host)
