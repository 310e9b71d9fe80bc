"""The rig that tests share with the campaign."""

from pathlib import Path

from vla_safety.proof.rig import (  # noqa: F401
    HOME,
    LIMITS,
    MS,
    ROBOT,
    START,
    Controller,
    Rig,
    Trace,
    check_envelope,
    make_filter,
    proposal,
    smooth_chunk,
)

BRINGUP = Path(__file__).resolve().parents[2] / "vla_bringup"
