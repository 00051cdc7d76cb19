"""Matches of answers, word errors and the length limit are those of the field, sample by sample."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.data.sample import Prediction, Text
from visiontune.metrics.answers import normalised
from visiontune.metrics.text import score_texts

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def predictions(pairs: list[tuple[str, str]], **scores: list[float]) -> list[Prediction]:
    rows = [{name: values[i] for name, values in scores.items()} for i in range(len(pairs))]
    return [Prediction(str(i), (), Text(a), rows[i], Text(t)) for i, (t, a) in enumerate(pairs)]


def squad(text: str) -> str:
    """The rule of SQuAD's evaluation script, for ASCII."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["The", "a", "an", "cat", "CAT", "!", "-", " ", "\n", "'s", "$", "x.y", "theme", "5"])))
def test_a_normalised_answer_is_squads_where_no_number_has_a_point_or_a_sign(pieces: list[str]) -> None:
    text = "".join(pieces)
    if not re.search(r"-\.?\d", text):
        assert normalised(text) == squad(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The cat.", "cat", True),
        ("1,000", "1000", True),
        ("3.5", "35", False),
        ("-2", "2", False),
        ("−2", "-2", True),
        ("$5", "5", True),
        ("10-20", "1020", True),
        ("«Straße»", "STRASSE", True),
        ("猫。", "猫", True),
        ("القطة؟", "القطة", True),
        ("then", "n", False),
    ],
)
def test_what_a_normalised_match_takes_for_the_same(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) is same
    scores = score_texts(predictions([(one, other)]))
    assert scores.metric("normalised_match").value == same and scores.metric("exact_match").value == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("+", "-", False),
        ("✓", "✗", False),
        ("A", "the", False),
        ("", "?", False),
        ("A", "a", True),
        ("= =", "=  =", True),
    ],
)
def test_answers_of_which_normalising_leaves_nothing_are_compared_as_they_stand(
    one: str, other: str, same: bool
) -> None:
    assert normalised(one) == normalised(other) == ""
    assert score_texts(predictions([(one, other)])).metric("normalised_match").value == same


def test_the_length_limit_is_known_only_where_every_answer_says_whether_it_was_cut() -> None:
    pairs = [("a", "a"), ("b", "b b b b"), ("c", "c"), ("d", "d d d d")]
    cut = predictions(pairs, at_length_limit=[0.0, 1.0, 0.0, 1.0])
    assert score_texts(cut).metric("at_length_limit").value == 0.5
    assert score_texts(cut, ["a", "b", "c", "d"]).metric("at_length_limit").value == 0.5
    assert "at_length_limit" not in score_texts([*cut, *predictions([("e", "e")])]).metrics
