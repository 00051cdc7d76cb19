import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix

from visiontune.data.sample import Prediction, Text
from visiontune.errors import DataError, RecipeError
from visiontune.metrics.answers import AT_LENGTH_LIMIT, DOCUMENT_CHARACTERS
from visiontune.metrics.requirements import Requirement, parse_requirements
from visiontune.metrics.text import PER_CLASS, score_texts

LABELS = ["cat", "dog", "قطة", "猫"]
OUTSIDE = "none of them"


def predictions(truths: list[str], answers: list[str]) -> list[Prediction]:
    return [
        Prediction(str(i), (), Text(answer), {"confidence": 0.5}, Text(truth))
        for i, (truth, answer) in enumerate(zip(truths, answers, strict=True))
    ]


pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, OUTSIDE])), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_every_number_equals_scikit_learns(cases: list[tuple[str, str]]) -> None:
    truths, answers = [truth for truth, _ in cases], [answer for _, answer in cases]
    scores = score_texts(predictions(truths, answers), LABELS)
    assert scores.classes is not None and scores.confusion is not None
    assert scores.metrics["accuracy"].value == pytest.approx(accuracy_score(truths, answers))
    assert scores.metrics["outside_labels"].value == pytest.approx(answers.count(OUTSIDE) / len(answers))

    report = classification_report(truths, answers, labels=LABELS, zero_division=0, output_dict=True)
    undefined = classification_report(truths, answers, labels=LABELS, zero_division=np.nan, output_dict=True)
    assert isinstance(report, dict) and isinstance(undefined, dict)
    for row in scores.classes:
        assert row.support == report[row.label]["support"]
        for name, metric in (("precision", row.precision), ("recall", row.recall), ("f1-score", row.f1)):
            assert (metric.value or 0.0) == pytest.approx(report[row.label][name])
            assert (metric.value is None) == math.isnan(undefined[row.label][name])
    found = [label for label in LABELS if label in truths or label in answers]
    over_found = classification_report(truths, answers, labels=found, zero_division=0, output_dict=True)
    assert isinstance(over_found, dict)
    assert scores.metrics["macro_f1"].value == pytest.approx(over_found["macro avg"]["f1-score"])

    matrix = confusion_matrix(truths, answers, labels=[*LABELS, OUTSIDE])
    assert scores.confusion.counts.tolist() == matrix[: len(LABELS)].tolist()


def test_white_space_around_an_answer_does_not_count_but_case_does() -> None:
    scores = score_texts(predictions(["a cat", "a dog", "a bird"], [" a cat\n", "a Dog", "a bird"]))
    assert scores.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert scores.classes is None and scores.confusion is None


def test_abstaining_is_counted_and_does_not_count_as_an_answer() -> None:
    made = predictions(["cat", "cat", "dog", "dog"], ["cat", "dog", "dog", "cat"])
    assert "answered" not in score_texts(made, LABELS).metrics, "nothing may abstain"
    abstained = [False, True, False, False]
    scores = score_texts([replace(p, abstained=a) for p, a in zip(made, abstained, strict=True)], LABELS)
    assert scores.metric("answered").value == pytest.approx(3 / 4) and scores.metric("answered").n == 4
    assert scores.metric("accuracy_answered").value == pytest.approx(2 / 3)
    assert scores.metric("accuracy_answered").n == 3
    assert scores.metric("accuracy").value == pytest.approx(2 / 4), "of all samples, as before"
    silent = score_texts([replace(p, abstained=True) for p in made], LABELS)
    assert silent.metric("answered").value == 0 and silent.metric("accuracy_answered").value is None


def test_predictions_without_a_truth_are_not_scored() -> None:
    unknown = Prediction("x", (), Text("cat"))
    assert score_texts([unknown, *predictions(["cat"], ["cat"])], LABELS).n == 1
    empty = score_texts([unknown], LABELS)
    assert empty.n == 0 and empty.metrics["accuracy"].value is None
    assert json.loads(json.dumps(empty.to_json(), allow_nan=False))["metrics"]["accuracy"]["n"] == 0


def test_a_truth_outside_the_label_set_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="'horse' is not among the 4 labels"):
        score_texts(predictions(["horse"], ["cat"]), LABELS)


def test_the_json_form_is_the_documented_one() -> None:
    value = score_texts(predictions(["cat", "dog"], ["cat", OUTSIDE]), LABELS[:2]).to_json()
    assert list(value) == ["n", "metrics", "classes", "confusion"]
    assert list(value["metrics"]) == ["accuracy", "exact_match", "normalised_match", "macro_f1", "outside_labels"]
    assert list(value["metrics"]["accuracy"]) == ["value", "low", "high", "n"]
    assert list(value["classes"][0]) == ["label", "support", "precision", "recall", "f1"]
    assert value["confusion"] == {"labels": ["cat", "dog"], "counts": [[1, 0, 0], [0, 0, 1]]}
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_requirements_are_read_from_one_text_or_a_list() -> None:
    one = parse_requirements("accuracy>=0.85, f1.red, green > .5,outside_labels<1e-2")
    assert one == (
        Requirement("accuracy", ">=", 0.85),
        Requirement("f1.red, green", ">", 0.5),
        Requirement("outside_labels", "<", 0.01),
    )
    assert parse_requirements(["accuracy>=0.85", "f1.red, green > .5", "outside_labels<1e-2"]) == one
    assert str(one[0]) == "accuracy>=0.85"


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy=0.8", ">=0.8", "accuracy>=high", "accuracy>=0.8;", "a>=--1"]
)
def test_what_is_no_requirement_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError, match=r"accuracy>=0\.85"):
        parse_requirements(text)


def test_a_percentage_is_refused_with_its_fraction() -> None:
    with pytest.raises(RecipeError, match=r"between 0 and 1"):
        parse_requirements("accuracy>=85")


def test_a_requirement_compares_the_value_not_the_interval() -> None:
    scores = score_texts(predictions(["cat"] * 10, ["cat"] * 8 + ["dog"] * 2), LABELS)
    held = {text: parse_requirements(text)[0].holds(scores) for text in (
        "accuracy>=0.8", "accuracy>0.8", "accuracy<=0.8", "accuracy<0.8", "recall.cat>=0.8", "precision.cat>=1"
    )}  # fmt: skip
    assert list(held.values()) == [True, False, True, False, True, True]
    assert not parse_requirements("f1.猫>=0")[0].holds(scores), "a class that was never seen satisfies nothing"


def test_an_unknown_metric_is_refused_with_the_ones_there_are() -> None:
    scores = score_texts(predictions(["cat"], ["cat"]), LABELS)
    with pytest.raises(
        RecipeError, match=r"exact_match, normalised_match, macro_f1, outside_labels, precision.LABEL.*cat, dog"
    ):
        parse_requirements("rougeL>=0.8")[0].holds(scores)
    with pytest.raises(RecipeError, match=r"no metric 'f1\.horse'"):
        parse_requirements("f1.horse>=0.8")[0].holds(scores)


def test_a_metric_that_no_model_has_is_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match=r"(?s)no metric .acuracy.\..*one of accuracy, "):
        parse_requirements("f1.cat>0.5, acuracy>=0.8")


def test_every_metric_of_texts_may_be_required() -> None:
    said = {"scores": {AT_LENGTH_LIMIT: 0.0, DOCUMENT_CHARACTERS: 9.0}, "abstained": False}
    made = [replace(p, **said) for p in predictions(["cat"], ["dog"])]
    names = {**score_texts(made, LABELS).metrics, **score_texts(made).metrics}
    assert {"answered", "compression", "at_length_limit"} < names.keys()
    for name in (*names, *(f"{rate}.cat" for rate in PER_CLASS), "bertscore_precision", "bertscore_recall"):
        assert parse_requirements(f"{name}>0.5")[0].metric == name
