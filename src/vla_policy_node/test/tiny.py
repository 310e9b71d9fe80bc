"""Tiny random models of published architectures, built in seconds, and what a policy file says of them."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .:?,'\n"
IMAGE_TOKEN = 90
JOINTS = [f"fr3_joint{i}" for i in range(1, 8)]

PI0_OPTIONS = {
    "inputs": {
        "base": {"camera": "front"},
        "wrist": {"camera": "wrist"},
        "state": {"state": ["joint_position", "gripper_open"]},
        "prompt": {"text": "instruction"},
    },
    "action": {"space": "joint_position", "gripper": {"open": 1.0, "closed": 0.0}},
    "device": "cpu",
    "threads": 1,
}


def write_tokenizer(folder: Path, first: int = 10) -> Tokenizer:
    """One token for each character, ids from `first` on."""
    vocabulary = {"<unk>": 3} | {character: first + i for i, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def pi0_model(seed: int = 0, layers: int = 2):
    """π0 with some ten thousand weights, 16 tokens an image, chunks of 10 rows."""
    import torch
    from transformers import PI0Config, PI0ForConditionalGeneration

    text = {"model_type": "gemma", "num_hidden_layers": layers, "intermediate_size": 48}
    text |= {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    vision = {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 56, "num_hidden_layers": 1}
    vision |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vision_use_head": False}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {**text, "vocab_size": 100},
            "vision_config": vision,
            "projection_dim": 32,
            "image_token_id": IMAGE_TOKEN,
        },
        dit_config=text,
        chunk_size=10,
        max_state_dim=12,
        max_action_dim=12,
        num_inference_steps=5,
    )
    torch.manual_seed(seed)
    model = PI0ForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # from the usual start, three times larger: else the network hardly answers
        parameter.mul_(3.0)
    return model


def pi0_metadata() -> dict:
    """policy.json for the FR3 of the suite."""
    state = [f"joint_position:{joint}" for joint in JOINTS] + ["gripper_open"]
    return {
        "name": "tiny_pi0",
        "cameras": {name: {"height": 224, "width": 224} for name in ("front", "wrist")},
        "joints": [*JOINTS, "fr3_finger_joint1"],
        "state": state,
        "action_space": "joint_position",
        "action": [*JOINTS, "gripper"],
        "horizon": 10,
        "dt": 0.05,
        "statistics": {
            "state": {
                "mean": [0.1, -0.2, 0.3, -2.3, 0.4, 2.2, 0.6, 0.7],
                "std": [*(1.0 + 0.1 * i for i in range(7)), 0.4],
            },
            "action": {"mean": [0.0, -0.5, 0.0, -2.8, 0.0, 3.0, 0.7, 0.5], "std": [0.3 + 0.01 * i for i in range(8)]},
        },
    }
