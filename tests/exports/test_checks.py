"""What each check of a certificate lets pass and what it does not, on answers made by hand."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visiontune
from tests.exports.test_certificate import SMALL
from visiontune.data.sample import LabelProbabilities, Prediction, Text
from visiontune.errors import CertificateError
from visiontune.exports import ship
from visiontune.exports.certificate import (
    CHECKS,
    LIMITS,
    Check,
    Outcome,
    check_answers,
    compare_metric,
    limits_for,
    ordered,
    same,
    verdict,
)
from visiontune.exports.compare import compare_predictions, evaluate_shipped
from visiontune.exports.gguf import write_gguf
from visiontune.exports.gguf_check import check_layout, check_weights
from visiontune.exports.reference import Reference, read_references, write_references
from visiontune.exports.shipment import Shipment, prediction, tell_shipped_question
from visiontune.exports.verify import Certified, _inputs
from visiontune.files import fingerprint
from visiontune.metrics.answers import points
from visiontune.run import Run

HALF = LIMITS["f16"]
EIGHT = LIMITS["q8_0"]


def reference(**fields: Any) -> Reference:
    made = Reference(
        id="a", image_sha256="", pixels_sha256="", question="?", prompt_ids=(1, 2), image_tokens=8, text="red",
        tokens=(5, 6, 3), log_probabilities=(-0.1, -0.2, -0.01), margins=(3.0, 2.0, 5.0),
        labels=(math.log(0.7), math.log(0.2), math.log(0.1)), truth="red",
    )  # fmt: skip
    return replace(made, **fields)


def outcome(**fields: Any) -> Outcome:
    like = reference()
    made = Outcome(
        id=like.id, pixels_sha256="", prompt_ids=like.prompt_ids, image_tokens=8, text=like.text, tokens=like.tokens,
        log_probabilities=like.log_probabilities, labels=like.labels, seconds=0.1,
    )  # fmt: skip
    return replace(made, **fields)


def checked(pairs: list[tuple[Reference, Outcome]], limits: Any = HALF) -> dict[str, Check]:
    return {check.name: check for check in check_answers(pairs, limits)}


def test_the_same_answers_pass() -> None:
    assert {check.status for check in checked([(reference(), outcome())]).values()} == {"passed"}


def test_another_token_passes_at_a_near_tie_only() -> None:
    other = outcome(tokens=(5, 9, 3), log_probabilities=(-0.1, -0.3, -0.01))
    assert checked([(reference(), other)])["tokens"].status == "failed"
    near = checked([(reference(margins=(3.0, 0.05, 5.0)), other)])["tokens"]
    assert near.status == "passed" and near.numbers["near_ties"] == [{"id": "a", "place": 1, "margin": 0.05}]
    assert "a at token 1, lead 2.0" in checked([(reference(), other)])["tokens"].found


def test_an_answer_that_goes_on_is_no_identical_answer() -> None:
    longer = outcome(tokens=(5, 6, 3, 3), log_probabilities=(-0.1, -0.2, -0.01, -0.1))
    assert checked([(reference(), longer)])["tokens"].numbers["identical"] == 0


def test_log_probabilities_are_compared_up_to_the_first_other_token() -> None:
    other = outcome(tokens=(5, 9), log_probabilities=(-0.11, -9.0))
    found = checked([(reference(), other)])["log-probabilities"]
    assert found.status == "passed" and found.numbers["mean"] == pytest.approx(0.01) and found.numbers["tokens"] == 1
    far = checked([(reference(), outcome(log_probabilities=(-0.1, -0.3, -0.01)))])["log-probabilities"]
    assert far.status == "failed" and "limit 0.02" in far.found
    assert (
        checked([(reference(), outcome(tokens=(9,), log_probabilities=(-1.0,)))])["log-probabilities"].status
        == "failed"
    )


def test_a_log_probability_that_llama_cpp_does_not_tell_is_left_out_and_counted() -> None:
    found = checked([(reference(), outcome(log_probabilities=(-0.1, math.nan, -0.01)))])["log-probabilities"]
    assert found.status == "passed" and found.numbers["tokens"] == 2 and "1 that llama.cpp does not tell" in found.found
    assert json.dumps(found.to_json(), allow_nan=False)


def test_another_label_passes_at_a_near_tie_or_within_the_share_that_is_allowed() -> None:
    other = outcome(labels=(math.log(0.2), math.log(0.7), math.log(0.1)))
    assert checked([(reference(), other)])["labels"].status == "failed"
    near = reference(labels=(math.log(0.46), math.log(0.44), math.log(0.1)))
    assert checked([(near, other)])["labels"].status == "passed"
    many = [(reference(), outcome())] * 199
    assert checked([*many, (reference(), other)], EIGHT)["labels"].status == "passed"  # 1 of 200: 0.5 %
    assert checked([*many[:100], (reference(), other)], EIGHT)["labels"].status == "failed"
    assert checked([*many, (reference(), other)], HALF)["labels"].status == "failed"


def test_labels_of_free_text_are_not_checked() -> None:
    assert checked([(reference(labels=None), outcome(labels=None))])["labels"].status == "not checked"


def test_the_metric_may_fall_by_the_stated_share_and_always_by_one_sample() -> None:
    right = [True] * 400
    assert compare_metric("accuracy", right, [False] * 2 + [True] * 398, EIGHT).status == "passed"
    fell = compare_metric("accuracy", right, [False] * 3 + [True] * 397, EIGHT)
    assert fell.status == "failed" and "lower by 0.0075 (0.0050 allowed)" in fell.found
    assert compare_metric("accuracy", right, [False] + [True] * 399, HALF).status == "passed"
    assert compare_metric("accuracy", [False] * 9 + [True] * 391, right, HALF).status == "passed"  # better is no fault
    assert fell.numbers["difference"]["value"] == pytest.approx(-3 / 400)
    assert fell.numbers["difference"]["low"] < -3 / 400 < fell.numbers["difference"]["high"]


def test_answers_in_free_text_are_compared_by_the_metric_that_is_named() -> None:
    truth = Text("a red seven on white paper")
    whole, half = (Prediction("x", ("x",), Text(text), truth=truth) for text in (truth.answer, "a red seven"))
    both = points([whole, half], "rougeL")
    assert both == pytest.approx([1.0, 2 * 3 / (6 + 3)])
    found = compare_metric("rougeL", both * 30, [both[1]] * 60, EIGHT)  # exact answers fell by a half, ROUGE-L less
    assert found.numbers["shipped"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert found.status == "failed" and "rougeL 0.8333 trained, 0.6667 shipped" in found.found
    assert "lower by 0.1667 (0.0167 allowed)" in found.found
    assert compare_metric("rougeL", both * 3, [*both * 2, both[1], both[1]], EIGHT).status == "passed"


def test_what_the_shipped_file_answers_is_held_to_what_the_trained_model_answered(trained: ship.Trained) -> None:
    held_to: Any = type("HeldTo", (), {"metric": "exact_match", "points": [1.0] * 100})
    for answer, status in (("red 3", "passed"), ("blue 3", "failed")):
        answered = [Prediction("x", ("x",), Text(answer), truth=Text("red 3"))] * 100
        assert compare_predictions(held_to, answered, trained.shipment).status == status


def test_finer_files_are_held_to_finer_limits() -> None:
    order = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_0"]
    for finer, coarser in pairwise(order):
        assert limits_for(finer).near_tie <= limits_for(coarser).near_tie, (finer, coarser)
        assert limits_for(finer).log_probability < limits_for(coarser).log_probability


def test_the_verdict_needs_a_check_that_passed_and_none_that_failed() -> None:
    passed, failed, unknown = (Check("files", status, "") for status in ("passed", "failed", "not checked"))
    assert verdict([passed, unknown]) == "passed" and verdict([passed, failed]) == "failed"
    assert verdict([unknown]) == verdict([]) == "not checked"
    assert [check.name for check in ordered([passed])] == list(CHECKS)


def test_what_is_not_the_same_is_shown_where_it_begins() -> None:
    found = same("prompt", [("x", (1, 2, 3), (1, 2, 3)), ("y", (1, 2, 3, 4), (1, 9, 3, 4))])
    assert found.status == "failed" and "1 of 2 inputs" in found.found
    assert "from token 1 on [2, 3, 4] became [9, 3, 4], first in y" in found.found


# Files


@pytest.fixture(scope="module")
def trained(device_run: Run) -> ship.Trained:
    return ship.load_for_shipping(device_run, "f16")


@pytest.fixture(scope="module")
def merged(trained: ship.Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    from visiontune.exports.weights import trained_names, write_merged

    names, out = trained_names(trained.adapter), tmp_path_factory.mktemp("merged") / "merged"
    write_merged(trained.adapter, out)
    return out, names


def written(merged: Path, out: Path, shipment: Shipment, **options: Any) -> Path:
    write_gguf(merged, out, "f16", **({"image_size": 32, "name": shipment.name} | options))
    return out


def test_a_projector_for_other_tiles_fails_the_layout(
    trained: ship.Trained, merged: tuple[Path, set[str]], tmp_path: Path
) -> None:
    shipment = trained.shipment
    assert check_layout(written(merged[0], tmp_path / "a", shipment), shipment).status == "passed"
    smaller = check_layout(written(merged[0], tmp_path / "b", shipment, image_size=16), shipment)
    assert smaller.status == "failed" and "tiles of 16 pixels, the contract's picture has 32" in smaller.found


def test_a_projector_without_its_key_or_of_another_kind_fails_the_layout(trained: ship.Trained, tmp_path: Path) -> None:
    import gguf

    def projector(name: str, kind: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        writer = gguf.GGUFWriter(folder / trained.shipment.projector, "clip")
        writer.add_clip_projector_type(kind)
        writer.add_vision_image_size(32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder

    assert "preproc_image_size is absent" in check_layout(projector("a", "idefics3"), trained.shipment).found
    assert "of type 'mlp'" in check_layout(projector("b", "mlp"), trained.shipment).found


def test_a_tensor_too_many_or_too_few_fails_the_weights(
    trained: ship.Trained, merged: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visiontune.exports import gguf_check

    folder = written(merged[0], tmp_path / "ship", trained.shipment)
    assert check_weights(folder, trained.shipment, *merged).status == "passed"
    planned = gguf_check.planned_files

    def fewer(*args: Any) -> Any:
        return [replace(file, tensors=file.tensors[1:]) for file in planned(*args)]

    def more(*args: Any) -> Any:
        files = planned(*args)
        return [replace(file, tensors=[*file.tensors, replace(file.tensors[0], name="extra")]) for file in files]

    monkeypatch.setattr(gguf_check, "planned_files", fewer)
    assert "token_embd.weight is not of this model" in check_weights(folder, trained.shipment, *merged).found
    monkeypatch.setattr(gguf_check, "planned_files", more)
    assert "extra is missing" in check_weights(folder, trained.shipment, *merged).found


# What is kept and continued


def test_references_are_read_as_they_were_written(tmp_path: Path) -> None:
    both = [reference(), reference(id="b", labels=None, text="a\u2028b")]
    write_references(tmp_path / "reference.jsonl", both, lambda _: None)
    assert read_references(tmp_path / "reference.jsonl") == both


def test_a_file_that_was_cut_short_is_named(
    trained: ship.Trained, merged: tuple[Path, set[str]], tmp_path: Path
) -> None:
    shipment, folder = trained.shipment, written(merged[0], tmp_path / "ship", trained.shipment)
    for name in (shipment.projector, shipment.text_model):
        whole = (folder / name).read_bytes()
        for end in (0, 10, 300, len(whole) // 2, len(whole) - 40):
            (folder / name).write_bytes(whole[:end])
            check = check_weights(folder, shipment, *merged)
            assert (check.status, check.found) == ("failed", f"{name} is cut short or damaged."), end
            assert (check_layout(folder, shipment).found == check.found) == (name == shipment.projector)
        (folder / name).write_bytes(whole)


def test_a_folder_that_failed_its_certificate_does_not_verify(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    tokens = Check("tokens", "failed", "1 of 16 answers identical").to_json()
    value = {"form": "merged", "dtype": "float32", "step": 1, "verdict": "failed", "checks": [tokens]}
    value["files"] = {"model.safetensors": fingerprint(tmp_path / "model.safetensors")}
    (tmp_path / "certificate.json").write_text(json.dumps(value))
    with pytest.raises(CertificateError, match="says that the export failed: tokens: 1 of 16 answers"):
        visiontune.verify(tmp_path)


@pytest.mark.parametrize("form", [{"quantisation": "f16"}, {"form": "onnx"}, {"form": "merged"}])
def test_a_certificate_that_was_cut_or_says_too_little_is_told(tmp_path: Path, form: dict[str, str]) -> None:
    text = json.dumps({**form, "files": {}, "inputs": {"compared": 2}})
    if form.get("form") == "onnx":
        (tmp_path / "contract.json").write_text('{"format": "onnx"}')
    for found, written in (("not whole", text[:-9]), ("no JSON object", "[]"), ("names no", text)):
        (tmp_path / "certificate.json").write_text(written)
        with pytest.raises(CertificateError, match=found):
            visiontune.verify(tmp_path)


def test_references_that_are_missing_or_were_cut_are_told(tmp_path: Path) -> None:
    value = dict.fromkeys(("name", "files", "contract", "quantisation", "trained"), "") | {"inputs": {"compared": 2}}
    (tmp_path / "certificate.json").write_text(json.dumps(value))
    with pytest.raises(CertificateError, match=r"reference\.jsonl is missing"):
        visiontune.verify(tmp_path)
    path = tmp_path / "reference.jsonl"
    write_references(path, [reference(), reference(id="b")], lambda _: None)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for found, cut in (("after 1 of 2", first), ("after 1 of 2", len(whole) - 5), ("after 0 of 2", 0)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CertificateError, match=f"reference.jsonl is not whole: it ends {found}"):
            visiontune.verify(tmp_path)
    path.write_bytes(b"{\n" + whole[first:])
    with pytest.raises(CertificateError, match=r"reference\.jsonl is not whole"):
        visiontune.verify(tmp_path)


def test_an_input_of_other_bytes_is_not_taken_for_the_one_that_was_compared(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "inputs").mkdir()
    right, wrong = (hashlib.sha256(data).hexdigest() for data in (b"right", b"other"))
    (tmp_path / "inputs" / right).write_bytes(b"right")
    (tmp_path / "inputs" / wrong).write_bytes(b"not the other")
    kept = [reference(id="a", image_sha256=right), reference(id="b", image_sha256=wrong)]
    found = _inputs(Certified(tmp_path, {}, kept), None)
    assert [(r.id, image) for r, image in found] == [("a", b"right")]


def test_what_was_answered_right_is_known_by_place_and_not_by_ids_that_datasets_share(trained: ship.Trained) -> None:
    (data,) = trained.datasets
    alone = ship.points_before(trained, 5)
    whole = points(predictions_of(trained.run), "accuracy")
    assert alone == whole[:5] and {1.0, 0.0} >= set(whole)
    twice = replace(trained, datasets=[data, data])
    assert ship.asked_rows(twice, 5) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert ship.points_before(twice, 5) == [*alone[:3], *alone[:2]]


def predictions_of(run: Run) -> list[Prediction]:
    lines = (run.path / "evaluations/validation/predictions.jsonl").read_text().splitlines()
    return [Prediction.from_json(json.loads(line)) for line in lines]


def test_an_answer_torn_by_a_kill_is_answered_again(device_run: Run, trained: ship.Trained, tmp_path: Path) -> None:
    whole = Prediction("x", ("x",), Text("red 3"), {"confidence": 0.5}, Text("red 3"))
    line = json.dumps(whole.to_json())
    place = tmp_path / "evaluation"
    place.mkdir()
    (place / "predictions.jsonl").write_text(line + "\n" + line[:20])
    held_to: Any = type("HeldTo", (), {"datasets": trained.datasets, "asked": [(0, 0)], "threads": 1})
    found = evaluate_shipped(tmp_path, trained.shipment, held_to, place)  # the one row that is asked for stands
    assert [p.id for p in found] == ["x"]
    assert (place / "predictions.jsonl").read_text() == line + "\n"


@pytest.mark.parametrize("changed", [{"samples": 7}, {"limit": None}, {"with_inputs": True}])
def test_an_export_with_other_options_is_another_export(trained: ship.Trained, changed: dict[str, Any]) -> None:
    options = {**SMALL, "with_inputs": False}
    assert ship._key(trained, **options) == ship._key(trained, **options)
    assert ship._key(trained, **options) != ship._key(trained, **{**options, **changed})


def test_a_shipped_model_that_may_have_been_asked_other_questions_says_which_it_is_asked(
    trained: ship.Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.shipment.write(tmp_path)
    own = reference(question=trained.shipment.question)
    for references, told in (([own], False), ([own, reference(question="How many?")], True)):
        write_references(tmp_path / "reference.jsonl", references, lambda _: None)
        tell_shipped_question(tmp_path)
        assert (f"{trained.shipment.question!r} is asked" in capsys.readouterr().err) == told
    monkeypatch.setattr("visiontune.exports.shipment.predict_shipped", lambda *_, **__: [])
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for prompt, told in ((None, True), ("How many?", False)):
        visiontune.predict(tmp_path, tmp_path / "image.png", prompt=prompt)
        assert ("is asked" in capsys.readouterr().err) == told


def test_a_shipped_model_abstains_below_the_threshold_of_its_contract(trained: ship.Trained) -> None:
    labels = LabelProbabilities(("red", "blue"), np.array([0.6, 0.4]))
    sure = trained.shipment.model_copy(update={"temperature": 0.5, "abstain_below": 0.65})
    made = prediction(sure, "x", ("red", 0.6, labels), Text(""))
    assert made.scores["confidence"] == pytest.approx(0.36 / 0.52) and made.abstained is False
    unsure = sure.model_copy(update={"abstain_below": 0.7})
    assert prediction(unsure, "x", ("red", 0.6, labels), Text("")).abstained is True
    assert (
        prediction(sure.model_copy(update={"abstain_below": None}), "x", ("red", 0.6, labels), Text("")).abstained
        is None
    )
