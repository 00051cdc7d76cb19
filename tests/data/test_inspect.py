"""An inspection says the same of a folder and of the dataset made from it, and writes nothing."""

import pytest

from visiontune.data.inspect import inspect
from visiontune.data.prepare import prepare
from visiontune.errors import DataError


@pytest.fixture
def source(classes, encode, picture):
    root = classes({"10": 8, "9": 6})
    (root / "9/wide.jpg").write_bytes(encode(picture(50, 96).resize((96, 40)), "JPEG"))
    (root / "9/bad.png").write_bytes(b"not an image")
    (root / "9/copy.png").write_bytes((root / "9/000.png").read_bytes())
    return root


def test_the_json_form(source):
    found = inspect(source).to_json()
    assert list(found) == ["targets", "samples", "splits", "images", "documents", "faults", "trains"]
    assert found["targets"] == {
        "text": {
            "samples": 16,
            "labels": {"9": 8, "10": 8},
            "answer_characters": {"min": 1, "median": 1.5, "max": 2},
            "prompts": 0,
        }
    }
    assert found["samples"] == sum(found["splits"].values()) == 16
    assert list(found["splits"]) == ["train", "validation", "test"]
    assert found["images"]["formats"] == {"JPEG": 1, "PNG": 15}
    assert found["images"]["width"] == {"min": 24, "median": 24.0, "max": 96}
    assert found["images"]["height"] == {"min": 24, "median": 24.0, "max": 40}
    assert found["images"]["bytes"] == sum(p.stat().st_size for p in source.rglob("*.*") if p.name != "bad.png")
    assert found["documents"] is None
    assert [fault["code"] for fault in found["faults"]] == ["unknown-format", "duplicate-images"]
    assert [set(fault) for fault in found["faults"]] == [{"code", "severity", "where", "found", "fix"}] * 2
    assert found["trains"] == [{"target": "text", "kind": "classification"}]


def test_a_folder_and_its_dataset_are_the_same_data(source, tmp_path):
    prepare(source, tmp_path / "out")
    assert inspect(tmp_path / "out").to_json() == inspect(source).to_json()


def test_inspecting_writes_nothing(source):
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    inspect(source)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


def test_a_limit_looks_at_so_many_samples_of_either(source, tmp_path):
    prepare(source, tmp_path / "out")
    for data in (source, tmp_path / "out"):
        found = inspect(data, limit=4)
        assert found.samples == sum(found.splits.values()) == len(found.answers) == len(found.widths) == 4
        assert found.labels == {"9": 2, "10": 2}
        assert found.images is not None
        assert found.images.count == 4
        with pytest.raises(DataError, match="limit of 0"):
            inspect(data, limit=0)


@pytest.mark.parametrize(
    ("header", "kind"),
    [("file_name,caption", "captioning"), ("file_name,question,answer", "question answering")],
)
def test_free_text_has_no_labels(classes, header, kind):
    root = classes({"all": 5})
    question = "What is it?," if "question" in header else ""
    lines = [f"all/{i:03d}.png,{question}number {i}\n" for i in range(5)]
    (root / "metadata.csv").write_text(header + "\n" + "".join(lines))
    found = inspect(root)
    assert (found.labels, found.kind) == (None, kind)
    assert found.to_json()["targets"]["text"]["prompts"] == (5 if question else 0)


def test_data_of_which_nothing_can_be_used_trains_nothing(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/bad.png").write_bytes(b"not an image")
    found = inspect(tmp_path).to_json()
    assert (found["samples"], found["targets"], found["trains"]) == (0, {}, [])
    assert [fault["code"] for fault in found["faults"]] == ["nothing-usable", "unknown-format"]
    assert found["faults"][1]["where"] == "cat/bad.png"
