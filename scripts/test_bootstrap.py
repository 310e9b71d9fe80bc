"""Laws of the setup and of the test runner's bookkeeping, on throw-away checkouts; nothing is installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap
import run_tests
from vla_setup import environment, process, state, steps

REPOSITORY = Path(__file__).resolve().parent.parent


def make_package(source: Path, name: str) -> Path:
    """A Python package with every kind of file that setup looks at."""
    folder = source / name
    for relative, text in {
        "package.xml": "<package/>",
        "setup.py": "setup()",
        f"{name}/__init__.py": "",
        "config/robot.yaml": "a: 1",
        "launch/demo.launch.py": "",
        "msg/State.msg": "uint8 mode",
        "test/test_it.py": "",
    }.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("relative", "rebuilds"),
    [
        ("package.xml", True),
        ("setup.py", True),
        ("msg/State.msg", True),
        ("msg/New.msg", True),
        ("config/new.yaml", True),
        ("launch/new.launch.py", True),
        ("config/robot.yaml", False),
        ("launch/demo.launch.py", False),
        ("pack/__init__.py", False),
        ("pack/new.py", False),
        ("pack/__pycache__/new.pyc", False),
        ("test/test_new.py", False),
    ],
)
def test_a_rebuild_follows_from_build_files_and_new_data_files_only(tmp_path, relative, rebuilds):
    folder = make_package(tmp_path, "pack")
    before = state.package_fingerprint(folder)
    path = folder / relative
    path.parent.mkdir(exist_ok=True)
    path.write_text("changed")
    assert (state.package_fingerprint(folder) != before) is rebuilds


def test_folders_without_a_manifest_are_no_packages(tmp_path):
    make_package(tmp_path, "pack")
    (tmp_path / "notes").mkdir()
    assert list(state.packages(tmp_path)) == ["pack"]
    assert state.packages(tmp_path / "absent") == {}


def test_fingerprint_keeps_parts_apart():
    assert state.fingerprint("ab", "c") != state.fingerprint("a", "bc")
    assert state.fingerprint(["ab", "c"]) != state.fingerprint(["a", "bc"])


def test_stamps_survive_a_new_process_and_a_torn_file(tmp_path):
    path = tmp_path / "stamps.json"
    state.Stamps.load(path).set("venv", "1")
    assert state.Stamps.load(path).matches("venv", "1")
    path.write_text('{"venv": ')
    assert state.Stamps.load(path).values == {}


@pytest.mark.parametrize("tag", ["cp311-cp311/include/python3.11", "cp312-cp312/include/python3.12"])
def test_cmake_repair_points_at_this_interpreter_and_is_idempotent(tag):
    library = tag.split("/")[0]
    text = f'"/opt/python/{tag};/opt/python/{library}/lib/python3.11/site-packages/numpy/_core/include;keep"'
    repaired = steps.repair_cmake(text, "/py", "/np")
    assert repaired == '"/py;/np;keep"'
    assert steps.repair_cmake(repaired, "/py", "/np") == repaired


def test_beside_a_sourced_ros_its_pytest_stays_and_the_rest_is_pinned():
    lines = ["# comment", "numpy==2.4.6", "colcon-core==0.21.3", "pytest==9.2.0", "pytest-cov==7.1.0"]
    present = {"numpy": "1.26.4", "pytest": "7.4.4"}
    assert steps.missing_requirements(lines, present) == ["numpy==2.4.6", "colcon-core==0.21.3", "pytest-cov==7.1.0"]
    assert steps.missing_requirements(lines[3:4], present) == []
    assert steps.missing_requirements(lines[1:], {}) == lines[1:]


@pytest.mark.parametrize("name", ["base.txt", "dev.txt", "no-deps.txt", "ros-jazzy.txt", "ros-kilted.txt", "serve.txt"])
def test_every_requirement_is_pinned_exactly_and_once(name):
    lines = (REPOSITORY / "requirements" / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert pins and all(pin.count("==") == 1 for pin in pins)
    assert len(set(names)) == len(names)
    assert not {"torchvision", "cv-bridge"} & set(names)


def pinned(name: str) -> set[str]:
    lines = (REPOSITORY / "requirements" / name).read_text().splitlines()
    return {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize("name", steps.OPTIONAL)
def test_an_optional_part_pins_nothing_that_the_suite_pins_already(name):
    assert not pinned(f"{name}.txt") & (pinned("base.txt") | pinned("dev.txt"))


def test_an_optional_part_is_installed_only_when_asked_for_and_then_kept_up_to_date(tmp_path):
    layout, stamps = state.Layout(tmp_path, "jazzy"), state.Stamps(tmp_path / "stamps.json")

    def step() -> steps.Step | None:
        found = [each for each in steps.Setup(layout, Path(sys.executable), stamps).steps() if each.name == "optional"]
        return found[0] if found else None

    assert step() is None
    stamps.set("with", "serve")
    before = step().seen()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "serve.txt").write_text("ray==1")
    assert step().seen() != before


def layout_of(tmp_path: Path, monkeypatch, env: dict[str, str], distro: str | None = None) -> state.Layout:
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    return bootstrap.choose_layout(distro, Path(sys.executable), env)


def test_distribution_comes_from_the_option_then_the_variable_then_the_default(tmp_path, monkeypatch):
    assert layout_of(tmp_path, monkeypatch, {}).distro == "jazzy"
    assert layout_of(tmp_path, monkeypatch, {"VLA_DISTRO": "kilted"}).distro == "kilted"
    assert layout_of(tmp_path, monkeypatch, {"VLA_DISTRO": "jazzy"}, "kilted").distro == "kilted"
    with pytest.raises(state.SetupError, match="no wheels are pinned"):
        layout_of(tmp_path, monkeypatch, {}, "humble")


def test_a_sourced_ros_is_used_but_our_own_environment_is_not_taken_for_one(tmp_path, monkeypatch):
    sourced = {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": "/opt/ros/jazzy"}
    monkeypatch.setattr(bootstrap, "succeeds", lambda command: True)
    assert layout_of(tmp_path, monkeypatch, sourced).system
    with pytest.raises(state.SetupError, match="jazzy is sourced"):
        layout_of(tmp_path, monkeypatch, sourced, "kilted")
    assert not layout_of(tmp_path, monkeypatch, sourced | {"VLA_ROOT": "/elsewhere"}).system
    monkeypatch.setattr(bootstrap, "succeeds", lambda command: False)
    assert not layout_of(tmp_path, monkeypatch, sourced).system


def test_environment_file_is_idempotent_and_respects_the_user(tmp_path):
    layout = state.Layout(tmp_path / "with space", "jazzy")
    (layout.venv / "lib" / "python3.11" / "site-packages" / "ros_rcl.libs").mkdir(parents=True)
    make_package(layout.source, "vla_msgs")
    (layout.install / "vla_msgs" / "share").mkdir(parents=True)
    (layout.install / "vla_msgs" / "lib").mkdir()
    (layout.install / "vla_msgs" / "lib" / "libvla_msgs.so").touch()
    layout.env_file.write_text(environment.shell_text(layout, "egl"))
    script = (
        'source "$1"; source "$1"; printf "%s\\n" "$PATH" "$LD_LIBRARY_PATH" "$ROS_LOG_DIR" "$MUJOCO_GL" "$PYTHONPATH"'
    )
    env = {"PATH": "/usr/bin:/bin", "ROS_LOG_DIR": "/mine", "PYTHONPATH": "/another/ros", "LD_LIBRARY_PATH": "/cuda"}
    output = subprocess.run(
        ["bash", "-euc", script, "bash", layout.env_file], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert output[0] == f"{layout.venv}/bin:/usr/bin:/bin"
    libraries = output[1].split(":")
    assert (
        libraries[0] == f"{layout.install}/vla_msgs/lib"
    )  # the workspace's own, which the wheels' re-execution forgets
    assert libraries[-1] == "/cuda" and len(set(libraries)) == len(libraries)
    assert output[2:4] == ["/mine", "egl"]
    assert "/another/ros" not in output[4]


def setup_of(tmp_path: Path) -> steps.Setup:
    layout = state.Layout(tmp_path, "jazzy")
    (layout.venv / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    return steps.Setup(layout, Path(sys.executable), state.Stamps(layout.state / "stamps.json"))


def test_without_root_missing_tools_end_setup_with_the_command_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(steps.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(steps.shutil, "which", lambda name: None if name == "g++" else f"/usr/bin/{name}")
    with pytest.raises(state.SetupError) as caught:
        setup_of(tmp_path).tools()
    assert "g++" in caught.value.why and "sudo apt-get install -y g++" not in caught.value.why
    assert "apt-get install -y g++" in caught.value.remedy


def test_without_root_missing_rendering_is_a_warning_with_command_and_consequence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(steps, "succeeds", lambda command, env=None: False)
    setup = setup_of(tmp_path)
    setup.rendering()
    told = capsys.readouterr().err
    assert "sudo apt-get update && sudo apt-get install -y libegl1 libgl1-mesa-dri" in told and "demo" in told
    assert setup.renderer is None and "MUJOCO_GL" not in environment.shell_text(setup.layout, setup.renderer)


def test_osmesa_is_the_fallback_of_egl(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "succeeds", lambda command, env=None: env["MUJOCO_GL"] == "osmesa")
    setup = setup_of(tmp_path)
    setup.rendering()
    assert setup.renderer == "osmesa"


def test_packages_that_built_are_not_built_again_after_another_failed(tmp_path, monkeypatch):
    setup = setup_of(tmp_path)
    layout = setup.layout
    for name in ("good", "bad"):
        make_package(layout.source, name)

    def colcon(what, command, log, **_):
        for name, code in (("good", 0), ("bad", 1)):
            (layout.build / name).mkdir(parents=True, exist_ok=True)
            (layout.build / name / "colcon_build.rc").write_text(str(code))
            (layout.install / name / "share").mkdir(parents=True, exist_ok=True)
        stderr = layout.log / "latest_build" / "bad" / "stderr.log"
        stderr.parent.mkdir(parents=True, exist_ok=True)
        stderr.write_text("no such header")
        raise state.SetupError(what, "ended with code 1", "none")

    monkeypatch.setattr(steps, "run", colcon)
    with pytest.raises(state.SetupError, match=r"build of bad.*\n?.*no such header"):
        setup.workspace()
    assert "package:good" in setup.stamps.values and "package:bad" not in setup.stamps.values


def test_a_failed_command_tells_its_own_output_and_the_remedy(tmp_path):
    log = tmp_path / "setup.log"
    process.run("first", ["echo", "unrelated"], log, remedy="none")
    with pytest.raises(state.SetupError) as caught:
        process.run("second", ["bash", "-c", "echo the reason; exit 7"], log, remedy="do this")
    report = caught.value.report()
    assert "second" in report and "code 7" in report and "the reason" in report and "remedy: do this" in report
    assert "unrelated" not in report
    with pytest.raises(state.SetupError, match="cannot start"):
        process.run("third", [tmp_path / "no-such-program"], log, remedy="none")


def test_the_lock_is_released_with_its_holder(tmp_path):
    holder = (
        "import sys; sys.path.insert(0, sys.argv[1]); from vla_setup.state import locked; from pathlib import Path\n"
    )
    holder += "with locked(Path(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(REPOSITORY / "scripts"), str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline().strip() == "held"
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None and "waiting" in second.stderr.readline()
            first.kill()
            assert second.stdout is not None and second.stdout.readline().strip() == "held"


def test_help_needs_no_setup(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "vla").write_bytes((REPOSITORY / "vla").read_bytes())
    env = {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run(["bash", checkout / "vla", "--help"], env=env, capture_output=True, text=True, check=True)
    assert "demo" in shown.stdout and not (checkout / ".vla").exists()
    skipped = subprocess.run(
        ["bash", checkout / "vla", "status"], env=env | {"VLA_SKIP_SETUP": "1"}, capture_output=True, text=True
    )
    assert skipped.returncode == 2 and "Remedy: ./vla setup" in skipped.stderr
    wrong = subprocess.run(
        ["bash", checkout / "vla", "status"], env=env | {"VLA_PYTHON": "/nope"}, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "none of these is one: /nope" in wrong.stderr
    assert all(f"\n  {name}" in shown.stdout for name in ("retreat", "instruct", "doctor"))


def test_wrong_use_ends_with_2(capsys, monkeypatch):
    for variable in ("VLA_ROOT", "ROS_DISTRO", "VLA_DISTRO"):
        monkeypatch.delenv(variable, raising=False)
    assert bootstrap.main(["--distro", "foo"]) == 2
    monkeypatch.setenv("VLA_DISTRO", "foo")
    assert bootstrap.main(["--quiet"]) == 2
    assert "use jazzy or kilted" in capsys.readouterr().err


def test_junit_results_are_counted_with_their_reasons(tmp_path):
    path = tmp_path / "pytest.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="1 != 2">trace</failure></testcase>'
        '<testcase classname="a" name="broken"><error message="fixture"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    torn = tmp_path / "torn.xml"
    torn.write_text("<testsuites><testcase")
    outcome = run_tests.Outcome("a")
    run_tests.read_junit([path, torn], outcome)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 3, 1)
    assert outcome.failures[0] == "a::bad: 1 != 2" and "unreadable" in outcome.failures[2]
    assert outcome.skips == ["a::left: no GPU"]
    totals = run_tests.summary([outcome])
    assert (totals["passed"], totals["failed"], totals["skipped"]) == (1, 3, 1)


def test_a_process_that_outlives_its_test_is_found_named_and_ended(monkeypatch):
    monkeypatch.setattr(run_tests, "_LEFTOVER_GRACE_S", 0.0)
    code = "print('up', flush=True); import sys; sys.stdin.read()"
    env = dict(os.environ) | {"VLA_TEST_RUN": "law-of-leftovers"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        named = run_tests.end_leftovers("law-of-leftovers")
        assert len(named) == 1 and str(child.pid) in named[0]
        assert child.wait(timeout=10) == -9
    assert run_tests.end_leftovers("law-of-leftovers") == []
