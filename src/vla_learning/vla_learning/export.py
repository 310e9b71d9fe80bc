"""From a training to a checkpoint folder that the policy node takes."""

from pathlib import Path

from vla_contract.policy import CameraInput, PolicyMetadata, Statistics
from vla_learning.frames import CAMERAS, IMAGE
from vla_learning.stage import DT, HORIZON
from vla_learning.training import Trainer
from vla_policy_node.backends.flow.checkpoint import save_checkpoint

ARM = tuple(f"fr3_joint{i}" for i in range(1, 8))
FINGER = "fr3_finger_joint1"
TOOL = "fr3_hand_tcp"


def export(folder: Path, trainer: Trainer, facts: dict[str, str | int | float]) -> PolicyMetadata:
    """Writes the averaged weights with their metadata; `facts` go into the metadata for people to read."""
    norm = trainer.normalisation
    trainer.average.step_scale.copy_(trainer.model.step_scale)
    metadata = PolicyMetadata(
        name="flow",
        cameras={name: CameraInput(height=IMAGE, width=IMAGE) for name in CAMERAS},
        joints=(*ARM, FINGER),
        state=(
            *(f"{name}.position[rad]" for name in ARM),
            f"{FINGER}.position[m]",
            *(f"{TOOL}.{axis}[m, base frame]" for axis in "xyz"),
        ),
        action_space="ee_delta_position",
        action=(
            *(f"{TOOL}.d{axis}[m, base frame, from the observation]" for axis in "xyz"),
            "gripper[0 closed, 1 open]",
        ),
        horizon=HORIZON,
        dt=DT,
        tool_frame=TOOL,
        statistics={
            "state": _statistics(norm.state_mean, norm.state_std),
            "action": _statistics(norm.action_mean, norm.action_std),
        },
        training={"steps": trainer.step, "frames": len(trainer.frames), "seed": trainer.settings.seed, **facts},
    )
    return save_checkpoint(folder, trainer.average, metadata)


def _statistics(mean: object, std: object) -> Statistics:
    return Statistics(mean=tuple(map(float, mean)), std=tuple(map(float, std)))  # type: ignore[call-overload]
