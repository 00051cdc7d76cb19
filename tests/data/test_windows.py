"""A long document is cut around its answer: the answer is in it, its pages are few enough, sentences stay whole."""

import json
import random
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from visiontune.data.dataset import Dataset
from visiontune.data.inspect import inspect
from visiontune.data.pages import DEFAULT_FONT, Fonts, PageSpec, lay_out, load_fonts
from visiontune.data.prepare import dataset_faults, prepare
from visiontune.data.split import SPLITS
from visiontune.data.windows import answer_span, window
from visiontune.errors import DataError

HERE = Path(__file__).parent
ENGLISH = (HERE / "udhr/en.txt").read_text("utf-8")
CHINESE = (HERE / "udhr/zh.txt").read_text("utf-8")
# Said once each in the declaration, from its first page to its last.
ANSWERS = ("barbarous acts", "spirit of brotherhood", "slave trade", "presumed innocent", "full equality")
ANSWERS += (
    "trade unions",
    "holidays with pay",
    "Technical and professional education",
    "author",
    "any of the rights and freedoms",
)


@cache
def fonts() -> Fonts:
    return load_fonts([DEFAULT_FONT, HERE / "fonts/4-NotoSansCJKsc.otf"])


PAGES = {"width": 384, "height": 384, "margins": (8, 8, 8, 8), "font_size": 11}


def spec(**changes):
    return PageSpec(**{"fonts": fonts().refs, **PAGES, **changes})


def cut(text, span, most, draw=0.5, **changes):
    pages = spec(**changes)
    found = window(text, span, most, draw, lay_out(text, pages, fonts(), missing_limit=1), pages, fonts())
    if found is not None:
        assert len(lay_out(text[slice(*found)], pages, fonts(), missing_limit=1)) <= most
        assert found[0] <= span[0] and span[1] <= found[1]
    return found


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_window_holds_the_answer_fits_its_pages_and_is_cut_between_sentences(answer, most):
    span = answer_span(ENGLISH, answer)
    for draw in (0.0, 0.5, 0.999):
        start, end = cut(ENGLISH, span, most, draw)
        assert start == 0 or re.search(r"\.\s+$|\n\s*\n\s*$", ENGLISH[:start])
        assert end == len(ENGLISH) or ENGLISH[end - 1] == "." or ENGLISH[end : end + 2] == "\n\n"
        assert not ENGLISH[end - 1].isspace()


def test_the_draw_moves_the_answer_from_the_windows_end_to_its_start():
    span = answer_span(ENGLISH, "presumed innocent")
    places = []
    for k in range(20):
        start, end = cut(ENGLISH, span, 3, k / 20)
        places.append((span[0] - start) / (end - start))
    assert places == sorted(places, reverse=True) and places[0] > 0.75 and places[-1] < 0.15
    assert len(set(places)) > 8


def test_a_window_is_as_long_as_its_pages_allow_at_the_texts_ends_too():
    for answer in ("barbarous acts", "any of the rights and freedoms"):
        for draw in (0.0, 0.999):
            start, end = cut(ENGLISH, answer_span(ENGLISH, answer), 3, draw)
            assert len(lay_out(ENGLISH[start:end], spec(), fonts())) == 3


def test_texts_without_sentences_are_cut_at_their_lines_and_without_lines_between_words():
    words = " ".join(ENGLISH.replace(".", "").replace(";", "").split())
    start, end = cut(words, answer_span(words, "holidays with pay"), 2)
    assert words[start - 1] == " " and words[end] == " "
    lines = words.replace(" ", "\n", 1).replace(" and ", "\nand ")
    start, end = cut(lines, answer_span(lines, "holidays with pay"), 2)
    assert lines[start - 1] == "\n" and lines[end] == "\n"
    solid = "".join(c for c in CHINESE if "一" <= c <= "鿿")
    start, end = cut(solid, answer_span(solid, solid[900:904]), 1)
    assert 0 < start <= 900 and 904 <= end < len(solid)


def test_an_answer_of_more_pages_than_allowed_has_no_window():
    assert cut(ENGLISH, (500, 6000), 1) is None


def test_an_answer_is_a_whole_word_where_words_stand_apart():
    assert answer_span("in 1945 and 19 others", "19") == (12, 14)
    assert answer_span("in 1945", "19") is None and answer_span("Anna", "Ann") is None
    assert answer_span("我在北京工作", "北京") == (2, 4) and answer_span("서울에서", "서울") == (0, 2)
    assert answer_span("a (b) c", "(b)") == (2, 5) and answer_span("x", " ") is None


# Through `prepare`.


@pytest.fixture
def questions(tmp_path):
    """Ten questions about the long declaration, one whose answer is not in it, and one short document."""
    rows = [
        {"id": f"q{i}", "text": ENGLISH, "question": f"What is {i}?", "answer": answer}
        for i, answer in enumerate(ANSWERS)
    ]
    rows.append({"id": "none", "text": ENGLISH, "question": "Where?", "answer": "Atlantis"})
    rows += [
        {"id": f"s{i}", "text": f"{answer} is short.", "question": "?", "answer": answer}
        for i, answer in enumerate(ANSWERS)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples(dataset):
    return {
        sample.id: (split, sample)
        for split in SPLITS
        for sample in (dataset.sample(split, i) for i in range(dataset.count(split)))
    }


def test_questions_are_shown_windows_and_what_is_left_out_and_cut_is_counted(questions, tmp_path):
    found = []
    dataset = prepare(questions, tmp_path / "out", pages=PAGES, max_pages=2, workers=1, on_fault=found.append)
    (left_out,) = dataset.info.left_out
    whole = len(lay_out(ENGLISH, dataset.info.pages, dataset.fonts()))
    assert (left_out.id, left_out.code) == ("none", "too-many-pages") and f"takes {whole} pages" in left_out.found
    assert (dataset.info.max_pages, dataset.info.windows, dataset.info.documents.pages.max) == (2, 10, 2)
    fault = {fault.code: fault for fault in dataset_faults(Dataset.open(tmp_path / "out").info)}["context-window"]
    assert fault in found and fault.severity == "warning" and "10 documents" in fault.found
    texts = {name: sample.seen.text for name, (_, sample) in samples(dataset).items()}
    for i, answer in enumerate(ANSWERS):
        assert answer in texts[f"q{i}"] and texts[f"q{i}"] in ENGLISH and len(texts[f"q{i}"]) < len(ENGLISH) / 2
        assert texts[f"s{i}"] == f"{answer} is short."


def test_windows_of_one_document_stay_in_one_split_and_are_no_copies(questions, tmp_path):
    dataset = prepare(questions, tmp_path / "out", pages=PAGES, max_pages=1, workers=1)
    assert len({split for name, (split, _) in samples(dataset).items() if name.startswith("q")}) == 1
    assert {fault.code for fault in dataset.info.faults} == {"context-window"}


@pytest.fixture
def many(tmp_path):
    """Thirty different long documents, each asked for the word in its middle."""
    rows = []
    for i in range(30):
        draw = random.Random(i)
        sentences = [" ".join("".join(draw.choices("aeilmnrst", k=6)) for _ in range(9)) + ". " for _ in range(120)]
        sentences[60] = "The answer is Atlantis. "
        rows.append({"id": str(i), "text": "".join(sentences), "question": "?", "answer": "Atlantis"})
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_other_windows_move_no_row(many, tmp_path):
    before = {name: split for name, (split, _) in samples(prepare(many, tmp_path / "out")).items()}
    short = many.with_name("short.jsonl")
    short.write_text(json.dumps({"text": "Short one.", "question": "?", "answer": "one"}) + "\n")
    beside = samples(
        prepare([many, short], shutil.copytree(tmp_path / "out", tmp_path / "beside"), pages=PAGES, max_pages=3)
    )
    assert {f"many.jsonl/{name}": split for name, split in before.items()}.items() <= {
        name: split for name, (split, _) in beside.items()
    }.items()
    texts = set()
    for changes in ({"max_pages": 3}, {"max_pages": 1}, {"max_pages": 2}, {}):
        after = samples(prepare(many, tmp_path / "out", pages=PAGES, **changes))
        assert {name: split for name, (split, _) in after.items()} == before
        texts.add(after["0"][1].seen.text)
    assert len(texts) == 4


def test_the_answer_stands_anywhere_in_the_windows_and_at_the_same_place_each_time(many, tmp_path):
    found = samples(prepare(many, tmp_path / "out", pages=PAGES, max_pages=2))
    places = [one.seen.text.index("Atlantis") / len(one.seen.text) for _, one in found.values()]
    assert min(places) < 0.2 and max(places) > 0.8
    assert 5 < sum(place < 0.5 for place in places) < 25
    assert samples(prepare(many, tmp_path / "again", pages=PAGES, max_pages=2)) == found


def test_a_source_beside_it_and_the_number_of_workers_move_no_window(questions, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "Short one.", "question": "?", "answer": "one"}) + "\n")
    options = {"pages": PAGES, "max_pages": 1}
    alone = samples(prepare(questions, tmp_path / "1", workers=1, **options))
    beside = samples(prepare([other, questions], tmp_path / "2", workers=2, **options))
    assert {f"questions.jsonl/{name}": one.seen for name, (_, one) in alone.items()}.items() <= {
        name: one.seen for name, (_, one) in beside.items()
    }.items()


def test_documents_looked_at_for_another_number_of_pages_before_an_interruption_are_not_taken(
    questions, tmp_path, monkeypatch
):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("visiontune.data.shards.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(questions, tmp_path / "out", pages=PAGES, max_pages=3, workers=1)
    expected = prepare(questions, tmp_path / "expected", pages=PAGES, max_pages=1, workers=1)
    assert prepare(questions, tmp_path / "out", pages=PAGES, max_pages=1, workers=1).info == expected.info
    assert prepare(questions, tmp_path / "out", pages=PAGES, max_pages=3, workers=1).info != expected.info


def test_summaries_of_long_documents_are_left_out_with_their_pages_and_strict_refuses(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = {"long": ENGLISH, **{f"s{i}": ENGLISH[1000 * i : 1000 * i + 300] for i in range(5)}}
    path.write_text(
        "".join(json.dumps({"id": name, "text": text, "summary": text[:30]}) + "\n" for name, text in texts.items())
    )
    dataset = prepare(path, tmp_path / "out", pages=PAGES, max_pages=4)
    assert [(row.id, row.code) for row in dataset.info.left_out] == [("long", "too-many-pages")]
    assert (len(dataset), dataset.info.windows) == (5, 0)
    assert "--max-pages" in dataset.info.left_out[0].fix
    with pytest.raises(DataError, match="long: the text takes"):
        prepare(path, tmp_path / "strict", pages=PAGES, max_pages=4, strict=True)
    with pytest.raises(DataError, match="0 pages"):
        prepare(path, tmp_path / "none", max_pages=0)
    assert len(prepare(path, tmp_path / "all", pages=PAGES)) == inspect(path).samples == 6
