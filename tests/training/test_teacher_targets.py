"""What of a teacher's findings is learned, and how much of them is held to what people drew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco_scenes import objects as drawn
from tests.painted_teacher import CLASSES, found
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction
from visiontune.errors import DataError
from visiontune.models.objects import nothing
from visiontune.training.teacher_targets import FEW, ClassThreshold, blend, choose_thresholds, label, overall_threshold

SIZE = (60, 80)


def at(*limits: float | None) -> dict[str, ClassThreshold]:
    return {name: ClassThreshold(limit, False, 9, 9, 9) for name, limit in zip(CLASSES, limits, strict=True)}


def prediction(truth: Objects, target: Objects) -> ObjectPrediction:
    return ObjectPrediction("an image", ("an image",), target, CLASSES, SIZE, truth)


# Thresholds.


@st.composite
def images(draw: st.DrawFn) -> list[ObjectPrediction]:
    """Images whose boxes lie close together, so that many overlap, with few scores, so that many are equal."""
    place = st.tuples(*(st.integers(0, 4),) * 2, *(st.integers(6, 9),) * 2)
    made = []
    for _ in range(draw(st.integers(1, 4))):
        truths = draw(st.lists(st.tuples(place, st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=6))
        guesses = draw(st.lists(st.tuples(place, st.integers(0, 1), st.integers(1, 9)), max_size=8))
        truth = drawn([t[0] for t in truths], [t[1] for t in truths], crowd=[t[2] == 0 for t in truths])
        target = drawn([g[0] for g in guesses], [g[1] for g in guesses], scores=[g[2] / 10 for g in guesses])
        made.append(prediction(truth, target))
    return made


def counted(predictions: list[ObjectPrediction], limit: float, classes: Sequence[int]) -> tuple[int, int, int]:
    """By the book, one threshold at a time: true objects, findings that count, and those that are right."""
    count = guessed = right = 0
    for one in predictions:
        truth, target = one.truth, one.target
        assert truth is not None and target.scores is not None
        free = [i for i in range(len(truth)) if not truth.crowd[i] and truth.classes[i] in classes]
        count += len(free)
        chosen = [j for j in range(len(target)) if target.scores[j] >= limit and target.classes[j] in classes]
        for j in sorted(chosen, key=lambda j: (-target.scores[j], j)):
            shared = [overlap(target.boxes[j], truth.boxes[i]) for i in range(len(truth))]
            same = [i for i in range(len(truth)) if truth.classes[i] == target.classes[j]]
            best = max((i for i in same if i in free), key=lambda i: shared[i][0] / shared[i][1], default=None)
            if best is not None and shared[best][0] / shared[best][1] >= 0.5:
                free.remove(best)
                right += 1
                guessed += 1
            elif not any(
                truth.crowd[i] and shared[i][0] / (target.boxes[j][2] * target.boxes[j][3]) >= 0.5 for i in same
            ):
                guessed += 1
    return count, guessed, right


def overlap(box: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The area that two boxes share, and that of both together."""
    sides = [max(0.0, min(box[k] + box[k + 2], other[k] + other[k + 2]) - max(box[k], other[k])) for k in (0, 1)]
    shared = sides[0] * sides[1]
    return shared, box[2] * box[3] + other[2] * other[3] - shared


@given(images())
@settings(max_examples=200)
def test_no_threshold_has_a_better_f1_and_of_equal_ones_the_highest_is_chosen(
    predictions: list[ObjectPrediction],
) -> None:
    def f1(limit: float, classes: Sequence[int]) -> float:
        count, guessed, right = counted(predictions, limit, classes)
        return 2 * right / max(1, count + guessed)

    limits = [k / 10 for k in range(1, 10)]
    try:
        chosen = choose_thresholds(predictions)
    except DataError:
        assert max(f1(limit, (0, 1)) for limit in limits) == 0
        return
    for number, name in enumerate(CLASSES[:2]):
        one = chosen[name]
        judged = (0, 1) if one.from_all_classes else (number,)
        best = max(f1(limit, judged) for limit in limits)
        assert one.from_all_classes == (counted(predictions, 0, (number,))[0] < FEW)
        if one.threshold is None:
            assert best == 0
            continue
        assert f1(one.threshold, judged) == pytest.approx(best, abs=1e-12)
        assert all(f1(limit, judged) < best for limit in limits if limit > one.threshold)
        assert (one.drawn, one.found, one.right) == counted(predictions, one.threshold, (number,))


def row_of_boxes(count: int) -> list[list[float]]:
    return [[12 * i, 0, 10, 10] for i in range(count)]


def test_each_class_has_its_own_threshold_with_its_figures() -> None:
    truth = drawn(row_of_boxes(12), [0] * 6 + [1] * 6)
    # Cats: the best six of eight are right; dogs: the best three of four, and three are missed.
    guesses = [*row_of_boxes(6), [200, 0, 10, 10], [220, 0, 10, 10], *row_of_boxes(9)[6:], [240, 0, 10, 10]]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.35, 0.34, 0.33, 0.1]
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 8 + [1] * 4, scores=scores))])
    assert (chosen["cat"].threshold, chosen["dog"].threshold) == (0.4, 0.33)
    assert (chosen["cat"].precision, chosen["cat"].recall, chosen["cat"].f1) == (1, 1, 1)
    assert chosen["dog"].to_json() == {
        "threshold": 0.33, "from_all_classes": False, "drawn": 6, "found": 3, "right": 3,
        "precision": 1.0, "recall": 0.5, "f1": 0.666667,
    }  # fmt: skip


def test_the_threshold_of_all_classes_together_passes_over_what_has_no_truth() -> None:
    one = prediction(drawn(row_of_boxes(3), [0, 1, 1]), found(row_of_boxes(4), [0, 1, 1, 1], [0.9, 0.6, 0.4, 0.3]))
    assert overall_threshold([one]) == overall_threshold([one, replace(one, truth=None)]) == 0.4
    assert overall_threshold([prediction(drawn([], []), one.target)]) is None
    assert overall_threshold([]) is None


def test_of_two_thresholds_with_the_same_f1_the_higher_is_chosen() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    guesses = [*row_of_boxes(2), *[[200.0, 12 * i, 10, 10] for i in range(3)], row_of_boxes(3)[2]]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # from 0.8 on 2 of 2 are right, from 0.4 on 3 of 6: F1 is 0.5 both times
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 6, scores=scores))])
    assert (chosen["cat"].threshold, chosen["cat"].f1) == (0.8, 0.5)


def test_findings_with_one_score_are_taken_together_or_not_at_all() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    guesses = [*row_of_boxes(4), *[[200.0, 12 * i, 10, 10] for i in range(4)]]
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 8, scores=[0.9] * 3 + [0.5] * 5))])
    assert (chosen["cat"].threshold, chosen["cat"].found, chosen["cat"].right) == (0.9, 3, 3)


def test_a_class_with_too_few_objects_has_the_threshold_of_all_and_that_is_said() -> None:
    truth = drawn(row_of_boxes(10), [0] * 9 + [2])
    guesses = drawn(row_of_boxes(10), [0] * 9 + [2], scores=[0.8] * 9 + [0.2])
    chosen = choose_thresholds([prediction(truth, guesses)])
    assert chosen["owl"].from_all_classes and chosen["dog"].from_all_classes and not chosen["cat"].from_all_classes
    assert chosen["owl"].threshold == chosen["dog"].threshold == 0.2
    assert (chosen["owl"].drawn, chosen["owl"].right, chosen["dog"].drawn, chosen["dog"].recall) == (1, 1, 0, None)


def test_a_class_of_which_nothing_is_right_is_never_taken() -> None:
    truth = drawn(row_of_boxes(10), [0] * 5 + [1] * 5)
    guesses = drawn([*row_of_boxes(5), *[[200.0, 20, 10, 10]] * 5], [0] * 5 + [1] * 5, scores=[0.9] * 10)
    chosen = choose_thresholds([prediction(truth, guesses)])
    assert chosen["dog"].threshold is None
    taken = label(found([[0, 0, 9, 9]], [1], [1.0]), chosen, CLASSES, SIZE)
    assert len(taken) == 0


def test_a_teacher_that_finds_nothing_right_and_truths_without_objects_are_refused() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    for predictions in ([prediction(truth, drawn([], [], scores=[]))], [prediction(drawn([], []), truth)], []):
        with pytest.raises(DataError):
            choose_thresholds(predictions)


# Targets.


def test_sure_findings_are_objects_doubtful_ones_crowds_and_the_rest_is_background() -> None:
    guesses = found(row_of_boxes(4), [0, 0, 0, 1], [0.6, 0.29, 0.61, 0.3])
    taken = label(guesses, at(0.6, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes[:, 0].tolist() == [24, 0, 36]
    assert taken.crowd.tolist() == [False, False, True]
    assert taken.ids == (1, 2, 3)
    assert taken.scores is None and taken.soft is not None
    assert taken.soft[0].tolist() == [0.61, 0.1525, 0.1525]


def test_a_box_that_was_given_two_classes_becomes_one_object_of_the_surer_class() -> None:
    guesses = found([[0, 0, 20, 20], [0, 0, 20, 20], [0, 1, 20, 20]], [0, 1, 1], [0.6, 0.55, 0.2])
    taken = label(guesses, at(0.7, 0.5, 0.5), CLASSES, SIZE)
    assert (taken.classes.tolist(), taken.crowd.tolist()) == ([1], [False])


def test_a_doubtful_second_box_on_an_object_is_no_crowd() -> None:
    guesses = found([[0, 0, 20, 20], [0, 6, 20, 20], [0, 30, 20, 20]], [0, 0, 0], [0.9, 0.3, 0.3])
    taken = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes[:, 1].tolist() == [0, 30]
    assert taken.crowd.tolist() == [False, True]


def test_boxes_end_at_the_images_edges_and_slivers_are_left_out() -> None:
    height, width = SIZE
    guesses = found([[-5, -5, 20, 20], [width - 0.5, 0, 30, 30], [10, 40, 40, 40]], [0, 0, 0], [0.9, 0.8, 0.7])
    taken = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes.tolist() == [[0, 0, 15, 15], [10, 40, 40, height - 40]]


def test_nothing_found_is_nothing_to_learn() -> None:
    for none in (nothing(3), replace(nothing(3), scores=None, soft=None)):
        taken = label(none, at(0.5, 0.5, 0.5), CLASSES, SIZE)
        assert len(taken) == 0 and taken.soft is not None and taken.soft.shape == (0, 3)


def test_blending_keeps_what_people_drew_and_adds_the_teachers_doubts_where_it_found_the_object() -> None:
    truth = drawn([[0, 0, 20, 20], [30, 0, 20, 20], [0, 30, 20, 20]], [0, 1, 2], crowd=[False, False, True])
    guesses = found([[0, 1, 20, 20], [60, 0, 9, 9], [0, 30, 20, 20]], [1, 0, 2], [0.8, 0.9, 0.9])
    sure = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    blended = blend(truth, sure, 0.25)
    assert replace(blended, soft=None).__dict__ == truth.__dict__
    assert blended.soft is not None
    assert blended.soft[0].tolist() == pytest.approx([0.75 + 0.25 * 0.2, 0.25 * 0.8, 0.25 * 0.2])
    assert blended.soft[1:].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_finding_speaks_for_one_object_alone() -> None:
    truth = drawn([[0, 0, 20, 20], [0, 2, 20, 20]], [0, 0])
    sure = label(found([[0, 2, 20, 20]], [0], [0.5]), at(0.5, 0.5, 0.5), CLASSES, SIZE)
    blended = blend(truth, sure, 1.0)
    assert blended.soft is not None
    assert blended.soft[:, 0].tolist() == [1.0, 0.5]


def test_a_doubtful_finding_does_not_make_a_persons_label_less_sure() -> None:
    truth = drawn([[0, 0, 20, 20], [30, 0, 20, 20], [0, 30, 20, 20]], [0, 0, 0])
    guesses = found([[0, 0, 20, 20], [30, 0, 20, 20], [0, 30, 20, 20]], [0, 0, 0], [0.26, 0.2, 0.6])
    blended = blend(truth, label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE), 0.5)
    assert blended.soft is not None
    assert blended.soft[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.8])
