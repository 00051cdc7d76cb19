"""Which files a model is asked about, and what is said of those that cannot be read."""

from pathlib import Path

import pytest
from PIL import Image

from visiontune.data.asked_files import asked_files
from visiontune.data.images import TEXT_SUFFIXES
from visiontune.errors import DataError, PartlyReadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, and three files that are none."""
    for name in ("b", "d"):
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_files_that_can_be_read_are_answered_and_the_others_named_and_counted(folder: Path) -> None:
    asked = asked_files([folder])
    assert [path.name for path in asked.paths] == ["b.png", "d.png"]
    with pytest.raises(PartlyReadError, match="3 of 5 files cannot be read; the others are answered") as caught:
        asked.answered(["red", "red too"])
    assert caught.value.answers == ["red", "red too"] and caught.value.exit_code == 1
    assert [Path(name).name for name in caught.value.unreadable] == ["a.png", "c.jpg", "e.png"]
    assert caught.value.where is not None and caught.value.fix is not None
    for name, found in (
        ("a.png", "not an image of a known format"),
        ("c.jpg", "empty"),
        ("e.png", "cannot be decoded"),
    ):
        assert f"{folder / name}: " in caught.value.where and found in caught.value.unreadable[str(folder / name)]


def test_where_all_can_be_read_the_answers_are_returned(folder: Path) -> None:
    asked = asked_files([folder / "d.png", folder / "b.png", folder / "d.png"])
    assert [path.name for path in asked.paths] == ["d.png", "b.png", "d.png"], "in the order asked"
    assert asked.answered([1, 2, 3]) == [1, 2, 3]


def test_where_none_can_be_read_nothing_is_loaded(folder: Path) -> None:
    with pytest.raises(DataError, match=r"The file cannot be read\.") as caught:
        asked_files([folder / "a.png"])
    assert caught.value.where is not None and "a.png" in caught.value.where
    with pytest.raises(DataError, match="2 of 2 files cannot be read"):
        asked_files([folder / "a.png", folder / "c.jpg"])


def test_a_limit_is_of_files_whether_they_can_be_read_or_not(folder: Path) -> None:
    asked = asked_files([folder], limit=2)
    assert [path.name for path in asked.paths] == ["b.png"] and len(asked.unreadable) == 1


def test_texts_are_read_as_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Größe", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("Größe".encode("latin-1"))
    asked = asked_files([tmp_path], TEXT_SUFFIXES)
    assert [path.name for path in asked.paths] == ["a.txt"]
    assert "no text in UTF-8" in asked.unreadable[tmp_path / "b.txt"].found


def test_of_very_many_files_the_first_are_named_and_all_are_listed(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.png").write_bytes(b"no image")
    with pytest.raises(PartlyReadError) as caught:
        asked_files([tmp_path])
    assert caught.value.where is not None and caught.value.where.endswith("and 10 more")
    assert len(caught.value.unreadable) == 30
