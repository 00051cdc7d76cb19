"""Near-duplicate texts: planted copies are found, different texts are left alone, and a large corpus takes seconds."""

import random

import numpy as np
import pytest

from visiontune.data.near_texts import PLACES, signature, text_clusters

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "lmnrst"]


def text(seed, words=200):
    """A text that no other seed is like."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(original, share, seed=0):
    """A text with this share of its words, spread at random, replaced."""
    draw = random.Random(seed)
    return " ".join(f"new{draw.random()}" if draw.random() < share else word for word in original.split())


def clusters(texts):
    return text_clusters([str(hash(one)) for one in texts], np.stack([signature(one) for one in texts])).tolist()


@pytest.mark.parametrize("large", [256, 1])
def test_planted_copies_are_found_and_nothing_else(monkeypatch, large):
    monkeypatch.setattr("visiontune.data.near_texts._LARGE_BUCKET", large)
    originals = [text(seed) for seed in range(100)]
    copies = [changed(original, 0.02, seed) for seed, original in enumerate(originals)]
    assert clusters(originals + copies) == list(range(100)) * 2


def test_case_spaces_and_punctuation_make_no_difference():
    original = "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening comes."
    assert clusters([original, original.upper().replace(" ", "\n\n").replace(",", " --")]) == [0, 0]


def test_a_longer_version_of_an_article_is_a_near_duplicate_and_another_article_is_not():
    original = text(1)
    assert clusters([original, original + " " + text(2, 60), text(3)]) == [0, 0, 2]


@pytest.mark.parametrize(
    "sentence",
    ["今日は天気がいいので散歩に行きました", "วันนี้อากาศดีมากฉันเลยไปเดินเล่น", "오늘은 날씨가 좋아서 산책을 갔습니다"],
)
def test_scripts_without_spaces_are_compared_by_characters(sentence):
    whole = "".join(sentence + str(i) for i in range(30))
    assert clusters([whole, whole.replace("7", "seven"), whole[::-1]]) == [0, 0, 2]


def test_short_texts_and_texts_without_words():
    assert clusters(["Yes.", "yes", "No.", "...", "!!!", ""]) == [0, 0, 2, 3, 4, 5]
    assert clusters(["a b c d", "a b c e"]) == [0, 1]
    assert text_clusters([], np.zeros((0, PLACES), np.uint32)).tolist() == []


def test_a_signature_is_the_same_in_every_process_and_version():
    assert signature("The quick brown fox jumps over the lazy dog.")[:3].tolist() == SIGNATURE


SIGNATURE = [75428138, 2044712901, 609300992]


def test_texts_with_a_long_common_part_are_no_copies_of_each_other():
    licence = text(0, 80)
    assert clusters([f"{licence} {text(seed, 200)}" for seed in range(1, 400)]) == list(range(399))


def test_hundreds_of_versions_of_one_text_are_one_cluster():
    originals = [text(0), text(1)]
    assert clusters(originals + [changed(originals[i % 2], 0.01, i) for i in range(800)]) == [0, 1] * 401


def test_the_agreement_estimates_the_resemblance():
    rates = []
    for seed in range(20):
        original = text(seed, 400).split()
        other = " ".join(original[:300] + text(seed + 1000, 100).split())
        rates.append(float(np.mean(signature(" ".join(original)) == signature(other))))
    # 296 of 396 + 100 shingles, nearly.
    assert abs(np.mean(rates) - 296 / 496) < 0.03


def test_a_hundred_thousand_signatures_are_clustered_as_they_were_planted():
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 2**32 - 1, (100_000, PLACES), dtype=np.uint32)
    signatures[50_000:60_000, :100] = signatures[:10_000, :100]  # near-duplicates
    signatures[60_000:70_000, :30] = 7  # one licence in all of them
    signatures[70_000:80_000] = signatures[3]  # one text over and over
    expected = np.arange(100_000)
    expected[50_000:60_000] = np.arange(10_000)
    expected[70_000:80_000] = 3
    assert np.array_equal(text_clusters([str(i) for i in range(100_000)], signatures), expected)
