"""Runs in LeRobot's environment: a tiny SmolVLA with random weights, asked through our backend and by LeRobot itself.

    python tiny_smolvla.py FOLDER ROBOT_FILE

reads `FOLDER/observations.npz`, makes the language model's folder `FOLDER/vlm` and the checkpoint `FOLDER/smolvla`,
writes `FOLDER/smolvla.json`: largest `difference` of our chunks from LeRobot's, the same of `compiled` ones,
and how far LeRobot's `spread`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from run_policy import observations, options_for
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from vla_contract.errors import ConfigError
from vla_contract.robot import load_robot
from vla_policy_node.backends import load_backend, locate

SIZE = 32  # pixels that the vision tower sees
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .\n"
ORDINARY = ("<pad>", "<bos>", "<eos>", "<unk>")
EXTRA = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global>", "end": "<end>"}


def make_language_model(folder: Path) -> None:
    """Configuration, tokenizer and processor, as a folder of the hub holds them; the checkpoint has the weights."""
    words = {word: number for number, word in enumerate([*ORDINARY, *EXTRA.values(), *CHARACTERS])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), ORDINARY, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, extra_special_tokens=EXTRA, **names)
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIZE, "patch_size": 8}
    config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=4, pad_token_id=0)
    config.save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)


def make_policy(folder: Path, language_model: Path):
    """Policy, preprocessor, postprocessor; saved in `folder`."""
    torch.manual_seed(0)
    config = SmolVLAConfig(
        input_features={
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
            "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
        vlm_model_name=str(language_model),
        load_vlm_weights=False,
        chunk_size=16,
        n_action_steps=16,
        num_steps=4,
        num_vlm_layers=2,
        max_state_dim=12,
        max_action_dim=12,
        resize_imgs_with_padding=(SIZE, SIZE),
        device="cpu",
    )
    policy = SmolVLAPolicy(config).eval()
    vector = {"mean": torch.linspace(-1, 1, 8), "std": torch.linspace(0.5, 1.5, 8)}
    before, after = make_pre_post_processors(config, dataset_stats={"observation.state": vector, "action": vector})
    for part in (policy, before, after):
        part.save_pretrained(folder)
    return policy, before, after


def main(folder: Path, robot_file: Path) -> None:
    make_language_model(folder / "vlm")
    policy, before, after = make_policy(folder / "smolvla", folder / "vlm")
    robot, seen = load_robot(robot_file), observations(np.load(folder / "observations.npz"))
    moved = (folder / "vlm").rename(folder / "elsewhere")  # the checkpoint names a place that is no more
    try:
        load_backend(locate("lerobot"), folder / "smolvla", robot, options_for(robot))
        refused = ""
    except ConfigError as error:
        refused = str(error)
    options = {**options_for(robot), "backbone": str(moved)}
    backend = load_backend(locate("lerobot"), folder / "smolvla", robot, options)
    ours = [backend.infer(now, None).positions for now in seen]
    torch._inductor.config.fallback_random = True  # compiled code draws other noise from the same seed
    backend = load_backend(locate("lerobot"), folder / "smolvla", robot, {**options, "compile": "default"})
    compiled = [backend.infer(now, None).positions for now in seen]
    torch.manual_seed(0)
    theirs = []
    for now in seen:
        batch = before(
            {
                "observation.state": torch.tensor(now.positions, dtype=torch.float32)[None],
                "observation.images.front": torch.tensor(now.images["front"]).permute(2, 0, 1)[None].float() / 255,
                "task": [now.instruction],
            }
        )
        chunk = policy.predict_action_chunk(batch)
        theirs.append(torch.stack([after(chunk[:, k]) for k in range(16)], dim=1)[0].numpy())
    said = {
        "difference": float(np.abs(np.stack(ours) - np.stack(theirs)).max()),
        "compiled": float(np.abs(np.stack(compiled) - np.stack(theirs)).max()),
        "spread": float(np.abs(np.diff(theirs, axis=0)).max()),
        "refused": refused,
    }
    (folder / "smolvla.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
