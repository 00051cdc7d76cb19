"""Model cards, read as the hub reads them: front matter by huggingface_hub, the rest by a Markdown parser."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub import file_download as hub_cache
from markdown_it import MarkdownIt
from markdown_it.token import Token

from visiontune.contract import DeviceContract
from visiontune.exports.card import FORMS, LABELS_SHOWN, write_card
from visiontune.exports.shipment import LabelTokens, Shipment
from visiontune.recipe import parse
from visiontune.run import Run

QUESTION = 'Which | of `these`\nis *it*: <b>cat</b> or _dog_? "Say" it, it\'s $5 & [no](link) ```'
LABELS = ["a|b", "two\nlines", "`tick`", "<image>", "_x_", "plain_name", "back\\slash"]
REASON = "in 6 | 6 samples\nthe span `ends` with <end_of_utterance>"
DEVICE = DeviceContract(
    profile="desktop-llama",
    image_size=32,
    resize="lanczos",
    prompt_form="chat",
    prompt="<|im_start|>User:{marker}{question}\n```\n`Assistant:",
    max_new_tokens=9,
)


def run_of(place: Path, base: str = "tiny/smolvlm", revision: str | None = None, labels: list[str] = LABELS) -> Run:
    """A run as far as a card reads it; its datasets stand in a folder whose name nobody should learn."""
    run = Run(place / "pets_run")
    values = {
        "model": {"name": base, "revision": revision},
        "data": {
            "datasets": [{"path": str(place / "clinic-of-doctor-x" / "pets|2"), "content_hash": "ab12" * 16}],
            "prompt": QUESTION,
            "image_longest_edge": 32,
            "image_splitting": False,
            "max_tokens": 256,
        },
        "parts": {"vision_encoder": "frozen", "language_model": "lora"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 12},
        "batch": {"samples": 32, "tokens": 4096, "window": 256},
        "evaluation": {"every": 6, "samples": 64, "metric": "accuracy", "max_new_tokens": 9},
        "checkpoints": {"every": 6},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 2},
        "device": DEVICE.model_dump(mode="json"),
    }
    run.path.mkdir(parents=True, exist_ok=True)
    parse(values, "test").save(run.recipe_path)
    (run.path / "labels.json").write_text(json.dumps({"labels": labels}))
    reason = f"{REASON}, read from {place / 'clinic-of-doctor-x' / 'pets|2'}"
    receipt = {"name": "supervised", "status": "passed", "reason": reason, "numbers": {}, "examples": []}
    (run.path / "receipts.json").write_text(json.dumps({"receipts": [receipt]}))
    rate = {"value": 0.75, "low": 0.7, "high": 0.8, "n": 64}
    (run.path / "evaluations/validation").mkdir(parents=True, exist_ok=True)
    scores = {"step": 12, "metrics": {"accuracy": rate, "macro_f1": {**rate, "value": None}}}
    (run.path / "evaluations/validation/metrics.json").write_text(json.dumps(scores))
    return run


def certified(folder: Path, verdict: str = "passed", runtime: str = "xllamacpp 1") -> tuple[Shipment, dict[str, Any]]:
    shipment = Shipment(
        name="pets",
        text_model="my pets-Q8_0.gguf",
        projector="mmproj-pets-Q8_0.gguf",
        quantisation="q8_0",
        device=DEVICE,
        question=QUESTION,
        example_prompt=DEVICE.prompt_for(QUESTION),
        context=256,
        labels=tuple(LabelTokens(label=label, tokens=(1,)) for label in LABELS),
    )
    check = {"name": "files", "what": "w", "status": verdict, "found": f"a | b in {folder}/x.gguf", "numbers": {}}
    value = {"verdict": verdict, "quantisation": "q8_0", "runtime": runtime, "inputs": {"compared": 7}}
    return shipment, {**value, "checks": [check]}


def card_of(run: Run, folder: Path, form: str = "gguf", **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    write_card(run, folder, form, 12, certified(folder, **options) if form == "gguf" else None)
    return (folder / "README.md").read_text(encoding="utf-8")


def parsed(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)


def text_of(token: Token) -> str:
    """What a reader sees of a line."""
    assert {child.type for child in token.children or ()} <= {"text", "text_special", "code_inline", "softbreak"}, token
    return "".join(child.content for child in token.children or ())


def tables(card: str) -> list[list[list[str]]]:
    """The tables of a card: rows of cells, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = parsed(card)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(text_of(tokens[i + 1]))
    return found


def facts(card: str) -> dict[str, str]:
    return {row[0]: row[1] for row in tables(card)[0]}


def code_blocks(card: str) -> dict[str, str]:
    return {token.info: token.content for token in parsed(card) if token.type == "fence"}


@pytest.mark.parametrize("form", FORMS)
def test_the_hub_can_read_the_front_matter(form: str, tmp_path: Path) -> None:
    data = ModelCard(card_of(run_of(tmp_path), tmp_path / "out", form)).data.to_dict()
    assert data["library_name"] == FORMS[form][0] and data["pipeline_tag"] == "image-text-to-text"
    assert data["license"] == "apache-2.0" and "visiontune" in data["tags"]
    assert ("gguf" in data["tags"]) == (form == "gguf")
    assert "base_model" not in data, "tiny/smolvlm stands on no hub"


@pytest.mark.parametrize("form", FORMS)
def test_a_base_model_of_the_hub_is_named_with_what_was_made_of_it(form: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, base="someone/a-model", revision="abc123")
    card = card_of(run, tmp_path / "out", form)
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == "someone/a-model"
    assert data["base_model_relation"] == ("adapter" if form == "adapter" else "finetune")
    assert facts(card)["base model"] == "someone/a-model at abc123"
    if form == "adapter":
        assert 'from_pretrained("someone/a-model", revision="abc123")' in code_blocks(card)["python"]


@pytest.mark.parametrize("form", FORMS)
def test_no_folder_of_this_computer_stands_in_a_card(form: str, tmp_path: Path) -> None:
    base = tmp_path / "secret-place" / "base-model"
    base.mkdir(parents=True)
    card = card_of(run_of(tmp_path, base=str(base)), tmp_path / "out", form)
    assert str(tmp_path) not in card and "secret-place" not in card and "clinic-of-doctor-x" not in card
    assert str(Path.home()) not in card
    assert facts(card)["base model"] == "base-model" and "base_model" not in ModelCard(card).data.to_dict()
    assert "pets|2" in facts(card)["data"]


@pytest.mark.parametrize("form", FORMS)
def test_what_users_write_breaks_no_table_and_is_read_as_they_wrote_it(form: str, tmp_path: Path) -> None:
    card = card_of(run_of(tmp_path), tmp_path / "out", form)
    found = tables(card)
    assert [len(table[0]) for table in found] == [2, 4, 3, 3][: len(found)] and len(found) == 3 + (form == "gguf")
    assert all(len(row) == len(table[0]) for table in found for row in table)
    shown = facts(card)
    assert shown["question"] == " ".join(QUESTION.split())
    assert shown["labels"] == ", ".join(LABELS).replace("\n", " ")
    assert found[2][1][2] == f"{' '.join(REASON.split())}, read from pets|2"
    assert found[1][1:] == [["accuracy", "0.7500", "0.7000 to 0.8000", "64"]], "metrics that count nothing stay out"


def test_prompts_stand_in_the_card_character_by_character(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    card = card_of(run, tmp_path / "out")
    blocks = code_blocks(card)
    assert blocks["text"] == DEVICE.prompt_for(QUESTION) + "\n"
    assert yaml.safe_load(blocks["yaml"])["data"]["prompt"] == QUESTION
    merged = parsed(card_of(run, tmp_path / "out", "merged"))
    codes = [c.content for token in merged for c in token.children or () if c.type == "code_inline"]
    assert DEVICE.prompt.replace("\n", "\\n") in codes


def test_the_shell_gets_the_question_as_it_is(tmp_path: Path) -> None:
    command = code_blocks(card_of(run_of(tmp_path), tmp_path / "out"))["sh"].split("\n", 1)[1]
    words = shlex.split(command)
    assert words[words.index("-p") + 1] == QUESTION
    assert words[words.index("-m") + 1] == "my pets-Q8_0.gguf"


def test_very_many_labels_are_shortened_with_their_count(tmp_path: Path) -> None:
    labels = [f"kind {i}" for i in range(1000)]
    shown = facts(card_of(run_of(tmp_path, labels=labels), tmp_path / "out"))["labels"]
    assert shown.endswith(f"kind {LABELS_SHOWN - 1} and others, 1000 in all") and len(shown) < 500


def test_a_failed_certificate_warns_before_anything_else(tmp_path: Path) -> None:
    card = card_of(run_of(tmp_path), tmp_path / "out", verdict="failed", runtime="")
    assert card.index("Do not use these files") < card.index("| base model |")
    assert facts(card)["certificate"] == "failed"
    assert "(q8_0);" in card, "no runtime: none is named"
    assert tables(card)[3][1] == ["files", "failed", "a | b in out/x.gguf"]
    assert "Do not use" not in card_of(run_of(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("front", "wanted"),
    [
        (None, {"license": "unknown"}),
        ("license: mit", {"license": "mit"}),
        ("license: [mit]", {"license": "mit"}),
        ("license: [mit, apache-2.0]", {"license": "unknown"}),
        ("tags: [x]", {"license": "unknown"}),
        ("license: [", {"license": "unknown"}),
        ("license: mit\ntitle: a --- b", {"license": "mit"}),
        (
            "license: other\nlicense_name: own-terms\nlicense_link: https://example.org/terms",
            {"license": "other", "license_name": "own-terms", "license_link": "https://example.org/terms"},
        ),
        ("license: other\nlicense_link: LICENSE", {"license": "other", "license_name": "see-base-model"}),
    ],
)
def test_the_licence_is_that_of_the_base_models_own_card(
    front: str | None, wanted: dict[str, str], tmp_path: Path
) -> None:
    base = tmp_path / "base-model"
    base.mkdir()
    if front is not None:
        (base / "README.md").write_text(f"---\n{front}\n---\n# Model\n")
    card = card_of(run_of(tmp_path, base=str(base)), tmp_path / "out")
    data = ModelCard(card).data.to_dict()
    assert {name: value for name, value in data.items() if name.startswith("license")} == wanted
    shown = wanted.get("license_name", wanted["license"])
    expected = "not known here" if shown == "unknown" else shown
    assert facts(card)["licence of the base model"].startswith(expected)


def test_a_licence_file_of_a_base_model_on_the_hub_is_linked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "cache" / "models--someone--a-model" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    monkeypatch.setattr(hub_cache.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    card = card_of(run_of(tmp_path, base="someone/a-model", revision="abc123"), tmp_path / "out")
    data = ModelCard(card).data.to_dict()
    assert data["license_name"] == "own"
    assert data["license_link"] == "https://huggingface.co/someone/a-model/blob/main/LICENSE"
