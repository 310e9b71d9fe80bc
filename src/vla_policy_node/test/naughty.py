"""A backend that misbehaves on request: the instruction says how. Loaded by real worker processes in the tests."""

import os
import time
from pathlib import Path

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.policy import file_digest
from vla_policy_node.backends.replay import Options, ReplayBackend, _read


class Naughty(ReplayBackend):
    def infer(self, observation, prefix):
        word = observation.instruction.partition(" ")[0]
        if word == "crash":
            os.kill(os.getpid(), 11)
        if word == "crash-once" and not (flag := Path(observation.instruction.partition(" ")[2])).exists():
            flag.touch()
            os._exit(7)
        if word == "hang":
            time.sleep(3600)
        if word == "refuse":
            raise InferenceError("the picture is too dark")
        if word == "bug":
            raise ZeroDivisionError("float division by zero")
        if word == "slow":
            time.sleep(float(observation.instruction.split()[1]))
        if word == "sum":
            print("pixels", {name: int(image.astype(int).sum()) for name, image in observation.images.items()})
        return super().infer(observation, prefix)


def load(checkpoint, robot, options):
    options = dict(options)
    if options.pop("refuse_to_load", False):
        raise ConfigError("the checkpoint is of another year")
    if options.pop("need", "") == "torch":
        import a_module_that_nobody_has  # noqa: F401
    if options.pop("torch_free", False):
        import sys

        assert "rclpy" not in sys.modules
    return Naughty(_read(checkpoint, robot.joints), file_digest(checkpoint), checkpoint.stem, robot, Options(**options))
