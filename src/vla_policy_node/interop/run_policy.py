"""Runs in LeRobot's environment: what our backend answers to the observations of `tiny_act.py`.

    python run_policy.py FOLDER ROBOT_FILE

reads `FOLDER/observations.npz` and `FOLDER/checkpoint`, writes `positions` (N, 16, 8) into `FOLDER/positions.npz`.
"""

import json
import sys
from pathlib import Path

import numpy as np

from vla_contract.errors import MismatchError
from vla_contract.observation import Observation
from vla_contract.robot import load_robot
from vla_policy_node.backends import load_backend, locate


def main(folder: Path, robot_file: Path) -> None:
    robot, seen = load_robot(robot_file), np.load(folder / "observations.npz")
    options = {
        "inputs": {
            "observation.images.front": {"camera": "front", "height": 96, "width": 96},
            "observation.state": {"state": ["joint_position"], "joints": list(robot.joints)},
            "task": {"text": "instruction"},
        },
        "action": {"space": "joint_position", "joints": list(robot.joints)},
        "dt": 0.05,
        "device": "cpu",
    }
    policy = load_backend(locate("lerobot"), folder / "checkpoint", robot, options)
    positions = []
    for k, (state, image) in enumerate(zip(seen["state"], seen["image"], strict=True)):
        now = Observation(k, {"front": image}, state.astype(np.float64), np.zeros(8), "put the red cube in the tray")
        positions.append(policy.infer(now, None).positions)
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
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
