"""Windows are cut into steps and micro-batches by a pure function of the window."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.data.dataset import Dataset
from visiontune.data.order import Order
from visiontune.models.load import load_adapter
from visiontune.recipe import Recipe
from visiontune.recipe_sections import Batch
from visiontune.training.batches import MicroBatch, Reading, load_steps, plan_steps, plan_window, promised


def plan_of(seed: int, tokens: int, samples: int = 16, longest: int = 400) -> tuple[Order, list[np.ndarray], Batch]:
    generator = np.random.default_rng(seed)
    sizes = [97, 31, 5]
    lengths = [generator.integers(20, longest, size) for size in sizes]
    return Order(seed, sizes, [3.0, 2.0, 1.0]), lengths, Batch(samples=samples, tokens=tokens, window=8 * samples)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(64, 8192), window=st.integers(0, 10**6))
def test_every_sample_of_a_window_is_in_one_step_and_each_step_has_its_number(
    seed: int, tokens: int, window: int
) -> None:
    order, lengths, batch = plan_of(seed, tokens)
    steps = plan_window(order, lengths, batch, window)
    assert [m.step for step in steps for m in step[:1]] == [window * 8 + i for i in range(8)]
    assert all(sum(len(m.samples) for m in step) == batch.samples for step in steps)
    assert all([m.number for m in step] == list(range(len(step))) for step in steps)
    draws = order.draw(window * batch.window, (window + 1) * batch.window)
    drawn = sorted(zip(draws.dataset.tolist(), draws.index.tolist(), draws.epoch.tolist(), strict=True))
    assert sorted(ref for step in steps for m in step for ref in m.samples) == drawn


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(64, 8192))
def test_a_micro_batch_keeps_to_its_token_budget_unless_one_sample_is_larger(seed: int, tokens: int) -> None:
    order, lengths, batch = plan_of(seed, tokens)
    for step in plan_window(order, lengths, batch, 0):
        for micro_batch in step:
            longest = max(int(lengths[d][i]) for d, i, _ in micro_batch.samples)
            assert len(micro_batch.samples) == 1 or longest * len(micro_batch.samples) <= tokens


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(64, 8192))
def test_packed_micro_batches_hold_as_many_samples_as_their_tokens_allow(seed: int, tokens: int) -> None:
    order, lengths, batch = plan_of(seed, tokens)
    packed = plan_window(order, lengths, batch.model_copy(update={"packing": True}), 0)
    for plain, step in zip(plan_window(order, lengths, batch, 0), packed, strict=True):
        sizes = [[int(lengths[d][i]) for d, i, _ in micro_batch.samples] for micro_batch in step]
        assert all(len(some) == 1 or sum(some) <= tokens for some in sizes)
        assert all(sum(some) + following[0] > tokens for some, following in pairwise(sizes)), "one more would not fit"
        assert len(step) <= len(plain)
        samples = [sorted(ref for micro_batch in one for ref in micro_batch.samples) for one in (plain, step)]
        assert samples[0] == samples[1], "the steps are the same"


def test_neighbours_in_length_share_a_micro_batch() -> None:
    order, lengths, batch = plan_of(0, 2048, samples=32)
    real = padded = 0
    for window in range(10):
        for step in plan_window(order, lengths, batch, window):
            for micro_batch in step:
                sizes = [int(lengths[d][i]) for d, i, _ in micro_batch.samples]
                real, padded = real + sum(sizes), padded + max(sizes) * len(sizes)
    assert 1 - real / padded < 0.12  # cutting at random pads about 40 %


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 40), length=st.integers(1, 40))
def test_the_steps_are_the_same_wherever_the_run_is_resumed(start: int, length: int) -> None:
    order, lengths, batch = plan_of(3, 700)
    whole = list(plan_steps(order, lengths, batch, 0, 80))
    assert list(plan_steps(order, lengths, batch, start, start + length)) == whole[start : start + length]


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 60), seed=st.integers(0, 1000))
def test_what_is_promised_is_what_the_steps_hold(steps: int, seed: int) -> None:
    order, lengths, batch = plan_of(seed, 900)
    refs = [r for step in plan_steps(order, lengths, batch, 0, steps) for m in step for r in m.samples]
    counts, digest = promised(order, lengths, batch, steps)
    assert counts == {d: n for d, n in enumerate(np.bincount([r[0] for r in refs]).tolist()) if n}
    assert digest != promised(order, lengths, batch, steps + 1)[1]


def test_ranks_and_workers_share_the_same_micro_batches(
    digits: Dataset, recipe_of: Recipe, tiny_checkpoint: object
) -> None:
    encoder = load_adapter(str(tiny_checkpoint), None, recipe_of.data).encoder
    order = Order(0, [digits.count("train")])
    lengths = [encoder.lengths(digits.index("train"))]
    batch = Batch(samples=8, tokens=200, window=32)
    reading = Reading([digits], encoder)

    def loaded(rank: int, ranks: int, workers: int) -> list[tuple[int, list[tuple[int, list[str]]]]]:
        steps = load_steps(plan_steps(order, lengths, batch, 2, 6), reading, rank=rank, ranks=ranks, workers=workers)
        return [(step, [(number, b.ids) for number, b in batches]) for step, batches in steps]

    alone = loaded(0, 1, 0)
    assert loaded(0, 1, 2) == alone
    ranks = [loaded(rank, 3, 0) for rank in range(3)]
    for i, (step, batches) in enumerate(alone):
        shares = [share[i] for share in ranks]
        assert {share[0] for share in shares} == {step}
        assert sorted(b for share in shares for b in share[1]) == batches


def test_an_idle_rank_keeps_step(digits: Dataset, recipe_of: Recipe, tiny_checkpoint: object) -> None:
    encoder = load_adapter(str(tiny_checkpoint), None, recipe_of.data).encoder
    plan = [[MicroBatch(7, 0, ((0, 0, 0),))], [MicroBatch(8, 0, ((0, 1, 0),))]]
    steps = list(load_steps(plan, Reading([digits], encoder), rank=1, ranks=2))
    assert steps == [(7, []), (8, [])]
