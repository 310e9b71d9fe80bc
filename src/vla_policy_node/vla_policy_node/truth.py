"""ROS in front of a scripted expert: the simulator's ground truth becomes a part of its observations.

Only a policy whose metadata says that it reads ground truth gets it, and only under `use_sim_time`: the runtime refuses
it on a robot.
"""

import numpy as np
from vla_msgs.msg import SceneState

from vla_node_base.node import VlaNode
from vla_node_base.qos import LATCHED
from vla_policy_node.runtime import Runtime

_TOPIC = "vla_sim/ground_truth"


def read_truth(node: VlaNode, runtime: Runtime) -> None:
    """Keeps `runtime.truth` up to date from now on. Called again after a restart of the worker, it does nothing."""
    if any(subscription.topic_name.endswith(_TOPIC) for subscription in node.subscriptions):
        return

    def on_scene(message: SceneState) -> None:
        runtime.truth = {
            item.name: np.array(
                [getattr(item.pose.position, axis) for axis in "xyz"]
                + [getattr(item.pose.orientation, axis) for axis in "wxyz"]
            )
            for item in message.objects
        }

    node.create_subscription(SceneState, _TOPIC, on_scene, LATCHED)
