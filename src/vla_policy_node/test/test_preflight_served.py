"""What ships for policy servers reaches beyond an inference, and what cannot load or never could move is refused."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import limit
from remote import BRINGUP, FR3, aloha, free_port, observation, remote_backend

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, ConfigError, MismatchError
from vla_policy_node.backends import locate
from vla_policy_node.backends.declared import REMOTE
from vla_policy_node.backends.remote import Answer
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.action_encoding import ActionEncoder
from vla_policy_node.core.scheduling import ChunkScheduler, Reality
from vla_policy_node.preflight import check_reach, main, preflight

POLICIES = BRINGUP / "config" / "policies"
SHIPPED = sorted(path.stem for path in POLICIES.glob("*.yaml") if load_policy_file(path).backend in REMOTE)
FOR_ALOHA = ("openpi_aloha", "openvla_oft")
LATENCY = 0.25  # s, of a large model behind a network


@pytest.fixture
def robots(tmp_path):
    """By name of a policy file: the robot that it is for."""
    two_arms = aloha()
    two_arms._path = tmp_path / "aloha.yaml"
    limits = {"joint_limits": {joint: limit(-3.0, 3.0, 3.0, 10.0, 5000.0) for joint in two_arms.joints}}
    (tmp_path / "aloha.yaml").write_text(yaml.safe_dump(limits))
    return lambda name: two_arms if name in FOR_ALOHA else FR3


def inferred(name, robot, **changes) -> ActionChunk:
    """What the client makes of a model that wants the first joint to move by 2 mrad in each row."""
    backend = remote_backend(name, free_port(), robot, **changes)
    options, seen = backend._options, observation(robot)
    motion = seen.positions + 0.002 * np.arange(1, options.horizon + 1)[:, None] * np.eye(len(robot.joints))[0]
    rows = ActionEncoder(options.action, robot).encode(motion, seen.positions).rows
    backend._request = lambda fields: fields
    backend._answer = lambda reply: Answer(rows)
    backend.connection.ask = lambda *_, **__: None
    return backend.infer(seen)


def spliced(name, robot, chunk):
    policy, positions = load_policy_file(POLICIES / f"{name}.yaml"), observation(robot).positions
    gripper = None if robot.gripper is None else robot.joints.index(robot.gripper.joint)
    scheduler = ChunkScheduler(robot.limits(), gripper, policy.timing)
    scheduler.begin(chunk.stamp_ns)
    return scheduler.splice(chunk, positions, chunk.stamp_ns + int(LATENCY * 1e9), Reality(positions))


# Chunks that reach


@pytest.mark.parametrize("name", SHIPPED)
def test_the_scheduler_takes_the_chunks_of_every_policy_file_that_ships(name, robots):
    splice = spliced(name, robots(name), inferred(name, robots(name)))
    assert splice.excess <= 1.0
    assert splice.chunk.trajectory.end > LATENCY + 0.1


def test_a_single_action_is_held_for_a_second_unless_the_file_says_otherwise():
    for changes, times in (
        ({}, [0.2, 0.4, 0.6, 0.8, 1.0]),
        ({"hold": None}, [0.2, 0.4, 0.6, 0.8, 1.0]),
        ({"hold": None, "dt": 1.5}, [1.5, 3.0]),
        ({"hold": 0.5}, [0.2, 0.4, 0.6]),
        ({"hold": 0.0}, [0.2]),
    ):
        chunk = inferred("openvla", FR3, **changes)
        assert np.allclose(chunk.trajectory.times, times)
        assert (chunk.positions == chunk.positions[0]).all()
    assert inferred("gr00t", FR3).positions.shape == (16, 8), "chunks are not held unless the file says so"
    assert inferred("gr00t", FR3, hold=1.0).trajectory.end == pytest.approx(1.0)


def test_the_scheduler_refuses_what_preflight_refuses():
    with pytest.raises(ChunkError, match="expected >= 2"):
        spliced("openvla", FR3, inferred("openvla", FR3, hold=0.0))


def changed(folder, name, change, **keys):
    content = yaml.safe_load((POLICIES / f"{name}.yaml").read_text()) | keys
    change(content["options"])
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_policy_file(path)


@pytest.mark.parametrize(
    ("name", "options", "schedule", "words"),
    [
        ("openvla", {"hold": 0}, {}, "horizon 1 x dt 0.2 s, hold 0 s: a chunk of one point, expected two at least"),
        ("openvla", {"dt": 2.0}, {}, "hold 1 s: a chunk of one point, expected two at least; set options.hold to 4 s"),
        (
            "openpi_droid",
            {"horizon": 3},
            {},
            "horizon 3 x dt 0.0666667 s, hold 0 s: chunks reach 0.2 s beyond their observation, expected more than "
            "0.2 s (schedule.margin 0.1 + 2 x schedule.step 0.05)",
        ),
        ("openpi_libero", {}, {"margin": 0.3, "step": 0.1}, "raise options.horizon or options.hold"),
    ],
)
def test_chunks_that_end_before_any_splice_are_refused(name, options, schedule, words, tmp_path):
    with pytest.raises(MismatchError) as caught:
        preflight(FR3, changed(tmp_path, name, lambda o: o.update(options), schedule=schedule))
    assert words in caught.value.misfits[0]


def test_who_rests_before_each_observation_needs_no_long_chunks(tmp_path):
    short = changed(tmp_path, "openpi_droid", lambda o: o.update(horizon=3), schedule={"strategy": "sync"})
    preflight(FR3, short)


def test_a_base_that_would_never_drive_is_refused(tmp_path):
    policy = changed(tmp_path, "openvla", lambda o: None)
    metadata = preflight(FR3, policy).model_copy(update={"action": ("x", "base.vx[m/s]")})
    check_reach(metadata.model_copy(update={"horizon": 2}), policy, hold=1.0)
    with pytest.raises(MismatchError, match="the rows end 0.2 s after their observation.*it would never drive"):
        check_reach(metadata, policy, hold=1.0)


def test_a_hold_makes_short_chunks_fit(tmp_path):
    preflight(FR3, changed(tmp_path, "openpi_droid", lambda o: o.update(horizon=3, hold=0.8)))
    preflight(FR3, changed(tmp_path, "openvla", lambda o: o.pop("hold")))


# Options


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("openvla", lambda o: o.update(timeuot=5.0), r"openvla_rest backend: timeuot \(is 5.0\)"),
        ("openpi_droid", lambda o: o.update(encoding="single", hold=-1), r"encoding(.|\n)*hold|hold(.|\n)*encoding"),
        ("gr00t", lambda o: o.pop("actions"), "gr00t backend: actions"),
        ("gr00t", lambda o: o.update(version="n2"), "version"),
        ("gr00t", lambda o: o["inputs"].update(videos=o["inputs"].pop("video")), "videos; expected video, state"),
        ("lerobot_async", lambda o: o.pop("pretrained"), "pretrained"),
        ("lerobot_async", lambda o: o.update(policy_type="diffusion"), "cannot run 'diffusion'"),
        (
            "lerobot_async",
            lambda o: o["inputs"].update({"observation.stat": o["inputs"].pop("observation.state")}),
            "'observation.stat' is no entry of LeRobot's; expected 'observation.state'",
        ),
        (
            "openpi_droid",
            lambda o: o.update(dt=1e-3, hold=60),
            "60 s has more than 1000 points of dt 0.001 s; lower it",
        ),
        ("openpi_droid", lambda o: o.update(host="ws://gpu"), "expected a bare name or address"),
    ],
)
def test_options_with_which_a_client_could_not_be_loaded_are_refused_before(name, change, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        preflight(FR3, changed(tmp_path, name, change))


def test_the_command_says_so_too(tmp_path, capsys):
    policy = changed(tmp_path, "openvla", lambda o: o.update(timeuot=5.0))
    assert main([str(FR3.path), str(policy.path)]) == 2
    assert "timeuot" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["openpi_droid", "gr00t", "openvla", "lerobot_async"])
def test_clients_are_checked_without_any_library_of_models(name):
    code = (
        "import sys; from vla_policy_node.preflight import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'safetensors', 'rclpy'} & set(sys.modules); sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code, str(FR3.path), str(POLICIES / f"{name}.yaml")], check=True)


def test_a_client_whose_protocol_is_not_installed_is_named(monkeypatch):
    module = locate("gr00t").partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"backend 'gr00t' cannot be checked: .*; install what vla_policy_node"):
        preflight(FR3, load_policy_file(POLICIES / "gr00t.yaml"))
