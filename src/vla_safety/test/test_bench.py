"""The benchmark measures what it says: stops of a robot in motion, for the reason that was given."""

import pytest
from rig import HOME, ROBOT

from vla_safety import bench

pytest.importorskip("vla_msgs.msg")


def test_i10_reactions_are_those_of_a_robot_in_motion():
    result = bench.reactions(ROBOT, stops=4, zones=3)
    assert result["stops"] == 8 and result["stop_wait_max_ms"] == 40.0
    for name in ("stop_reaction", "button_reaction"):
        assert 0 < result[f"{name}_p50_ms"] <= result[f"{name}_p999_ms"]
    assert result["stop_work_p999_ms"] > 0 and result["button_work_p999_ms"] > 0


def test_i10_what_stops_nothing_is_not_measured(monkeypatch):
    monkeypatch.setattr(bench, "_ASTRAY", 0.0)
    with pytest.raises(RuntimeError, match="no stop for tracking_error"):
        bench.reactions(ROBOT, stops=4, zones=3)


def test_i10_a_robot_at_rest_is_not_measured(monkeypatch):
    swing = bench._swing
    monkeypatch.setattr(bench, "_swing", lambda safety, robot, goal, now, k: swing(safety, robot, HOME, now, k))
    with pytest.raises(RuntimeError, match="not in motion"):
        bench.reactions(ROBOT, stops=4, zones=3)
