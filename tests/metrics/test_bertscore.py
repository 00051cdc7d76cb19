"""BERTScore equals the reference package's, on small encoders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bert_score import BERTScorer

import visiontune
from tests.tiny_bert import build, spread
from visiontune.cli import main
from visiontune.errors import ModelError, RecipeError, RequirementError
from visiontune.metrics.bertscore import Embedder
from visiontune.run import Run
from visiontune.training.loop import train_run

TRUTHS = ["the red car stands at the river", "a small house", "three birds sing in the morning", "car"]
ANSWERS = ["a red car at a river", "the house is small and red", "three birds sing in the morning", "birds"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = sorted({word for text in TRUTHS + ANSWERS for word in text.split()} - {"sing", "small"})
    return build(tmp_path_factory.mktemp("bert"), ["s", "##ing", "##mall", *"0123456789", *words], layers=3)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    folder = tmp_path_factory.mktemp("roberta")
    trained = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TRUTHS + ANSWERS, vocab_size=300, special_tokens=marks)
    trained.save_model(str(folder))
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    # The package asks the tokenizer for a blank in front of the first word, which transformers 5 does not hear.
    RobertaTokenizer(*files, model_max_length=64, add_prefix_space=True).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    spread(RobertaModel(config)).save_pretrained(folder)
    return str(folder)


def reference(folder: str, layer: int, pairs: list[tuple[str, str]]) -> list[list[float]]:
    """The package's scores pair by pair: side by side, its padding counts as a token with the cosine 0."""
    scorer = BERTScorer(model_type=folder, num_layers=layer, device="cpu", use_fast_tokenizer=True)
    found: list[Any] = [scorer.score([answer], [truth]) for truth, answer in pairs]
    return [[float(part) for part in one] for one in found]


@pytest.mark.parametrize(("family", "layer"), [("bert", 3), ("bert", 1), ("roberta", 2)])
def test_the_scores_are_those_of_the_reference_package(family: str, layer: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    found = Embedder(folder, layer=layer).scores(TRUTHS, ANSWERS)
    theirs = reference(folder, layer, list(zip(TRUTHS, ANSWERS, strict=True)))
    for i, scores in enumerate(theirs):
        assert [found.precision[i], found.recall[i], found.f1[i]] == pytest.approx(scores, abs=1e-5)
    assert found.precision[2] == pytest.approx(1) and found.precision[0] != pytest.approx(found.recall[0])


def test_the_first_word_is_known_as_it_is_inside_a_text(roberta: str, tmp_path: Path) -> None:
    plain = shutil.copytree(roberta, tmp_path / "plain")
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    whole = json.loads((plain / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["add_prefix_space"] = False
    (plain / "tokenizer.json").write_text(json.dumps(whole))
    (plain / "tokenizer_config.json").write_text(json.dumps({**settings, "add_prefix_space": False}))
    assert Embedder(str(plain)).scores(TRUTHS, ANSWERS) == Embedder(roberta).scores(TRUTHS, ANSWERS)


def test_the_last_layer_is_compared_where_none_is_named(bert: str) -> None:
    assert Embedder(bert).scores(TRUTHS, ANSWERS) == Embedder(bert, layer=3).scores(TRUTHS, ANSWERS)
    assert Embedder(bert).layer == 3
    with pytest.raises(RecipeError, match="not one of the 3 layers"):
        Embedder(bert, layer=4)


def test_an_empty_answer_has_nothing_in_common(bert: str) -> None:
    found = Embedder(bert).scores(["the car", " ", "the car"], [" \n", "car", "the car"])
    assert found.f1[:2] == [0, 0] and found.f1[2] == pytest.approx(1)


def test_texts_longer_than_the_encoder_reads_are_counted(bert: str) -> None:
    long = "the red car " * 20
    found = Embedder(bert).scores([long, "car"], [f"{long} and a small house", "car"])
    assert found.cut == 2
    assert found.f1[0] == pytest.approx(1), "what differs lies behind the cut"


def test_what_is_no_encoder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no encoder"):
        Embedder(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match="it has a decoder"):
        Embedder(str(tmp_path))


def test_an_evaluation_says_its_bertscore_and_with_what(
    bert: str, plan: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(plan(overrides={"schedule.steps": 2}))
    values = []
    for options in ([], ["--bertscore-layer", "1"]):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", str(run.path), "--limit", "20", "--bertscore", bert, *options, "--json"])
        assert stopped.value.code == 0
        values.append(json.loads(capsys.readouterr().out)["metrics"]["bertscore_f1"])
    written = json.loads((run.path / "evaluations/test/metrics.json").read_text())
    assert written["bertscore"] == {"model": bert, "layer": 1, "texts_cut": 0}
    lines = [json.loads(line) for line in (run.path / "evaluations/test/predictions.jsonl").read_text().splitlines()]
    expected = Embedder(bert, layer=1).scores([one["truth"]["text"] for one in lines], [one["text"] for one in lines])
    assert values[1]["value"] == written["metrics"]["bertscore_f1"]["value"] == pytest.approx(np.mean(expected.f1))
    assert values[0]["value"] != values[1]["value"] and values[1]["low"] <= values[1]["value"] <= values[1]["high"]
    assert "BERTScore F1" in run.report_path.read_text()
    with pytest.raises(RequirementError):
        visiontune.evaluate(run.path, limit=20, bertscore=bert, require="bertscore_f1>1")
    with pytest.raises(RecipeError, match="no encoder"):
        visiontune.evaluate(run.path, bertscore_layer=1)
