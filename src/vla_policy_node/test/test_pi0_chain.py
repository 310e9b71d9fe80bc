"""π0 as the node runs it: its files, preflight, worker process, runtime."""

import json
import queue

import numpy as np
import pytest
import yaml
from remote import FR3, observation
from tiny import PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer

from vla_policy_node.backends import load_backend, locate
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.scheduling import Reality
from vla_policy_node.preflight import preflight
from vla_policy_node.runtime import Result, Runtime, State

pytest.importorskip("torch")
pytest.importorskip("transformers.models.pi0", reason="this version of transformers has no π0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pi0")
    pi0_model().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))
    return folder


def test_the_way_from_its_files_through_preflight_and_worker_to_a_chunk(folder, tmp_path):
    """As the node runs it; the worker is a process of its own."""
    path, told = tmp_path / "policy.yaml", queue.Queue()
    content = {"backend": "pi0", "checkpoint": str(folder), "options": PI0_OPTIONS, "schedule": {"strategy": "rtc"}}
    path.write_text(yaml.safe_dump(content))
    policy, seen = load_policy_file(path), observation()
    assert preflight(FR3, policy).name == "tiny_pi0"
    runtime = Runtime(FR3, policy, lambda image: image, lambda: told.put(None))

    def taken():
        told.get(timeout=120)
        return runtime.take_events()

    try:
        runtime.start()
        while runtime.state != State.READY:
            taken()
            assert not runtime.broken, runtime.broken
        runtime.begin_task()
        now = seen.stamp_ns
        runtime.buffer.add_joints(now, now, FR3.joints, seen.positions, seen.velocities)
        for name, image in seen.images.items():
            runtime.buffer.add_image(name, now, now, image, image.tobytes()[:64])
        assert runtime.try_infer(now, now, now, seen.instruction)
        while not (events := taken()):
            pass
        (result,) = events
        assert isinstance(result, Result), result
        here = load_backend(locate("pi0"), folder, FR3, PI0_OPTIONS).infer(seen, None)
        np.testing.assert_allclose(result.answer.chunk.positions, here.positions, atol=1e-6)
        chunk = runtime.splice(result, now + 10**8, Reality(seen.positions), "task", seen.instruction).chunk
        assert chunk.policy_digest == preflight(FR3, policy).digest and chunk.joint_names == FR3.joints
    finally:
        runtime.close()
