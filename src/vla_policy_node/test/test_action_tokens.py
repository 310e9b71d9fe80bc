"""Laws of action tokens and of the ranges that they are stretched over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_contract.errors import ConfigError, InferenceError
from vla_policy_node.core.action_tokens import ActionRange, from_tokens, read_range, to_tokens

VOCABULARY = 32_000
numbers = arrays(np.float64, 7, elements=st.floats(-1, 1))


@given(numbers)
def test_tokens_and_back_lose_at_most_half_a_bin(values):
    tokens = to_tokens(values, VOCABULARY)
    assert ((tokens >= VOCABULARY - 256) & (tokens < VOCABULARY)).all()
    assert np.abs(from_tokens(tokens, VOCABULARY) - values).max() <= 1 / 255 + 1e-12


def test_every_token_means_its_own_place_but_the_last_two():
    ids = np.arange(VOCABULARY - 256, VOCABULARY)
    places = from_tokens(ids, VOCABULARY)
    assert (np.diff(places[1:]) < 0).all() and places[0] == places[1]  # the higher the id, the lower the place
    np.testing.assert_array_equal(to_tokens(places[1:], VOCABULARY), ids[1:])
    # By hand: the highest id is the bin at the lower end, -1 + half of 2/255.
    assert places[-1] == pytest.approx(-1 + 1 / 255) and places[0] == pytest.approx(1 - 1 / 255)


@pytest.mark.parametrize("token", [0, VOCABULARY - 257, VOCABULARY])
def test_words_are_no_actions(token):
    with pytest.raises(InferenceError, match=f"answers token {token}, which is no action"):
        from_tokens([VOCABULARY - 1, token], VOCABULARY)


@given(numbers, numbers, numbers, arrays(np.bool_, 7))
def test_stretching_keeps_the_ends_and_comes_back(values, first, second, mask):
    low, high = np.minimum(first, second), np.maximum(first, second) + 0.01
    actions = ActionRange(low, high, mask)
    np.testing.assert_allclose(actions.stretch(-np.ones(7)), np.where(mask, low, -1), atol=1e-12)
    np.testing.assert_allclose(actions.stretch(np.ones(7)), np.where(mask, high, 1), atol=1e-12)
    np.testing.assert_allclose(actions.shrink(actions.stretch(values)), values, atol=1e-9)
    mean, deviation = actions.moments
    np.testing.assert_allclose(values * deviation + mean, actions.stretch(values), atol=1e-12)


GOOD = {"bridge": {"action": {"q01": [-1.0, 0.0], "q99": [1.0, 1.0], "mask": [True, False]}}}


def test_ranges_are_read():
    actions = read_range(GOOD, "", "statistics")
    np.testing.assert_array_equal(actions.stretch([[0.5, 0.5]]), [[0.5, 0.5]])
    assert read_range({**GOOD, "fractal": {}}, "bridge", "statistics").mask.tolist() == [True, False]
    unmasked = {"bridge": {"action": {"q01": [2.0], "q99": [4.0]}}}
    np.testing.assert_array_equal(read_range(unmasked, "bridge", "statistics").stretch([0.0]), [3.0])


@pytest.mark.parametrize(
    ("statistics", "key", "told"),
    [
        ({}, "", "holds no statistics"),
        ({**GOOD, "fractal": {}}, "", "name one as option unnorm_key: bridge, fractal"),
        (GOOD, "brigde", "unknown data set 'brigde'; known: bridge"),
        ({"bridge": {"proprio": {}}}, "", "no statistics of 'action'"),
        ({"bridge": {"action": {"mean": [0.0]}}}, "", "lacks q01 or q99"),
        ({"bridge": {"action": {"q01": [1.0], "q99": [0.0]}}}, "", "expected finite q01 <= q99"),
        ({"bridge": {"action": {"q01": [0.0], "q99": [float("nan")]}}}, "", "expected finite q01 <= q99"),
        ({"bridge": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}}, "", "one size"),
    ],
)
def test_ranges_that_say_nothing_are_refused(statistics, key, told):
    with pytest.raises(ConfigError, match=told):
        read_range(statistics, key, "statistics")
