"""A double of LeRobot's policy server, written from its protocol. Its replies are true pickles of true dataclasses with
true torch tensors, and it unpickles what it is sent as the real one does.

    python lerobot_policy_server.py PORT

Row k is the observed state plus 0.01 (k + 1). The task chooses how it goes wrong.
"""

import dataclasses
import pickle
import sys
import time
import types
from concurrent import futures
from queue import Empty, Queue

import grpc
import numpy as np
import torch

HELPERS = types.ModuleType("lerobot.async_inference.helpers")


def known_as_lerobot(cls):
    cls.__module__, cls.__qualname__ = HELPERS.__name__, cls.__name__
    setattr(HELPERS, cls.__name__, cls)
    return cls


@known_as_lerobot
@dataclasses.dataclass
class TimedAction:
    timestamp: float
    timestep: int
    action: torch.Tensor


@known_as_lerobot
@dataclasses.dataclass
class TimedObservation:
    timestamp: float
    timestep: int
    observation: dict
    must_go: bool = False


@known_as_lerobot
@dataclasses.dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict = dataclasses.field(default_factory=dict)


for name in ("lerobot", "lerobot.async_inference"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[HELPERS.__name__] = HELPERS


class Bomb:
    def __reduce__(self):
        return (eval, ("__import__('os')._exit(9)",))


def parse(frame):
    """Fields of a small protobuf frame: number -> value."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        number = shift = 0
        while True:
            byte = frame[at]
            at, number, shift = at + 1, number | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return number

    while at < len(frame):
        tag = varint()
        value = varint()
        if tag & 7 == 2:
            value, at = frame[at : at + value], at + value
        fields[tag >> 3] = value
    return fields


def framed(data):
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x0a" + bytes(length) + bytes([size]) + data


class Servicer:
    def __init__(self):
        self.config, self.queue, self.last = None, Queue(maxsize=1), None

    def ready(self, request, context):
        self.queue = Queue(maxsize=1)
        return b""

    def setup(self, request, context):
        config = pickle.loads(parse(request)[1])
        assert isinstance(config, RemotePolicyConfig), type(config)
        if config.pretrained_name_or_path == "missing":
            raise FileNotFoundError("no such checkpoint")
        assert config.rename_map == {} and config.actions_per_chunk == 16
        self.config = config
        return b""

    def observe(self, frames, context):
        states, data = [], b""
        for frame in map(parse, frames):
            states.append(frame[1])
            data += frame[2]
        assert states[-1] == 3 and states[:-1] == [1, *[2] * (len(states) - 2)][: len(states) - 1], states
        observation = pickle.loads(data)
        assert isinstance(observation, TimedObservation), type(observation)
        if observation.must_go or self.last is None:  # the real one compares states otherwise
            self.queue.put(observation)
        self.last = observation
        return b""

    def act(self, request, context):
        try:
            observation = self.queue.get(timeout=0.2)
            return framed(pickle.dumps(self.infer(observation)))
        except (Empty, ValueError) as error:
            print(f"no actions: {error!r}", file=sys.stderr)
            return b""

    def infer(self, observation):
        raw, features = observation.observation, self.config.lerobot_features
        state = np.array([raw[key] for key in features["observation.state"]["names"]], dtype=np.float32)
        for name in ("front", "wrist"):
            image = raw[name]
            assert image.dtype == np.uint8 and image.shape == features[f"observation.images.{name}"]["shape"]
        task = raw["task"]
        if task == "fail":
            raise ValueError("this task always fails")
        if task == "slow":
            time.sleep(0.8)
        if task == "bomb":
            return [Bomb()]
        if task == "words":
            return {"actions": "go left"}
        rows = torch.tensor(state) + 0.01 * torch.arange(1, 17)[:, None]
        if task == "short":
            rows = rows[:3]
        start, step = observation.timestamp, observation.timestep
        return [TimedAction(start + k / 30, step + k, row) for k, row in enumerate(rows)]


def main(port):
    servicer = Servicer()
    handlers = {
        "Ready": grpc.unary_unary_rpc_method_handler(servicer.ready),
        "SendPolicyInstructions": grpc.unary_unary_rpc_method_handler(servicer.setup),
        "SendObservations": grpc.stream_unary_rpc_method_handler(servicer.observe),
        "GetActions": grpc.unary_unary_rpc_method_handler(servicer.act),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("transport.AsyncInference", handlers)])
    assert server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(int(sys.argv[1]))
