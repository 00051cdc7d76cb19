"""Datasets of documents: every character comes back, page counts are right, what has no glyphs is left out."""

import json
import random
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from tests.killed import count_changes_of_the_disk, killed
from visiontune.data.dataset import Dataset
from visiontune.data.documents import looks_like_markdown, scripts_of
from visiontune.data.inspect import inspect
from visiontune.data.pages import DEFAULT_FONT, PageSpec, lay_out, load_fonts
from visiontune.data.prepare import dataset_faults, prepare
from visiontune.data.sample import Document
from visiontune.data.split import SPLITS
from visiontune.data.stored_rows import GROUP_BYTES, StoredRow, write_shard
from visiontune.errors import DataError

CJK = Path(__file__).parent / "fonts/4-NotoSansCJKsc.otf"
CHINESE = (Path(__file__).parent / "udhr/zh.txt").read_text()
SMALL = {"shard_bytes": 8_000, "workers": 1}


def text(seed, words=60):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("aeioulmnrst", k=draw.randint(2, 9))) for _ in range(words))


def row(seed, **changes):
    return {"id": f"d{seed:03d}", "text": text(seed), "summary": f"Summary {seed}."} | changes


@pytest.fixture
def write(tmp_path):
    """`write(rows)`: a JSON Lines file."""

    def make(rows, name="articles.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return path

    return make


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("visiontune.data.documents.CHUNK_ROWS", 8)


def samples(dataset):
    return {
        sample.id: (split, sample)
        for split in SPLITS
        for sample in (dataset.sample(split, i) for i in range(dataset.count(split)))
    }


def places(dataset):
    return {name: split for split in SPLITS for name in dataset.index(split).ids}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def codes(faults):
    return {fault.code: fault for fault in faults}


def test_every_character_comes_back(write, tmp_path):
    odd = "# Ünï\t\r\n\n\n  “x” \x00\x0b end  \n"
    rows = [row(i) for i in range(20)] + [row(20, text=odd), row(21, text=text(21, 30_000))]
    dataset = prepare(write(rows), tmp_path / "out")
    found = samples(dataset)
    assert {name: sample.seen for name, (_, sample) in found.items()} == {r["id"]: Document(r["text"]) for r in rows}
    assert all(found[r["id"]][1].target.answer == r["summary"] for r in rows)
    assert (dataset.info.seen, dataset.info.images, sum(dataset.info.splits.values())) == ("documents", None, 22)
    dataset.verify()


def test_the_index_counts_characters_and_pages_as_the_renderer_does(write, tmp_path):
    dataset = prepare(write([row(i, text=text(i, 40 * 2**i)) for i in range(10)]), tmp_path / "out")
    spec, fonts = dataset.info.pages, dataset.fonts()
    for split in SPLITS:
        index = dataset.index(split)
        seen = [dataset.sample(split, i).seen.text for i in range(dataset.count(split))]
        assert index.documents == [len(one) for one in seen]
        assert index.pages == [len(lay_out(one, spec, fonts)) for one in seen]
        assert index.widths == index.heights == [[]] * len(seen)
    summary = dataset.info.documents
    assert (summary.count, summary.pages.min, summary.missing_glyphs) == (10, 1, 0)
    assert summary.pages.max > 20
    assert summary.scripts.keys() == {"Latin"}
    assert summary.total_characters == sum(sum(dataset.index(split).documents) for split in SPLITS)


def test_the_default_pages(write, tmp_path):
    spec = prepare(write([row(i) for i in range(5)]), tmp_path / "out").info.pages
    assert spec == PageSpec(fonts=load_fonts().refs)
    assert (spec.width, spec.height, spec.markdown) == (1024, 1024, False)


def test_markdown_is_shown_where_half_of_the_texts_look_like_it(write, tmp_path):
    rows = [row(i, text=f"# Title {i}\n\n{text(i)}" if i % 2 else text(i)) for i in range(10)]
    assert prepare(write(rows), tmp_path / "out").info.pages.markdown
    assert looks_like_markdown(["x\n```python\n1\n```", "a # b"])
    assert not looks_like_markdown(["#hashtag", "a # b", "# Title"])
    assert not looks_like_markdown([])
    # A dataset keeps its pages when it is extended.
    rows += [row(i) for i in range(100, 130)]
    assert prepare(write(rows), tmp_path / "out").info.pages.markdown


def test_the_content_hash_covers_texts_and_pages_and_nothing_else(write, tmp_path):
    rows = [row(i) for i in range(12)]
    source = write(rows)
    first = prepare(source, tmp_path / "1").info
    assert prepare(source, tmp_path / "2", **SMALL).info.content_hash == first.content_hash
    spec = PageSpec(fonts=load_fonts().refs, font_size=24)
    other = prepare(source, tmp_path / "3", pages=spec).info
    assert other.pages == spec
    assert other.content_hash != first.content_hash
    rows[3]["text"] += " "
    assert prepare(write(rows), tmp_path / "4").info.content_hash != first.content_hash


def test_other_pages_move_no_row(write, tmp_path):
    source = write([row(i) for i in range(20)])
    before = prepare(source, tmp_path / "out")
    places_before, pages_before = places(before), before.index("train").pages
    after = prepare(source, tmp_path / "out", pages=PageSpec(fonts=load_fonts().refs, width=256, height=256))
    assert places(after) == places_before
    assert sum(after.index("train").pages) > sum(pages_before)
    assert files(tmp_path / "out").keys() == {"dataset.json", *after.info.files}


def test_the_hugging_face_library_reads_the_texts(write, tmp_path):
    dataset = prepare(write([row(i) for i in range(5)]), tmp_path / "out")
    name = next(iter(dataset.shards("train")))
    table = datasets.load_dataset(
        "parquet", data_files=str(dataset.path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table[0]["document"] == dataset.sample("train", 0).seen.text


def test_row_groups_of_long_texts_are_small(tmp_path):
    rows = [StoredRow(str(i), [], None, "x", [], [], "c", document="é" * 50_000, pages=9) for i in range(12)]
    write_shard(tmp_path / "shard.parquet", rows)
    metadata = pq.read_metadata(tmp_path / "shard.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [5, 5, 2]
    assert GROUP_BYTES >= 5 * 100_000


def test_columns_may_be_named(write, tmp_path):
    source = write([{"body": text(i), "tldr": f"S{i}"} for i in range(6)])
    columns = {"document": "body", "answer": "tldr"}
    assert len(prepare(source, tmp_path / "out", columns=columns)) == inspect(source, columns=columns).samples == 6
    with pytest.raises(DataError, match="no column for the document"):
        inspect(source)


def test_a_broken_line_is_left_out_and_counted_or_refused(write, tmp_path):
    source = write([row(i) for i in range(6)])
    source.write_text(source.read_text() + '{"text": "cut o')
    dataset = prepare(source, tmp_path / "out")
    assert len(dataset) == 6
    ((left_out,), faults) = (dataset.info.left_out, inspect(source).faults)
    assert (left_out.id, left_out.code) == ("articles.jsonl, line 7", "broken-line")
    assert [(fault.code, fault.where) for fault in faults] == [("broken-line", "articles.jsonl, line 7")]
    with pytest.raises(DataError, match=r"1 row cannot be used:\n.*line 7"):
        prepare(source, tmp_path / "strict", strict=True)


# Texts that no font shows.


def test_a_text_that_the_fonts_lack_is_left_out_and_the_font_to_install_is_named(write, tmp_path):
    rows = [row(i) for i in range(10)] + [row(10, text="漢字 " * 20)]
    found = []
    dataset = prepare(write(rows), tmp_path / "out", on_fault=found.append)
    assert len(dataset) == 10
    (fault,) = found
    assert (fault.code, fault.severity, fault.where) == ("missing-glyphs", "drop", "d010")
    assert "no glyph for 40 of 60 characters (66.7%): U+6F22 漢" in fault.found
    assert "fonts-noto-cjk" in fault.fix
    assert dataset_faults(Dataset.open(tmp_path / "out").info) == found == inspect(write(rows)).faults
    with pytest.raises(DataError, match="d010"):
        prepare(write(rows), tmp_path / "strict", strict=True)
    with pytest.raises(DataError, match="no glyph") as caught:
        prepare(write(rows[-1:]), tmp_path / "none")
    assert "fonts-noto-cjk" in caught.value.fix


def test_fonts_travel_with_the_dataset(write, tmp_path):
    rows = [row(i, text=f"{i} {CHINESE[30 * i : 30 * i + 300]}") for i in range(6)]
    dataset = prepare(write(rows), tmp_path / "out", fonts=[DEFAULT_FONT, CJK])
    assert [font.name for font in dataset.info.pages.fonts] == ["DejaVuSans", "4-NotoSansCJKsc"]
    assert len(dataset) == 6
    assert dataset.info.documents.scripts.keys() >= {"Han"}
    moved = Dataset.open(shutil.copytree(tmp_path / "out", tmp_path / "moved"))
    assert moved.fonts().refs[1].sha256 == load_fonts([CJK]).refs[0].sha256
    assert prepare(write(rows), tmp_path / "moved").info == dataset.info  # without being told of the font again
    larger = dataset.info.pages.model_copy(update={"font_size": 30})
    assert prepare(write(rows), tmp_path / "moved", pages=larger).info.pages == larger
    (font,) = (path for path in moved.path.iterdir() if path.suffix == ".font")
    font.unlink()
    with pytest.raises(DataError, match=r"font 4-NotoSansCJKsc .* is missing"):
        Dataset.open(moved.path)


def test_a_page_spec_with_other_fonts_than_those_given_is_refused(write, tmp_path):
    spec = PageSpec(fonts=load_fonts([CJK]).refs)
    with pytest.raises(DataError, match="not those of the page spec"):
        prepare(write([row(1)]), tmp_path / "out", pages=spec)
    chinese = write([row(1, text="".join(c for c in CHINESE if "一" <= c <= "鿿"))])
    assert prepare(chinese, tmp_path / "out2", pages=spec, fonts=[CJK]).info.pages == spec
    assert prepare(chinese, tmp_path / "out3", fonts=[(CJK, 0)]).info.pages == spec
    with pytest.raises(DataError, match="cannot be read"):
        prepare(chinese, tmp_path / "out4", fonts=[tmp_path / "none.ttf"])


@pytest.mark.parametrize("options", [{"fonts": [DEFAULT_FONT]}, {"pages": {"width": 512}}, {"max_pages": 2}])
def test_pages_and_fonts_are_not_for_images(classes, tmp_path, options):
    source = classes({"cat": 3})
    with pytest.raises(DataError, match="these are images"):
        prepare(source, tmp_path / "out", **options)
    if "max_pages" not in options:
        with pytest.raises(DataError, match="these are images"):
            inspect(source, **options)


def test_fields_of_a_page_spec_change_the_default_and_then_the_datasets_own(write, tmp_path):
    source = write([row(i) for i in range(5)])
    spec = prepare(source, tmp_path / "out", pages={"font_size": 30, "line_spacing": 1.5}).info.pages
    assert spec == PageSpec(fonts=load_fonts().refs, font_size=30, line_spacing=1.5)
    wider = prepare(source, tmp_path / "out", pages={"width": 1200}).info.pages
    assert wider == spec.model_copy(update={"width": 1200})
    assert prepare(source, tmp_path / "out").info.pages == wider
    for fields, said in (({"widht": 3}, "width"), ({"width": 20}, "width = 20"), ({"font_size": 500}, "smaller font")):
        with pytest.raises(DataError, match="cannot be laid out") as caught:
            prepare(source, tmp_path / "out", pages=fields)
        assert said in str(caught.value)


def test_letters_that_run_together_as_drawn_are_said_with_the_size_that_helps(write, tmp_path):
    source = write([row(i) for i in range(5)])
    dataset = prepare(source, tmp_path / "out", pages={"font_size": 8})
    (fault,) = dataset.info.faults
    assert (fault.code, fault.severity) == ("illegible-pages", "warning") and "--font-size 11" in fault.fix
    assert inspect(tmp_path / "out").faults == inspect(source, pages={"font_size": 8}).faults == [fault]
    assert inspect(source, pages={"font_size": 11}).faults == []


def test_a_prepared_dataset_is_inspected_on_its_own_pages(write, tmp_path):
    prepare(write([row(i) for i in range(5)]), tmp_path / "out", pages={"font_size": 30})
    assert inspect(tmp_path / "out").to_json()["documents"]["page"]["font_size"] == 30
    for options in ({"pages": {"width": 512}}, {"fonts": [DEFAULT_FONT]}, {"columns": {"document": "text"}}):
        with pytest.raises(DataError, match="has its own pages"):
            inspect(tmp_path / "out", **options)


# Duplicates.


def test_clean_articles_have_no_faults(write):
    assert inspect(write([row(i) for i in range(30)])).faults == []


def test_the_same_document_with_the_same_answer_stays_in_and_is_said(write, tmp_path):
    rows = [row(i) for i in range(20)] + [row(3, id="again")]
    fault = codes(inspect(write(rows)).faults)["duplicate-documents"]
    assert (fault.severity, fault.where) == ("warning", "again = d003")
    after = places(prepare(write(rows), tmp_path / "out"))
    assert len(after) == 21
    assert after["again"] == after["d003"]


def test_the_same_document_with_another_answer(write):
    found = inspect(write([row(i) for i in range(10)] + [row(3, id="again", summary="Something else.")])).faults
    assert [fault.code for fault in found] == ["different-answers"]
    assert found[0].where == "again = d003"
    assert "the same document" in found[0].found


def test_questions_about_one_document_are_no_copies_but_one_question_has_one_answer(write, tmp_path):
    rows = [{"text": text(i), "question": f"What is {k}?", "answer": f"{k}"} for i in range(10) for k in range(3)]
    assert inspect(write(rows)).faults == []
    seen = [(split, sample.seen.text) for split, sample in samples(prepare(write(rows), tmp_path / "out")).values()]
    assert len({one for _, one in seen}) == len(set(seen)) == 10  # no document in two splits
    rows.append(rows[0] | {"answer": "other"})
    assert list(codes(inspect(write(rows)).faults)) == ["different-answers"]


def test_a_duplicate_id_is_an_error(write):
    fault = codes(inspect(write([row(1), row(2), row(3, id="d002")])).faults)["duplicate-id"]
    assert (fault.severity, fault.where) == ("error", "d002")


def test_near_duplicates_stay_on_one_side(write, tmp_path):
    rows = [row(i, text=text(i, 200)) for i in range(40)]
    rows += [row(i, id=f"copy{i:03d}", text="UPDATED: " + text(i, 200).replace(" ", "  ", 9)) for i in range(40)]
    dataset = prepare(write(rows), tmp_path / "out")
    after = places(dataset)
    assert all(after[f"d{i:03d}"] == after[f"copy{i:03d}"] for i in range(40))
    assert "40 groups of 80 samples" in codes(dataset.info.faults)["near-duplicate-documents"].found


def test_a_leak_across_given_splits(write, tmp_path):
    (tmp_path / "set").mkdir()
    write([row(i, text=text(i, 200)) for i in range(8)], "set/train.jsonl")
    write([row(i, text=text(i, 200)) for i in range(50, 54)] + [row(2, text=text(2, 200) + " end")], "set/test.jsonl")
    found = codes(inspect(tmp_path / "set").faults)
    assert set(found) == {"near-duplicate-documents", "leak-across-splits"}
    assert found["leak-across-splits"].where == "test.jsonl:d002 = train.jsonl:d002"
    assert "documents" in found["leak-across-splits"].found


# At scale.


def test_the_number_of_workers_changes_nothing(write, tmp_path):
    source = write([row(i) for i in range(60)])
    for workers in (1, 2):
        prepare(source, tmp_path / str(workers), workers=workers, shard_bytes=8_000)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def killed_preparing(moment, source, out):
    """Prepare in a child that dies by SIGKILL at its moment-th change of the disk; whether it did not get that far."""

    def work(counted):
        count_changes_of_the_disk(counted)
        pq.ParquetWriter.write_table = counted(pq.ParquetWriter.write_table)
        prepare(source, out, **SMALL, fonts=[DEFAULT_FONT, CJK])

    return killed(moment, work)


def test_killed_at_every_moment_and_run_again_it_ends_the_same(write, tmp_path):
    source = write([row(i) for i in range(12)])
    expected = prepare(source, tmp_path / "expected", **SMALL, fonts=[DEFAULT_FONT, CJK])
    for moment in range(1000):
        out = tmp_path / f"out {moment}"
        finished = killed_preparing(moment, source, out)
        if (out / "dataset.json").exists():
            Dataset.open(out).verify()
        assert prepare(source, out, **SMALL, fonts=[DEFAULT_FONT, CJK]).info == expected.info
        assert files(out) == files(tmp_path / "expected")
        if finished:
            break
    assert moment > 20


def test_the_same_call_again_does_no_work(write, tmp_path, monkeypatch):
    source = write([row(i) for i in range(10)])
    first = prepare(source, tmp_path / "out")
    monkeypatch.setattr("visiontune.data.prepare.survey", None)
    assert prepare(source, tmp_path / "out").info == first.info


def test_what_was_laid_out_before_an_interruption_is_not_laid_out_again(write, tmp_path, monkeypatch):
    rows = [row(i) for i in range(20)]
    laid_out = []

    def counted(*arguments, **named):
        laid_out.append(arguments[0])
        return lay_out(*arguments, **named)

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("visiontune.data.documents.lay_out", counted)
    with monkeypatch.context() as patch:
        patch.setattr("visiontune.data.shards.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(write(rows), tmp_path / "out")
    assert len(laid_out) == 20
    rows[19]["text"] += " more"  # in the last chunk: 16 .. 19
    prepare(write(rows), tmp_path / "out")
    assert len(laid_out) == 24


def test_pages_counted_for_another_spec_before_an_interruption_are_not_taken(write, tmp_path, monkeypatch):
    source = write([row(i) for i in range(6)])
    small = PageSpec(fonts=load_fonts().refs, width=128, height=128)

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("visiontune.data.shards.write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "expected", pages=small)
    prepare(source, tmp_path / "out", pages=small)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_rows_added_later_move_no_earlier_row(write, tmp_path):
    rows = [row(i) for i in range(30)]
    before = places(prepare(write(rows), tmp_path / "out"))
    rows += [row(i) for i in range(100, 115)]
    after = places(prepare(write(rows), tmp_path / "out"))
    assert len(after) == 45
    assert after.items() >= before.items()


# Inspection.


@pytest.mark.parametrize(("question", "kind"), [(None, "summarisation"), ("Why?", "question answering")])
def test_the_json_form_of_an_inspection(write, tmp_path, question, kind):
    rows = [row(i, text="word " * (20 * (i + 1)), summary="ten chars.") for i in range(5)]
    if question:
        rows = [one | {"question": question} for one in rows]
    source = write(rows)
    found = inspect(source).to_json()
    assert found["trains"] == [{"target": "text", "kind": kind}]
    assert found["documents"] == {
        "count": 5,
        "characters": {"min": 100, "median": 300.0, "max": 500},
        "pages": {"min": 1, "median": 1.0, "max": 1},
        "total_characters": 1500,
        "total_pages": 5,
        "missing_glyphs": 0,
        "scripts": {"Latin": 1200},
        "characters_a_page": 300.0,
        "compression": {"min": 10.0, "median": 30.0, "max": 50.0},
        "page": {"width": 1024, "height": 1024, "font_size": 20},
        "x_height": {
            "drawn": 10.94,
            "resized": {"512": 5.47, "640": 6.84, "768": 8.2, "1024": 10.94},
            "illegible": [512],
            "limit": 6.0,
        },
        "model": None,
    }
    assert found["targets"]["text"]["answer_characters"] == {"min": 10, "median": 10.0, "max": 10}
    prepare(source, tmp_path / "out")
    assert inspect(tmp_path / "out").to_json() == found


def test_a_limit_looks_at_so_many_documents_of_either(write, tmp_path):
    source = write([row(i) for i in range(20)])
    prepare(source, tmp_path / "out")
    for data in (source, tmp_path / "out"):
        found = inspect(data, limit=4)
        assert found.samples == found.documents.count == len(found.characters) == len(found.page_counts) == 4
        assert found.documents.total_characters == found.characters.sum()
    whole, limited = inspect(tmp_path / "out"), inspect(tmp_path / "out", limit=20)
    assert whole.documents == limited.documents


def test_scripts_count_letters_alone():
    assert scripts_of("Ab1, 漢字! مرحبا") == {"Latin": 2, "Han": 2, "Arabic": 5}


def test_real_documents_in_ten_languages_lose_no_character(tmp_path):
    texts = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "udhr").glob("*.txt"))}
    rows = [{"id": name, "text": one, "summary": one[:40]} for name, one in texts.items()]
    (tmp_path / "udhr.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    fonts = [DEFAULT_FONT, *sorted((Path(__file__).parent / "fonts").glob("*.[ot]tf"))]
    dataset = prepare(tmp_path / "udhr.jsonl", tmp_path / "out", workers=1, fonts=fonts)
    found = {name: sample.seen.text for name, (_, sample) in samples(dataset).items()}
    assert found == texts and dataset.info.left_out == []
    assert dataset.info.documents.missing_glyphs == 0
