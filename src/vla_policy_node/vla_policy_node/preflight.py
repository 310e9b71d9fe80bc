"""Says whether a policy fits a robot, before anything is started.

    python -m vla_policy_node.preflight ROBOT_FILE POLICY_FILE

ends with status 0, or with 2 and one line for every misfit.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_contract.errors import ConfigError, MismatchError, VlaError, unknown
from vla_contract.policy import METADATA_FILE, PolicyMetadata, check_fit, load_metadata
from vla_contract.robot import Robot, load_robot
from vla_policy_node.config import PolicyFile, load_policy_file


def preflight(robot: Robot, policy: PolicyFile) -> PolicyMetadata | None:
    """Checks all that files alone can tell; None: this backend's metadata is known only once it is loaded.

    Raises:
        ConfigError: when a file, the backend or the interpreter is missing or wrong.
        MismatchError: with every misfit of policy and robot: key, expected, found.
    """
    robot.limits()
    spec = policy.worker(robot.path)
    if spec.interpreter and shutil.which(spec.interpreter) is None:
        raise ConfigError(
            f"{policy.path}: interpreter '{spec.interpreter}' does not exist or is not executable; "
            "make that environment, or leave the key out to use the node's own"
        )
    if not (spec.checkpoint / METADATA_FILE).is_file():
        return None
    metadata = load_metadata(spec.checkpoint)
    check_fit(metadata, robot)
    return metadata


@dataclass(frozen=True)
class ImageFormat:
    """What an image message says about itself."""

    width: int
    height: int
    encoding: str
    frame: str


ENCODINGS = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")


def image_misfits(robot: Robot, camera: str, found: ImageFormat) -> list[str]:
    """How the images that arrive differ from what the robot file says; empty: they do not."""
    expected = robot.cameras[camera]
    misfits = []
    if (found.width, found.height) != (expected.width, expected.height):
        misfits.append(
            f"camera {camera}: size {found.width}x{found.height}, "
            f"{robot.path.name} says {expected.width}x{expected.height}"
        )
    if found.encoding not in ENCODINGS:
        misfits.append(f"camera {camera}: {unknown('encoding', found.encoding, ENCODINGS)}")
    if found.frame != expected.frame:
        misfits.append(f"camera {camera}: frame '{found.frame}', {robot.path.name} says '{expected.frame}'")
    return misfits


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    paths = list(sys.argv[1:] if arguments is None else arguments)
    if len(paths) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        robot, policy = load_robot(Path(paths[0])), load_policy_file(Path(paths[1]))
        metadata = preflight(robot, policy)
    except MismatchError as error:
        print("\n".join(error.misfits), file=sys.stderr)
        return 2
    except VlaError as error:
        print(error, file=sys.stderr)
        return 2
    shown = (
        "its metadata is known once it is loaded" if metadata is None else f"{metadata.name}, sha256 {metadata.digest}"
    )
    print(f"policy {policy.path.name} fits robot {robot.name} ({shown})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
