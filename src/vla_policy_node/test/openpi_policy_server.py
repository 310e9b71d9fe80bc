"""openpi's own server (PyPI `openpi-server`) with a policy whose answers a test can foresee.

    python openpi_policy_server.py PORT

Row k of an answer is 0.01 (k + 1) in every entry; the last entry is the gripper position that was observed. The prompt
chooses how it goes wrong.
"""

import sys
import time

import numpy as np
from openpi_client.base_policy import BasePolicy
from openpi_server import WebsocketPolicyServer

HORIZON, WIDTH = 10, 8


class Policy(BasePolicy):
    def infer(self, obs):
        prompt = obs["prompt"]
        if prompt == "fail":
            raise ValueError("this prompt always fails")
        if prompt == "slow":
            time.sleep(0.8)
        rows = np.repeat(0.01 * np.arange(1, HORIZON + 1)[:, None], WIDTH, axis=1).astype(np.float32)
        rows[:, -1] = obs["observation/gripper_position"][0]
        rows[:, 0] = obs["observation/joint_position"][0]
        if prompt == "short":
            rows = rows[:3]
        if prompt == "wide":
            rows = np.hstack([rows, rows])
        if prompt == "nan":
            rows[2, 1] = np.nan
        return {"text": "no actions here"} if prompt == "text" else {"actions": rows}


if __name__ == "__main__":
    WebsocketPolicyServer(Policy(), host="127.0.0.1", port=int(sys.argv[1]), metadata={"model": "test"}).serve_forever()
