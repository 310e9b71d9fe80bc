"""A double of NVIDIA's policy server, written from its protocol: REP socket, msgpack, the encodings of three versions.

    python gr00t_policy_server.py PORT VERSION [TOKEN]

Arm: the observed joints plus 0.01 (k + 1); gripper: 1 when the sentence says "open". Sentences also choose how it goes
wrong. Ends with status 3 when it is asked to `kill`: no client of ours may.
"""

import io
import json
import sys
import time

import msgpack
import numpy as np
import zmq

HORIZON = 16


def encode(version):
    def default(value):
        assert isinstance(value, np.ndarray), f"{type(value)} on the wire"
        if version == "n1.7":
            return {
                b"nd": True,
                b"type": value.dtype.str,
                b"kind": b"",
                b"shape": value.shape,
                b"data": value.tobytes(),
            }
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}

    return default


def decode(entry):
    if "__ndarray_class__" in entry:
        return np.load(io.BytesIO(entry["as_npy"]), allow_pickle=False)
    return entry


def configuration(version):
    keys = {
        "video": (["front", "wrist"], [0]),
        "state": (["arm", "gripper"], [0]),
        "language": (["task"], [0]),
        "action": (["arm", "gripper", "base"], list(range(HORIZON))),
    }
    config = {}
    for modality, (names, steps) in keys.items():
        if version == "n1.5":
            names = [name if modality == "language" else f"{modality}.{name}" for name in names]
        entry = {"modality_keys": names, "delta_indices": steps}
        marker = "__ModalityConfig__" if version == "n1.7" else "__ModalityConfig_class__"
        config[modality] = {marker: True, "as_json": json.dumps(entry) if version == "n1.5" else entry}
    return config


def require(condition, text):
    if not condition:
        raise ValueError(text)


def nested(data):
    """What N1.6 and N1.7 check."""
    observation = data["observation"]
    require(data["options"] is None, "options")
    for key, video in observation["video"].items():
        require(isinstance(video, np.ndarray), f"Video key '{key}' must be a numpy array. Got {type(video)}")
        require(video.dtype == np.uint8 and video.ndim == 5 and video.shape[:2] == (1, 1), f"video {key} {video.shape}")
    for key, state in observation["state"].items():
        require(state.dtype == np.float32 and state.ndim == 3, f"State key '{key}' must be float32 (B, T, D)")
    ((task,),) = observation["language"]["task"]
    return observation["state"]["arm"][0, 0], task


def flat(data):
    """What N1.5 checks."""
    require(set(data) == {"video.front", "video.wrist", "state.arm", "state.gripper", "task"}, f"keys {sorted(data)}")
    require(data["video.front"].ndim == 4 and data["state.arm"].ndim == 2, "axes")
    return data["state.arm"][0], data["task"][0]


def act(version, data):
    arm, task = flat(data) if version == "n1.5" else nested(data)
    require(task != "fail", "this task always fails")
    if task == "slow":
        time.sleep(0.8)
    rows = arm + 0.01 * np.arange(1, HORIZON + 1, dtype=np.float32)[:, None]
    actions = {
        "arm": rows.astype(np.float32),
        "gripper": np.full((HORIZON, 1), float("open" in task), np.float32),
        "base": np.zeros((HORIZON, 3), np.float32),
    }
    if task == "short":
        actions = {key: part[:3] for key, part in actions.items()}
    if task == "other dialect":
        return [{"arm": {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [1]}}, {}]
    if task == "no arm":
        del actions["arm"]
    if version == "n1.5":
        actions["gripper"] = actions["gripper"][:, 0]
        return {f"action.{key}": part for key, part in actions.items()}
    return [{key: part[None] for key, part in actions.items()}, {}]


def main(port, version, token=""):
    socket = zmq.Context().socket(zmq.REP)
    socket.bind(f"tcp://127.0.0.1:{port}")
    resets = 0
    while True:
        try:
            request = msgpack.unpackb(socket.recv(), object_hook=decode)
            endpoint = request.get("endpoint", "get_action")
            if token and request.get("api_token") != token:
                reply = {"error": "Unauthorized: Invalid API token"}
            elif endpoint == "kill":
                sys.exit(3)
            elif endpoint == "get_modality_config":
                reply = configuration(version)
            elif endpoint == "ping":
                reply = {"status": "ok", "message": "Server is running"}
            elif endpoint == "reset" and version != "n1.5":
                require(request["data"] == {"options": None}, "reset needs options")
                resets += 1
                reply = {}
            elif endpoint == "get_action":
                reply = act(version, request["data"])
                if version != "n1.5":
                    reply[1]["resets"] = resets
            else:
                raise ValueError(f"Unknown endpoint: {endpoint}")
        except Exception as error:
            reply = {"error": str(error)}
        socket.send(msgpack.packb(reply, default=encode(version)))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
