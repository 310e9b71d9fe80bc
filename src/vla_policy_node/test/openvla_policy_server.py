"""A double of OpenVLA's and OpenVLA-OFT's REST servers, written from their protocol.

    python openvla_policy_server.py PORT

Answers a step of 1 cm along x and 0.1 rad of yaw, gripper by the sentence; with OFT's keys the observed joints plus
0.01 (k + 1). Failures are the word "error" with status 200, as the real servers have it.
"""

import base64
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


def encode(value):
    data = base64.b64encode(value.tobytes()).decode()
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def decode(entry):
    if "__numpy__" not in entry:
        return entry
    return np.frombuffer(base64.b64decode(entry["__numpy__"]), np.dtype(entry["dtype"])).reshape(entry["shape"])


def act(payload):
    sentence = payload["instruction"]
    if sentence == "slow":
        time.sleep(0.8)
    assert sentence != "fail"
    if "full_image" in payload:
        assert payload["full_image"].shape == payload["left_wrist_image"].shape == (224, 224, 3)
        return [payload["state"] + 0.01 * (k + 1) for k in range(25)]
    assert payload["image"].dtype == np.uint8 and payload["image"].ndim == 3
    assert payload["unnorm_key"] == "bridge_orig"
    if sentence == "words":
        return {"action": "go left"}
    return np.array([0.01, 0, 0, 0, 0, 0.1, float("open" in sentence)])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = 200, "error"
        if self.path != "/act":
            status, answer = 404, {"detail": "Not Found"}
        else:
            try:
                payload = json.loads(body, object_hook=decode)
                twice = "encoded" in payload
                if twice:
                    assert len(payload) == 1
                    payload = json.loads(payload["encoded"], object_hook=decode)
                answer = act(payload)
                answer = json.dumps(answer, default=encode) if twice else answer
            except Exception as error:
                print(repr(error), file=sys.stderr)
        data = json.dumps(answer, default=encode).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
