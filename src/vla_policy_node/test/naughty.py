"""A backend that misbehaves on request: the instruction says how. Loaded by real worker processes in the tests."""

import hashlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_contract.interpolation import Trajectory
from vla_contract.policy import file_digest
from vla_policy_node.backends.options import ReplayOptions
from vla_policy_node.backends.replay import ReplayBackend, _read


class Naughty(ReplayBackend):
    deaf = Path("/nowhere")  # while it exists, a reset does not end

    def reset(self):
        super().reset()
        while self.deaf.exists():
            time.sleep(0.01)

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
        if word == "away":
            raise Unavailable("server://far: cannot connect; next attempt in 0.5 s")
        if word == "bug":
            raise ZeroDivisionError("float division by zero")
        if word == "slow":
            time.sleep(float(observation.instruction.split()[1]))
        if word == "sum":
            print("pixels", {name: int(image.astype(int).sum()) for name, image in observation.images.items()})
        chunk = super().infer(observation, prefix)
        if word == "shorten":
            chunk = replace(chunk, shortened="the answer leaves the robot's reach at point 4")
        if word == "digest":
            chunk = replace(chunk, shortened=hashlib.sha256(observation.instruction.encode()).hexdigest())
        if word == "unsendable":
            chunk = replace(chunk, **UNSENDABLE[observation.instruction.split()[1]])
        if word == "points":
            times = 0.01 * np.arange(1, 1 + int(observation.instruction.split()[1]))
            chunk = replace(chunk, trajectory=Trajectory(times, np.repeat(chunk.positions[:1], len(times), axis=0)))
        return chunk


UNSENDABLE = {"stamp": {"stamp_ns": 2**70}, "text": {"shortened": "\ud800"}, "thing": {"shortened": object()}}


class Served(Naughty):
    """As a policy that runs elsewhere, where a file says whether it is there; what the file says is what it answers."""

    server, patience = "server://far", 30.0

    def __init__(self, *arguments, away):
        super().__init__(*arguments)
        self._away = Path(away)

    def check(self):
        if self._away.exists():
            if words := self._away.read_text():
                raise ValueError(words)
            raise Unavailable("server://far: cannot connect; next attempt in 0.5 s")

    def infer(self, observation, prefix):
        self.check()
        return super().infer(observation, prefix)


def load(checkpoint, robot, options):
    options = dict(options)
    away = options.pop("away", "")
    if options.pop("blind", False):
        sys.modules["vla_kinematics"] = None
    hold = Path(options.pop("hold", "/nowhere"))
    while hold.exists():
        time.sleep(0.01)
    if Path(options.pop("full", "/nowhere")).exists():
        raise RuntimeError("CUDA error: out of memory")
    Naughty.deaf = Path(options.pop("deaf", Naughty.deaf))
    if options.pop("refuse_to_load", False):
        raise ConfigError("the checkpoint is of another year")
    if options.pop("need", "") == "torch":
        import a_module_that_nobody_has  # noqa: F401
    if options.pop("torch_free", False):
        assert "rclpy" not in sys.modules
    arguments = (
        _read(checkpoint, robot.joints),
        file_digest(checkpoint),
        checkpoint.stem,
        robot,
        ReplayOptions(**options),
    )
    return Served(*arguments, away=away) if away else Naughty(*arguments)
