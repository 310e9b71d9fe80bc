"""Runs in LeRobot's environment: what our backend answers to the observations of `tiny_act.py`.

    python run_policy.py FOLDER ROBOT_FILE

reads `FOLDER/observations.npz` and `FOLDER/checkpoint`, writes `positions` (N, 16, 8) into `FOLDER/positions.npz`.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

from vla_contract.errors import MismatchError
from vla_contract.observation import Observation
from vla_contract.robot import Robot, load_robot
from vla_policy_node.backends import load_backend, locate


def options_for(robot: Robot) -> dict[str, Any]:
    return {
        "inputs": {
            "observation.images.front": {"camera": "front", "height": 96, "width": 96},
            "observation.state": {"state": ["joint_position"], "joints": list(robot.joints)},
            "task": {"text": "instruction"},
        },
        "action": {"space": "joint_position", "joints": list(robot.joints)},
        "dt": 0.05,
        "device": "cpu",
    }


def observations(seen: Mapping[str, np.ndarray]) -> list[Observation]:
    return [
        Observation(k, {"front": image}, state.astype(np.float64), np.zeros(8), "put the red cube in the tray")
        for k, (state, image) in enumerate(zip(seen["state"], seen["image"], strict=True))
    ]


def main(folder: Path, robot_file: Path) -> None:
    robot, seen = load_robot(robot_file), np.load(folder / "observations.npz")
    options = options_for(robot)
    policy = load_backend(locate("lerobot"), folder / "checkpoint", robot, options)
    positions = [policy.infer(now, None).positions for now in observations(seen)]
    np.savez(folder / "positions.npz", positions=np.stack(positions))
    said = {}
    small = {**options["inputs"], "observation.images.front": {"camera": "front", "height": 64, "width": 64}}
    try:
        load_backend(locate("lerobot"), folder / "checkpoint", robot, {**options, "inputs": small})
    except MismatchError as error:
        said["size"] = str(error)
    # Statistics that are gone: LeRobot itself would answer without normalising.
    for file in (folder / "checkpoint").glob("policy_p*_normalizer_processor.safetensors"):
        from safetensors.numpy import load_file, save_file

        kept = {key: value for key, value in load_file(file).items() if not key.startswith("observation.state")}
        save_file(kept, file)
    try:
        load_backend(locate("lerobot"), folder / "checkpoint", robot, options)
    except MismatchError as error:
        said["statistics"] = str(error)
    said["diffusion"] = difference_of_a_policy_that_looks_back(folder / "diffusion", robot, seen)
    (folder / "said.json").write_text(json.dumps(said))


def difference_of_a_policy_that_looks_back(folder: Path, robot: Robot, seen: Mapping[str, np.ndarray]) -> float:
    """Largest difference of our chunks from those of LeRobot's `select_action`, for a tiny Diffusion Policy."""
    torch.manual_seed(0)
    config = DiffusionConfig(
        input_features={
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
            "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
        n_obs_steps=2,
        horizon=8,
        n_action_steps=4,
        down_dims=(16, 32),
        crop_shape=None,
        pretrained_backbone_weights=None,
        num_train_timesteps=4,
        device="cpu",
    )
    policy, vector = DiffusionPolicy(config).eval(), {"min": torch.full((8,), -3.0), "max": torch.full((8,), 3.0)}
    picture = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
    statistics = {"observation.state": vector, "action": vector, "observation.images.front": picture}
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(folder)
    backend = load_backend(locate("lerobot"), folder, robot, options_for(robot))
    ours = [backend.infer(o, None).positions for o in observations(seen)]
    policy.reset()
    torch.manual_seed(0)
    worst = 0.0
    for chunk, now in zip(ours, observations(seen), strict=True):
        policy._queues["action"].clear()
        batch = {"observation.state": torch.tensor(now.positions, dtype=torch.float32)[None], "task": [now.instruction]}
        batch["observation.images.front"] = torch.tensor(now.images["front"]).permute(2, 0, 1)[None].float() / 255
        rows = [policy.select_action(before(batch)), *policy._queues["action"]]
        expected = torch.stack([after(row) for row in rows], dim=1)[0].numpy()
        worst = max(worst, float(np.abs(expected - chunk).max()))
    return worst


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
