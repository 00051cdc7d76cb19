"""ROUGE equals rouge-score's own, and counts the words of every script."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from visiontune.data.sample import Prediction, Text
from visiontune.metrics.intervals import mean
from visiontune.metrics.rouge import NAMES, repetition, rouge, words
from visiontune.metrics.text import score_texts

ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)


@given(ASCII, ASCII)
def test_on_ascii_text_the_figures_are_rouge_scores_own(truth: str, answer: str) -> None:
    theirs = RougeScorer(list(NAMES), use_stemmer=False).score(truth, answer)
    assert rouge(truth, answer) == pytest.approx({name: score.fmeasure for name, score in theirs.items()})
    assert words(truth) == tokenize(truth, None)


def test_a_known_pair_has_the_figures_worked_out_by_hand() -> None:
    found = rouge("the cat sat on the mat", "the cat lay on a mat")
    assert found["rouge1"] == pytest.approx(4 / 6)
    assert found["rouge2"] == pytest.approx(1 / 5)
    assert found["rougeL"] == pytest.approx(4 / 6)  # the cat ... on ... mat


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("L'été à Köln", ["l", "été", "à", "köln"]),
        ("सभी मनुष्यों को", ["सभी", "मनुष्यों", "को"]),
        ("人人生而自由", list("人人生而自由")),
        ("すべて 2026年", ["す", "べ", "て", "2026", "年"]),
        ("모든 사람은", ["모든", "사람은"]),
        ("يولد جميع الناس", ["يولد", "جميع", "الناس"]),
        ("snake_case x2", ["snake", "case", "x2"]),
    ],
)
def test_words_of_other_scripts_are_counted(text: str, counted: list[str]) -> None:
    assert words(text) == counted
    assert rouge(text, text)["rouge1"] == 1


def test_repetition_is_the_share_of_runs_that_stood_before() -> None:
    assert repetition("a b c d") == 0 and repetition("") == 0
    assert repetition("one two three four five six seven") == 0
    assert repetition("to be or not to be or not to be or not") == pytest.approx(1 - 4 / 9)


def test_free_text_is_scored_by_all_of_them_and_labels_are_not() -> None:
    pairs = [("a red car", "a red car"), ("a blue house", "the blue house")]
    made = [Prediction(t, (t,), Text(a), {}, Text(t)) for t, a in pairs]
    scores = score_texts(made)
    assert set(scores.metrics) == {
        *NAMES,
        "exact_match",
        "normalised_match",
        "repetition",
        "cer",
        "wer",
        "length_ratio",
    }
    assert scores.metric("rougeL").value == pytest.approx((1 + 2 / 3) / 2)
    assert "rougeL" not in score_texts(made[:1], ["a red car"]).metrics


def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = [low <= 0.4 <= high for low, high in (_ends(generator.beta(2, 3, 80)) for _ in range(200))]
    assert 0.89 <= np.mean(covered) <= 0.99


def _ends(values: np.ndarray) -> tuple[float, float]:
    found = mean(values.tolist())
    assert found.low is not None and found.high is not None
    return found.low, found.high
