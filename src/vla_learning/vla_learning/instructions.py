"""Sentences that people might say, by the colour that they name.

The policy hears them through a frozen sentence encoder; variety here is what lets it obey words it was never taught.
`held_out` sentences (other templates, other words) are never trained on.
"""

from collections.abc import Mapping
from itertools import product

COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "ruby", "cherry red", "bright red", "dark red", "ruby red", "rose red",
            "tomato red", "reddish", "maroon", "carmine", "vermilion"),
    "green": ("green", "emerald", "lime", "jade", "lime green", "bright green", "dark green", "grass green",
              "forest green", "greenish", "olive green", "mint green", "emerald green", "viridian"),
    "blue": ("blue", "azure", "navy", "cobalt", "sapphire", "bright blue", "dark blue", "navy blue", "royal blue",
             "sky blue", "bluish", "cobalt blue", "ultramarine", "indigo"),
}  # fmt: skip
OBJECT_WORDS = ("cube", "block", "box", "brick", "object", "piece", "dice", "thing", "one")
GOAL_WORDS = ("tray", "bin", "container", "dish", "box lid", "black tray", "basket", "holder", "dark tray", "tub")
TEMPLATES = (
    "put the {c} {o} in the {g}",
    "put the {c} {o} into the {g}",
    "place the {c} {o} in the {g}",
    "place the {c} {o} on the {g}",
    "drop the {c} {o} into the {g}",
    "drop the {c} {o} in the {g}",
    "move the {c} {o} to the {g}",
    "move the {c} {o} into the {g}",
    "pick up the {c} {o} and put it in the {g}",
    "pick the {c} {o} and place it in the {g}",
    "grab the {c} {o} and drop it in the {g}",
    "take the {c} {o} to the {g}",
    "bring the {c} {o} to the {g}",
    "set the {c} {o} down in the {g}",
    "please put the {c} {o} in the {g}",
    "could you place the {c} {o} in the {g}?",
    "can you move the {c} {o} into the {g}, please?",
    "I want the {c} {o} in the {g}",
    "the {c} {o} goes in the {g}",
    "the {c} {o} belongs in the {g}",
    "into the {g} with the {c} {o}",
    "transfer the {c} {o} to the {g}",
    "lay the {c} {o} in the {g}",
    "fetch the {c} {o} and leave it in the {g}",
    "{c} {o} in the {g}",
    "{c} {o} to the {g}",
    "put the {o} that is {c} in the {g}",
    "put only the {c} {o} in the {g}",
    "lift the {c} {o} and lower it into the {g}",
    "load the {g} with the {c} {o}",
    "Pick up the {c} {o}.",
    "{c}",
)

_HELD_OUT_COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "blood-red", "strawberry-red"),
    "green": ("green", "pea-green", "leaf-green"),
    "blue": ("blue", "ocean-blue", "denim-blue"),
}
_HELD_OUT_TEMPLATES = (
    "store the {c} {o} in the {g}",
    "would you kindly drop off the {c} {o} at the {g}?",
    "find the {c} {o}, grasp it and release it over the {g}",
    "the {g} should hold the {c} {o}",
    "deliver the {c} {o} to the {g} now",
)
_HELD_OUT_OBJECTS = ("cube", "block", "chunk")
_HELD_OUT_GOALS = ("tray", "bin", "box")

PLAIN = "put the {c} cube in the tray"


def trained(colour: str) -> tuple[str, ...]:
    """Sentences to train on, in a fixed order, the plain one first.

    Raises:
        KeyError: when there is no such colour.
    """
    everything = product(TEMPLATES, COLOUR_WORDS[colour], OBJECT_WORDS, GOAL_WORDS)
    thinned = [_fill(*words) for i, words in enumerate(everything) if i % 97 == 0]
    plain = [_fill(t, c, "cube", "tray") for t, c in product(TEMPLATES, COLOUR_WORDS[colour])]
    return tuple(dict.fromkeys([PLAIN.format(c=colour), *plain, *thinned]))


def held_out(colour: str) -> tuple[str, ...]:
    """Sentences never trained on, in a fixed order.

    Raises:
        KeyError: when there is no such colour.
    """
    words = product(_HELD_OUT_TEMPLATES, _HELD_OUT_COLOURS[colour], _HELD_OUT_OBJECTS, _HELD_OUT_GOALS)
    return tuple(_fill(*w) for w in words)


def _fill(template: str, colour: str, thing: str, goal: str) -> str:
    return template.format(c=colour, o=thing, g=goal)
