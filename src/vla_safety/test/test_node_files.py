"""What the filter was made of: robot file, safety file, mesh files. With the real node."""

import numpy as np
import pytest
import yaml
from node_bench import running
from node_inside import inside
from rig import BRINGUP, ROBOT
from test_meshes import CORNERS, obj

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vla_msgs.msg import SafetyState  # noqa: E402

import vla_safety.node  # noqa: E402
from vla_node_base.domains import free_domain  # noqa: E402
from vla_node_base.qos import COMMAND  # noqa: E402
from vla_safety.core.audit import AuditError  # noqa: E402


def robot_file(tmp_path, **changes):
    """The shipped robot file with other keys, elsewhere."""
    keys = yaml.safe_load(ROBOT.path.read_text()) | changes
    keys["description"] = {k: str(ROBOT.resolve(v)) for k, v in keys["description"].items()}
    keys["safety"] = str(ROBOT.resolve(ROBOT.safety))
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_controller_that_the_robot_file_names_must_be_the_one_that_listens(tmp_path, monkeypatch):
    topic = ROBOT.controller.topic
    robot = robot_file(tmp_path, controller={"topic": topic, "name": "arm_controller"})
    with running(tmp_path, monkeypatch, robot) as bench:
        bench.mode(SafetyState.DISARMED)
        bench.until(lambda: "no controller listens" in bench.call("arm").message, "the refusal: only the bench listens")
        # Another one with nearly that name is another one.
        for name, arms in (("arm_controller_2", False), ("arm_controller", True)):
            node = rclpy.create_node(name)
            node.create_subscription(JointTrajectory, topic, lambda _: None, COMMAND)
            bench.until(lambda: bench.node.count_subscribers(topic) > 1, "discovery")
            if arms:
                bench.arm()
            else:
                assert "no controller listens" in bench.call("arm").message
            node.destroy_node()
            bench.until(lambda: bench.node.count_subscribers(topic) == 1, "that it is gone")


def test_of_two_mesh_files_of_one_name_each_is_watched(bench):
    far = np.array([3.0, 0.0, 3.0])  # out of the arm's reach
    zones = ""
    for folder in ("left", "right"):
        (bench.tmp_path / folder).mkdir()
        (bench.tmp_path / folder / "hull.obj").write_bytes(obj(far + CORNERS))
        zones += f"  - {{name: {folder}, kind: keep_out, mesh: {{file: {folder}/hull.obj}}}}\n"
    path = bench.tmp_path / "cell.yaml"
    path.write_text(path.read_text().replace("zones:\n", f"zones:\n{zones}"))
    bench.mode(SafetyState.DISARMED)
    bench.until(lambda: bench.call("reload").message == "zones left, right, workspace, table", "reload")
    for folder in ("left", "right"):
        mesh = bench.tmp_path / folder / "hull.obj"
        before = mesh.read_bytes()
        mesh.write_bytes(before + b"# touched\n")
        answer = bench.call("arm").message
        assert f"{folder}/hull.obj" in answer and "was changed since it was read" in answer, answer
        mesh.write_bytes(before)
    bench.arm()


@pytest.mark.parametrize("key", ["period: 0.02", "lead: 0.1", "segment: 0.3"])
def test_the_cycle_holds_as_long_as_the_filter_runs(tmp_path, key):
    """Timers and the lifespan of commands are made of it."""
    with inside(tmp_path) as it:
        file = tmp_path / "cell.yaml"
        before = file.read_text()
        assert "\ncycle:" not in before
        file.write_text(f"{before}\ncycle:\n  {key}\n")
        refused = it.call("reload")
        assert not refused.success and "`cycle` holds as long as the filter runs; restart it" in refused.message
        file.write_text(before)
        assert it.call("reload").success


def test_a_reload_that_fails_at_its_last_step_leaves_every_part_on_the_old_rules(tmp_path, monkeypatch):
    """The record of the new filter cannot be begun: adapters that had taken the new files take the old ones back."""
    path = tmp_path / "cell.yaml"
    path.write_text((BRINGUP / "config/safety/cell.yaml").read_text())
    parameters = ["-p", f"robot:={ROBOT.path}", "-p", f"safety:={path}", "-p", f"audit_dir:={tmp_path}/audit"]
    with free_domain() as domain:
        rclpy.init(args=["--ros-args", *parameters], domain_id=domain)
        try:
            node = vla_safety.node.SafetyNode()
            node.trigger_configure()
            before = node.filter
            rebuilt = []
            for adapter in node._adapters:
                monkeypatch.setattr(
                    adapter, "rebuilt", lambda parts, own=adapter.rebuilt: (rebuilt.append(parts), own(parts))
                )

            def fail(*_):
                raise AuditError("no space left on device")

            monkeypatch.setattr(vla_safety.node, "RecordedFilter", fail)
            path.write_text(path.read_text().replace("margin: 0.004", "margin: 0.001"))
            answer = node._reload(before, node.instant())
            assert not answer.success and "no space left on device" in answer.message
            assert node.filter is before and node.safety.config.margin == 0.004
            count = len(node._adapters)
            assert [parts.config.margin for parts in rebuilt] == count * [0.001] + count * [0.004]
            node.destroy_node()
        finally:
            rclpy.try_shutdown()
