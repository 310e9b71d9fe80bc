"""All commands with their options. What they do lies in the other modules and is imported when it is needed: `--help`
must be there at once."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vla_bringup.cli.console import EPILOG, INTERRUPTED, OK, USAGE, Console, interruptible, reported

app = typer.Typer(
    name="vla",
    help="Runs Vision-Language-Action policies on robots through ROS 2, behind a safety filter.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout; words go to stderr.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for results (default: .vla/runs/…).")]
RobotName = Annotated[str, typer.Option("--robot", help="Name in config/robots, or path of a robot file.")]
PolicyName = Annotated[str, typer.Option("--policy", help="Name in config/policies, or path of a policy file.")]
SafetyName = Annotated[
    str, typer.Option("--safety", help="Name in config/safety, or path (default: the robot file's).")
]
Instruction = Annotated[
    str | None, typer.Option("--instruction", "-i", metavar="TEXT", help="What to do, in a sentence.")
]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="COLOUR", help="The cube that is judged, where the sentence does not say."),
]
Timeout = Annotated[float, typer.Option(min=0, help="Time for a task, in simulated seconds (0: the policy's own).")]
Domain = Annotated[
    int | None, typer.Option(min=0, max=232, help="ROS domain.", envvar="ROS_DOMAIN_ID", show_envvar=True)
]
OwnDomain = Annotated[int | None, typer.Option("--domain", min=0, max=232, help="ROS domain (default: a free one).")]

_WRONG_USE: Any = typer.BadParameter.__mro__[1]  # UsageError, of whichever click this typer has
DEFAULT_INSTRUCTION = "put the red cube in the tray"
_WORDS = {"ignore_unknown_options": True}  # their own message says how a word is written
_PASS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS, epilog=EPILOG)
def setup(context: typer.Context) -> None:
    """Install what is missing and build the workspace. Every other command does so by itself."""
    from vla_bringup.cli.tools import run_setup

    raise typer.Exit(run_setup(context.args))


@app.command(epilog=EPILOG)
def demo(
    instruction: Instruction = DEFAULT_INSTRUCTION,
    seed: Annotated[int, typer.Option(min=0, help="Of the scene.")] = 7,
    view: Annotated[bool, typer.Option("--view", help="Open a live window.")] = False,
    out: Out = None,
    robot: RobotName = "fr3_sim",
    policy: PolicyName = "flow",
    safety: SafetyName = "",
    target: Target = None,
    timeout: Timeout = 0.0,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="The simulator's clock waits for the nodes.")] = False,
    film: Annotated[bool, typer.Option(help="Draw contact sheet and film.")] = True,
    domain: OwnDomain = None,
    as_json: Json = False,
) -> None:
    """Start the simulated cell, give the robot a sentence, and see it obeyed.

    Ends with 0 only if the simulator's ground truth says that the named cube is in the tray.
    """
    from vla_bringup.cli.demo import Demo

    chosen = Demo(
        instruction or "",
        seed,
        out,
        robot,
        policy,
        safety,
        target,
        timeout,
        lockstep,
        view,
        film,
        domain,
        Console(as_json),
    )
    interruptible(chosen.run)


@app.command("eval", epilog=EPILOG)
def evaluate(
    trials: Annotated[int, typer.Option(min=1, help="Randomised scenes.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scenes and sentences.")] = 0,
    instruction: Instruction = None,
    target: Target = None,
    blank: Annotated[bool, typer.Option("--blank", help="Give the policy an empty sentence.")] = False,
    wording: Annotated[
        Literal["usual", "unseen"], typer.Option(help="Sentences that training knows, or such as it has left out.")
    ] = "usual",
    realtime: Annotated[bool, typer.Option("--realtime", help="Do not let the simulator wait for the nodes.")] = False,
    observe_only: Annotated[
        bool,
        typer.Option("--observe-only", help="The filter judges but commands nothing. Simulator only."),
    ] = False,
    out: Out = None,
    robot: RobotName = "fr3_sim",
    policy: PolicyName = "flow",
    safety: SafetyName = "",
    timeout: Timeout = 0.0,
    films: Annotated[int, typer.Option(min=0, help="Film at most so many failures.")] = 5,
    domain: OwnDomain = None,
    as_json: Json = False,
) -> None:
    """Measure the success rate over randomised scenes, through the whole running system.

    Without --instruction the three colours come in equal parts, each with several wordings.
    """
    from vla_bringup.cli.evaluate import Evaluation

    chosen = Evaluation(
        trials,
        seed,
        instruction,
        target,
        blank,
        wording,
        realtime,
        observe_only,
        out,
        robot,
        policy,
        safety,
        timeout,
        films,
        domain,
        Console(as_json),
    )
    interruptible(chosen.run)


@app.command(context_settings=_PASS, epilog=EPILOG)
def train(context: typer.Context) -> None:
    """Make the shipped policy again from nothing. Options: `./vla train --help`."""
    from vla_bringup.cli.tools import run_module

    run_module("vla_learning.train", context.args)


@app.command(context_settings=_PASS, epilog=EPILOG)
def test(context: typer.Context) -> None:
    """Run the tests: lint, types, import contracts, unit, property, system. Options: `./vla test --help`."""
    from vla_bringup.cli.tools import run_tests

    run_tests(context.args)


@app.command(context_settings=_PASS, epilog=EPILOG)
def interop(context: typer.Context) -> None:
    """Check against LeRobot and Ray Serve, which need much room (9 GB, once): `./vla interop --help`."""
    from vla_bringup.cli.tools import run_interop

    run_interop(context.args)


@app.command("import-policy", context_settings=_PASS, epilog=EPILOG)
def import_policy(context: typer.Context) -> None:
    """Write policy file and policy.json for a published checkpoint folder: `./vla import-policy --help`."""
    from vla_bringup.cli.tools import run_import

    run_import(context.args)


@app.command(context_settings=_PASS, epilog=EPILOG)
def bench(context: typer.Context) -> None:
    """Measure speed: `./vla bench latency`, `safety`, `inference` or `policy`."""
    from vla_bringup.cli.tools import run_bench

    run_bench(context.args)


@app.command(context_settings=_PASS, epilog=EPILOG)
def campaign(context: typer.Context) -> None:
    """Prove for hours: `./vla campaign safety`. Resumable, part by part; options: `./vla campaign --help`."""
    from vla_bringup.cli.tools import run_module

    run_module("vla_system_tests.campaign", context.args)


@app.command(context_settings=_PASS, epilog=EPILOG)
def audit(context: typer.Context) -> None:
    """Look at the record of the safety filter's decisions: `./vla audit verify FILE|FOLDER`, `replay FILE`."""
    from vla_bringup.cli.tools import run_audit

    run_audit(context.args)


@app.command(context_settings=_WORDS, epilog=EPILOG)
def run(
    words: Annotated[
        list[str], typer.Argument(metavar="robot=… policy=… [safety=…]", help="Names in config/, or paths.")
    ],
    out: Out = None,
    domain: Domain = None,
) -> None:
    """Run the system on the topics of a robot file, without the simulator, until Ctrl-C.

    Nothing moves before `./vla arm` and `./vla instruct`.
    """
    from vla_bringup.cli.operate import run_system

    console = Console(False)
    with reported(console):
        interruptible(lambda: run_system(words, out, domain, console))


@app.command(context_settings=_WORDS, epilog=EPILOG)
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[robot=…] [policy=…] [safety=…]", help="Names in config/, or paths; else the demo's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether robot, policy, safety file and this machine fit each other, without starting anything."""
    from vla_bringup.cli.doctor import run_doctor

    run_doctor(words or [], Console(as_json))


@app.command(epilog=EPILOG)
def serve(
    policy: Annotated[str, typer.Argument(help="Name in config/policies, or path of a policy file.")] = "flow",
    robot: RobotName = "fr3_sim",
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    ray: Annotated[bool, typer.Option("--ray", help="Answer several robots in one pass, on Ray Serve.")] = False,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Ray: copies of the policy.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Ray: robots in one pass at most.")] = 8,
    batch_wait: Annotated[float, typer.Option(min=0, max=1, help="Ray: s that a call waits for others.")] = 0.005,
    gpus: Annotated[float | None, typer.Option(min=0, help="Ray: of one copy (default: all, shared).")] = None,
    ray_address: Annotated[str, typer.Option(help="Ray: of a running cluster (default: started here).")] = "",
) -> None:
    """Serve a policy to any openpi client until Ctrl-C.

    A key that clients must send is taken from the environment variable VLA_SERVE_KEY. --ray needs `./vla setup --with
    serve`, once.
    """
    from vla_bringup.cli.tools import run_module
    from vla_bringup.files import find

    with reported(Console(False)):
        files = [str(find("robots", robot)), str(find("policies", policy))]
    options = ["--host", host, "--port", str(port)]
    if ray:
        options += ["--ray", "--replicas", str(replicas), "--batch", str(batch), "--batch-wait", str(batch_wait)]
        options += ["--ray-address", ray_address, *([] if gpus is None else ["--gpus", str(gpus)])]
    run_module("vla_policy_node.serve", [*files, *options])


@app.command(epilog=EPILOG)
def status(domain: Domain = None, robot: RobotName = "fr3_sim", as_json: Json = False) -> None:
    """What the running system does. Ends with 3 when there is none."""
    from vla_bringup.cli.operate import show_status

    show_status(robot, domain, Console(as_json))


@app.command(epilog=EPILOG)
def instruct(
    instruction: Annotated[str, typer.Argument(help="What to do, in a sentence.")],
    timeout: Annotated[float, typer.Option(min=0, help="Time for the task in s (0: the policy's own).")] = 0.0,
    domain: Domain = None,
    robot: RobotName = "fr3_sim",
    as_json: Json = False,
) -> None:
    """Give the running system a sentence and follow it to its end. Ctrl-C cancels the task."""
    from vla_bringup.cli.operate import send_instruction

    interruptible(lambda: send_instruction(instruction, timeout, robot, domain, Console(as_json)))


@app.command(epilog=EPILOG)
def tool(
    name: Annotated[str, typer.Argument(help="Name in the safety file's `tools`; none: nothing is mounted.")],
    payload: Annotated[str, typer.Option(help="Name in the safety file's `payloads`; none: nothing is carried.")] = "",
    domain: Domain = None,
    robot: RobotName = "fr3_sim",
    as_json: Json = False,
) -> None:
    """Tell the safety filter what is mounted and carried. Refused where it has no room for it."""
    from vla_bringup.cli.operate import set_tool

    set_tool(name, payload, robot, domain, Console(as_json))


@app.command(epilog=EPILOG)
def reduced(
    switch: Annotated[Literal["on", "off"], typer.Argument(help="on: no link is faster than `reduced_speed`.")],
    domain: Domain = None,
    robot: RobotName = "fr3_sim",
    as_json: Json = False,
) -> None:
    """Switch reduced speed: 250 mm/s on every link, unless the safety file says less. A faster robot stops first."""
    from vla_bringup.cli.operate import switch_reduced

    switch_reduced(switch == "on", robot, domain, Console(as_json))


def _trigger(name: str, text: str) -> None:
    def call(domain: Domain = None, robot: RobotName = "fr3_sim", as_json: Json = False) -> None:
        from vla_bringup.cli.operate import call_trigger

        call_trigger(name, robot, domain, Console(as_json))

    call.__doc__ = text
    app.command(name, epilog=EPILOG)(call)


_trigger("arm", "Let the safety filter pass verified motion. It refuses unless inputs are fresh and the robot rests.")
_trigger("disarm", "Stop, and pass nothing more.")
_trigger("estop", "Stop now and latch. Only `./vla reset` leaves this state, and it does not resume motion.")
_trigger("reset", "Leave the latched stop once the robot rests. Arm again to move.")


@app.command(epilog=EPILOG)
def retreat(domain: Domain = None, robot: RobotName = "fr3_sim", as_json: Json = False) -> None:
    """Lead the robot slowly back along the path it came, while you hold the space bar. Let go to stop; q ends."""
    from vla_bringup.cli.retreat import lead_back

    lead_back(robot, domain, Console(as_json))


def main() -> None:
    """Runs the command line. With --json, wrong use has its JSON object, too."""
    os.environ.setdefault("TERM", "dumb")
    if "--json" not in sys.argv[1:]:
        app(prog_name="vla")
    try:
        code = app(prog_name="vla", standalone_mode=False)
    except _WRONG_USE as error:
        error.show()
        Console(True).finish({"error": error.format_message(), "exit_code": USAGE}, USAGE)
    except typer.Abort:
        code = INTERRUPTED
    raise SystemExit(code if isinstance(code, int) else OK)
