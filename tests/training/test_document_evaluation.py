"""Documents answered at other ratios of text tokens to vision tokens, and what stands beside the answers."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

import visiontune
from tests.conftest import QUICK
from tests.tiny_bert import build
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts
from visiontune.data.prepare import prepare
from visiontune.data.sample import Document, Images, Prediction, Sample, Text
from visiontune.errors import RecipeError
from visiontune.machine import hardware
from visiontune.run import Run
from visiontune.training import baselines, ratios
from visiontune.training.answers import Reply
from visiontune.training.evaluate import answered, predict_split
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks

WORDS = ("river", "stone", "garden", "engine", "letter", "winter", "silver", "market")
ROOT = Path(__file__).parents[2]
ASKED = (0.15, 1, 2, 50)  # too many pages for some documents; fine; not legible; beyond the smallest letters
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty documents of up to fourteen pages of 128 x 128 pixels, each with a question of its own."""
    folder = tmp_path_factory.mktemp("questions")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        words = rng.choice(WORDS, 8 + i % 40).tolist()
        question = f"Which word stands at place {i % 8}?"
        text = " ".join(words) + ". Then nothing. Then more. End."
        rows.append({"id": f"{i}", "text": text, "question": question, "answer": f"the word is {words[i % 8]}"})
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fonts = load_fonts([DEFAULT_FONT])
    spec = PageSpec(width=128, height=128, margins=(8, 8, 8, 8), font_size=20, fonts=fonts.refs)
    return prepare(folder / "texts.jsonl", folder / "data", pages=spec, workers=1)


@pytest.fixture(scope="module")
def run(questions: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run whose test split was evaluated at the ratios ASKED."""
    run = Run(tmp_path_factory.mktemp("run") / "run")
    quick = {"evaluation.samples": 4, "evaluation.max_new_tokens": 8, "data.limit": None, "data.max_tokens": 420}
    recipe = derive([questions], [None], "tiny/deepseek-ocr", hardware("cpu"))
    plan_run(run, recipe.changed({**QUICK, **quick, "optimizer.learning_rate": 1e-2}), [questions])
    train_run(run)
    visiontune.evaluate(run.path, ratios=ASKED)
    return run


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """The same run in a folder of its own, to be evaluated otherwise."""
    return Run(shutil.copytree(run.path, tmp_path / "run"))


def written(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "evaluations/test/ratios.json").read_text())


def kept(run: Run, name: str) -> list[dict[str, Any]]:
    """The answers that were kept of a ratio, without the key in front of them."""
    lines = (run.path / f"evaluations/test/ratio-{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def point(run: Run, asked: float | None) -> dict[str, Any]:
    (found,) = [one for one in written(run)["points"] if one["asked"] == asked]
    return found


def test_the_model_answers_the_documents_drawn_at_the_font_size_that_reaches_the_ratio(
    run: Run, questions: Dataset
) -> None:
    found, recipe = point(run, 1), run.recipe
    assert recipe.data.pages is not None
    ratio_of: dict[int, float] = {}
    for size in (found["font_size"], found["font_size"] + 1):
        spec = recipe.data.pages.model_copy(update={"font_size": size})
        drawn = recipe.model_copy(update={"data": recipe.data.model_copy(update={"pages": spec})})
        adapter, _ = load_trained(run, drawn, CPU)
        encoder: Any = adapter.encoder
        shown = [encoder.encode(questions.sample("test", i), with_answer=False) for i in range(questions.count("test"))]
        tokens = sum(
            len(encoder.tokenizer(text_of(questions.sample("test", i)))["input_ids"]) for i in range(len(shown))
        )
        ratio_of[size] = tokens / sum(one.image_features for one in shown)
        if size == found["font_size"]:
            answers = [adapter.generate(encoder.collate([one], pad_left=True), 8)[0][0] for one in shown]
            assert answers == [row["replies"]["pages"]["text"] for row in kept(run, "1")]
            assert spec.hash == found["page_spec"]
    larger, smaller = sorted(ratio_of)[::-1]
    assert found["ratio"] == pytest.approx(ratio_of[smaller], abs=1e-4)
    assert ratio_of[larger] < 1 <= ratio_of[smaller]


def text_of(sample: Sample) -> str:
    assert isinstance(sample.seen, Document)
    return sample.seen.text


def test_the_text_beside_a_ratio_has_as_many_tokens_as_the_pages_there(
    copied: Run, questions: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Sample] = []

    def replies(adapter: Any, encoder: Any, samples: Iterable[Sample], *_: Any) -> list[Reply]:
        made = list(samples)
        shown.extend(made)
        return [Reply("x")] * len(made)

    monkeypatch.setattr(ratios, "replies", replies)
    (copied.path / "evaluations/test/ratio-1.jsonl").unlink()
    evaluated(copied, (1,), 9)
    adapter, _ = load_trained(copied, copied.recipe, CPU)
    encoder: Any = adapter.encoder
    cut = [sample.target.prompt or "" for sample in shown if sample.seen == Images(())]
    wholes = [questions.sample("test", i) for i in range(9)]
    lengths, of_wholes = [], []
    for text, whole in zip(cut, wholes, strict=True):
        beginning = text.removesuffix(f"\n\n{whole.target.prompt}")
        assert text_of(whole).startswith(beginning.strip()) and beginning != text
        lengths.append(len(encoder.tokenizer(beginning)["input_ids"]))
        of_wholes.append(len(encoder.tokenizer(text_of(whole))["input_ids"]))
    vision = sum(of_wholes) / point(copied, 1)["ratio"]
    assert all(length % written(copied)["tokens_per_page"] == 0 or length == most for length, most in zip(
        lengths, of_wholes, strict=True
    ))  # fmt: skip
    assert max(lengths) > written(copied)["tokens_per_page"] and sum(lengths) <= vision


def test_the_figures_are_rouge_of_the_answers_that_were_kept(run: Run, questions: Dataset) -> None:
    scorer = RougeScorer(["rougeL"])

    def scores(answers: Iterable[str | None]) -> np.ndarray:
        truths = [questions.sample("test", i).target.answer for i in range(questions.count("test"))]
        return np.array(
            [
                np.nan if answer is None else scorer.score(truth, answer)["rougeL"].fmeasure
                for truth, answer in zip(truths, answers, strict=True)
            ]
        )

    lines = (run.path / "evaluations/test/predictions.jsonl").read_text().splitlines()
    own = scores(json.loads(line)["text"] for line in lines)
    blank = scores(row["replies"]["blank page"]["text"] for row in kept(run, "own"))
    for asked in (0.15, 1):
        found, rows = point(run, asked), kept(run, f"{asked:g}")
        mine = scores(row["replies"]["pages"]["text"] for row in rows)
        cut = scores(row["replies"]["truncated text"]["text"] for row in rows)
        assert found["n"] + found["left_out"] == len(rows) and found["n"] == np.isfinite(mine).sum()
        assert found["metrics"]["rougeL"]["value"] == pytest.approx(np.nanmean(mine), abs=1e-6)
        assert found["beside_own"]["value"] == pytest.approx(np.nanmean(mine - own), abs=1e-6)
        beside = {one["name"]: one for one in found["baselines"]}
        assert list(beside) == ["first three sentences", "blank page", "truncated text"]
        assert beside["blank page"]["ahead"]["value"] == pytest.approx(np.nanmean(mine - blank), abs=1e-6)
        assert beside["truncated text"]["metrics"]["rougeL"]["value"] == pytest.approx(np.nanmean(cut), abs=1e-6)
        assert beside["truncated text"]["ahead"]["n"] == np.isfinite(mine - cut).sum()


def test_the_runs_own_pages_are_a_point_of_the_curve(run: Run) -> None:
    metrics = json.loads((run.path / "evaluations/test/metrics.json").read_text())["metrics"]
    found, pages = point(run, None), run.recipe.data.pages
    assert pages is not None and found["page_spec"] == pages.hash and found["beside_own"] is None
    assert found["metrics"]["rougeL"] == metrics["rougeL"] and found["left_out"] == 0
    assert [one["ratio"] for one in written(run)["points"]] == sorted(one["ratio"] for one in written(run)["points"])


def test_what_cannot_be_reached_or_shown_is_said(run: Run) -> None:
    reasons = {one["asked"]: one["reason"] for one in written(run)["unreachable"]}
    assert set(reasons) == {2, 50}
    assert "run together" in reasons[2] and "the smallest size" in reasons[50]
    left_out = [row["replies"]["pages"] for row in kept(run, "0.15") if row["replies"]["pages"]["text"] is None]
    assert len(left_out) == point(run, 0.15)["left_out"] > 0
    assert all("420 are allowed" in reply["left_out"] for reply in left_out)


def test_a_ratio_at_which_no_document_fits_is_not_reached(copied: Run) -> None:
    evaluated(copied, (0.03,), 1)
    (nothing,) = written(copied)["unreachable"]
    assert "No document fits" in nothing["reason"] and "420 are allowed" in nothing["reason"]


def counted(monkeypatch: pytest.MonkeyPatch, killed_after: int | None = None) -> list[int]:
    """How many samples were asked at each call; the evaluation dies where `killed_after` calls are done."""
    calls: list[int] = []
    ask = ratios.replies

    def replies(adapter: Any, encoder: Any, samples: Iterable[Sample], *rest: Any) -> list[Reply]:
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        made = list(samples)
        calls.append(len(made))
        return ask(adapter, encoder, made, *rest)

    monkeypatch.setattr(ratios, "replies", replies)
    return calls


def evaluated(run: Run, asked: tuple[float, ...], limit: int) -> None:
    recipe = run.recipe
    adapter, step = load_trained(run, recipe, CPU)
    datasets = open_datasets(recipe)
    known = answered(run, datasets, "test", limit=None, most=limit)
    ratios.evaluate_ratios(run, adapter, *known, "test", asked, recipe, CPU, step)
    encoder: Any = adapter.encoder
    assert encoder.data.pages == recipe.data.pages, "the encoder in use keeps its pages"


def test_an_evaluation_that_was_killed_goes_on_with_the_ratios_that_are_done(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(copied, (1, 0.5), 3)
    whole = written(copied)
    for file in (copied.path / "evaluations/test").glob("ratio*"):
        file.unlink()
    with monkeypatch.context() as patched:
        counted(patched, killed_after=5)
        with pytest.raises(KeyboardInterrupt):
            evaluated(copied, (1, 0.5), 3)
    assert not (copied.path / "evaluations/test/ratios.json").exists()
    calls = counted(monkeypatch)
    evaluated(copied, (1, 0.5), 3)
    assert calls == [3, 3], "only the last ratio is asked again: its pages, and its text"
    assert written(copied) == whole


@pytest.mark.parametrize("changed", ["limit", "step", "page_spec", "samples", "precision"])
def test_answers_to_other_questions_are_never_taken(copied: Run, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    evaluated(copied, (1,), 3)
    path = copied.path / "evaluations/test/ratio-1.jsonl"
    head, *lines = path.read_text().split("\n")
    if changed != "limit":
        path.write_text("\n".join([json.dumps({**json.loads(head), changed: "another"}), *lines]))
    calls = counted(monkeypatch)
    evaluated(copied, (1,), 2 if changed == "limit" else 3)
    assert calls == ([2, 2, 2, 2] if changed == "limit" else [3, 3])
    evaluated(copied, (1,), 2 if changed == "limit" else 3)
    assert len(calls) == (4 if changed == "limit" else 2), "what stands is taken"


@pytest.mark.parametrize("asked", [(0.0,), (-1.0,), (float("nan"),), (float("inf"),), (2.0, 2.0)])
def test_what_is_no_ratio_is_refused(run: Run, asked: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="no ratio"):
        visiontune.evaluate(run.path, ratios=asked)


def test_a_run_on_images_has_no_ratios(plan: Callable[..., Run]) -> None:
    with pytest.raises(RecipeError, match="sees images"):
        visiontune.evaluate(plan().path, ratios=(2,))


def test_the_command_line_says_the_ratios(copied: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(copied.path), "--ratios", "1,50", "--limit", "3", "--json"])
    captured = capsys.readouterr()
    assert stopped.value.code == 0
    value = json.loads(captured.out)
    assert value["ratios"] == written(copied) and value["ratios"]["n"] == value["n"] == 3
    assert "ratio 50 is not reached" in captured.err and "own pages" in captured.err
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(copied.path), "--ratios", "two"])
    assert stopped.value.code == 1 and "--ratios 2,1" in capsys.readouterr().err


def test_each_baseline_asks_the_samples_own_question(
    run: Run, questions: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def replies(adapter: Any, encoder: Any, samples: Iterable[Sample], *_: Any) -> list[Reply]:
        asked.extend(sample.target.prompt or "" for sample in samples)
        return [Reply("x")] * 3

    monkeypatch.setattr(baselines, "replies", replies)
    samples = [questions.sample("test", i) for i in range(3)]
    own = [Prediction(s.id, (s.id,), Text("x"), {}, s.target) for s in samples]
    adapter, _ = load_trained(run, run.recipe, CPU)
    baselines.compare(adapter, samples, own, run.recipe, CPU)
    wanted = [sample.target.prompt or "?" for sample in samples]
    assert len(set(wanted)) > 1 and len(asked) == 12
    assert all(question.endswith(wanted[i % 3]) for i, question in enumerate(asked))


@pytest.mark.parametrize("limit", [1, 64])
def test_predictions_say_whether_their_answer_was_cut_at_the_limit(
    run: Run, questions: Dataset, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    adapter, _ = load_trained(run, run.recipe, CPU)
    traced, ended = adapter.trace, []

    def trace(*arguments: Any) -> list[Any]:
        made = traced(*arguments)
        ended.extend(one.ended for one in made)
        return made

    monkeypatch.setattr(adapter, "trace", trace)
    recipe = run.recipe.changed({"evaluation.max_new_tokens": limit})
    found = predict_split(adapter, [questions], "test", recipe, Ranks("cpu"), limit=3)
    assert sorted(one.scores["at_length_limit"] for one in found) == sorted(float(not one) for one in ended)


def test_predictions_say_how_long_their_document_was(copied: Run, questions: Dataset) -> None:
    scores = visiontune.evaluate(copied.path)
    lines = [json.loads(line) for line in (copied.path / "evaluations/test/predictions.jsonl").read_text().splitlines()]
    lengths = [len(text_of(questions.sample("test", i))) for i in range(len(lines))]
    assert [line["scores"]["document_characters"] for line in lines] == lengths
    written_characters = sum(len(line["text"].strip()) for line in lines)
    assert scores.metric("compression").value == pytest.approx(sum(lengths) / written_characters)


def test_the_commands_of_the_page_on_documents_run(copied: Run, tmp_path: Path) -> None:
    bert = build(tmp_path / "bert", ["the", "word", "is", *WORDS], layers=9)
    page = (ROOT / "docs/pages.md").read_text(encoding="utf-8")
    section = page.split("## Evaluation")[1]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    names = {"RUN": str(copied.path), "ENCODER": bert}
    for line in block.splitlines():
        program, *arguments = [names.get(part, part) for part in shlex.split(line)]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert program == "visiontune" and stopped.value.code == 0, arguments
    metrics = json.loads((copied.path / "evaluations/test/metrics.json").read_text())["metrics"]
    listed = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8").split("## Metrics of texts")[1].split("\n\n")[1]
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in listed.splitlines() if row.startswith("| `")))
    assert set(named) == set(metrics)
    found = json.loads((copied.path / "evaluations/test/baselines.json").read_text())["baselines"]
    assert [one["name"] for one in found] == [
        row.split("|")[1].strip() for row in section.split("| baseline |")[1].split("\n\n")[0].splitlines()[2:]
    ]
