"""Each fault, planted, is found with its place and its severity; a clean set has none."""

import numpy as np
import pytest
from PIL import Image

from visiontune.data.faults import LEFT_OUT, Fault, left_out, ordered
from visiontune.data.inspect import inspect


@pytest.fixture
def plant(classes):
    """A clean set to plant faults in: two classes of ten different pictures."""
    return classes({"cat": 10, "dog": 10})


def found(source) -> dict[str, Fault]:
    faults = {fault.code: fault for fault in inspect(source).faults}
    assert all(fault.where and fault.found and fault.fix for fault in faults.values())
    return faults


def only(source, code: str, severity: str) -> Fault:
    faults = found(source)
    assert list(faults) == [code]
    assert faults[code].severity == severity
    return faults[code]


def metadata(source, answers: dict[str, str], header: str = "file_name,label") -> None:
    lines = [f"{name},{answer}\n" for name, answer in answers.items()]
    (source / "metadata.csv").write_text(header + "\n" + "".join(lines))


def labels(source) -> dict[str, str]:
    return {str(path.relative_to(source)): path.parent.name for path in sorted(source.rglob("*.png"))}


def test_a_clean_set_has_no_faults(plant):
    assert found(plant) == {}


def test_clean_captions_of_one_image_are_no_fault(plant):
    answers = labels(plant)
    lines = [f"{name},A {answer} {turn}.\n" for name, answer in answers.items() for turn in ("here", "there")]
    (plant / "metadata.csv").write_text("file_name,caption\n" + "".join(lines))
    assert found(plant) == {}


def test_clean_questions_about_one_image_are_no_fault(plant):
    lines = [f"{name},{question},yes\n" for name in labels(plant) for question in ("Is it?", "Is it not?")]
    (plant / "metadata.csv").write_text("file_name,question,answer\n" + "".join(lines))
    assert found(plant) == {}


def test_an_unreadable_image(plant, encode, picture):
    (plant / "cat/bad.png").write_bytes(encode(picture(1))[:60])
    fault = only(plant, "unreadable-image", "drop")
    assert fault.where == "cat/bad.png"
    assert "cannot be decoded" in fault.found


@pytest.mark.parametrize(
    ("code", "found"),
    [("empty-file", "empty"), ("unknown-format", "known format"), ("image-too-large", "178,956,970 pixels")],
)
def test_files_that_are_no_images_that_are_read(plant, encode, picture, code, found):
    files = {"empty-file": b"", "unknown-format": encode(picture(1), "PPM")}
    files["image-too-large"] = encode(Image.new("1", (20_000, 20_000)), "PNG")
    (plant / "cat/bad.png").write_bytes(files[code])
    fault = only(plant, code, "drop")
    assert fault.where == "cat/bad.png"
    assert found in fault.found


@pytest.mark.parametrize(
    ("mode", "kind", "how"),
    [
        ("CMYK", "JPEG", "CMYK"),
        ("P", "PNG", "with a palette"),
        ("RGBA", "PNG", "with transparency"),
        ("LA", "PNG", "with transparency"),
        ("I;16", "PNG", "of more than 8 bits"),
    ],
)
def test_images_that_are_made_rgb_are_counted(plant, encode, picture, mode, kind, how):
    for seed in (1001, 1002):
        image = picture(seed).convert("L" if mode in ("I;16", "LA") else "RGB")
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        (plant / f"cat/odd{seed}.{kind.lower()}").write_bytes(encode(image, kind))
    fault = only(plant, "normalised-images", "warning")
    assert fault.found.partition(": values")[0] == f"2 samples with images {how}"
    assert "cat/odd1001" in fault.where


@pytest.mark.parametrize(
    ("highest", "found"),
    [
        (4095, ": values from 0 to 4,095, and 65,535 is white: they are seen as 0 to 16 of 255"),
        (65535, ": values from 0 to 65,535"),
    ],
)
def test_the_range_of_images_of_more_than_8_bits_is_told(plant, encode, picture, highest, found):
    grey = np.asarray(picture(1001).convert("L")).astype(np.float64)
    values = np.rint((grey - grey.min()) * highest / np.ptp(grey)).astype(np.uint16)
    (plant / "cat/deep.png").write_bytes(encode(Image.fromarray(values), "PNG"))
    fault = only(plant, "normalised-images", "warning")
    assert fault.found == "1 sample with images of more than 8 bits" + found
    assert ("stretch the values" in fault.fix) == (highest == 4095)


def test_images_that_are_turned_as_their_file_says_are_counted(plant, encode, picture):
    exif = Image.Exif()
    exif[274] = 6
    (plant / "cat/turned.jpg").write_bytes(encode(picture(1003, 96), "JPEG", exif=exif))
    assert only(plant, "normalised-images", "warning").found == "1 sample with images turned as EXIF says"


def test_a_class_many_times_as_large_as_another(classes):
    fault = only(classes({"many": 60, "few": 3}), "imbalanced-classes", "warning")
    assert "20 times" in fault.found
    assert found(classes({"many": 59, "few": 3}, name="fair")) == {}


def test_a_duplicate_id(plant):
    rows = {
        name: f"{label},{'same' if number < 2 else number}"
        for number, (name, label) in enumerate(labels(plant).items())
    }
    metadata(plant, rows, "file_name,label,id")
    fault = only(plant, "duplicate-id", "error")
    assert fault.where == "same"
    assert inspect(plant).samples == 19


def test_an_empty_answer(plant):
    metadata(plant, labels(plant) | {"dog/003.png": "  "})
    assert only(plant, "empty-answer", "drop").where == "dog/003.png"


def test_a_broken_line_and_a_missing_file(plant):
    metadata(plant, labels(plant) | {"gone.png": "cat", "dog/003.png,": "dog"})
    faults = found(plant)
    assert (faults["broken-line"].where, faults["broken-line"].severity) == ("metadata.csv, line 23", "drop")
    assert (faults["missing-file"].where, faults["missing-file"].severity) == ("metadata.csv, line 22", "drop")


def test_an_image_without_a_label(plant, encode, picture):
    (plant / "lonely.png").write_bytes(encode(picture(99)))
    assert only(plant, "no-class-folder", "drop").where == "lonely.png"


@pytest.mark.parametrize(
    ("name", "twin"), [("Cat", "cat"), ("cat ", "cat"), ("big_dog", "Big  dog"), ("caf\u00e9", "cafe\u0301")]
)
def test_class_names_that_differ_in_case_spacing_or_encoding(classes, name, twin):
    fault = only(classes({name: 4, twin: 4, "cow": 4}), "similar-class-names", "warning")
    assert repr(name) in fault.where
    assert repr(twin) in fault.where


def test_numbers_with_signs_are_different_names(classes):
    assert found(classes({"-1": 4, "1": 4, "1-2": 4, "12": 4})) == {}


def test_a_class_with_too_few_samples(plant, classes):
    classes({"rare": 2}, first_seed=100)
    assert only(plant, "small-class", "warning").where == "rare"


def test_a_class_of_copies_has_too_few_samples(plant, encode, picture):
    (plant / "rare").mkdir()
    for i in range(5):
        (plant / f"rare/{i}.jpg").write_bytes(encode(picture(100, 96), "JPEG", quality=80 + i))
    assert set(found(plant)) == {"small-class", "near-duplicate-images"}


def test_duplicate_images(plant):
    (plant / "cat/copy.png").write_bytes((plant / "cat/004.png").read_bytes())
    fault = only(plant, "duplicate-images", "warning")
    assert fault.where == "cat/004.png = cat/copy.png"
    assert "1 group of 2 samples" in fault.found


def test_near_duplicate_images(plant, encode, picture):
    (plant / "cat/resaved.jpg").write_bytes(encode(picture(4, 96), "JPEG", quality=85))
    fault = only(plant, "near-duplicate-images", "warning")
    assert fault.where == "cat/004.png = cat/resaved.jpg"


def test_the_same_image_with_different_answers(plant):
    (plant / "dog/copy.png").write_bytes((plant / "cat/004.png").read_bytes())
    faults = found(plant)
    assert set(faults) == {"duplicate-images", "different-answers"}
    assert faults["different-answers"].where == "cat/004.png = dog/copy.png"
    assert faults["different-answers"].severity == "warning"


def test_one_question_with_two_answers(plant):
    lines = [f"{name},Is it?,yes\n" for name in labels(plant)] + ["cat/000.png,Is it?,no\n"]
    (plant / "metadata.csv").write_text("file_name,question,answer\n" + "".join(lines))
    assert only(plant, "different-answers", "warning").where == "cat/000.png = cat/000.png#2"


def test_a_leak_across_given_splits(classes, encode, picture):
    source = classes({"train/cat": 5, "train/dog": 5, "test/cat": 3, "test/dog": 3})
    assert found(source) == {}
    (source / "test/cat/leak.jpg").write_bytes(encode(picture(2, 96), "JPEG", quality=90))
    faults = found(source)
    assert set(faults) == {"near-duplicate-images", "leak-across-splits"}
    assert faults["leak-across-splits"].where == "test/cat/leak.jpg = train/cat/002.png"
    assert faults["leak-across-splits"].severity == "warning"


def test_stray_files(plant):
    (plant / "cat/notes.txt").write_text("x")
    assert only(plant, "stray-files", "warning").where == "cat/notes.txt"


def test_a_single_class(classes):
    assert only(classes({"cat": 5}), "single-class", "warning").where == "'cat'"


def test_no_training_samples(classes):
    only(classes({"test/cat": 5, "test/dog": 5}), "no-training-samples", "error")


def test_the_worst_come_first_and_long_lists_are_cut(classes, encode, picture):
    source = classes({"cat": 10, "dog": 10})
    for i in range(8):
        (source / f"cat/{i} copy.png").write_bytes((source / f"cat/{i:03d}.png").read_bytes())
        (source / f"notes {i}.txt").write_text("x")
    (source / "dog/bad.png").write_bytes(b"")
    faults = inspect(source).faults
    assert [fault.severity for fault in faults] == ["drop", "warning", "warning"]
    assert "and 3 groups more" in faults[1].where
    assert "and 3 more" in faults[2].where
    assert faults == ordered(reversed(faults))


def test_every_row_that_is_left_out_has_its_fix():
    for code in LEFT_OUT:
        fault = left_out(code, "row", "what was found")
        assert fault.fix
        assert fault.severity == ("error" if code == "duplicate-id" else "drop")
