"""The parameters of the filter's node, declared once."""

from dataclasses import dataclass

from vla_node_base.parameters import parameter


@dataclass(frozen=True)
class Parameters:
    """Of the filter's node; everything that it judges by is in the safety file."""

    robot: str = parameter("", "path of the robot file")
    safety: str = parameter("", "path of the safety file; empty: the one that the robot file names")
    description_topic: str = parameter(
        "", "topic of the URDF, e.g. /robot_description; empty: the file that the robot file names"
    )
    lockstep: bool = parameter(False, "acknowledges each cycle to a simulator that waits for it")
    shadow: bool = parameter(False, "judges, shows and records everything, commands nothing")
    state_dir: str = parameter(
        "", "folder where a latched e-stop, the mounted tool and reduced speed survive a restart; empty: they do not"
    )
    audit_dir: str = parameter("", "folder for the records of every decision; empty: none are kept")
    audit_part: float = parameter(
        64.0, "size of a file, above which a record goes on in a next one", unit="MB", low=0.1
    )
    audit_keep: float = parameter(
        0.0,
        "size of this robot's records, above which its oldest files that nobody writes are deleted; 0: none are",
        unit="MB",
        low=0.0,
    )
    planning_scene: str = parameter(
        "", "topic of MoveIt's scene whose objects are obstacles, e.g. /monitored_planning_scene; empty: none"
    )
