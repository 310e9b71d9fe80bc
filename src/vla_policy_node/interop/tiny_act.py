"""Runs in LeRobot's environment: makes a tiny ACT checkpoint with random weights, and what LeRobot itself answers.

    python tiny_act.py FOLDER

reads `FOLDER/observations.npz` (`state` (N, 8), `image` (N, 96, 96, 3) uint8), writes the checkpoint into
`FOLDER/checkpoint` and `actions` (N, 16, 8) into `FOLDER/actions.npz`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

HORIZON, WIDTH, SIZE = 16, 8, 96


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(WIDTH,)),
            "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(WIDTH,))},
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        dim_model=64,
        n_heads=4,
        dim_feedforward=128,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    policy = ACTPolicy(config).eval()
    vector = {"mean": torch.linspace(-1, 1, WIDTH), "std": torch.linspace(0.5, 1.5, WIDTH)}
    image = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
    statistics = {"observation.state": vector, "action": vector, "observation.images.front": image}
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    checkpoint = folder / "checkpoint"
    for part in (policy, before, after):
        part.save_pretrained(checkpoint)
    seen = np.load(folder / "observations.npz")
    chunks = []
    for state, picture in zip(seen["state"], seen["image"], strict=True):
        batch = before(
            {
                "observation.state": torch.tensor(state, dtype=torch.float32)[None],
                "observation.images.front": torch.tensor(picture).permute(2, 0, 1)[None].float() / 255,
                "task": "",
            }
        )
        with torch.inference_mode():
            chunk = policy.predict_action_chunk(batch)
        chunks.append(torch.stack([after(chunk[:, k]) for k in range(HORIZON)], dim=1)[0].numpy())
    np.savez(folder / "actions.npz", actions=np.stack(chunks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
