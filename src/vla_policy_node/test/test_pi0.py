"""π0 through our backend against transformers' own sampling, with a tiny random network; real-time chunking."""

import functools
import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from remote import BRINGUP, FR3, observation
from tiny import IMAGE_TOKEN, PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer

from vla_contract.errors import ConfigError, InferenceError, MismatchError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.config import load_policy_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.models.pi0", reason="this version of transformers has no π0")

from vla_policy_node.backends.guidance import Guide, guidance_weight, integrate, soft_mask  # noqa: E402
from vla_policy_node.backends.local import prepare  # noqa: E402
from vla_policy_node.backends.options import LocalOptions  # noqa: E402

TINY = {"inputs": {}, "action": {"space": "joint_position"}}


@pytest.fixture(scope="module")
def model():
    return pi0_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pi0")
    model.save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))
    return folder


def backend(folder, **options):
    return load_backend(locate("pi0"), folder, FR3, {**PI0_OPTIONS, **options})


@pytest.fixture(scope="module")
def shared(folder):
    return backend(folder)


@pytest.fixture
def policy(shared):
    shared.reset()
    return shared


def wide(seed=0, **changes):
    """An observation whose front image is not square, so that padding counts."""
    seen = observation(seed=seed)
    front = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    values = {"images": {**seen.images, "front": front}, "instruction": "put the_red cube in the tray"} | changes
    return Observation(seen.stamp_ns, **{"positions": seen.positions, "velocities": seen.velocities, **values})


def padded(image):
    scale = 224 / max(image.shape[:2])
    inner = Image.fromarray(image).resize((int(image.shape[1] * scale), int(image.shape[0] * scale)), Image.BILINEAR)
    whole = Image.new("RGB", (224, 224))
    whole.paste(inner, ((224 - inner.width) // 2, (224 - inner.height) // 2))
    return np.asarray(whole, dtype=np.float32) / 127.5 - 1


def direct(model, seen, noise, steps=None):
    """transformers' own way from an observation to joint positions (10, 8)."""
    metadata = pi0_metadata()
    (state_mean, state_std), (mean, std) = (
        [np.array(metadata["statistics"][vector][key]) for key in ("mean", "std")] for vector in ("state", "action")
    )
    state = np.zeros(12)
    state[:8] = (np.append(seen.positions[:7], seen.positions[7] / 0.04) - state_mean) / state_std
    characters = "abcdefghijklmnopqrstuvwxyz .:?,'\n"
    words = [10 + characters.index(c) for c in "put the red cube in the tray\n"]
    ids = torch.tensor([[IMAGE_TOKEN] * 32 + [2] + words])
    pixels = torch.from_numpy(np.stack([padded(seen.images[name]) for name in ("front", "wrist")]))
    answer = model.sample_actions(
        state=torch.tensor(state, dtype=torch.float32)[None],
        input_ids=ids,
        pixel_values=pixels.permute(0, 3, 1, 2)[None],
        noise=noise,
        attention_mask=torch.ones_like(ids),
        pixel_attention_mask=torch.ones(1, 2, dtype=torch.bool),
        num_steps=steps,
    )
    rows = answer[0, :, :8].double().numpy() * std + mean
    rows[:, 7] = 0.04 * np.clip(rows[:, 7], 0, 1)
    return rows


def noises(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 10, 12, generator=generator) for _ in range(count)]


# Sampling


def test_chunks_are_those_of_a_direct_call(model, policy):
    for k, noise in enumerate(noises(0, 2)):
        chunk = policy.infer(wide(k), None)
        np.testing.assert_allclose(chunk.positions, direct(model, wide(k), noise), atol=1e-5)
    np.testing.assert_allclose(chunk.trajectory.times, 0.05 * np.arange(1, 11))
    assert chunk.joint_names == FR3.joints and chunk.policy == "tiny_pi0" and len(chunk.policy_digest) == 64


def test_the_network_listens_to_all_that_it_is_told(model):
    """Else the comparison above would prove little."""
    noise = noises(0, 1)[0]
    plain = direct(model, wide(), noise)
    other = wide(1)
    for change in ({"images": other.images}, {"positions": wide().positions - 0.2}):
        assert np.abs(direct(model, wide(**change), noise) - plain).max() > 1e-3


def test_steps_and_seed_are_options(model, folder):
    chunk = backend(folder, num_steps=3, seed=7).infer(wide(), None)
    np.testing.assert_allclose(chunk.positions, direct(model, wide(), noises(7, 1)[0], steps=3), atol=1e-5)


def test_a_new_task_begins_with_the_same_noise(policy):
    first = policy.infer(wide(), None).positions
    assert np.abs(policy.infer(wide(), None).positions - first).max() > 1e-3
    policy.reset()
    np.testing.assert_array_equal(policy.infer(wide(), None).positions, first)


def test_half_precision_is_close(policy, folder):
    full = policy.infer(wide(), None).positions
    half = backend(folder, dtype="bfloat16").infer(wide(), None).positions
    assert 0 < np.abs(half - full).max() < 0.05


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_few_bits_are_close(policy, folder, kind, bound, dtype):
    full = policy.infer(wide(), None).positions
    few = backend(folder, quantise=kind, dtype=dtype).infer(wide(), None).positions
    assert 0 < np.abs(few - full).max() < bound


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.015), ("int4", 0.15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_of_few_bits_is_that_of_their_rounding(kind, bound, dtype):
    """Relative, for weights and inputs as networks have them; int4 has steps of a seventh of a group's peak."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128).to(dtype).requires_grad_(False)
    layer.weight.normal_(std=0.06)
    x = torch.randn(64, 256).to(dtype)
    full = layer(x).float()
    few = prepare(torch.nn.Sequential(layer), LocalOptions(**TINY, quantise=kind), torch.device("cpu"))(x).float()
    assert 0 < (few - full).norm() / full.norm() < bound


def test_without_torchao_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match="'torchao' cannot be imported.*leave the key out"):
        backend(folder, quantise="int8")


def test_weights_that_cannot_be_quantised_are_not_left_as_they_are_in_silence():
    narrow = torch.nn.Linear(24, 8)
    with pytest.raises(ConfigError, match="no layer of the model has a size that torchao can make int4"):
        prepare(narrow, LocalOptions(**TINY, quantise="int4"), torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_want_a_gpu(folder):
    with pytest.raises(ConfigError, match="CUDA graphs, but the model is on cpu; use 'default', or a GPU"):
        backend(folder, compile="reduce-overhead")


def test_compiled_chunks_are_the_same(folder, tmp_path, monkeypatch):
    """Tracing and the derivative of the traced code, without the C++ compiler, which would take minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    copy = altered(folder, tmp_path)
    pi0_model(layers=1).save_pretrained(copy)
    plain, compiled = backend(copy), backend(copy, compile="default")
    for prefix in (None, Trajectory([0.0, 0.1], np.stack([wide().positions] * 2))):
        expected = plain.infer(wide(), prefix).positions
        np.testing.assert_allclose(compiled.infer(wide(), prefix).positions, expected, atol=1e-4)


# Real-time chunking


def after(seen, seconds):
    return Observation(
        seen.stamp_ns + int(seconds * 1e9), seen.images, seen.positions, seen.velocities, seen.instruction
    )


def test_the_frozen_prefix_is_kept_and_the_rest_continues_the_last_chunk(policy):
    last = policy.infer(wide(), None)
    later, plain = after(wide(), 0.1), policy.infer(after(wide(), 0.1), None).positions
    policy.reset()
    policy.infer(wide(), None)
    # Three rows (0.15 s) are executed from the last chunk while this inference goes on; it knows eight.
    times = np.array([0.0, 0.05, 0.1, 0.15])
    prefix = Trajectory(times, last.trajectory.sample(times + 0.1).positions)
    guided = policy.infer(later, prefix).positions
    meant = last.trajectory.sample(0.1 + 0.05 * np.arange(1, 11)).positions
    np.testing.assert_allclose(guided[:3], meant[:3], atol=1e-12)
    off = np.abs(guided - meant)[:, :7].mean(axis=1)
    free = np.abs(plain - meant)[:, :7].mean(axis=1)
    assert off[3] < 0.35 * free[3], "the first row that is not frozen fits to those that are"
    assert off[3:8].sum() < 0.8 * free[3:8].sum()
    assert np.abs(guided[8:] - plain[8:]).max() < np.abs(guided[3:6] - plain[3:6]).max()


def test_after_a_reset_only_the_prefix_counts(policy):
    prefix = Trajectory([0.0, 0.15], np.stack([wide().positions, wide().positions + 0.05 * (np.arange(8) < 7)]))
    first = policy.infer(wide(), prefix).positions
    np.testing.assert_allclose(first[:3], prefix.sample([0.05, 0.1, 0.15]).positions, atol=1e-12)
    policy.reset()
    np.testing.assert_array_equal(policy.infer(wide(), prefix).positions, first)


def test_guidance_off_is_plain_sampling(folder, policy):
    prefix = Trajectory([0.0, 0.15], np.stack([wide().positions] * 2))
    plain = policy.infer(wide(), None).positions
    np.testing.assert_array_equal(backend(folder, guidance=0).infer(wide(), prefix).positions, plain)


@given(st.integers(-2, 20), st.integers(-2, 20), st.integers(1, 16))
def test_soft_mask(frozen, known, horizon):
    mask = soft_mask(frozen, known, horizon)
    frozen = min(max(frozen, 0), horizon)
    known = min(max(known, frozen), horizon)
    assert mask.shape == (horizon,)
    assert (mask[:frozen] == 1).all() and (mask[known:] == 0).all()
    assert (np.diff(mask) <= 0).all() and (mask[frozen:known] > 0).all() and (mask[frozen:] < 1).all()
    for i in range(frozen, known):
        c = (known - i) / (known - frozen + 1)
        assert mask[i] == pytest.approx(c * (np.e**c - 1) / (np.e - 1))


@given(st.floats(0, 1), st.floats(0, 100))
def test_guidance_weight(tau, strength):
    weight = guidance_weight(tau, strength)
    assert 0 <= weight <= strength
    if 0.01 < tau < 0.99:
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        assert weight == pytest.approx(min(strength, (1 - tau) / (tau * r2)))


def test_guidance_is_the_vector_jacobian_product():
    """With a linear velocity v = x M the Jacobian is known in closed form."""
    generator = torch.Generator().manual_seed(1)
    matrix, noise, target = (torch.randn(s, generator=generator).double() for s in ((4, 4), (1, 3, 4), (1, 3, 4)))
    weights = torch.tensor([1.0, 0.4, 0.0])[:, None].expand(3, 4).double()
    x, steps = noise, 7
    for step in range(steps):
        tau = step / steps
        jacobian = torch.eye(4) + (1 - tau) * matrix  # of the row vector x -> x (I + (1 - tau) M)
        error = (target - x @ jacobian) * weights
        x = x + (x @ matrix + guidance_weight(tau, 5.0) * error @ jacobian.T) / steps
    answer = integrate(lambda x, tau: x @ matrix, noise, steps, Guide(target, weights, 5.0))
    torch.testing.assert_close(answer, x)


# What is refused


def test_the_policy_file_that_ships_is_for_this_checkpoint(folder, policy):
    options = load_policy_file(BRINGUP / "config" / "policies" / "pi0.yaml").options
    shipped = load_backend(locate("pi0"), folder, FR3, {**options, "threads": 1, "device": "cpu"})
    np.testing.assert_array_equal(shipped.infer(wide(), None).positions, policy.infer(wide(), None).positions)


def altered(folder, tmp_path, **changes):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "policy.json").write_text(json.dumps({**pi0_metadata(), **changes}))
    return copy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"statistics": {"state": pi0_metadata()["statistics"]["state"]}}, "statistics.action: missing"),
        ({"statistics": {"action": pi0_metadata()["statistics"]["action"]}}, "statistics.state: missing"),
        ({"state": pi0_metadata()["state"][::-1]}, "state: policy.json says"),
        ({"action": pi0_metadata()["action"][::-1]}, "action: policy.json says"),
        ({"cameras": {"front": {"height": 224, "width": 224}}}, "cameras: policy.json says"),
        ({"joints": pi0_metadata()["joints"][::-1]}, "joints: the policy expects"),
        ({"horizon": 16}, "belong to different checkpoints"),
        ({"digest": "0" * 64}, "fetch the checkpoint again"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(folder, tmp_path, changes, told):
    with pytest.raises((ConfigError, MismatchError), match=told):
        backend(altered(folder, tmp_path, **changes))


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = altered(folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["action_out_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 missing keys \(action_out_proj.weight"):
        backend(copy)


def test_weights_in_several_files(folder, model, tmp_path, policy):
    copy = altered(folder, tmp_path)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="100KB")
    assert not (copy / "model.safetensors").exists()
    loaded = backend(copy)
    assert len(loaded.metadata.digest) == 64
    np.testing.assert_allclose(loaded.infer(wide(), None).positions, policy.infer(wide(), None).positions, atol=1e-5)
    (copy / "policy.json").write_text(json.dumps({**pi0_metadata(), "digest": loaded.metadata.digest[::-1]}))
    with pytest.raises(ConfigError, match="fetch the checkpoint again"):
        backend(copy)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 3}, "steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"dtype": "float8"}, "dtype"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:7"}, "torch sees"),
        ({"inputs": {"state": {"state": ["joint_position"]}}}, "at least one camera"),
        (
            {"inputs": {**PI0_OPTIONS["inputs"], "base": {"camera": "front", "height": 96}}},
            "takes height 224, width 224",
        ),
    ],
)
def test_options_that_are_wrong_are_refused(folder, options, told):
    with pytest.raises(ConfigError, match=told):
        backend(folder, **options)


def test_files_that_are_missing_are_named(folder, tmp_path):
    copy = altered(folder, tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer.json' does not exist"):
        backend(copy)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="model_type 'llama', expected 'pi0'"):
        backend(copy)


def test_observations_without_an_answer(policy):
    with pytest.raises(InferenceError, match="the model takes 48"):
        policy.infer(wide(instruction="a very long sentence " * 5), None)
    with pytest.raises(InferenceError, match="unknown camera 'wrist'"):
        policy.infer(wide(images={"front": wide().images["front"]}), None)
