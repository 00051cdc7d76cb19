"""Which files a model is asked about, and what is said of those that cannot be read."""

from pathlib import Path

import pytest
from PIL import Image

from visiontune.data.asked_files import asked_files
from visiontune.data.documents import Rendering
from visiontune.data.pages import DEFAULT_FONT
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


def drawn() -> Rendering:
    """Pages in the font of this package."""
    return Rendering.chosen([], None, [DEFAULT_FONT])


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
    asked = asked_files([tmp_path], rendering=drawn())
    assert [path.name for path in asked.paths] == ["a.txt"] and asked.pages == {tmp_path / "a.txt": 1}
    assert "no text in UTF-8" in asked.unreadable[tmp_path / "b.txt"].found


def test_texts_that_cannot_be_drawn_and_blank_ones_are_named_beside_the_others(tmp_path: Path) -> None:
    for name, text in (("a", "A text."), ("b", ""), ("c", " \n\t"), ("d", "人人生而自由"), ("e", "More.")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    asked = asked_files([tmp_path], rendering=drawn())
    assert [path.name for path in asked.paths] == ["a.txt", "e.txt"]
    assert {path.name: error.found[:26] for path, error in asked.unreadable.items()} == {
        "b.txt": "the file is empty",
        "c.txt": "there are only blanks in i",
        "d.txt": "The fonts lack 6 of 6 char",
    }
    with pytest.raises(PartlyReadError, match=r"3 of 5 files cannot be read; the others") as caught:
        asked.answered([1, 2])
    assert caught.value.fix is not None and "give a file with a text in it" in caught.value.fix
    assert "scripts that the run was trained on" in caught.value.fix and "missing_limit" not in str(caught.value)


def test_files_that_are_found_to_be_too_long_later_are_named_too(folder: Path) -> None:
    asked = asked_files([folder, folder / "d.png"])
    assert asked.index("What?").widths == [[64]] * 3 and asked.index("What?").prompts == ["What?"] * 3
    rest = asked.without({folder / "d.png": DataError("too long", fix="shorter")})
    assert [path.name for path in rest.paths] == ["b.png"] and len(rest.unreadable) == 4
    with pytest.raises(PartlyReadError, match="5 of 5 files cannot be read"):
        rest.without({folder / "b.png": DataError("too long")})


def test_of_very_many_files_the_first_are_named_and_all_are_listed(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.png").write_bytes(b"no image")
    with pytest.raises(PartlyReadError) as caught:
        asked_files([tmp_path])
    assert caught.value.where is not None and caught.value.where.endswith("and 10 more")
    assert len(caught.value.unreadable) == 30
