"""The laws of the split: deterministic, stratified, clusters whole, earlier rows never moved."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.data.split import SPLITS, assign, spread

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=8)
seeds = st.integers(0, 2**31)


def classes_of(counts: list[int]) -> list[str]:
    return [f"class {i}" for i, count in enumerate(counts) for _ in range(count)]


def split(classes, clusters=None, given=None, earlier=None, seed=0, contents=None):
    count = len(classes)
    return assign(
        contents or [f"content {i}" for i in range(count)],
        clusters or list(range(count)),
        classes,
        given=given or [None] * count,
        earlier=earlier or {},
        seed=seed,
    )


@given(sizes, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(counts, seed, random):
    classes = classes_of(counts)
    contents = [f"content {i}" for i in range(len(classes))]
    clusters = [i // 2 for i in range(len(classes))]
    expected = dict(zip(contents, split(classes, clusters, seed=seed), strict=True))
    order = list(range(len(classes)))
    random.shuffle(order)
    again = split(
        [classes[i] for i in order], [clusters[i] + 7 for i in order], seed=seed, contents=[contents[i] for i in order]
    )
    assert dict(zip([contents[i] for i in order], again, strict=True)) == expected


@given(sizes, seeds)
def test_each_class_is_split_70_15_15_to_the_row(counts, seed):
    classes = classes_of(counts)
    found = split(classes, seed=seed)
    if max(counts) < 3:  # a split is filled from classes that are too small for three
        return
    for name, count in Counter(classes).items():
        here = Counter(s for s, c in zip(found, classes, strict=True) if c == name)
        if count == 1:
            assert here == {"train": 1}
        elif count == 2:
            assert here == {"train": 1, "test": 1}
        else:
            assert min(here[s] for s in SPLITS) >= 1
            assert abs(here["validation"] - 0.15 * count) <= 1
            assert abs(here["test"] - 0.15 * count) <= 1
            assert abs(here["train"] - 0.70 * count) <= 2


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1] * 20, {"train": 14, "validation": 3, "test": 3}),
        ([2] * 20, {"train": 20, "validation": 6, "test": 14}),
        ([1] * 3, {"train": 1, "validation": 1, "test": 1}),
        ([1] * 2, {"train": 2}),
        ([1], {"train": 1}),
    ],
)
def test_many_small_classes_leave_no_split_empty(counts, expected):
    assert Counter(split(classes_of(counts))) == expected
    standing = {f"content {i}": "train" for i in range(sum(counts))}
    assert set(split(classes_of(counts), earlier=standing)) == {"train"}


@pytest.mark.parametrize(("classes", "each"), [(100, 10), (50, 7), (1000, 9), (3, 400)])
def test_the_remainders_of_many_classes_do_not_pile_up_in_one_split(classes, each):
    found = Counter(split(classes_of([each] * classes)))
    total = classes * each
    assert abs(found["train"] - 0.70 * total) <= 0.01 * total
    assert abs(found["validation"] - 0.15 * total) <= 0.01 * total
    assert abs(found["test"] - 0.15 * total) <= 0.01 * total


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), seeds)
def test_clusters_are_never_cut(cluster_sizes, seed):
    clusters = [i for i, size in enumerate(cluster_sizes) for _ in range(size)]
    found = split([""] * len(clusters), clusters, seed=seed)
    places = defaultdict(set)
    for cluster, name in zip(clusters, found, strict=True):
        places[cluster].add(name)
    assert all(len(names) == 1 for names in places.values())
    if len(cluster_sizes) >= 3:
        assert set(found) == set(SPLITS)


@given(st.lists(st.integers(1, 4), min_size=40, max_size=80), seeds)
def test_shares_hold_with_clusters_of_several_rows(cluster_sizes, seed):
    clusters = [i for i, size in enumerate(cluster_sizes) for _ in range(size)]
    found = Counter(split([""] * len(clusters), clusters, seed=seed))
    for name, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        assert abs(found[name] - share * len(clusters)) <= 4


def test_a_cluster_too_large_for_a_held_out_split_trains():
    clusters = [0] * 60 + list(range(1, 41))
    found = split([""] * 100, clusters)
    assert set(found[:60]) == {"train"}
    assert Counter(found) == {"train": 70, "validation": 15, "test": 15}


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), seeds)
def test_rows_added_later_move_no_earlier_row(additions, seed):
    earlier, total = {}, 0
    for added in additions:
        total += added
        contents = [f"content {i}" for i in range(total)]
        classes = [f"class {i % 3}" for i in range(total)]
        found = split(classes, earlier=earlier, seed=seed, contents=contents)
        assert all(name == earlier.get(content, name) for content, name in zip(contents, found, strict=True))
        earlier = dict(zip(contents, found, strict=True))


def test_a_dataset_that_grows_row_by_row_keeps_its_shares():
    earlier = {}
    for total in range(1, 201):
        contents = [f"content {i}" for i in range(total)]
        earlier = dict(zip(contents, split([""] * total, earlier=earlier, contents=contents), strict=True))
    assert Counter(earlier.values()) == {"train": 140, "validation": 30, "test": 30}


def test_without_an_earlier_dataset_one_more_row_moves_few():
    before = split(classes_of([40] * 10))
    after = split([*classes_of([40] * 10), "class 0"])
    assert sum(a != b for a, b in zip(before, after[:-1], strict=True)) <= 3


def test_a_new_duplicate_joins_its_twin_and_one_that_bridges_splits_is_left_out():
    earlier = {"content 0": "test", "content 1": "train", "content 2": "validation"}
    found = split([""] * 5, [0, 1, 2, 0, 1], earlier=earlier)
    assert found == ["test", "train", "validation", "test", "train"]
    assert split([""] * 4, [0, 0, 2, 0], earlier=earlier)[3] is None


def test_given_splits_are_kept():
    given_splits = ["train", "validation", "test"] * 10
    assert split(classes_of([30]), given=given_splits) == given_splits


def test_given_splits_are_kept_even_where_they_part_duplicates():
    given_splits = ["train", "validation", "test"] * 10
    assert split(classes_of([30]), [0] * 30, given=given_splits) == given_splits


@pytest.mark.parametrize(("there", "missing"), [("test", "validation"), ("validation", "test")])
def test_a_split_that_nobody_gave_is_taken_from_train(there, missing):
    given_splits = ["train"] * 85 + [there] * 15
    clusters = [0, 0, *range(1, 99)]
    found = split([""] * 100, clusters, given=given_splits)
    assert found[85:] == [there] * 15
    assert Counter(found[:85]) == {"train": 70, missing: 15}
    assert found[0] == found[1]


def test_another_seed_is_another_split():
    assert split([""] * 100, seed=1) != split([""] * 100, seed=2)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), seeds)
def test_a_first_look_is_spread_over_the_classes(counts, count, seed):
    classes = classes_of(counts)
    ids = [f"id {i}" for i in range(len(classes))]
    chosen = spread(classes, ids, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(classes))
    assert chosen == spread(classes, ids, count, seed)
    per_class = Counter(classes[i] for i in chosen)
    fullest = max(per_class.values())
    for name, there in Counter(classes).items():
        assert per_class[name] >= min(there, fullest - 1)


def test_a_first_look_is_not_the_first_files():
    assert spread([""] * 1000, [f"{i:04d}" for i in range(1000)], 10, 0) != list(range(10))
