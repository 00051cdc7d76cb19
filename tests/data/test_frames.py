"""Images of several pages or frames are told: the first alone is seen."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visiontune.data.faults import Fault
from visiontune.data.images import decode_with_facts, read_header
from visiontune.data.inspect import inspect
from visiontune.data.prepare import prepare

FRAMED = {"TIFF": "tif", "PNG": "png", "WEBP": "webp", "GIF": "gif"}


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def encoded(form: str, frames: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    first, *others = (noise(seed + i) for i in range(frames))
    first.save(buffer, form, **({"save_all": True, "append_images": others} if others else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("form", FRAMED)
def test_frames_are_counted_by_the_header_and_the_first_is_seen(form: str) -> None:
    for frames in (1, 3):
        data = encoded(form, frames)
        assert read_header(data).frames == frames
        facts, image = decode_with_facts(data)
        assert (facts.frames, facts.format) == (frames, form)
        if form in ("TIFF", "PNG"):
            assert image.tobytes() == noise(0).tobytes()


@pytest.mark.parametrize("form", ["JPEG", "BMP", "PNG", "TIFF"])
def test_images_of_one_frame_and_previews_are_no_frames(form: str) -> None:
    assert read_header(encoded(form, 1)).frames == 1
    if form == "TIFF":  # a pyramid: each page after the first is the same picture, smaller
        buffer = io.BytesIO()
        small = noise(0).resize((12, 12))
        small.encoderinfo = {"tiffinfo": {254: 1}}
        noise(0).save(buffer, "TIFF", save_all=True, append_images=[small])
        assert read_header(buffer.getvalue()).frames == 1
    if form == "JPEG":
        buffer = io.BytesIO()
        noise(0).save(buffer, "MPO", save_all=True, append_images=[noise(1)])
        assert read_header(buffer.getvalue()).frames == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's of the cut
def test_a_file_that_is_cut_behind_its_first_page_is_one_of_one_page() -> None:
    data, first = encoded("TIFF", 3), encoded("TIFF", 1)
    header = read_header(data[: len(first) + 20])
    assert (header.width, header.height, header.frames) == (24, 24, 1)


def told(faults: list[Fault]) -> list[tuple[str, str]]:
    return [(fault.where, fault.found) for fault in faults if fault.code == "several-frames"]


def test_inspect_and_prepare_name_and_count_them(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for seed, (form, suffix) in enumerate(FRAMED.items()):
        for frames, label in ((3, "many"), (1, "one")):
            path = folder / label / f"{seed}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(form, frames, 100 * seed + 10 * frames))
    found = told(inspect(folder).faults)
    names = ", ".join(f"many/{i}.{suffix}" for i, suffix in enumerate(FRAMED.values()))
    assert found == [(names, "4 samples with images of several frames or pages: the first alone is seen")]
    assert told(prepare(folder, tmp_path / "data", workers=1).info.faults) == found


def test_annotated_images_of_several_pages_are_told_too(tmp_path: Path) -> None:
    for i, frames in enumerate((3, 1)):
        (tmp_path / f"{i}.tif").write_bytes(encoded("TIFF", frames, 10 * i))
    images = [{"id": i, "file_name": f"{i}.tif", "width": 24, "height": 24} for i in range(2)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0} for i in range(2)
    ]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    ((where, found),) = told(inspect(tmp_path / "coco.json").faults)
    assert "0.tif" in where and "1.tif" not in where and found.startswith("1 sample ")
