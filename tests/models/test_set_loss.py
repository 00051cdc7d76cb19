"""Facts about matching and the losses of sets of objects."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou

from visiontune.models import set_loss
from visiontune.models.set_loss import Targets


def boxes_of(count: int, seed: int) -> torch.Tensor:
    shares = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([shares[:, :2], shares[:, 2:] * 0.4 + 0.01], dim=1)


def targets(
    crowd_boxes: list[list[float]], crowd_classes: list[int], looked_for: Sequence[bool] = (True,) * 3
) -> Targets:
    none = torch.zeros(0, dtype=torch.bool)
    return Targets(
        boxes=torch.zeros(0, 4),
        soft=torch.zeros(0, len(looked_for)),
        masks=None,
        has_mask=none,
        crowd_boxes=torch.tensor(crowd_boxes).reshape(-1, 4),
        crowd_classes=torch.tensor(crowd_classes, dtype=torch.int64),
        looked_for=torch.tensor(looked_for),
    )


def test_overlaps_are_those_of_the_library():
    first, second = boxes_of(7, 0), boxes_of(5, 1)
    expected = generalized_box_iou(center_to_corners_format(first), center_to_corners_format(second))
    assert torch.allclose(set_loss.pairwise_overlaps(first, second)[1], expected, atol=1e-6)
    assert torch.allclose(set_loss.overlaps(first[:5], second)[1], expected[:5].diagonal(), atol=1e-6)
    assert torch.allclose(set_loss.overlaps(first, first)[0], torch.ones(7), atol=1e-6)


def test_boxes_without_an_area_give_numbers_and_gradients():
    points = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.0], [0.1, 0.1, 0.0, 0.0]], requires_grad=True)
    drawn = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.0]])
    distance, giou = set_loss.box_losses(points, drawn, torch.ones(3))
    (distance + giou).backward()
    assert torch.isfinite(distance + giou)
    assert points.grad is not None and torch.isfinite(points.grad).all()
    assert torch.isfinite(set_loss.box_cost(points, drawn)).all()


def test_the_matching_is_the_cheapest_of_all():
    cost = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(2))
    queries, objects = set_loss.match(cost)
    for one, mine, its in zip(cost, queries, objects, strict=True):
        cheapest = min(sum(one[q, o].item() for o, q in enumerate(p)) for p in itertools.permutations(range(5), 4))
        assert one[mine, its].sum().item() == pytest.approx(cheapest)
        assert sorted(its.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("queries", "objects"), [(4, 0), (2, 5)])
def test_matching_gives_as_many_pairs_as_there_can_be(queries: int, objects: int):
    found = set_loss.match(torch.zeros(3, queries, objects))
    assert [side.shape for side in found] == [(3, min(queries, objects))] * 2


def test_a_query_that_is_no_number_is_matched_last():
    cost = torch.tensor([[[float("nan")], [3.0], [float("inf")]]])
    assert set_loss.match(cost)[0].tolist() == [[1]]


def test_a_likely_class_costs_as_much_of_its_cost_as_it_is_likely():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    hard = set_loss.class_cost(logits, torch.eye(3))
    soft = set_loss.class_cost(logits, torch.tensor([[0.25, 0.75, 0.0]]))
    assert torch.allclose(soft[:, 0], 0.25 * hard[:, 0] + 0.75 * hard[:, 1])


def test_no_query_is_judged_by_a_class_that_nobody_looked_for():
    matched = torch.tensor([[1]])
    excused = set_loss.excused(boxes_of(2, 0)[None], matched, targets([], [], looked_for=(True, False, True)))
    assert excused.tolist() == [[[False, True, False]] * 2]


def test_queries_inside_a_crowd_are_excused_from_its_class_alone():
    there = targets([[0.25, 0.5, 0.5, 1.0]], [2])
    queries = torch.tensor([[[0.2, 0.5, 0.1, 0.1], [0.52, 0.5, 0.1, 0.1], [0.48, 0.5, 0.1, 0.1], [0.8, 0.5, 0.1, 0.1]]])
    nobody = torch.zeros(1, 0, dtype=torch.int64)
    assert set_loss.excused(queries, nobody, there).nonzero().tolist() == [[0, 0, 2], [0, 2, 2]]
    assert set_loss.excused(queries, torch.tensor([[0]]), there).nonzero().tolist() == [[0, 2, 2]]
    assert not set_loss.excused(queries, nobody, targets([], [])).any()


def test_the_right_mask_costs_and_loses_least():
    masks = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)).round()
    logits = (masks * 2 - 1) * 20
    cost = set_loss.mask_cost(logits, masks, bce=1.0, dice=1.0)
    assert set_loss.match(cost[None])[1].tolist() == [[0, 1, 2]]
    for row in range(3):
        entropy, dice = set_loss.mask_losses(logits, masks[[row] * 3], torch.eye(3)[1])
        assert (entropy + dice).item() == pytest.approx(cost[1, row].item(), abs=1e-5)
    assert np.allclose(cost.diagonal(), 0, atol=1e-5)


def test_objects_count_as_much_as_they_are_likely_and_crowds_do_not():
    soft = torch.tensor([[1.0, 0.0], [0.3, 0.5], [0.0, 1.0]])
    assert set_loss.weight_of(soft, torch.tensor([False, False, True])) == pytest.approx(1.5)
    assert set_loss.weight_of(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)) == 0.0
