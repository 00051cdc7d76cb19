"""Tables of images and texts, as people bring them: every usual layout is read as it was meant, row for row."""

import base64

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.written_tables import jsonl, table
from visiontune.data import formats
from visiontune.data.dataset import Dataset
from visiontune.data.image_places import read_image
from visiontune.data.inspect import inspect
from visiontune.data.prepare import prepare
from visiontune.data.split import SPLITS
from visiontune.data.turns import Turn, from_messages, to_messages
from visiontune.errors import DataError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Two blobs."}]},
    {"role": "user", "content": "Which is red?"},
    {"role": "assistant", "content": "The left one."},
]
TURNS = (
    Turn("system", ("Be brief.",)),
    Turn("user", (None, "What is it?", None)),
    Turn("assistant", ("Two blobs.",)),
    Turn("user", ("Which is red?",)),
)


@pytest.fixture
def place(tmp_path, encode, picture):
    """A folder with twenty pictures 00.png, 01.png, ... in `images/`."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for i in range(20):
        (folder / f"images/{i:02d}.png").write_bytes(encode(picture(i)))
    return folder


def codes(listing):
    return [(fault.code, fault.severity, fault.where) for fault in listing.faults]


def only_row(source, **options):
    listing = formats.read(source, **options)
    assert codes(listing) == []
    (row,) = listing.rows
    return row


def pictures(row):
    return [read_image(image) for image in row.images]


# Layouts


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_images_that_first_stand_far_down_are_seen(place, name):
    rows = [{"prompt": f"q{i}?", "answer": "a"} for i in range(300)]
    rows.append({"image": "00.png", "prompt": "What?", "answer": "A blob.", "id": "own", "split": "test"})
    (row,) = (row for row in formats.read(table(place / name, rows)).rows if row.prompt == "What?")
    assert (row.id, row.names, row.split) == ("own", ("images/00.png",), "test")


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.json", "chat.parquet"])
def test_messages_with_several_turns_and_images(place, name):
    for unused in sorted((place / "images").iterdir())[2:]:
        unused.unlink()
    chat = CHAT
    if name.endswith("parquet"):  # one type a column
        chat = [one if isinstance(one["content"], list) else one | {"content": text(one["content"])} for one in CHAT]
    source = table(place / name, [{"id": "a", "messages": chat, "images": ["images/00.png", "images/01.png"]}])
    for where in (source, place):
        row = only_row(where)
        assert (row.id, row.turns, row.prompt, row.answer) == ("a", TURNS, "Which is red?", "The left one.")
        assert row.names == ("images/00.png", "images/01.png")
        assert pictures(row) == [(place / name).read_bytes() for name in row.names]
    assert formats.read(source).format == "messages"


def text(words):
    return [{"type": "text", "text": words}]


def test_images_then_one_question_is_the_plain_form(place):
    """A conversation that says no more than a prompt and an answer is stored as these, in whatever layout it came."""
    user = {"role": "user", "content": [{"type": "image"}, *text("What is it?")]}
    answer = {"role": "assistant", "content": "A blob."}
    llava = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A blob."}]
    image = "images/03.png"
    rows = {
        "messages": {"messages": [user, answer], "images": [image]},
        "llava": {"conversations": llava, "image": image},
        "roboflow": {"image": image, "prefix": "What is it?", "suffix": "A blob."},
        "prompt_answer": {"image": image, "prompt": "What is it?", "answer": "A blob."},
    }
    for layout, row in rows.items():
        source = jsonl(place / f"{layout}.jsonl", [row])
        found = only_row(source)
        assert (found.turns, found.prompt, found.answer, found.names) == ((), "What is it?", "A blob.", (image,))
        assert found.id == f"{layout}.jsonl:1"
        assert formats.read(source).format == layout


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.json"])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("question", "answer"), ("instruction", "output"), ("query", "response")]
)
def test_columns_of_prompts_and_answers_are_known_by_their_names(place, name, prompt, answer):
    row = only_row(table(place / name, [{"image": "images/00.png", prompt: "Which?", answer: "This.", "split": "val"}]))
    assert (row.prompt, row.answer, row.split, row.is_label) == ("Which?", "This.", "validation", False)


def test_questions_without_an_image_and_several_images_of_one_row(place):
    rows = [
        {"prompt": "Two and two?", "answer": "Four."},
        {"prompt": "Which is darker?", "answer": "The first.", "images": ["images/00.png", "images/01.png"]},
    ]
    first, second = formats.read(jsonl(place / "rows.jsonl", rows)).rows
    assert (first.images, first.prompt, first.turns) == ((), "Two and two?", ())
    assert (second.names, second.turns) == (("images/00.png", "images/01.png"), ())


def test_captions_have_no_prompt(place):
    blank = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A blob."}]
    rows = [{"image": "images/00.png", "caption": "A blob."}], [{"image": "images/00.png", "messages": blank}]
    for i, one in enumerate(rows):
        row = only_row(jsonl(place / f"{i}.jsonl", one))
        assert (row.prompt, row.answer, row.turns, len(row.images)) == (None, "A blob.", (), 1)


def test_labels_are_classes(place):
    rows = [{"file_name": f"images/{i:02d}.png", "label": "ab"[i % 2]} for i in range(20)]
    found = inspect(jsonl(place / "rows.jsonl", rows))
    assert found.labels == {"a": 10, "b": 10}


def test_columns_may_be_named(place):
    row = {"photo": "images/00.png", "text": "What?", "reply": "This.", "key": "k"}
    named = {"image": "photo", "prompt": "text", "answer": "reply", "id": "key"}
    found = only_row(jsonl(place / "rows.jsonl", [row]), columns=named)
    assert (found.id, found.prompt, found.answer, found.names) == ("k", "What?", "This.", ("images/00.png",))
    with pytest.raises(DataError, match="no column called 'foto'; the columns are photo, text, reply, key"):
        formats.read(place / "rows.jsonl", {"image": "foto", "answer": "reply"})


def test_a_roboflow_folder_has_its_splits(place):
    for split, number in (("train", 0), ("valid", 1), ("test", 2)):
        (place / split).mkdir()
        (place / f"images/{number:02d}.png").rename(place / split / "a.png")
        jsonl(place / split / "_annotations.jsonl", [{"image": "a.png", "prefix": "", "suffix": f"{split}"}])
    rows = formats.read(place).rows
    assert {(row.answer, row.split) for row in rows} == {("train", "train"), ("valid", "validation"), ("test", "test")}
    assert {row.names for row in rows} == {("train/a.png",), ("valid/a.png",), ("test/a.png",)}
    jsonl(place / "_annotations.valid.jsonl", [{"image": "images/03.png", "prefix": "", "suffix": "x"}])
    assert formats.read(place).rows[0].split == "validation"


def test_a_table_that_could_be_two_things_is_what_is_said(place):
    row = {"image": "images/00.png", "messages": CHAT[3:], "prompt": "What?", "answer": "This."}
    source = jsonl(place / "rows.jsonl", [row])
    assert formats.read(source).format == "messages"
    listing = formats.read(source, called="prompt_answer")
    assert (listing.format, listing.rows[0].answer) == ("prompt_answer", "This.")
    with pytest.raises(DataError, match="no column called 'conversations'"):
        formats.read(source, called="llava")
    with pytest.raises(DataError, match="no format 'yaml'") as caught:
        formats.read(source, called="yaml")
    assert "messages" in caught.value.fix
    for name in ("coco", "yolo", "voc", "image_folder"):
        with pytest.raises(DataError):
            formats.read(source, called=name)


# Images inside the table


def encoded_in(style, data):
    plain = base64.b64encode(data).decode()
    return {"uri": f"data:image/png;base64,{plain}", "base64": plain}[style]


@pytest.mark.parametrize("style", ["uri", "base64"])
def test_images_written_into_json_lines(place, style, encode, picture):
    data = [encode(picture(i, 60)) for i in range(3)]
    url = {"type": "image_url", "image_url": {"url": encoded_in("uri", data[2])}}
    rows = [
        {"prompt": "Which?", "answer": "a", "images": [encoded_in(style, one) for one in data[:2]]},
        {"messages": [{"role": "user", "content": [url, *text("What?")]}, *CHAT[2:3]]},
    ]
    paths = [jsonl(place / f"{i}.jsonl", [{}, one]) for i, one in enumerate(rows)]
    assert pictures(formats.read(paths[0]).rows[0]) == data[:2]
    assert pictures(formats.read(paths[1]).rows[0]) == data[2:]


@pytest.mark.parametrize(("kind", "mode"), [("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "I;16B"), ("GIF", "P")])
def test_plain_base64_of_any_kind_of_image_is_an_image(place, kind, mode, encode, picture):
    data = encode(picture(0, 60).convert("I" if mode == "I;16B" else mode).convert(mode), kind)
    row = {"prompt": "Which?", "answer": "a", "image": encoded_in("base64", data)}
    assert pictures(formats.read(jsonl(place / "rows.jsonl", [{}, row])).rows[0]) == [data]


def test_a_file_name_that_is_too_long_is_the_fault_of_its_row(place):
    row = {"prompt": "Which?", "answer": "a", "image": "x" * 5000}
    (fault,) = formats.read(jsonl(place / "rows.jsonl", [row])).faults
    assert fault.code == "missing-file"
    assert len(fault.found) < 200


def test_a_table_of_the_hub_with_its_images_and_classes(place, tmp_path, encode, picture):
    """What `datasets` writes: images as bytes with their paths, classes as numbers, several row groups."""
    data = [encode(picture(i)) for i in range(20)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    images = [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(data)]
    made = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(20)]}, features=features)
    made.to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=6)
    listing = formats.read(tmp_path / "train-00000-of-00001.parquet")
    assert codes(listing) == []
    assert {row.names[0]: (row.answer, *pictures(row)) for row in listing.rows} == {
        f"{i}.png": ("dog" if i % 2 else "cat", one) for i, one in enumerate(data)
    }
    assert inspect(tmp_path / "train-00000-of-00001.parquet").labels == {"cat": 10, "dog": 10}


def test_images_in_lists_and_plain_bytes(tmp_path, encode, picture):
    data = [encode(picture(i)) for i in range(3)]
    struct = [{"bytes": one, "path": None} for one in data]
    rows = [
        {"images": struct, "prompt": "Which?", "answer": "a"},
        {"images": [], "prompt": "What?", "answer": "b"},
        {"images": None, "prompt": "Who?", "answer": "c"},
    ]
    first, second, third = formats.read(table(tmp_path / "a.parquet", rows)).rows
    assert (pictures(first), second.images, third.images) == (data, (), ())
    plain = table(tmp_path / "b.parquet", [{"image": data[0], "answer": "a"}, {"image": data[1], "answer": "b"}])
    assert [pictures(row) for row in formats.read(plain).rows] == [data[:1], data[1:2]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_prepared_dataset_holds_what_was_brought(tmp_path, encode, picture, workers):
    data = {f"{i:03d}": encode(picture(i)) for i in range(600)}
    shown = {key: [{"bytes": one, "path": None}] for key, one in data.items()}
    rows = [{"id": key, "images": one, "messages": chat_about(int(key))} for key, one in shown.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=50)
    dataset = prepare(tmp_path / "a.parquet", tmp_path / "out", workers=workers)
    assert dataset.info.faults == dataset.info.left_out == []
    assert len(dataset) == 600
    for split in SPLITS:
        index = dataset.index(split)
        for i, row_id in enumerate(index.ids):
            sample = dataset.sample(split, i)
            assert [file.data for file in sample.seen.files] == [data[row_id]]
            assert to_messages(sample.text.turns) == chat_about(int(row_id))[:-1]
            assert sample.text == index.target(i)
    assert not (tmp_path / "out/.prepare").exists()


def chat_about(number):
    said = [("user", [{"type": "image"}, *text("What?")]), ("assistant", text("A blob."))]
    said += [("user", text(f"Number {number}?")), ("assistant", text("Yes."))]
    return [{"role": role, "content": content} for role, content in said]


def test_turns_are_part_of_what_a_sample_holds(place):
    """Rows that differ in an earlier turn alone are different samples, and no contradiction."""
    rows = []
    for number, answer in ((1, "One."), (2, "Two.")):
        chat = chat_about(0)
        chat[1]["content"] = text(f"Blob {number}.")
        chat[3]["content"] = text(answer)
        rows += [{"images": [f"images/{i:02d}.png"], "messages": chat} for i in range(20)]
    found = inspect(jsonl(place / "rows.jsonl", rows))
    assert found.faults == []
    again = from_messages(to_messages(TURNS))
    assert again == TURNS


def test_another_earlier_turn_is_another_dataset(place):
    hashes = set()
    for number in range(2):
        rows = [{"images": [f"images/{i:02d}.png"], "messages": chat_about(i)} for i in range(20)]
        rows[0]["messages"][1]["content"] = text(f"Blob {number}.")
        source = jsonl(place / "rows.jsonl", rows)
        hashes.add(prepare(source, place.parent / f"out-{number}", workers=1).info.content_hash)
    assert len(hashes) == 2


# Faults


def faulty(place, row, name="rows.jsonl"):
    """The faults of a table with one sound row and this one."""
    sound = {"images": ["images/00.png"], "messages": CHAT[3:]}
    listing = formats.read(jsonl(place / name, [sound, row]), called="messages")
    assert [row.id for row in listing.rows] == ["rows.jsonl:1"]
    return {fault.code: fault for fault in listing.faults if fault.code != "places-not-written"}


def chat(*turns, **more):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


ASK = ("user", "What is it?")
TELL = ("assistant", "A blob.")


@pytest.mark.parametrize(
    ("code", "row", "found"),
    [
        ("turns-out-of-order", chat(ASK, ASK, TELL), "turn 2 is by the user"),
        ("turns-out-of-order", chat(TELL, ASK), "turn 1 is by the assistant"),
        ("turns-out-of-order", chat(ASK, TELL, ("system", "Be brief."), TELL), "turn 3 is by the system"),
        ("empty-answer", chat(ASK), "without an answer"),
        ("empty-answer", chat(ASK, ("assistant", " \n")), "blank"),
        ("empty-answer", chat(ASK, ("assistant", ""), ASK, TELL), "turn 2 is blank"),
        ("empty-answer", chat(), "no turn"),
        (
            "placeholders-do-not-match",
            chat(("user", "<image><image>Both?"), TELL, images=["images/00.png"]),
            "2 places",
        ),
        ("outside-folder", chat(ASK, TELL, images=["../secret.png"]), "../secret.png"),
        ("broken-line", {"messages": [["user", "What?"]]}, "a list where a turn should be"),
        ("broken-line", chat((3, "What?"), TELL), "role is a number"),
        ("broken-line", chat(("user", None), TELL), "nothing"),
        ("broken-line", chat(ASK, TELL, split="holdout"), "'holdout' is no split"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_left_out_and_told(place, code, row, found):
    (place.parent / "secret.png").write_bytes((place / "images/00.png").read_bytes())
    faults = faulty(place, row)
    fault = faults.pop(code)
    assert (fault.severity, fault.where) == ("drop", "rows.jsonl, line 2")
    assert found in fault.found
    assert fault.fix
    assert not faults.keys() - {"unknown-columns"}


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_an_image_inside_a_table_that_cannot_hold_one_is_told(place, name, encode, picture):
    uri = encoded_in("uri", encode(picture(1)))
    rows = [{"image": "images/00.png", "answer": "a"}, {"image": uri, "answer": "b"}]
    listing = formats.read(table(place / name, rows))
    assert [row.answer for row in listing.rows] == ["a"]
    (fault,) = listing.faults
    assert (fault.code, fault.severity) == ("image-inside", "drop")
    assert ".parquet" in fault.fix


def test_questions_without_images_that_are_asked_twice_stand_in_one_split(tmp_path):
    rows = [{"prompt": f"{i % 40} and 1?", "answer": f"{i % 40 + 1}"} for i in range(80)]
    dataset = prepare(jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", workers=1)
    asked = {split: set(dataset.index(split).prompts) for split in SPLITS}
    assert sum(map(len, asked.values())) == 40
    assert all(dataset.count(split) == 2 * len(prompts) for split, prompts in asked.items())
    rows[0]["split"], rows[40]["split"] = "train", "test"
    (fault,) = inspect(jsonl(tmp_path / "rows.jsonl", rows)).faults
    assert (fault.code, fault.where) == ("leak-across-splits", "rows.jsonl:1 = rows.jsonl:41")


def test_a_broken_line_is_named_by_file_and_number(place):
    source = jsonl(place / "rows.jsonl", [{"image": "images/00.png", "answer": "a"}] * 2)
    source.write_text(source.read_text() + '{"image": "images/01.png", "answ\n')
    (fault,) = formats.read(source).faults
    assert (fault.code, fault.where) == ("broken-line", "rows.jsonl, line 3")


def test_mixed_types_in_a_column_are_counted(place):
    answers = ["one", 2, 3.5, ["four", "five"], True, None]
    rows = [{"image": f"images/{i:02d}.png", "answer": answer} for i, answer in enumerate(answers)]
    listing = formats.read(jsonl(place / "rows.jsonl", rows))
    assert [row.answer for row in listing.rows] == ["one", "2", "3.5"]
    faults = {(fault.code, fault.where) for fault in listing.faults}
    assert faults == {
        ("mixed-types", "rows.jsonl, column answer"),
        ("not-a-text", "rows.jsonl, line 4"),
        ("not-a-text", "rows.jsonl, line 5"),
        ("empty-answer", "rows.jsonl, line 6"),
    }


def test_images_that_no_row_shows_are_counted(place):
    rows = [{"image": f"images/{i:02d}.png", "answer": "a"} for i in range(18)]
    jsonl(place / "rows.jsonl", [*rows, {"image": "images/18.png", "answer": ""}])
    found = {fault.code: fault for fault in formats.read(place).faults}
    assert set(found) == {"no-label", "empty-answer"}
    assert (found["no-label"].where, found["no-label"].severity) == ("images/18.png, images/19.png", "warning")


def test_images_without_a_place_stand_before_the_first_question_and_are_counted(place):
    row = chat(ASK, TELL, ("user", "Sure?"), TELL, images=["images/00.png", "images/01.png"])
    listing = formats.read(jsonl(place / "rows.jsonl", [row]))
    assert listing.rows[0].turns[0] == Turn("user", (None, None, "What is it?"))
    assert codes(listing) == [("places-not-written", "warning", "rows.jsonl:1")]


def test_an_image_that_is_broken_inside_a_table_is_left_out_and_told(tmp_path, encode, picture):
    data = [encode(picture(i)) for i in range(12)]
    data[3], data[5] = data[3][:60], b""
    rows = [{"id": str(i), "image": {"bytes": one, "path": None}, "answer": "x"} for i, one in enumerate(data)]
    found = inspect(table(tmp_path / "a.parquet", rows))
    told = {fault.where: fault.code for fault in found.faults}
    assert told == {"3": "unreadable-image", "5": "empty-file"}
    text_row = {"image": "data:image/png;base64,@@@@", "answer": "x"}
    bad = jsonl(tmp_path / "b.jsonl", [text_row, {"image": encoded_in("uri", data[0]), "answer": "y"}])
    (fault,) = [fault for fault in inspect(bad).faults if fault.code == "unreadable-image"]
    assert "base64" in fault.found


def test_a_path_in_a_parquet_file_without_the_bytes_is_told(tmp_path):
    rows = [{"image": {"bytes": None, "path": "elsewhere/a.png"}, "answer": "x"}]
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "answer": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "a.parquet")
    (fault,) = [fault for fault in inspect(tmp_path / "a.parquet").faults if fault.code == "unreadable-image"]
    assert "not its bytes" in fault.found


def test_a_killed_preparation_of_images_inside_a_table_ends_the_same(tmp_path, encode, picture, monkeypatch):
    rows = [{"image": {"bytes": encode(picture(i)), "path": None}, "answer": f"{i}"} for i in range(300)]
    source = table(tmp_path / "a.parquet", rows)
    whole = prepare(source, tmp_path / "whole")
    from visiontune.data import prepare as module

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out")
    assert list((tmp_path / "out/.prepare").glob("*.images"))
    assert prepare(source, tmp_path / "out").info == whole.info
    assert Dataset.open(tmp_path / "out").info == whole.info
