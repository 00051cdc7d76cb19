"""Label probabilities come from a tree of tokens: they sum to one and are what multiplying along each path gives."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.errors import DataError
from visiontune.models.labels import LabelTree, Tokens

END = 99


def tree_of(*tokens: tuple[int, ...]) -> LabelTree:
    return LabelTree(tuple(f"label {i}" for i in range(len(tokens))), tuple((*ids, END) for ids in tokens))


trees = st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=12, unique=True).map(
    lambda tokens: tree_of(*tokens)
)


def scores_for(tree: LabelTree, batch: tuple[int, ...], seed: int, spread: float = 3.0) -> dict[Tokens, Any]:
    rng = np.random.default_rng(seed)
    return {prefix: rng.normal(0, spread, (*batch, len(followers))) for prefix, followers in tree.branches.items()}


def by_hand(tree: LabelTree, scores: dict[Tokens, Any]) -> list[float]:
    """Each label's probability: at each of its tokens, that token's share among all tokens that lead to a label."""
    probabilities = []
    for tokens in tree.tokens:
        probability = 1.0
        for place, token in enumerate(tokens):
            before = tokens[:place]
            after = sorted({t[place] for t in tree.tokens if t[:place] == before and len(t) > place})
            if len(after) > 1:
                powers = [float(np.exp(score)) for score in scores[before]]
                probability *= powers[after.index(token)] / sum(powers)
        probabilities.append(probability)
    return probabilities


@settings(max_examples=150, deadline=None)
@given(trees, st.integers(0, 1000))
def test_probabilities_are_the_products_along_the_paths_and_sum_to_one(tree: LabelTree, seed: int) -> None:
    scores = scores_for(tree, (), seed)
    probabilities = np.exp(tree.log_probabilities(scores))
    assert probabilities.shape == (len(tree.labels),)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert probabilities == pytest.approx(by_hand(tree, scores), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(trees, st.integers(0, 1000))
def test_a_batch_gives_what_each_of_its_samples_gives_alone(tree: LabelTree, seed: int) -> None:
    scores = scores_for(tree, (3,), seed)
    together = tree.log_probabilities(scores)
    for row in range(3 if tree.branches else 0):
        alone = tree.log_probabilities({prefix: values[row] for prefix, values in scores.items()})
        assert np.allclose(together[row], alone, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(trees, st.integers(0, 1000), st.floats(-500, 500))
def test_logits_and_log_probabilities_are_the_same_to_it(tree: LabelTree, seed: int, shift: float) -> None:
    scores = scores_for(tree, (), seed)
    shifted = {prefix: values + shift for prefix, values in scores.items()}
    assert np.allclose(tree.log_probabilities(scores), tree.log_probabilities(shifted), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_only_places_where_labels_part_are_asked_for(tree: LabelTree) -> None:
    assert all(len(followers) > 1 and list(followers) == sorted(followers) for followers in tree.branches.values())
    assert len(tree.branches) < len(tree.labels)
    assert list(tree.branches) == sorted(tree.branches)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_a_tree_comes_back_equal_from_json(tree: LabelTree) -> None:
    back = LabelTree.from_json(json.loads(json.dumps(tree.to_json())))
    assert back == tree and back.branches == tree.branches


def test_labels_that_differ_in_their_first_token_part_once() -> None:
    assert tree_of((1, 5), (2, 5, 6), (3,)).branches == {(): (1, 2, 3)}


def test_a_single_label_is_certain_and_asks_for_nothing() -> None:
    tree = tree_of((1, 2, 3))
    assert tree.branches == {} and tree.log_probabilities({}).tolist() == [0.0]


def test_a_label_that_begins_another_parts_from_it_at_the_end_token() -> None:
    tree = tree_of((1,), (1, 2))  # such as "red" and "red car"
    assert tree.branches == {(1,): (2, END)}
    probabilities = np.exp(tree.log_probabilities({(1,): np.log([0.2, 0.8])}))
    assert probabilities == pytest.approx([0.8, 0.2])


def test_scores_far_apart_stay_numbers() -> None:
    logs = tree_of((1,), (2,)).log_probabilities({(): np.array([1e4, -1e4])})
    assert logs.tolist() == [0.0, -2e4]


def test_labels_of_the_same_tokens_are_refused_with_both_names() -> None:
    with pytest.raises(DataError, match="'label 0' and 'label 2' are the same tokens"):
        tree_of((1,), (2,), (1,))


def test_tokens_without_an_end_that_begin_others_are_refused() -> None:
    with pytest.raises(
        DataError, match="'short' are the beginning of those of 'long'"
    ):  # their probabilities would sum to more than one
        LabelTree(("long", "short"), ((1, 2, END), (1, 2)))
