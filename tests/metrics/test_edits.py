"""Character errors equal jiwer's own, and ratios are those of sums."""

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.data.sample import Prediction, Text
from visiontune.errors import RecipeError
from visiontune.metrics.edits import word_errors
from visiontune.metrics.requirements import parse_requirements
from visiontune.metrics.text import score_texts

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def predictions(pairs: list[tuple[str, str]], documents: list[int] | None = None) -> list[Prediction]:
    scores = [{}] * len(pairs) if documents is None else [{"document_characters": float(n)} for n in documents]
    return [Prediction(t, (t,), Text(a), s, Text(t)) for (t, a), s in zip(pairs, scores, strict=True)]


def values(scores: list[Prediction]) -> dict[str, float | None]:
    return {name: metric.value for name, metric in score_texts(scores).metrics.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_the_character_error_rate_is_jiwers_own(pairs: list[tuple[str, str]]) -> None:
    truths, answers = [truth for truth, _ in pairs], [answer for _, answer in pairs]
    found = values(predictions(pairs))["cer"]
    if any(truth.strip() for truth in truths):
        assert found == pytest.approx(jiwer.cer(truths, answers))
    else:
        assert found is None, "there is no character that could be wrong"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_the_word_error_rate_is_jiwers_own_of_words_between_white_space_of_any_kind(
    pairs: list[tuple[str, str]],
) -> None:
    truths, answers = ([" ".join(text.split()) for text in column] for column in zip(*pairs, strict=True))
    found = values(predictions(pairs))["wer"]
    assert found == (pytest.approx(jiwer.wer(truths, answers)) if any(truths) else None)
    for truth, answer in pairs:
        assert word_errors(truth, answer)[1] == len(truth.split())
    assert word_errors("one two\nthree\tfour", "one two three five") == (1, 4)


def test_the_ratios_are_worked_out_by_hand() -> None:
    found = values(predictions([("kitten", "sitting"), ("a" * 14, "")], documents=[70, 140]))
    assert found["cer"] == pytest.approx((3 + 14) / 20)
    assert found["length_ratio"] == pytest.approx(7 / 20)
    assert found["compression"] == pytest.approx(210 / 7)


def test_an_answer_far_too_long_has_a_rate_above_one() -> None:
    assert values(predictions([("ab", "ab" * 50)]))["cer"] == pytest.approx(49)


def test_compression_is_known_only_where_every_document_is() -> None:
    made = predictions([("a", "a"), ("b", "b")], documents=[10, 10])
    assert "compression" in values(made)
    assert "compression" not in values([made[0], *predictions([("b", "b")])])
    assert values(predictions([("a", "")], documents=[10]))["compression"] is None


def test_conditions_on_ratios_may_pass_one_and_those_on_shares_may_not() -> None:
    scores = score_texts(predictions([("kitten", "sitting"), ("abcd", "abcdefgh")], documents=[70, 80]))
    held = {text: parse_requirements(text)[0].holds(scores) for text in ("cer<=0.7", "cer<=0.6", "compression>=10")}
    assert held == {"cer<=0.7": True, "cer<=0.6": False, "compression>=10": True}
    for text in ("rougeL>=85", "repetition<=2", "cer<=-1", "cer<=1e999", "f1.cer<=2"):
        with pytest.raises(RecipeError, match=r"lies between 0 and (1|inf)"):
            parse_requirements(text)
