"""Documents seen as pages: trained, evaluated beside what they must beat, and answered about."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visiontune
from tests.conftest import QUICK
from visiontune.data.dataset import Dataset
from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts, pages
from visiontune.data.prepare import prepare
from visiontune.data.sample import Document
from visiontune.errors import DataError, PartlyReadError
from visiontune.machine import hardware
from visiontune.models.load import load_adapter
from visiontune.run import Run
from visiontune.training.baselines import lead
from visiontune.training.loop import train_run
from visiontune.training.model import load_base
from visiontune.training.plan import derive, plan_run

UDHR = Path(__file__).parents[1] / "data/udhr"
WORDS = ("river", "stone", "garden", "engine", "letter", "winter", "silver", "market")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty short documents of one to three pages of 128 x 128 pixels, each with its first word as the summary."""
    folder = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{i:03d}", "text": " ".join(rng.choice(WORDS, 6 + i % 40)) + ". End.", "summary": WORDS[i % len(WORDS)]}
        for i in range(60)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fonts = load_fonts([DEFAULT_FONT])
    spec = PageSpec(width=128, height=128, margins=(8, 8, 8, 8), font_size=14, fonts=fonts.refs)
    return prepare(folder / "texts.jsonl", folder / "data", pages=spec, workers=1)


def planned(documents: Dataset, path: Path, model: str = "tiny/deepseek-ocr", **changes: Any) -> Run:
    recipe = derive([documents], [None], model, hardware("cpu"))
    run = Run(path)
    quick = {**QUICK, "evaluation.samples": 4, "evaluation.max_new_tokens": 6, "schedule.steps": 4, "data.limit": None}
    plan_run(run, recipe.changed({**quick, **changes}), [documents])
    return run


@pytest.fixture(scope="module")
def trained(documents: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(planned(documents, tmp_path_factory.mktemp("run") / "run"))


def test_the_recipe_of_documents_shows_their_pages_and_is_chosen_by_rouge(documents: Dataset, trained: Run) -> None:
    recipe = trained.recipe
    assert recipe.data.pages is not None and documents.info.pages is not None
    assert recipe.data.pages.hash == documents.info.pages.hash
    assert recipe.data.prompt == "Summarise this document." and recipe.evaluation.metric == "rougeL"
    assert recipe.data.augment == 0 and recipe.data.image_longest_edge == 128


def test_the_model_sees_the_very_pages_and_their_number_is_known_before_they_are_drawn(
    documents: Dataset, trained: Run
) -> None:
    import torch

    encoder: Any = load_base(trained, trained.recipe, torch.device("cpu")).encoder
    index = documents.index("train")
    assert len(set(index.pages)) > 1
    assert encoder.lengths(index).tolist() == [
        len(encoder.encode(documents.sample("train", i)).input_ids) for i in range(len(index.ids))
    ]
    sample, spec = documents.sample("train", 0), documents.info.pages
    assert isinstance(sample.seen, Document) and spec is not None
    drawn = pages(sample.seen.text, spec, documents.fonts())
    assert [np.asarray(image)[..., 0].tolist() for image in encoder.images(sample)] == [p.tolist() for p in drawn]
    assert encoder.encode(sample).pixel_values.shape[0] == len(drawn) == index.pages[0]


def test_a_run_on_documents_ends_with_its_receipts(trained: Run) -> None:
    statuses = {receipt["name"]: receipt["status"] for receipt in trained.receipts}
    assert statuses["supervised"] == statuses["placeholders"] == statuses["seen"] == "passed"
    assert trained.status == "finished"
    assert "data:image/" in (visiontune.evaluate(trained.path, split="validation") and trained.report_path.read_text())


def test_an_evaluation_of_documents_stands_beside_what_it_must_beat(trained: Run, documents: Dataset) -> None:
    visiontune.evaluate(trained.path, split="test")
    found = json.loads((trained.path / "evaluations/test/baselines.json").read_text())
    names = [one["name"] for one in found["baselines"]]
    assert names == ["first three sentences", "blank page", "exchanged pages", "text input", "truncated text"]
    assert found["n"] == documents.count("test")
    scores = json.loads((trained.path / "evaluations/test/metrics.json").read_text())["metrics"]
    for one in found["baselines"]:
        assert one["left_out"] == 0 and one["metrics"]["rougeL"]["n"] == found["n"]
        ahead = scores["rougeL"]["value"] - one["metrics"]["rougeL"]["value"]
        assert one["ahead"]["value"] == pytest.approx(ahead, abs=1e-5)
        assert one["ahead"]["low"] <= one["ahead"]["value"] <= one["ahead"]["high"]


def test_a_run_on_documents_is_exported_and_answers_about_their_pages_as_trained(trained: Run, tmp_path: Path) -> None:
    folder = visiontune.export(trained.path, to="merged", out=tmp_path / "ship")["merged"]
    value = json.loads((folder / "certificate.json").read_text())
    assert {check["name"]: check["status"] for check in value["checks"]}["tokens"] == "passed"


def test_a_text_file_is_answered_as_pages(trained: Run, documents: Dataset, tmp_path: Path) -> None:
    sample = documents.sample("test", 0)
    assert isinstance(sample.seen, Document)
    (tmp_path / "a.txt").write_text(sample.seen.text, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (mine,) = visiontune.predict(trained.path, [tmp_path / "a.txt"])
    lines = (trained.path / "evaluations/test/predictions.jsonl").read_text().splitlines()
    written = {json.loads(line)["id"]: json.loads(line)["text"] for line in lines}
    assert mine.target.answer == written[sample.id]
    with pytest.raises(DataError, match="no text in UTF-8"):
        visiontune.predict(trained.path, [tmp_path / "b.txt"])


def test_a_text_that_cannot_be_drawn_or_is_too_long_costs_no_other_answer(
    trained: Run, documents: Dataset, tmp_path: Path
) -> None:
    sample = documents.sample("test", 0)
    assert isinstance(sample.seen, Document)
    texts = {"a": sample.seen.text, "blank": " ", "long": f"{sample.seen.text}\n" * 400, "zh": "人人生而自由"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    with pytest.raises(PartlyReadError, match=r"3 of 4 files cannot be read; the others are answered") as caught:
        visiontune.predict(trained.path, [tmp_path])
    assert [answer.source for answer in caught.value.answers] == [(str(tmp_path / "a.txt"),)]
    found = {Path(name).stem: said for name, said in caught.value.unreadable.items()}
    assert found["blank"] == "there are only blanks in it" and found["zh"].startswith("The fonts lack 6 of 6")
    assert found["long"].startswith("too long: ") and f"reads {trained.recipe.data.max_tokens:,}" in found["long"]
    fix = str(caught.value.fix)
    assert "a part of the text" in fix and "max_tokens" not in fix and "missing_limit" not in fix


def test_smolvlm_reads_documents_too(documents: Dataset, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = train_run(planned(documents, tmp_path / "run", str(tiny_checkpoint), **{"schedule.steps": 2}))
    assert run.status == "finished"


def test_other_pages_than_those_of_the_dataset_are_refused(documents: Dataset, tmp_path: Path) -> None:
    assert documents.info.pages is not None
    other = documents.info.pages.model_copy(update={"font_size": 20}).model_dump(mode="json")
    with pytest.raises(DataError, match="other pages than the dataset was prepared with"):
        train_run(planned(documents, tmp_path / "run", **{"data.pages": other}))


def test_documents_and_images_do_not_mix(documents: Dataset, digits: Dataset) -> None:
    with pytest.raises(DataError, match="seen in different ways"):
        derive([documents, digits], [None, None], "tiny/deepseek-ocr", hardware("cpu"))


def test_a_run_on_images_does_not_see_documents(documents: Dataset, recipe_of: Any, tiny_checkpoint: Path) -> None:
    encoder = load_adapter(str(tiny_checkpoint), None, recipe_of.data).encoder
    with pytest.raises(DataError, match="this is a document"):
        encoder.encode(documents.sample("train", 0))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two! Three? Four.", "One. Two! Three?"),
        ("# Title\n\nA line without stop\n\nThe third. More.", "# Title A line without stop The third."),
        ("Version 1.2 is out. It costs 3.50. Buy (now.) Or never.", "Version 1.2 is out. It costs 3.50. Buy (now.)"),
        ("人人自由。一律平等。赋有理性。最后。", "人人自由。 一律平等。 赋有理性。"),
        ("पहला है। दूसरा है॥ तीसरा है। चौथा है।", "पहला है। दूसरा है॥ तीसरा है।"),
        ("یہ پہلا ہے۔ کیا یہ؟ یہ تیسرا ہے۔ یہ چوتھا ہے۔", "یہ پہلا ہے۔ کیا یہ؟ یہ تیسرا ہے۔"),
        ("አንድ ነው። ሁለት ነው። ሦስት ነው። አራት ነው።", "አንድ ነው። ሁለት ነው። ሦስት ነው።"),
        ("တစ်ခု။ နှစ်ခု၊ သုံးခု။ လေးခု။", "တစ်ခု။ နှစ်ခု၊ သုံးခု။"),
        ("", ""),
        ("no stop at all", "no stop at all"),
    ],
)  # fmt: skip
def test_the_first_three_sentences(text: str, first: str) -> None:
    assert lead(text) == first


def test_each_baseline_asks_about_what_its_name_says(
    documents: Dataset, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from visiontune.data.sample import Prediction, Sample, Text
    from visiontune.training import baselines
    from visiontune.training.answers import Reply

    asked: list[Sample] = []

    def replies(adapter: Any, encoder: Any, samples: Iterable[Sample], *_: Any) -> list[Reply]:
        made = list(samples)
        asked.extend(made)
        return [Reply("x")] * len(made)

    monkeypatch.setattr(baselines, "replies", replies)
    samples = [documents.sample("test", i) for i in range(3)]
    own = [Prediction(s.id, (s.id,), Text("x"), {}, s.target) for s in samples]
    baselines.compare(
        load_base(trained, trained.recipe, torch.device("cpu")), samples, own, trained.recipe, torch.device("cpu")
    )
    texts = [s.seen.text for s in samples if isinstance(s.seen, Document)]
    shown = [s.seen.text if isinstance(s.seen, Document) else s.target.prompt for s in asked]
    assert shown[:3] == [" "] * 3 and shown[3:6] == [texts[1], texts[2], texts[0]]
    assert shown[6:9] == [f"{text}\n\nSummarise this document." for text in texts]
    assert all(len(cut or "") <= len(whole or "") for cut, whole in zip(shown[9:], shown[6:9], strict=True))


@pytest.mark.parametrize(("texts", "shown"), [("aabbca", "bbccab"), ("aa", None), ("a", None)])
def test_nobody_is_shown_their_own_document_as_anothers(
    monkeypatch: pytest.MonkeyPatch, texts: str, shown: str | None
) -> None:
    from types import SimpleNamespace

    from visiontune.data.sample import Prediction, Sample, Text
    from visiontune.training import baselines
    from visiontune.training.answers import Reply

    asked: list[list[Sample]] = []

    def replies(adapter: Any, encoder: Any, samples: Iterable[Sample], *_: Any) -> list[Reply]:
        asked.append(list(samples))
        return [Reply("x")] * len(asked[-1])

    monkeypatch.setattr(baselines, "replies", replies)
    monkeypatch.setattr(baselines, "_cut_as_its_pages", lambda adapter, sample, recipe: sample)
    samples = [Sample(str(i), Document(text), Text("an answer", f"{i}?")) for i, text in enumerate(texts)]
    own = [Prediction(s.id, (s.id,), Text("x"), {}, s.target) for s in samples]
    nothing: Any = SimpleNamespace(encoder=None)
    found = [one.name for one in baselines.compare(nothing, samples, own, nothing, nothing)]
    assert (baselines.EXCHANGED in found) is (shown is not None) and len(asked) == len(found) - 1
    if shown is not None:
        made = asked[found.index(baselines.EXCHANGED) - 1]
        assert [s.seen.text for s in made if isinstance(s.seen, Document)] == list(shown)
        assert [(s.id, s.target) for s in made] == [(s.id, s.target) for s in samples]


def test_documents_can_be_learned_by_heart_and_a_blank_page_cannot(tmp_path: Path) -> None:
    """Of seven paragraphs of English the first words in French are to be written: nothing to copy, all to remember."""
    from visiontune.metrics.text import score_texts
    from visiontune.training.baselines import BLANK, EXCHANGED, compare
    from visiontune.training.evaluate import predict_split
    from visiontune.training.model import load_trained
    from visiontune.training.ranks import Ranks

    english, french = ((UDHR / f"{name}.txt").read_text("utf-8").split("\n\n")[2:9] for name in ("en", "fr"))
    assert all(text.startswith("Whereas") for text in english) and all(text.startswith("Cons") for text in french)
    rows = [
        {"id": text, "text": text, "summary": " ".join(same.split()[:10]), "split": "train"}
        for text, same in zip(english, french, strict=True)
    ]
    rows += [{"text": "None of them.", "summary": "Aucun.", "split": split} for split in ("validation", "test")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = PageSpec(width=256, height=256, margins=(8, 8, 8, 8), font_size=14, fonts=load_fonts([DEFAULT_FONT]).refs)
    dataset = prepare(tmp_path / "texts.jsonl", tmp_path / "data", pages=spec, workers=1)
    assert dataset.count("train") == 7 and set(dataset.index("train").pages) == {1}
    steps = 60
    learning = {
        "optimizer.learning_rate": 2e-3,
        "optimizer.weight_decay": 0.0,
        "optimizer.beta2": 0.99,
        "batch.samples": 7,
        "batch.window": 7,
        "batch.tokens": 4096,
        "schedule.steps": steps,
        "evaluation.every": steps,
        "checkpoints.every": steps,
        "evaluation.max_new_tokens": 80,  # the longest answer takes fewer
    }
    run = train_run(planned(dataset, tmp_path / "run", **learning))
    cpu = torch.device("cpu")
    adapter, _ = load_trained(run, run.recipe, cpu)
    samples = [dataset.sample("train", i) for i in range(7)]
    answers = predict_split(adapter, [dataset], "train", run.recipe, Ranks("cpu"))
    scores = score_texts(answers)
    shown = {one.name: one.metrics["rougeL"].value for one in compare(adapter, samples, answers, run.recipe, cpu)}
    assert scores.metric("exact_match").value == 1  # word for word to the end, so it was learned when to stop
    assert shown[BLANK] < 0.6 and shown[EXCHANGED] < 0.6, shown
