"""One root for every error the suite raises on purpose."""

from collections.abc import Iterable


class VlaError(Exception):
    """Root of the suite's own exceptions. The message names the value, what was expected, and the remedy."""


class ConfigError(VlaError):
    """A configuration file is missing, malformed, or contradicts another one."""


class MismatchError(VlaError):
    """Two things that must fit each other do not, e.g. a policy and a robot. Lists every misfit, not just the first."""

    def __init__(self, what: str, misfits: Iterable[str]):
        self.misfits = tuple(misfits)
        super().__init__(f"{what}: " + "; ".join(self.misfits))


class ChunkError(VlaError):
    """An action chunk is malformed."""


class InferenceError(VlaError):
    """A policy could not answer."""


class Unavailable(InferenceError):
    """What the policy runs on is away, slow or wrong, e.g. its server: an outage, no failure of the policy.

    Whoever counts failures must not count it; the next observation may be answered.
    """


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """A message for a name that does not exist, which lists those that do."""
    return f"unknown {kind} '{name}'; known: {', '.join(sorted(str(k) for k in known)) or 'none'}"
