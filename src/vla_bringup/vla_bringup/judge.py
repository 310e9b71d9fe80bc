"""Which cube a sentence names, and whether the simulator's ground truth says that it is in the tray.

The judge never listens to the policy. It reads the sentence with a list of words, so that a sentence it cannot read is
an error to be settled by a person (`--target`), not a guess.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_contract.errors import ConfigError

COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "reddish", "crimson", "scarlet", "ruby", "cherry", "vermilion", "maroon", "tomato", "carmine"),
    "green": ("green", "greenish", "emerald", "lime", "jade", "olive", "mint", "grass", "viridian"),
    "blue": ("blue", "bluish", "azure", "navy", "cobalt", "sapphire", "indigo", "ultramarine"),
}
CUBES = tuple(f"{colour}_cube" for colour in COLOUR_WORDS)

_COLOUR_OF = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}


def named_cube(sentence: str) -> str:
    """The cube that a sentence names, e.g. "red_cube" for "drop the crimson block into the bin".

    Raises:
        ConfigError: when it names none or several.
    """
    words = re.findall(r"[a-z]+", sentence.lower())
    named = sorted({_COLOUR_OF[word] for word in words if word in _COLOUR_OF})
    if len(named) == 1:
        return f"{named[0]}_cube"
    found = f"names {' and '.join(named)}" if named else "names no colour that the judge knows"
    known = "; ".join(f"{colour}: {', '.join(words)}" for colour, words in COLOUR_WORDS.items())
    raise ConfigError(f"'{sentence}' {found}, expected exactly one ({known}); say which cube is meant with --target")


def cube(name: str) -> str:
    """The cube that `--target` means: "red" or "red_cube".

    Raises:
        ConfigError: for any other name.
    """
    full = name if name.endswith("_cube") else f"{name}_cube"
    if full not in CUBES:
        raise ConfigError(f"--target is '{name}', expected one of {', '.join(COLOUR_WORDS)}")
    return full


@dataclass(frozen=True)
class Verdict:
    """What the ground truth says.

    Attributes:
        target: the cube that was asked for.
        in_tray: names of the cubes that are at rest in the tray.
    """

    target: str
    in_tray: tuple[str, ...]

    @property
    def success(self) -> bool:
        """The named cube is in the tray."""
        return self.target in self.in_tray

    @property
    def wrong_object(self) -> bool:
        """Another cube is in the tray."""
        return any(name != self.target for name in self.in_tray)

    @property
    def placed(self) -> str | None:
        """The object in the tray, the named one first; None when it is empty."""
        if self.success:
            return self.target
        return self.in_tray[0] if self.in_tray else None


def judge(target: str, objects: Sequence[Any]) -> Verdict:
    """The verdict on ground truth: `objects` have `name`, `in_tray` and `held`, as in vla_msgs/ObjectState."""
    return Verdict(target, tuple(o.name for o in objects if o.name in CUBES and o.in_tray and not o.held))
