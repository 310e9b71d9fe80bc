"""Token policies: our network for OpenVLA's weights against transformers' encoders and language model, tiny and random;
and an image-text model that transformers brings, end to end."""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from remote import BRINGUP, FR3, observation
from tiny import write_tokenizer

from vla_contract.errors import ConfigError, InferenceError, MismatchError
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.action_tokens import from_tokens, read_range

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

VOCABULARY = 300
MEANS, DEVIATIONS = [[0.48, 0.46, 0.41], [0.5, 0.5, 0.5]], [[0.23, 0.22, 0.22], [0.5, 0.5, 0.5]]
RANGE = {"q01": [-0.01] * 3 + [-0.02] * 3 + [0.0], "q99": [0.01] * 3 + [0.03] * 3 + [1.0], "mask": [True] * 6 + [False]}
STATISTICS = {"bridge": {"action": RANGE}}
OPTIONS = {
    "inputs": {
        "image": {"camera": "front", "height": None, "width": None},
        "prompt": {"text": "instruction"},
    },
    "action": {"space": "ee_delta", "rotation": "euler_xyz", "gripper": {"open": 1.0, "closed": 0.0, "threshold": 0.5}},
    "dt": 0.2,
    "device": "cpu",
    "threads": 1,
}


class Reference:
    """OpenVLA out of transformers' parts."""

    def __init__(self):
        torch.manual_seed(0)
        same = {"num_hidden_layers": 3, "num_attention_heads": 16, "image_size": 28, "patch_size": 14}
        self.dino = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(hidden_size=32, mlp_ratio=2, num_register_tokens=4, **same)
        )
        self.siglip = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=48, intermediate_size=64, hidden_act="gelu", vision_use_head=False, **same
            )
        )
        text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        self.text = {**text, "vocab_size": VOCABULARY + 64, "model_type": "llama"}
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text, vocab_size=VOCABULARY + 64))
        sizes = {"fc1": (320, 80), "fc2": (32, 320), "fc3": (32, 32)}
        self.projector = {f"{name}.weight": torch.randn(size) * 0.2 for name, size in sizes.items()}
        self.projector |= {f"{name}.bias": torch.randn(size[0]) for name, size in sizes.items()}
        with torch.no_grad():
            for part in (self.dino, self.siglip, self.llama):
                for parameter in part.eval().parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            self.llama.lm_head.weight[: VOCABULARY - 256] = 0  # this one never talks
            self.llama.lm_head.weight[VOCABULARY:] = 0

    def weights(self):
        """Under the names of OpenVLA's files."""
        found = {f"projector.{name}": value for name, value in self.projector.items()}
        found |= {f"language_model.{name}": value for name, value in self.llama.state_dict().items()}
        dino, siglip = self.dino.state_dict(), self.siglip.state_dict()
        first, second = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
        place = dino["embeddings.position_embeddings"]
        found[f"{first}cls_token"] = dino["embeddings.cls_token"] + place[:, :1]
        found[f"{first}reg_token"] = dino["embeddings.register_tokens"]
        found[f"{first}pos_embed"] = place[:, 1:]
        found[f"{second}pos_embed"] = siglip["embeddings.position_embedding.weight"][None]
        found[f"{second}attn_pool.latent"] = torch.zeros(1, 1, 48)  # is in the files, and of no use
        for kind in ("weight", "bias"):
            found[f"{first}patch_embed.proj.{kind}"] = dino[f"embeddings.patch_embeddings.projection.{kind}"]
            found[f"{second}patch_embed.proj.{kind}"] = siglip[f"embeddings.patch_embedding.{kind}"]
            found[f"{first}norm.{kind}"] = dino[f"layernorm.{kind}"]
            found[f"{second}norm.{kind}"] = siglip[f"post_layernorm.{kind}"]
            for i in range(3):
                for tower, state, block, attention, out, norm in (
                    (first, dino, f"encoder.layer.{i}.", "attention", "o_proj", "norm"),
                    (second, siglip, f"encoder.layers.{i}.", "self_attn", "out_proj", "layer_norm"),
                ):
                    parts = [state[f"{block}{attention}.{name}_proj.{kind}"] for name in "qkv"]
                    found[f"{tower}blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
                    found[f"{tower}blocks.{i}.attn.proj.{kind}"] = state[f"{block}{attention}.{out}.{kind}"]
                    for k in "12":
                        found[f"{tower}blocks.{i}.norm{k}.{kind}"] = state[f"{block}{norm}{k}.{kind}"]
                        found[f"{tower}blocks.{i}.mlp.fc{k}.{kind}"] = state[f"{block}mlp.fc{k}.{kind}"]
        for i in range(3):
            for k in "12":
                scale = dino[f"encoder.layer.{i}.layer_scale{k}.lambda1"]
                found[f"{first}blocks.{i}.ls{k}.scale_factor"] = scale
        return {name: value.detach().clone().contiguous() for name, value in found.items()}

    @torch.no_grad()
    def answer(self, image, prompt):
        """Seven ids."""
        picture = np.asarray(Image.fromarray(image).resize((28, 28), Image.BICUBIC), dtype=np.float32) / 255
        seen = [
            torch.tensor(((picture - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
            for mean, std in zip(np.array(MEANS), np.array(DEVIATIONS), strict=True)
        ]
        first = self.dino(seen[0], output_hidden_states=True).hidden_states[2][:, 5:]
        second = self.siglip(seen[1], output_hidden_states=True).hidden_states[2]
        x = torch.cat([first, second], dim=-1)
        for k in "123":
            x = F.linear(x if k == "1" else F.gelu(x), self.projector[f"fc{k}.weight"], self.projector[f"fc{k}.bias"])
        characters = "abcdefghijklmnopqrstuvwxyz .:?,'\n"
        ids = [1] + [10 + characters.index(c) if c in characters else 3 for c in prompt]
        words = self.llama.model.embed_tokens(torch.tensor([ids]))
        embedded = torch.cat([words[:, :1], x, words[:, 1:]], dim=1)
        answered = self.llama.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=7,
            pad_token_id=0,
            eos_token_id=None,
        )
        return answered[0].numpy()


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvla")
    save_file(reference.weights(), folder / "model.safetensors")
    write_tokenizer(folder)
    config = {"model_type": "openvla", "use_fused_vision_backbone": True, "n_action_bins": 256}
    config |= {"auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}}
    config |= {"pad_to_multiple_of": 64, "text_config": reference.text, "norm_stats": STATISTICS}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = {"image_resize_strategy": "resize-naive", "interpolations": ["bicubic", "bicubic"]}
    pixels |= {"input_sizes": [[3, 28, 28], [3, 28, 28]], "means": MEANS, "stds": DEVIATIONS}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def backend(folder, **options):
    return load_backend(locate("openvla"), folder, FR3, {**OPTIONS, **options})


def expected(tokens, seen):
    rows = read_range(STATISTICS, "", "").stretch(from_tokens(tokens, VOCABULARY))
    return ActionDecoder(ActionLayout.model_validate(OPTIONS["action"]), FR3).decode(rows[None], seen.positions)


def test_answers_are_those_of_the_published_network(reference, folder):
    policy, answers = backend(folder), set()
    for seed in range(3):
        seen = observation(seed=seed, instruction="Put the Red cube in the tray")
        prompt = "In: What action should the robot take to put the red cube in the tray?\nOut:"
        tokens = reference.answer(seen.images["front"], prompt)
        chunk = policy.infer(seen, None)
        np.testing.assert_allclose(chunk.positions[0], expected(tokens, seen).positions[0], atol=1e-6)
        answers.add(tuple(tokens))
    assert len(answers) > 1, "the network looks at the image"
    np.testing.assert_allclose(chunk.trajectory.times, 0.2 * np.arange(1, 6))
    assert (chunk.positions == chunk.positions[0]).all(), "the target is kept for a second"
    assert len(chunk.policy_digest) == 64 and policy.metadata.action_space == "ee_delta"


def test_compiled_answers_are_the_same(reference, folder, monkeypatch):
    """Traced code and a cache of fixed size, without the C++ compiler, which would take minutes. Sentences of different
    lengths one after the other: what an earlier one left in the cache must not be seen."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    policy = backend(folder, compile="default")
    for seed, words in enumerate(("put the red cube in the tray, slowly and with care, please", "go", "put it down")):
        seen = observation(seed=seed, instruction=words)
        tokens = reference.answer(seen.images["front"], f"In: What action should the robot take to {words}?\nOut:")
        np.testing.assert_allclose(policy.infer(seen).positions[0], expected(tokens, seen).positions[0], atol=1e-6)


def test_images_and_words_reach_the_network_unchanged(reference, folder):
    """The first logits, where tokens of seven would hide small differences."""
    from vla_policy_node.backends.prismatic import Pixels, load_prismatic

    network = load_prismatic(folder, json.loads((folder / "config.json").read_text()), torch.float32)
    image = observation().images["front"]
    pixels = Pixels(folder)(image)
    for tower, part, hidden in (
        ("featurizer", pixels[0], reference.dino(pixels[0], output_hidden_states=True).hidden_states[2][:, 5:]),
        ("fused_featurizer", pixels[1], reference.siglip(pixels[1], output_hidden_states=True).hidden_states[2]),
    ):
        torch.testing.assert_close(network.vision_backbone[tower](part), hidden, atol=1e-5, rtol=1e-5)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(network.language_model(tokens).logits, reference.llama(tokens).logits)


def test_the_policy_file_that_ships_is_for_this_checkpoint(folder):
    options = load_policy_file(BRINGUP / "config" / "policies" / "openvla_local.yaml").options
    changes = {"threads": 1, "device": "cpu", "unnorm_key": "bridge"}
    shipped = load_backend(locate("openvla"), folder, FR3, {**options, **changes})
    expected = backend(folder).infer(observation(), None).positions
    np.testing.assert_array_equal(shipped.infer(observation(), None).positions, expected)


def test_the_statistics_file_counts_before_the_config(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    wide = {**RANGE, "q99": [0.02] * 6 + [1.0]}
    (copy / "dataset_statistics.json").write_text(json.dumps({"mine": {"action": wide}}))
    mean, std = backend(copy, unnorm_key="mine").metadata.statistics["action"].arrays()
    np.testing.assert_allclose(mean + std, [0.02] * 6 + [1.0])


def test_half_precision_and_cropping_give_chunks(folder):
    chunk = backend(folder, dtype="bfloat16", crop=0.9).infer(observation(), None)
    assert np.isfinite(chunk.positions).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"unnorm_key": "fractal"}, "unknown data set 'fractal'; known: bridge"),
        ({"prompt": "Do it!"}, "expected the place of the sentence"),
        ({"action": {"space": "ee_delta_position"}}, "the checkpoint's have 7 entries, the policy file 3"),
        ({"inputs": {"image": {"camera": "front"}}}, "takes height None"),
        ({"inputs": {**OPTIONS["inputs"], "more": {"state": ["gripper_open"]}}}, "the model sees one image"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, options, told):
    with pytest.raises((ConfigError, MismatchError), match=told):
        backend(folder, **options)


def altered(folder, tmp_path, **changes):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_stats": {}}, "holds no statistics"),
        ({"model_type": "spatialvla"}, "brings code of its own, which is not run here"),
        ({"n_action_bins": 512}, "n_action_bins 512, expected 256"),
        ({"use_fused_vision_backbone": False}, "have no place"),
        ({"text_config": {"model_type": "llama", "hidden_size": 64}}, "have the wrong shape"),
    ],
)
def test_checkpoints_that_cannot_run_are_refused(folder, tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        backend(altered(folder, tmp_path, **changes))


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    copy = altered(folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["vision_backbone.featurizer.blocks.0.norm1.bias"]
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match="1 weights are missing"):
        backend(copy)


def test_a_model_that_talks_is_no_policy(folder):
    with pytest.raises(InferenceError, match=r"no action \(ids 744 .. 999\)"):
        backend(folder, vocabulary=1000).infer(observation(), None)


# Models of transformers


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A tiny PaliGemma with its processor, whose answers are actions."""
    folder = tmp_path_factory.mktemp("native")
    inner = write_tokenizer(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    images = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCABULARY}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "image_size": 28}
    vision |= {"patch_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2, "vision_use_head": False}
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=32,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_()
        model.lm_head.weight[: VOCABULARY - 256] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    return folder, model, processor


def test_models_of_transformers(native):
    folder, model, processor = native
    seen = observation(instruction="put the red cube in the tray")
    prompt = "In: What action should the robot take to put the red cube in the tray?\nOut:"
    given = processor(images=[Image.fromarray(seen.images["front"])], text=prompt, return_tensors="pt")
    tokens = model.generate(**given, do_sample=False, min_new_tokens=7, max_new_tokens=7)[0, -7:].numpy()
    chunk = backend(folder, vocabulary=VOCABULARY).infer(seen, None)
    np.testing.assert_allclose(chunk.positions[0], expected(tokens, seen).positions[0], atol=1e-6)


@pytest.mark.parametrize("key", [{"crop": 0.9}, {"compile": "default"}])
def test_what_only_openvla_checkpoints_know_is_refused_for_others(native, key):
    with pytest.raises(ConfigError, match=f"option {next(iter(key))} is for OpenVLA checkpoints"):
        backend(native[0], **key)


def test_an_image_text_model_without_a_processor_is_refused(native, tmp_path):
    copy = shutil.copytree(native[0], tmp_path / "copy")
    (copy / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match="the processor of checkpoint"):
        backend(copy)
