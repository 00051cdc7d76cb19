"""The optimiser's groups, its schedule, and its state on disk."""

import pytest
import torch
from torch import nn

from visiontune.errors import RecipeError
from visiontune.models.parts import Part
from visiontune.recipe_sections import Optimizer, Schedule
from visiontune.training import optimizer as optimizers

PARTS = (Part("a", ("0",)), Part("b", ("1",)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def test_norms_and_biases_are_not_decayed_and_parts_have_their_rates() -> None:
    recipe = Optimizer(learning_rate=1.0, part_learning_rates={"b": 0.5}, weight_decay=0.3)
    groups = optimizers.build(network(), PARTS, recipe).param_groups
    assert [(g["part"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("a", 1.0, 0.3, 1),
        ("a", 1.0, 0.0, 1),
        ("b", 0.5, 0.0, 2),
    ]


def test_a_rate_for_a_part_that_is_not_trained_is_refused() -> None:
    with pytest.raises(RecipeError, match="vision"):
        optimizers.build(
            network(), PARTS, Optimizer(learning_rate=1, part_learning_rates={"vision": 1}, weight_decay=0)
        )


def test_schedules_rise_and_fall_as_they_say() -> None:
    def factors(kind: str) -> list[float]:
        schedule = Schedule.model_validate({"kind": kind, "warmup": 0.2, "steps": 10})
        return [round(optimizers.schedule_factor(schedule, step), 4) for step in range(10)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    cosine = factors("cosine")
    assert (
        cosine[:2] == [0.5, 1] and cosine[6] == 0.5 and cosine == sorted(cosine[:2]) + sorted(cosine[2:], reverse=True)
    )


def test_cosine_and_linear_equal_transformers_own() -> None:
    from transformers import get_scheduler

    for kind in ("cosine", "linear"):
        schedule = Schedule.model_validate({"kind": kind, "warmup": 0.0, "steps": 20})
        optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
        theirs = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=20)
        for step in range(20):
            assert optimizers.schedule_factor(schedule, step) == pytest.approx(
                optimizer.param_groups[0]["lr"], abs=1e-9
            )
            optimizer.step()
            theirs.step()


def test_state_goes_to_tensors_and_back_bit_for_bit() -> None:
    recipe = Optimizer(learning_rate=0.1, weight_decay=0.1)

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.arange(8.0).view(2, 4)).square().sum().backward()
            optimizer.step()

    straight = network()
    steps(straight, optimizers.build(straight, PARTS, recipe), 5)
    first = network()
    before = optimizers.build(first, PARTS, recipe)
    steps(first, before, 3)
    saved = optimizers.state_tensors(before, first)
    second = network()
    second.load_state_dict(first.state_dict())
    after = optimizers.build(second, PARTS, recipe)
    optimizers.put_state(after, second, saved)
    steps(second, after, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
