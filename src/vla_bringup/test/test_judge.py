"""What sentences name, and what ground truth says."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_bringup.judge import COLOUR_WORDS, CUBES, cube, judge, named_cube
from vla_bringup.trials import TEMPLATES
from vla_contract.errors import ConfigError


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("put the red cube in the tray", "red_cube"),
        ("drop the crimson block into the bin", "red_cube"),
        ("Bring me the EMERALD one, then the green tray is happy", "green_cube"),
        ("move the sky-blue box", "blue_cube"),
    ],
)
def test_colour_words_and_their_synonyms(sentence, name):
    assert named_cube(sentence) == name


@pytest.mark.parametrize("sentence", ["", "put the cube in the tray", "red or green", "put the blurred cube away"])
def test_a_sentence_that_names_none_or_several_is_an_error(sentence):
    with pytest.raises(ConfigError, match="--target"):
        named_cube(sentence)


@given(st.sampled_from([(c, w) for c, words in COLOUR_WORDS.items() for w in words]), st.sampled_from(TEMPLATES))
def test_every_known_word_in_every_template(colour_word, template):
    colour, word = colour_word
    assert named_cube(template.format(red=word)) == f"{colour}_cube"


@given(st.text())
def test_any_text_is_judged_or_refused(text):
    try:
        assert named_cube(text) in CUBES
    except ConfigError:
        pass


def test_target_takes_a_colour_or_a_name():
    assert cube("red") == cube("red_cube") == "red_cube"
    with pytest.raises(ConfigError, match="red, green, blue"):
        cube("purple")


def truth(**in_tray):
    return [SimpleNamespace(name=n, in_tray=t, held=False) for n, t in in_tray.items()]


def test_success_needs_the_named_cube():
    verdict = judge("red_cube", truth(red_cube=True, blue_cube=False, tray=True))
    assert (verdict.success, verdict.wrong_object, verdict.placed) == (True, False, "red_cube")


def test_another_cube_is_no_success():
    verdict = judge("red_cube", truth(red_cube=False, blue_cube=True))
    assert (verdict.success, verdict.wrong_object, verdict.placed) == (False, True, "blue_cube")


def test_both_cubes_are_a_success_and_a_wrong_object():
    verdict = judge("red_cube", truth(blue_cube=True, red_cube=True))
    assert (verdict.success, verdict.wrong_object, verdict.placed) == (True, True, "red_cube")


def test_a_held_cube_is_not_placed():
    held = [SimpleNamespace(name="red_cube", in_tray=True, held=True)]
    assert judge("red_cube", held).placed is None
