"""The list of nodes, and the two ways to start it."""

import sys
from pathlib import Path

import pytest

from vla_bringup import files
from vla_bringup.system import DDS_PROFILE_VARIABLES, NodeSpec, demo_system, robot_system
from vla_contract.errors import ConfigError


def names(system):
    return [spec.name for spec in system]


def test_filter_comes_first_and_every_node_is_required():
    system = demo_system()
    assert names(system) == ["vla_safety", "vla_sim", "vla_policy"]
    assert all(spec.required for spec in system)


def test_nodes_share_robot_file_clock_and_lockstep():
    for spec in demo_system(lockstep=True):
        assert Path(spec.parameters["robot"]).is_file()
        assert spec.parameters["use_sim_time"] is True
        assert spec.parameters["lockstep"] is True


def test_on_a_robot_nothing_starts_before_the_filter_is_up():
    system = robot_system("fr3", "flow")
    assert names(system) == ["vla_safety", "vla_wait_for_filter", "vla_policy"]
    assert [spec.gate for spec in system] == [False, True, False]
    assert not any("use_sim_time" in spec.parameters for spec in system)
    assert not any(spec.parameters.get("shadow") or spec.parameters.get("unfiltered") for spec in system)


def test_only_the_simulator_can_play_what_no_filter_has_passed():
    specs = {spec.name: spec.parameters for spec in demo_system(observe_only=True)}
    assert specs["vla_safety"]["shadow"] is True and specs["vla_sim"]["unfiltered"] is True
    specs = {spec.name: spec.parameters for spec in demo_system()}
    assert specs["vla_safety"]["shadow"] is False and specs["vla_sim"]["unfiltered"] is False


def test_names_mean_shipped_files_and_paths_mean_themselves(tmp_path):
    shipped = files.find("robots", "fr3_sim")
    assert shipped.name == "fr3_sim.yaml"
    assert files.find("robots", str(shipped)) == shipped


@pytest.mark.parametrize("name", ["no_such_robot", "no/such.yaml"])
def test_an_unknown_name_lists_those_that_exist(name):
    with pytest.raises(ConfigError, match="fr3_sim"):
        files.find("robots", name)


def test_every_shipped_robot_makes_a_system():
    for robot in files.names("robots"):
        assert names(robot_system(robot, "flow"))[0] == "vla_safety"


def test_a_transport_profile_of_the_user_wins(monkeypatch):
    for variable in DDS_PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert all(Path(demo_system()[0].environment[variable]).is_file() for variable in DDS_PROFILE_VARIABLES)
    monkeypatch.setenv(DDS_PROFILE_VARIABLES[0], "/mine.xml")
    assert DDS_PROFILE_VARIABLES[0] not in demo_system()[0].environment


def test_rviz_is_an_extra_that_takes_nothing_down():
    extra = demo_system(rviz=True)[3:]
    assert names(extra) == ["robot_state_publisher", "rviz2"]
    assert not any(spec.required for spec in extra)


def test_system_module_needs_no_ros():
    source = Path(sys.modules["vla_bringup.system"].__file__).read_text()
    assert "rclpy" not in source
    assert "import launch" not in source


def test_specifications_are_values():
    assert NodeSpec("a", "b", "c") == NodeSpec("a", "b", "c")
