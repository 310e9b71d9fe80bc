"""The node's ROS parameters."""

from dataclasses import dataclass

from vla_node_base.parameters import parameter


@dataclass(frozen=True)
class Parameters:
    """Of the node; what belongs to a policy is in its file."""

    robot: str = parameter("", "path of the robot file")
    policy: str = parameter("", "path of the policy file")
    strategy: str = parameter("", "sync, async, ensemble or rtc; empty: the policy file's", read_only=False)
    default_timeout: float = parameter(60.0, "of a task that names none", unit="s", low=1.0, high=86400.0)
    unarmed_time: float = parameter(
        1.0, "how long the safety filter may be disarmed or e-stopped before a task ends", unit="s", low=0.0, high=60.0
    )
    allow_blank: bool = parameter(False, "take an empty instruction (to measure what a policy does without one)")
    subtask_timeout: float = parameter(
        15.0, "silence of a planner after which the whole task counts again; 0: never", unit="s", low=0.0, high=600.0
    )
    lockstep: bool = parameter(False, "the simulator's clock waits for inferences")
    lockstep_slack: float = parameter(0.05, "how far the simulator runs ahead in lockstep", unit="s", low=0.0, high=1.0)
    simulated_latency: float = parameter(
        0.1, "in lockstep: from observation to chunk, whatever the inference took", unit="s", low=0.0, high=2.0
    )
