"""The chunk-scheduling strategy changes again and again while the shipped policy moves the cube: nobody notices."""

import itertools

import numpy as np
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from vla_msgs.msg import ActionChunk as ActionChunkMsg

from vla_node_base.conversions import chunk_from_msg
from vla_node_base.qos import COMMAND

STRATEGIES = ("ensemble", "rtc", "sync", "async")
EVERY = 0.7  # s simulated: in the middle of a chunk, of an inference, at any instant


class Splices:
    """Steps in position (rad) and velocity (rad/s) from each chunk to the next, where that begins."""

    def __init__(self, operator):
        self._before, self.steps = None, []
        operator.node.create_subscription(ActionChunkMsg, "/vla_policy/chunk", self._on_chunk, COMMAND)

    def _on_chunk(self, message):
        chunk, before = chunk_from_msg(message), self._before
        if before is not None:
            begins = chunk.stamp_ns + chunk.trajectory.start * 1e9
            was = before.trajectory.sample((begins - before.stamp_ns) * 1e-9)
            is_ = chunk.trajectory.sample(chunk.trajectory.start)
            differences = (np.abs(getattr(is_, f) - getattr(was, f)).max() for f in ("positions", "velocities"))
            self.steps.append(tuple(float(each) for each in differences))
        self._before = chunk


def test_the_strategy_changes_in_mid_task_without_a_step_a_gap_or_a_refusal(start):
    session = start("vla_sim", "vla_safety", "vla_policy")
    session.prepare(1)
    operator = session.operator
    splices = Splices(operator)
    client = operator.node.create_client(SetParameters, "/vla_policy/set_parameters")
    names, changed, asked = itertools.cycle(STRATEGIES), [], []
    began = operator.time_s

    def change(*_):
        if operator.time_s < began + EVERY * len(changed) or (asked and not asked[-1].done()):
            return
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=next(names))
        changed.append(value.string_value)
        asked.append(client.call_async(SetParameters.Request(parameters=[Parameter(name="strategy", value=value)])))

    result = session.trial("put the red cube in the tray", "red_cube", tick=change)
    assert result.verdict.success, result
    assert len(changed) >= 8 and all(each.result().results[0].successful for each in asked if each.done())
    position, velocity = np.array(splices.steps).max(axis=0)
    print(f"{len(changed)} changes, {len(splices.steps)} splices: steps up to {position:.2g} rad, {velocity:.2g} rad/s")
    assert position < 1e-6 and velocity < 1e-5
    assert operator.status.starved == 0
    assert set(result.episode.decisions) <= {"accepted", "slowed", "stopped"}  # `sync` rests after each chunk
