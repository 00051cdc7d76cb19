"""Each layout of folders is read as it is meant, and what is wrong in it is named with its place."""

import json

import pytest

from visiontune.data import formats
from visiontune.data.prepare import left_out_of, prepare
from visiontune.errors import DataError


@pytest.fixture
def folder(tmp_path, encode, picture):
    """`folder("cat/1.png", ...)`: a folder with a picture at each path."""

    def make(*names: str):
        root = tmp_path / "photos"
        for seed, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode(picture(seed)))
        return root

    return make


def codes(listing):
    return {fault.code: fault for fault in listing.faults}


def test_class_folders(folder):
    listing = formats.read(folder("dog/2.png", "cat/1.png", "cat/young/tabby/3.JPG"))
    assert [(row.id, row.answer, row.is_label, row.split, row.prompt) for row in listing.rows] == [
        ("cat/1.png", "cat", True, None, None),
        ("cat/young/tabby/3.JPG", "cat", True, None, None),
        ("dog/2.png", "dog", True, None, None),
    ]
    assert listing.faults == []


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "dev", "Val"])
def test_given_splits(folder, held_out):
    listing = formats.read(folder("train/cat/1.png", f"{held_out}/cat/2.png", "test/dog/3.png"))
    assert {row.id: (row.answer, row.split) for row in listing.rows} == {
        "train/cat/1.png": ("cat", "train"),
        f"{held_out}/cat/2.png": ("cat", "validation"),
        "test/dog/3.png": ("dog", "test"),
    }


def test_a_class_may_be_called_train(folder):
    listing = formats.read(folder("train/1.png", "train/steam/2.png", "bus/3.png"))
    assert [(row.answer, row.split) for row in listing.rows] == [("bus", None), ("train", None), ("train", None)]


def test_splits_beside_classes_are_refused(folder):
    with pytest.raises(DataError, match="some folders are splits"):
        formats.read(folder("train/cat/1.png", "test/cat/2.png", "extra/3.png"))


def test_splits_without_classes_are_refused(folder):
    with pytest.raises(DataError, match="no class folder"):
        formats.read(folder("train/1.png", "test/2.png"))


def test_metadata_jsonl(folder):
    root = folder("a/1.png", "2.png", "3.png")
    lines = [
        {"file_name": "a/1.png", "text": "A cat.", "question": "What is it?"},
        {"file_name": "2.png", "text": "Ein Hündchen.", "id": "dog", "split": "val"},
        {"file_name": "3.png", "text": "A cow."},
    ]
    text = "\ufeff" + "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    listing = formats.read(root)
    assert [(row.id, row.answer, row.prompt, row.is_label, row.split) for row in listing.rows] == [
        ("3.png", "A cow.", None, False, None),
        ("a/1.png", "A cat.", "What is it?", False, None),
        ("dog", "Ein Hündchen.", None, False, "validation"),
    ]
    assert listing.faults == []


def test_metadata_csv(folder):
    root = folder("1.png", "2.png")
    (root / "metadata.csv").write_text('file_name,label\n1.png,3\n2.png,"a ""big"", red dog"\n')
    assert [(row.answer, row.is_label) for row in formats.read(root).rows] == [("3", True), ('a "big", red dog', True)]


def test_metadata_in_split_folders(folder):
    root = folder("train/1.png", "test/2.png")
    (root / "train/metadata.csv").write_text("file_name,caption\n1.png,one\n")
    (root / "test/metadata.csv").write_text("file_name,caption\n2.png,two\n")
    assert [(row.id, row.split, row.answer) for row in formats.read(root).rows] == [
        ("test/2.png", "test", "two"),
        ("train/1.png", "train", "one"),
    ]


def test_one_image_may_have_several_questions(folder):
    root = folder("1.png")
    lines = [{"file_name": "1.png", "question": q, "answer": q.upper()} for q in "ab"]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [(row.id, row.prompt) for row in formats.read(root).rows] == [("1.png", "a"), ("1.png#2", "b")]


def test_a_place_for_the_image_stands_in_the_question_once_and_never_in_the_answer(folder):
    root = folder("1.png", "2.png", "3.png", "4.png")
    said = [("<image>\nWhat?", "a"), ("Is <image> red?", "b"), ("<image><image>", "c"), ("What?", "an <image>")]
    lines = [{"file_name": f"{i}.png", "question": q, "answer": a} for i, (q, a) in enumerate(said, start=1)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listing = formats.read(root)
    assert [(row.id, row.prompt) for row in listing.rows] == [("1.png", "What?"), ("2.png", "Is  red?")]
    assert [[turn.content for turn in row.turns] for row in listing.rows] == [[], [("Is ", None, " red?")]]
    assert {code: fault.where for code, fault in codes(listing).items()} == {
        "placeholders-do-not-match": "metadata.jsonl, line 3",
        "misplaced-image": "metadata.jsonl, line 4",
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"file_name": "1.png", "label": ', "not JSON"),
        ('["1.png", "cat"]', "not a JSON object"),
        ('{"label": "cat"}', "no file_name"),
        ('{"file_name": "1.png", "label": ["cat"]}', "label is a list"),
        ('{"file_name": "1.png", "text": "cat"}', "the answer is in text here"),
        ('{"file_name": "1.png", "label": "cat", "split": "holdout"}', "no split"),
        ('{"file_name": "1.png", "label": "\\ud800"}', "UTF-8"),
    ],
)
def test_a_broken_jsonl_line_is_named_and_the_others_are_read(folder, line, why):
    root = folder("1.png", "2.png", "3.png")
    good = '{"file_name": "%d.png", "label": "cat"}\n'
    (root / "metadata.jsonl").write_text(good % 2 + line + "\n" + good % 3)
    listing = formats.read(root)
    assert [row.id for row in listing.rows] == ["2.png", "3.png"]
    fault = codes(listing)["broken-line"]
    assert (fault.where, fault.severity) == ("metadata.jsonl, line 2", "drop")
    assert why in fault.found


def test_a_broken_csv_line_is_named_and_the_others_are_read(folder):
    root = folder("1.png", "2.png", "3.png")
    (root / "metadata.csv").write_bytes(b"file_name,label\n1.png,cat\n2.png\n3.png,caf\xe9\n")
    listing = formats.read(root)
    assert [row.id for row in listing.rows] == ["1.png"]
    broken = [(fault.where, fault.found) for fault in listing.faults if fault.code == "broken-line"]
    assert broken == [
        ("metadata.csv, line 3", "1 cell instead of 2"),
        ("metadata.csv, line 4", "the text is not UTF-8"),
    ]
    assert "metadata file" in codes(listing)["broken-line"].fix


@pytest.mark.parametrize("separator", [";", "\t"])
def test_metadata_of_a_spreadsheet_may_be_parted_otherwise(folder, separator):
    root = folder("1.png", "2.png")
    lines = (("file_name", "text"), ("1.png", "one, two"), ("2.png", "three"))
    (root / "metadata.csv").write_text("".join(separator.join(line) + "\n" for line in lines))
    listing = formats.read(root)
    assert [(row.id, row.answer) for row in listing.rows] == [("1.png", "one, two"), ("2.png", "three")]
    assert not listing.faults


def test_a_file_that_is_not_there_is_named(folder):
    root = folder("1.png")
    (root / "metadata.csv").write_text("file_name,label\n1.png,cat\ngone.png,dog\n")
    fault = codes(formats.read(root))["missing-file"]
    assert (fault.where, fault.found) == ("metadata.csv, line 3", "there is no file gone.png")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_path_out_of_the_folder_is_refused(folder, encode, picture, path):
    root = folder("1.png")
    (root.parent / "secret.png").write_bytes(encode(picture(9)))
    (root / "metadata.csv").write_text(f"file_name,label\n1.png,cat\n{path},dog\n")
    listing = formats.read(root)
    assert [row.id for row in listing.rows] == ["1.png"]
    assert codes(listing)["outside-folder"].where == "metadata.csv, line 3"


def test_links_are_followed_inside_the_folder_alone(folder, encode, picture):
    root = folder("cat/1.png")
    (root.parent / "secret.png").write_bytes(encode(picture(9)))
    (root / "cat/inside.png").symlink_to(root / "cat/1.png")
    (root / "cat/outside.png").symlink_to(root.parent / "secret.png")
    (root / "cat/gone.png").symlink_to(root / "nowhere.png")
    (root / "cat/circle").symlink_to(root)
    (root / "cat/itself.png").symlink_to("itself.png")
    listing = formats.read(root)
    assert [row.id for row in listing.rows] == ["cat/1.png", "cat/inside.png"]
    outside = [fault.where for fault in listing.faults if fault.code == "outside-folder"]
    assert outside == ["cat/circle", "cat/gone.png", "cat/itself.png", "cat/outside.png"]


def test_unknown_columns_unlisted_images_and_stray_files_are_said(folder):
    root = folder("1.png", "2.png", ".hidden/3.png", "__MACOSX/4.png")
    (root / "metadata.csv").write_text("file_name,label,camera\n1.png,cat,Leica\n")
    for name in ("notes.txt", "Thumbs.db", ".DS_Store"):
        (root / name).write_bytes(b"x")
    found = codes(formats.read(root))
    assert set(found) == {"unknown-columns", "no-label", "stray-files"}
    assert "camera" in found["unknown-columns"].found
    assert found["no-label"].where == "2.png"
    assert found["stray-files"].where == "notes.txt"
    assert {fault.severity for fault in found.values()} == {"warning"}


def test_images_beside_class_folders_are_left_out_and_counted(folder, tmp_path_factory):
    source = folder("cat/1.png", "2.png", "3.png")
    listing = formats.read(source)
    assert [row.id for row in listing.rows] == ["cat/1.png"]
    left = [(fault.where, fault.severity) for fault in listing.faults if fault.code == "no-class-folder"]
    assert left == [("2.png", "drop"), ("3.png", "drop")]
    info = prepare(source, tmp_path_factory.mktemp("out") / "data", workers=1).info
    assert [row.id for row in info.left_out] == ["2.png", "3.png"] and left_out_of(info) == "2 rows"


def test_images_without_any_labels_are_refused_with_the_layouts(folder):
    with pytest.raises(DataError, match="directly in the folder") as caught:
        formats.read(folder("1.png", "2.png"))
    assert "FOLDER/CLASS/IMAGE" in str(caught.value)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match="no images"):
        formats.read(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        formats.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="a file, not a folder"):
        formats.read(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("header", "why"), [("image,label", "no column file_name"), ("file_name,size", "no answer"), ("", "no column")]
)
def test_metadata_without_the_columns_is_refused(folder, header, why):
    root = folder("1.png")
    (root / "metadata.csv").write_text(f"{header}\n1.png,cat\n")
    with pytest.raises(DataError, match=why):
        formats.read(root)


def test_two_answer_columns_or_two_metadata_files_are_refused(folder):
    root = folder("1.png")
    (root / "metadata.csv").write_text("file_name,label,text\n1.png,cat,A cat.\n")
    with pytest.raises(DataError, match="several answers"):
        formats.read(root)
    (root / "metadata.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"metadata\.jsonl and a metadata\.csv"):
        formats.read(root)


def test_a_name_that_is_no_utf8_is_written_with_escapes(tmp_path, encode, picture):
    place = tmp_path / "photos/cat"
    place.mkdir(parents=True)
    with open(bytes(place) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(encode(picture(1)))
    (row,) = formats.read(tmp_path / "photos").rows
    assert row.id == "cat/caf\\xe9.png"
    assert row.images[0].read_bytes() == encode(picture(1))
