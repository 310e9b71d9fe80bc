"""Runs in LeRobot's environment: what our backend answers to the observations of `tiny_act.py`.

    python run_policy.py FOLDER ROBOT_FILE

reads `FOLDER/observations.npz` and `FOLDER/checkpoint`, writes `positions` (N, 16, 8) into `FOLDER/positions.npz`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.policies.vqbet.modeling_vqbet import VQBeTPolicy

from vla_contract.errors import MismatchError
from vla_contract.observation import Observation
from vla_contract.robot import Robot, load_robot
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.core.observations import ObservationBuffer


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
    said: dict[str, Any] = {"variants": variants(folder / "checkpoint", robot, options, observations(seen), positions)}
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
    home = seen["state"][0].astype(np.float64)
    for policy in (diffusion(), vqbet()):
        said[policy.name] = looking_back(policy, folder / policy.name, robot, home)
    (folder / "said.json").write_text(json.dumps(said))


def variants(
    checkpoint: Path, robot: Robot, options: dict[str, Any], seen: list[Observation], plain: list[np.ndarray]
) -> dict[str, float]:
    """Largest distance of the chunks from the `plain` ones, by what is done for speed."""
    found = {}
    for key, value in (("compile", "default"), ("dtype", "bfloat16"), ("dtype", "float32"), ("quantise", "int8")):
        policy = load_backend(locate("lerobot"), checkpoint, robot, {**options, key: value})
        chunks = [policy.infer(now, None).positions for now in seen]
        found[f"{key} {value}"] = float(np.abs(np.stack(chunks) - np.stack(plain)).max())
    return found


# -- policies that look back


def diffusion() -> Any:
    torch.manual_seed(0)
    return DiffusionPolicy(
        DiffusionConfig(
            **features(),
            n_obs_steps=2,
            horizon=16,
            n_action_steps=8,
            down_dims=(16, 32),
            crop_shape=None,
            pretrained_backbone_weights=None,
            num_train_timesteps=4,
        )
    )


def vqbet() -> Any:
    torch.manual_seed(0)
    config = VQBeTConfig(
        **features(),
        n_obs_steps=5,
        action_chunk_size=6,
        gpt_input_dim=32,
        gpt_output_dim=32,
        gpt_hidden_dim=32,
        gpt_n_layer=2,
        gpt_n_head=2,
        vqvae_embedding_dim=16,
        vqvae_enc_hidden_dim=16,
    )
    policy = VQBeTPolicy(config)
    policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    return policy


def features() -> dict[str, Any]:
    return {
        "input_features": {
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
            "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        },
        "output_features": {"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
        "device": "cpu",
    }


def looking_back(policy: Any, folder: Path, robot: Robot, home: np.ndarray) -> dict[str, float]:
    """Our chunks against LeRobot's own loop: `select_action` at each step of 1 / fps, an inference each chunk.

    Returns:
        difference: the largest between the two; neglect: the least of any chunk's from one without a past, which shows
        that the past counts; steps: that our metadata say it looks back.
    """
    policy.eval()
    vector = {"min": torch.full((8,), -3.0), "max": torch.full((8,), 3.0)}
    picture = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
    statistics = {"observation.state": vector, "action": vector, "observation.images.front": picture}
    before, after = make_pre_post_processors(policy.config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(folder)
    backend = load_backend(locate("lerobot"), folder, robot, options_for(robot))
    still = load_backend(locate("lerobot"), folder, robot, options_for(robot))
    history, horizon = backend.metadata.history, backend.metadata.horizon
    buffer: ObservationBuffer[np.ndarray] = ObservationBuffer(("front",), robot.joints, history=history)
    policy.reset()
    torch.manual_seed(0)
    random, difference, neglect = np.random.default_rng(2), 0.0, np.inf
    drawn = torch.get_rng_state()
    for step in range(4 * horizon):
        # A robot that moves: each step's state and picture differ from the last one's.
        state = (home + 0.01 * np.sin(0.7 * step + np.arange(8)) - 0.02).astype(np.float32).astype(np.float64)
        image = random.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        stamp = round((1 + step * history.dt) * 1e9)
        buffer.add_joints(stamp, stamp, robot.joints, state, np.zeros(8))
        buffer.add_image("front", stamp, stamp, image, step)
        batch = {"observation.state": torch.tensor(state, dtype=torch.float32)[None], "task": [""]}
        batch["observation.images.front"] = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        infers = step % horizon == 0
        if infers:
            torch.set_rng_state(drawn)
        action = policy.select_action(before(batch))
        if not infers:
            continue
        rows = [action, *policy._queues["action"]]
        expected = torch.stack([after(row) for row in rows], dim=1)[0].numpy()
        after_lerobot = torch.get_rng_state()
        past = [Observation(one.stamp_ns, one.images, one.positions, one.velocities) for one in buffer.earlier(stamp)]
        now = Observation(stamp, {"front": image}, state, np.zeros(8), earlier=tuple(past))
        torch.set_rng_state(drawn)
        difference = max(difference, float(np.abs(backend.infer(now, None).positions - expected).max()))
        torch.set_rng_state(drawn)
        blind = replace(now, earlier=(replace(now, earlier=()),) * history.steps)
        if step:
            neglect = min(neglect, float(np.abs(still.infer(blind, None).positions - expected).max()))
        drawn = after_lerobot
    return {"difference": difference, "neglect": neglect, "steps": history.steps, "horizon": horizon}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
