"""What a person calls the same picture is found, what is not is left alone, and large sets stay quick."""

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visiontune.data.near_duplicates import HASH_DISTANCE, clusters, connected, perceptual_hash


def grouped(images: list[Image.Image]) -> list[int]:
    hashes, thumbnails = zip(*map(perceptual_hash, images), strict=True)
    names = [str(i) for i in range(len(images))]
    return clusters(names, np.array(hashes), np.stack(thumbnails)).tolist()


def saved(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def brighter(image: Image.Image, factor: float) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image) * factor, 0, 255).round().astype(np.uint8))


VARIANTS = {
    "JPEG quality 50": lambda image: saved(image, 50),
    "JPEG quality 75": lambda image: saved(image, 75),
    "JPEG quality 95": lambda image: saved(image, 95),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "1.5 times the size": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "3 % darker": lambda image: brighter(image, 0.97),
    "3 % brighter": lambda image: brighter(image, 1.03),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_changed_copy_is_found(picture, variant):
    originals = [picture(seed, side) for side in (32, 96) for seed in range(side, side + 20)]
    found = grouped(originals + [VARIANTS[variant](image) for image in originals])
    assert found == [*range(40), *range(40)]


def test_different_handwritten_digits_are_not_merged(digit_scans):
    scans = (digit_scans[0] * 255 / 16).round().astype(np.uint8)
    small = [Image.fromarray(scan) for scan in scans]
    assert grouped(small) == list(range(len(scans)))
    large = [image.resize((64, 64), Image.Resampling.BICUBIC) for image in small]
    assert grouped(large) == list(range(len(scans)))


def test_faint_pictures_on_one_ground_are_not_merged():
    generator = np.random.default_rng(5)
    faint = [100 + np.kron(generator.integers(-6, 7, (8, 8)), np.ones((8, 8))) for _ in range(200)]
    assert grouped([Image.fromarray(values.astype(np.uint8)) for values in faint]) == list(range(200))


@pytest.mark.parametrize(("contrast", "same"), [(4, False), (60, True)])
def test_what_counts_as_a_detail_depends_on_the_contrast(contrast, same):
    generator = np.random.default_rng(6)
    picture = 128 + generator.choice([-contrast, contrast], (16, 16))
    thumbnails = np.stack([picture, picture + generator.choice([-2, 2], (16, 16))]).astype(np.uint8)
    found = clusters(["a", "b"], np.zeros(2, np.uint64), thumbnails)
    assert (found[0] == found[1]) == same


def test_the_same_bytes_are_one_cluster_whatever_they_look_like():
    hashes = np.array([0, 2**63, 77], np.uint64)
    thumbnails = np.stack([np.full((16, 16), value, np.uint8) for value in (0, 120, 255)])
    assert clusters(["a", "b", "a"], hashes, thumbnails).tolist() == [0, 1, 0]


def test_blank_frames_of_different_brightness_are_different():
    frames = [Image.new("L", (32, 32), level) for level in (0, 100, 200, 101)]
    assert grouped(frames) == [0, 1, 2, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, HASH_DISTANCE + 2))
def test_hashes_are_near_up_to_the_distance_and_no_further(seed, flips):
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, 60, dtype=np.uint64)
    for bit in generator.permutation(64)[:flips]:
        hashes[59] ^= np.uint64(1) << np.uint64(bit)
    hashes[58] = hashes[59]
    for bit in generator.permutation(64)[:flips]:
        hashes[58] ^= np.uint64(1) << np.uint64(bit)
    found = clusters([str(i) for i in range(60)], hashes, np.zeros((60, 16, 16), np.uint8))
    assert (found[58] == found[59]) == (flips <= HASH_DISTANCE)


def test_a_large_bucket_is_grouped_as_a_small_one_would_be():
    # 700 images share a band of the hash, so that the way for large buckets is taken; each has exactly one twin.
    generator = np.random.default_rng(3)
    hashes = np.repeat(generator.integers(0, 2**51, 350, dtype=np.uint64), 2)
    looks = generator.integers(0, 256, (350, 16, 16), dtype=np.uint8)
    thumbnails = np.repeat(looks, 2, axis=0)
    thumbnails[1::2, 0, 0] ^= 1
    found = clusters([str(i) for i in range(700)], hashes, thumbnails)
    assert found.tolist() == np.repeat(np.arange(0, 700, 2), 2).tolist()


def test_a_hundred_thousand_images_take_seconds():
    generator = np.random.default_rng(0)
    count = 100_000
    thumbnails = generator.integers(0, 256, (count, 256), dtype=np.uint8)
    hashes = generator.integers(0, 2**64, count, dtype=np.uint64)
    blank = thumbnails[:20_000] % 3
    names = [str(i) for i in range(count)]
    started = time.monotonic()
    assert len(np.unique(clusters(names, hashes, thumbnails))) == count
    assert len(np.unique(clusters(names[:20_000], np.zeros(20_000, np.uint64), blank))) == 1
    assert time.monotonic() - started < 20


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_connected_components_are_named_by_their_smallest_node(pairs):
    found = connected(20, np.array(pairs, np.int64).reshape(-1, 2).T)
    parents = list(range(20))
    for _ in range(20):
        for left, right in pairs:
            parents[left] = parents[right] = min(parents[left], parents[right])
    assert found.tolist() == parents
