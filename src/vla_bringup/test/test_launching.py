"""launch_ros gets the same list as the runner. Where it is not installed, a stand-in notes what it would be given."""

import importlib
import importlib.util
import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vla_bringup.files import share
from vla_bringup.system import NodeSpec, demo_system, robot_system

REAL = importlib.util.find_spec("launch_ros") is not None


class Noted:
    """An action that remembers what it was made of."""

    def __init__(self, *args, **options):
        self.args, self.options = args, options
        self.name = options.get("name")


STAND_IN = {
    "launch": ("Action", "LaunchContext", "LaunchDescription"),
    "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction", "RegisterEventHandler", "Shutdown"),
    "launch.event_handlers": ("OnProcessExit",),
    "launch.events": (),
    "launch.events.process": ("ProcessExited",),
    "launch_ros": (),
    "launch_ros.actions": ("Node",),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
}


@pytest.fixture
def launching(monkeypatch):
    """The module `vla_bringup.launching` with actions that can be looked into."""
    if not REAL:
        for name, classes in STAND_IN.items():
            module = ModuleType(name)
            for item in classes:
                setattr(module, item, type(item, (Noted,), {}))
            monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop("vla_bringup.launching", None)
    module = importlib.import_module("vla_bringup.launching")
    for name in ("Node", "OnProcessExit", "RegisterEventHandler", "Shutdown", "ParameterValue"):
        monkeypatch.setattr(module, name, type(name, (Noted,), {}))
    yield module
    sys.modules.pop("vla_bringup.launching", None)


def as_spec(action, package_gates=("vla_wait_for_filter",)):
    """The node specification that an action stands for."""
    o = action.options
    parameters = {k: v.args[0] if isinstance(v, Noted) else v for k, v in o["parameters"][0].items()}
    return NodeSpec(
        o["package"], o["executable"], o["name"], parameters, tuple(o["remappings"]), tuple(o["arguments"]),
        o["additional_env"], required=o["on_exit"] is not None, gate=o["name"] in package_gates,
    )  # fmt: skip


def nodes(actions):
    return tuple(as_spec(a) for a in actions if type(a).__name__ == "Node")


@pytest.mark.parametrize("system", [lambda: demo_system(seed=5), lambda: demo_system(rviz=True, lockstep=True)])
def test_launch_gets_the_list_that_the_runner_gets(launching, system):
    assert nodes(launching.actions(system())) == system()


def test_a_gate_opens_for_the_rest_or_shuts_everything_down(launching):
    system = robot_system("fr3", "flow")
    actions = launching.actions(system)
    assert nodes(actions) == system[:2]
    (handler,) = [a for a in actions if type(a).__name__ == "RegisterEventHandler"]
    opened = handler.args[0].options["on_exit"]
    assert nodes(opened(SimpleNamespace(returncode=0), None)) == system[2:]
    (refused,) = opened(SimpleNamespace(returncode=3), None)
    assert type(refused).__name__ == "Shutdown"


def test_text_stays_text(launching):
    action = launching.node_action(NodeSpec("p", "e", "n", {"text": "1e3", "number": 2.0}))
    text = action.options["parameters"][0]["text"]
    assert text.args == ("1e3",) and text.options == {"value_type": str}
    assert action.options["parameters"][0]["number"] == 2.0


@pytest.mark.parametrize("name", ["demo", "robot"])
def test_launch_files_start_the_list(launching, name):
    found = runpy.run_path(str(share() / "launch" / f"{name}.launch.py"))
    chosen = {"robot": "fr3_sim", "policy": "flow", "safety": "", "seed": "4", "rviz": "false"}
    found["start"].__globals__["actions"] = launching.actions
    started = nodes(found["start"](SimpleNamespace(launch_configurations=chosen)))
    assert started == (demo_system(seed=4) if name == "demo" else robot_system("fr3_sim", "flow")[:2])
