"""Images with texts as people bring them, sound, and each fault that is known, planted into them one at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures import encoded, picture

ROWS = 24
Rows = list[dict[str, Any]]


def sound(folder: Path) -> Rows:
    """Write the pictures 00.png, ... and return a row for each: half are conversations of two turns."""
    rows = []
    for number in range(ROWS):
        name = f"{number:02d}.png"
        (folder / name).write_bytes(encoded(picture(number)))
        said = [f"<image>\nWhat is in number {number}?", f"Blobs, {number} of them."]
        said += ["Are you sure?", f"As sure as {number}."] if number % 2 else []
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        rows.append({"id": f"row-{number:02d}", "images": [name], "messages": messages})
    return rows


def write(folder: Path, rows: Rows, *more: str) -> Path:
    """Write rows as JSON lines, and lines as they are behind them."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(line + "\n" for line in more))
    return path


@dataclass(frozen=True)
class TextPlant:
    """A fault: its code and severity, what plants it (into the folder and its rows; returns lines to add), and a part
    of the place that it is found at."""

    name: str
    code: str
    severity: str
    plant: Callable[[Path, Rows], list[str] | None]
    where: str


def _file(data: bytes) -> Callable[[Path, Rows], None]:
    return lambda folder, _: (folder / "03.png").write_bytes(data) and None


def _row(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Rows], None]:
    return lambda _, rows: change(rows[3])


def _with(**fields: Any) -> Callable[[Path, Rows], None]:
    return _row(lambda row: row.update(fields))


def _said(turn: int, **fields: Any) -> Callable[[Path, Rows], None]:
    return _row(lambda row: row["messages"][turn].update(fields))


def _add(**fields: Any) -> Callable[[Path, Rows], None]:
    """A further row: row 3 with other fields."""
    return lambda _, rows: rows.append({**json.loads(json.dumps(rows[3])), "id": "more", **fields})


def _image(image: Image.Image, kind: str, **options: Any) -> Callable[[Path, Rows], None]:
    return _file(encoded(image, kind, **options))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def _near(folder: Path, rows: Rows) -> None:
    (folder / "again.jpg").write_bytes(encoded(picture(3, 96), "JPEG", quality=80))
    _add(images=["again.jpg"])(folder, rows)


def _again_otherwise(_: Path, rows: Rows) -> None:
    rows.append(json.loads(json.dumps(rows[2])) | {"id": "more"})
    rows[-1]["messages"][-1]["content"] = "Something else."


def _leak(near: bool) -> Callable[[Path, Rows], None]:
    def plant(folder: Path, rows: Rows) -> None:
        for number, row in enumerate(rows):
            row["split"] = "test" if number % 4 == 0 else "train"
        copy = encoded(picture(3, 96), "JPEG", quality=80) if near else (folder / "03.png").read_bytes()
        (folder / "copy.png").write_bytes(copy)
        _add(images=["copy.png"], split="test")(folder, rows)

    return plant


def _labels(counts: dict[str, int]) -> Callable[[Path, Rows], None]:
    def plant(folder: Path, rows: Rows) -> None:
        rows.clear()
        for label in (label for label, count in counts.items() for _ in range(count)):
            name = f"label-{len(rows)}.png"
            (folder / name).write_bytes(encoded(picture(500 + len(rows))))
            rows.append({"image": name, "label": label})

    return plant


def _cell_without_image(_: Path, rows: Rows) -> None:
    rows[:] = [{"id": r["id"], "image": r["images"][0], "question": "?", "answer": "Blobs of " + r["id"]} for r in rows]
    rows[3]["image"] = None


PLANTS = (
    TextPlant("an image file without a byte", "empty-file", "drop", _file(b""), "row-03"),
    TextPlant("an image cut off", "unreadable-image", "drop", _file(encoded(picture(3))[:80]), "row-03"),
    TextPlant("an image that is a text", "unknown-format", "drop", _file(b"no image"), "row-03"),
    TextPlant("a format that is not allowed", "unknown-format", "drop", _image(picture(3), "PPM"), "row-03"),
    TextPlant(
        "a decompression bomb", "image-too-large", "drop", _image(Image.new("1", (16_000, 16_000)), "PNG"), "row-03"
    ),
    TextPlant("an image that is not there", "missing-file", "drop", _with(images=["no.png"]), "line 4"),
    TextPlant("an image outside", "missing-file", "drop", _with(images=["../no.png"]), "line 4"),
    TextPlant(
        "an image on the net", "remote-image", "drop", _with(images=["https://a.b/c.png"]), "line 4"
    ),
    TextPlant("an image left out of its cell", "rows-without-image", "warning", _cell_without_image, "row-03"),
    TextPlant("CMYK", "normalised-images", "warning", _image(picture(3).convert("CMYK"), "JPEG"), "row-03"),
    TextPlant("16 bits", "normalised-images", "warning",
              _image(Image.fromarray(np.asarray(picture(3).convert("L")).astype(np.uint16) * 257), "PNG"), "row-03"),
    TextPlant("transparency", "normalised-images", "warning", _image(picture(3).convert("RGBA"), "PNG"), "row-03"),
    TextPlant("a palette", "normalised-images", "warning", _image(picture(3).convert("P"), "PNG"), "row-03"),
    TextPlant("EXIF says turned", "normalised-images", "warning", _image(picture(3), "JPEG", exif=_turned()), "row-03"),
    TextPlant("a line cut off", "broken-line", "drop", lambda *_: ['{"id": "cut", "mess'], "line 25"),
    TextPlant("a line that is no object", "broken-line", "drop", lambda *_: ["[1, 2]"], "line 25"),
    TextPlant("a number where a text was", "mixed-types", "warning", _add(id=17), "column id"),
    TextPlant("messages that are a text", "broken-line", "drop", _with(messages="What?"), "line 4"),
    TextPlant("an unknown speaker", "unknown-role", "drop", _said(0, role="narrator"), "line 4"),
    TextPlant("two questions in a row", "turns-out-of-order", "drop", _said(1, role="user"), "line 4"),
    TextPlant("a sound in the content", "unknown-content", "drop", _said(0, content=[{"type": "audio"}]), "line 4"),
    TextPlant("an empty answer", "empty-answer", "drop", _said(3, content=""), "line 4"),
    TextPlant("a blank answer", "empty-answer", "drop", _said(1, content=" \n\t"), "line 4"),
    TextPlant("a question alone", "empty-answer", "drop", _row(lambda r: r["messages"].__delitem__(3)), "line 4"),
    TextPlant("a blank question", "empty-question", "drop", _said(2, content=" "), "line 4"),
    TextPlant("a place too many", "placeholders-do-not-match", "drop", _said(0, content="<image><image>?"), "line 4"),
    TextPlant("a place for no image", "placeholders-do-not-match", "drop", _with(images=[]), "line 4"),
    TextPlant("an image in an answer", "misplaced-image", "drop", _said(1, content="<image> here"), "line 4"),
    TextPlant("no place among several questions", "places-not-written", "warning", _said(0, content="What?"), "row-03"),
    TextPlant("an id used twice", "duplicate-id", "error", _add(id="row-05"), "row-05"),
    TextPlant("a word that is no split", "broken-line", "drop", _with(split="holdout"), "line 4"),
    TextPlant("a column that nothing reads", "unknown-columns", "warning", _with(note="x"), "rows.jsonl"),
    TextPlant("the same image with another answer", "different-answers", "warning",
              _again_otherwise, "row-02"),
    TextPlant("the same image again", "near-duplicate-images", "warning", _near, "row-03"),
    TextPlant("a leak across given splits", "leak-across-splits", "warning", _leak(near=False), "row-03"),
    TextPlant("a near leak across given splits", "leak-across-splits", "warning", _leak(near=True), "row-03"),
    TextPlant("class names that differ in case", "similar-class-names", "warning", _labels({"A": 9, "a": 9}), "'a'"),
    TextPlant("class names that differ in _", "similar-class-names", "warning", _labels({"a b": 9, "a_b": 9}), "a_b"),
    TextPlant("a class of too few", "small-class", "warning", _labels({"cat": 9, "dog": 9, "owl": 2}), "owl"),
    TextPlant("a single class", "single-class", "warning", _labels({"cat": 9}), "cat"),
    TextPlant("a class many times another", "imbalanced-classes", "warning", _labels({"cat": 66, "dog": 3}), "cat"),
)  # fmt: skip

# What a plant brings along by its nature: a copy of an image is a copy wherever it stands.
BROUGHT_ALONG = {
    "a leak across given splits": "duplicate-images",
    "a near leak across given splits": "near-duplicate-images",
}
