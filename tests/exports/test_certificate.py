"""An export that is not the trained model fails its certificate, and the certificate says why."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.errors import CertificateError, MachineError, RunError
from visiontune.exports import gguf_layout, ship
from visiontune.exports.certificate import CHECKS
from visiontune.exports.shipment import Shipment, read_shipment
from visiontune.exports.weights import write_merged
from visiontune.run import Run

SMALL: dict[str, Any] = {"samples": 6, "limit": 12}


@pytest.fixture(scope="module")
def shipped(device_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as float16 files, with the compared pictures."""
    out = tmp_path_factory.mktemp("shipped") / "ship"
    return visiontune.export(device_run.path, to="gguf", out=out, quantisation="f16", with_inputs=True, **SMALL)["gguf"]


def certificate(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


def statuses(folder: Path) -> dict[str, str]:
    return {check["name"]: check["status"] for check in certificate(folder)["checks"]}


def test_a_sound_export_passes_every_check(shipped: Path) -> None:
    assert statuses(shipped) == dict.fromkeys(CHECKS, "passed")
    value = certificate(shipped)
    assert value["verdict"] == "passed"
    assert value["speed"]["median_seconds"] > 0 and value["speed"]["peak_memory_bytes"] > 10**7
    for name, file in value["files"].items():
        assert file["bytes"] == (shipped / name).stat().st_size
        assert value["predicted_bytes"][name] == pytest.approx(file["bytes"], rel=0.01)
    labels = next(check for check in value["checks"] if check["name"] == "labels")
    assert labels["numbers"]["inputs"] == SMALL["samples"]
    lines = (shipped / "evaluation" / "validation" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == SMALL["limit"]


@pytest.mark.parametrize("quantisation", ["f32", "q8_0", "q4_k_m"])
def test_other_quantisations_pass_within_their_limits(device_run: Run, tmp_path: Path, quantisation: str) -> None:
    visiontune.export(device_run.path, to="gguf", out=tmp_path / "ship", quantisation=quantisation, **SMALL)
    value = certificate(tmp_path / "ship")
    assert value["verdict"] == "passed" and value["quantisation"] == quantisation


# Ten mismatches, each planted where an exporter could really make it


def other_contract(**changes: Any) -> Callable[[pytest.MonkeyPatch, Run], None]:
    """The exporter writes a contract that says something else than the run was trained with."""

    def plant(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
        original = Shipment.write

        def write(self: Shipment, folder: Path) -> None:
            device = self.device.model_copy(update=changes)
            original(self.model_copy(update={"device": device}), folder)

        monkeypatch.setattr(Shipment, "write", write)

    return plant


def other_files(**options: Any) -> Callable[[pytest.MonkeyPatch, Run], None]:
    """The exporter hands other options to the writer of the files."""

    def plant(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
        original = ship.write_gguf
        monkeypatch.setattr(ship, "write_gguf", lambda *a, **given: original(*a, **(given | options)))

    return plant


def other_weights(change: Callable[[dict[str, np.ndarray], Run], None]) -> Callable[[pytest.MonkeyPatch, Run], None]:
    """The exporter writes the files from other weights than the trained ones."""

    def plant(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
        original = ship.write_gguf

        def write(merged: Path, *args: Any, **options: Any) -> Any:
            changed = merged.with_name("changed")
            shutil.copytree(merged, changed)
            tensors = load_file(changed / "model.safetensors")
            change(tensors, run)
            save_file(tensors, changed / "model.safetensors")
            try:
                return original(changed, *args, **options)
            finally:
                shutil.rmtree(changed)

        monkeypatch.setattr(ship, "write_gguf", write)

    return plant


def no_projector(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    original = ship.fingerprint

    def gone_afterwards(path: Path) -> dict[str, int | str]:
        known = original(path)
        if path.name.startswith("mmproj"):
            path.unlink()
        return known

    monkeypatch.setattr(ship, "fingerprint", gone_afterwards)


def no_permutation(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    original, turn = ship.write_gguf, gguf_layout._rotary_order

    def write(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(gguf_layout, "_rotary_order", lambda stored, heads: stored.read())
        written = original(*args, **options)
        monkeypatch.setattr(gguf_layout, "_rotary_order", turn)
        return written

    monkeypatch.setattr(ship, "write_gguf", write)


def stale(tensors: dict[str, np.ndarray], run: Run) -> None:
    write_merged(ship.load_for_shipping(run, "f16", step=6).adapter, run.path / "stale")
    tensors |= load_file(run.path / "stale" / "model.safetensors")


def other_base(tensors: dict[str, np.ndarray], run: Run) -> None:
    for name in tensors:
        if "vision_model" in name:
            tensors[name] = np.random.default_rng(3).normal(size=tensors[name].shape).astype("float32") * 0.02


@pytest.mark.parametrize(
    ("plant", "reasons"),
    [
        pytest.param(
            other_contract(resize="bilinear"),
            {"contract": "resize: 'lanczos' became", "pixels": "of 6 inputs: pixels"},
            id="resize filter",
        ),
        pytest.param(
            other_contract(colour_order="bgr"),
            {"contract": "colour_order: 'rgb' became", "pixels": "of 6 inputs: pixels"},
            id="colour order",
        ),
        pytest.param(
            other_files(longest_edge=64),
            {"layout": "cuts the picture into 5 tiles", "image tokens": "other for 6 of 6 inputs: 8 became 20"},
            id="tile count",
        ),
        pytest.param(other_files(with_template="{{ messages[0]['content'] }}"), {"template": "makes"}, id="template"),
        pytest.param(other_contract(marker="<image>"), {"contract": "marker: '<__media__>' became"}, id="marker"),
        pytest.param(other_contract(max_new_tokens=2), {"contract": "max_new_tokens: 8 became 2"}, id="token limit"),
        pytest.param(no_projector, {"files": "mmproj-run-F16.gguf is missing"}, id="missing projector"),
        pytest.param(no_permutation, {"weights": "wrong permutation of rows"}, id="wrong permutation"),
        pytest.param(other_weights(stale), {"weights": "stale adapter: only tensors"}, id="stale adapter"),
        pytest.param(other_weights(other_base), {"weights": "other base weights:"}, id="other base weights"),
    ],
)
def test_a_mismatch_fails_the_certificate_with_its_own_reason(
    device_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Any, reasons: dict[str, str]
) -> None:
    plant(monkeypatch, device_run)
    with pytest.raises(CertificateError) as caught:
        visiontune.export(device_run.path, to="gguf", out=tmp_path / "ship", quantisation="f16", **SMALL)
    aside = tmp_path / "ship.failed"
    assert not (tmp_path / "ship").exists() and certificate(aside)["verdict"] == "failed"
    found = {entry["name"]: entry for entry in certificate(aside)["checks"]}
    for check, reason in reasons.items():
        assert f"{check}: " in caught.value.found and reason in caught.value.found
        assert found[check]["status"] == "failed" and reason in found[check]["found"]
    if "pixels" in reasons:
        assert found["weights"]["status"] == "passed"


# What can go wrong around it


def test_a_run_that_is_for_no_device_is_refused(plan: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not trained for a device") as caught:
        visiontune.export(plan("stock").path, to="gguf", out=tmp_path / "ship")
    assert "--for android-256" in (caught.value.fix or "") and not (tmp_path / "ship").exists()


def test_an_older_llama_cpp_than_the_contract_names_is_refused_before_anything_is_done(
    device_run: Run, shipped: Path, tmp_path: Path
) -> None:
    later = Run(shutil.copytree(device_run.path, tmp_path / "later"))
    later.recipe.changed({"device.runtime_version": "2999.1"}).save(later.recipe_path)
    with pytest.raises(MachineError, match=r"older than 2999\.1") as caught:
        visiontune.export(later.path, to="gguf", out=tmp_path / "ship")
    assert caught.value.fix == "pip install 'xllamacpp>=2999.1'" and not (tmp_path / "ship").exists()
    folder = shutil.copytree(shipped, tmp_path / "shipped")
    shipment = read_shipment(folder)
    shipment.model_copy(update={"device": shipment.device.model_copy(update={"runtime_version": "2999.1"})}).write(
        folder
    )
    with pytest.raises(MachineError, match="older"):
        visiontune.predict(folder, [next((folder / "inputs").iterdir())])


def test_a_killed_export_goes_on_where_it_was(device_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, aside = tmp_path / "ship", tmp_path / ".ship.exporting"
    answered = aside / "evaluation" / "validation" / "predictions.jsonl"
    options = {"to": "gguf", "out": out, "quantisation": "f16", "samples": 6}
    child = multiprocessing.get_context("fork").Process(
        target=visiontune.export, args=(device_run.path,), kwargs=options
    )
    child.start()
    deadline = time.monotonic() + 120
    while not (answered.is_file() and answered.read_bytes().count(b"\n") >= 3):
        assert child.is_alive() and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.005)
    child.kill()
    child.join()
    assert not out.exists()
    stood = answered.read_text().splitlines()[:3]
    monkeypatch.setattr(ship, "references", lambda *_: pytest.fail("reference answers were made again"))
    monkeypatch.setattr(ship, "write_gguf", lambda *_: pytest.fail("the files were written again"))
    visiontune.export(device_run.path, to="gguf", out=out, quantisation="f16", samples=6)
    lines = (out / "evaluation" / "validation" / "predictions.jsonl").read_text().splitlines()
    assert lines[:3] == stood and len(lines) == len({json.loads(line)["id"] for line in lines}) == 30
    assert certificate(out)["verdict"] == "passed" and not aside.exists()


def test_what_another_export_left_is_not_taken_for_this_one(device_run: Run, tmp_path: Path) -> None:
    aside = tmp_path / ".ship.exporting"
    aside.mkdir()
    (aside / "unfinished.json").write_text(json.dumps({"key": {"step": 1}, "stages": {"references": {"right": {}}}}))
    visiontune.export(device_run.path, to="gguf", out=tmp_path / "ship", quantisation="f16", **SMALL)
    assert certificate(tmp_path / "ship")["verdict"] == "passed"


# verify


def found(path: Path, **options: Any) -> dict[str, str]:
    return {check.name: check.status for check in visiontune.verify(path, **options)}


def test_verify_runs_the_certificate_again_where_the_inputs_travel(shipped: Path) -> None:
    again = found(shipped)
    assert {name for name, status in again.items() if status == "not checked"} == {"weights", "metric"}
    assert "failed" not in again.values()


def test_verify_says_what_it_cannot_check_elsewhere(shipped: Path, tmp_path: Path, inked: Dataset) -> None:
    elsewhere = shutil.copytree(shipped, tmp_path / "ship")
    shutil.rmtree(elsewhere / "inputs")
    again = found(elsewhere)
    assert [name for name, status in again.items() if status == "passed"] == [
        "files", "contract", "layout", "template", "prompt", "image tokens",
    ]  # fmt: skip
    assert found(elsewhere, data=inked.path)["labels"] == "passed"


def test_verify_with_the_run_checks_everything_anew_whatever_the_run_is_called(
    shipped: Path, device_run: Run, tmp_path: Path
) -> None:
    renamed = shutil.copytree(device_run.path, tmp_path / "renamed")
    assert found(shipped, run=renamed) == dict.fromkeys(CHECKS, "passed")


def test_verify_needs_no_torch_for_a_shipped_folder(shipped: Path) -> None:
    picture = next((shipped / "inputs").iterdir())
    code = (
        "import sys, visiontune\n"
        f"visiontune.verify({str(shipped)!r})\n"
        f"print(visiontune.predict({str(shipped)!r}, [{str(picture)!r}])[0].target.answer)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {entry.label for entry in read_shipment(shipped).labels or ()}


def test_a_changed_file_or_contract_no_longer_verifies(shipped: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(shipped, tmp_path / "bytes")
    path = changed / read_shipment(changed).text_model
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CertificateError, match=r"files: run-F16\.gguf is not the file that was certified"):
        visiontune.verify(changed)
    drifted = shutil.copytree(shipped, tmp_path / "contract")
    shipment = read_shipment(drifted)
    shipment.model_copy(update={"temperature": 3.0}).write(drifted)
    with pytest.raises(CertificateError, match="contract: not as certified: temperature"):
        visiontune.verify(drifted)
    projector = drifted / shipment.projector
    projector.write_bytes(projector.read_bytes()[:-100])
    with pytest.raises(CertificateError, match=r"layout: mmproj-run-F16\.gguf is cut short or damaged"):
        visiontune.verify(drifted)
    projector.unlink()
    with pytest.raises(CertificateError, match=r"files: mmproj-run-F16\.gguf is missing"):
        visiontune.verify(drifted)


def test_the_shipped_file_answers_as_the_trained_model(
    shipped: Path, device_run: Run, inked: Dataset, tmp_path: Path
) -> None:
    from visiontune.exports.reference import image_of

    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(image_of(inked.sample("test", i)))
    by_file, by_run = visiontune.predict(shipped, paths), visiontune.predict(device_run.path, paths)
    assert [p.target.answer for p in by_file] == [p.target.answer for p in by_run]
    for mine, its in zip(by_file, by_run, strict=True):
        assert mine.scores["confidence"] == pytest.approx(its.scores["confidence"], abs=0.01)
        assert mine.to_json().keys() == its.to_json().keys()
    assert visiontune.predict(shipped, paths[:1], prompt="What is this?")[0].labels is None


def test_verify_checks_a_run(device_run: Run, tmp_path: Path) -> None:
    assert set(found(device_run.path).values()) == {"passed"}
    copy = Run(shutil.copytree(device_run.path, tmp_path / "run"))
    weights = copy.checkpoint_path(copy.checkpoint_steps()[-1]) / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1"[-1:])
    with pytest.raises(CertificateError, match=r"checkpoints: .*damaged"):
        visiontune.verify(copy.path)


def test_verify_sees_a_run_whose_answers_are_not_its_checkpoints(device_run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(device_run.path, tmp_path / "run")
    path = copy / "evaluations" / "validation" / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"] = "red 9" if lines[0]["text"] != "red 9" else "red 8"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CertificateError, match="answers: 1 of 16 answers are others"):
        visiontune.verify(copy)


def test_verify_sees_a_failed_receipt_and_changed_data(device_run: Run, inked: Dataset, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(device_run.path, tmp_path / "run"))
    receipts = {"receipts": [{**receipt, "status": "failed"} for receipt in copy.receipts[:1]] + copy.receipts[1:]}
    (copy.path / "receipts.json").write_text(json.dumps(receipts))
    with pytest.raises(CertificateError, match="receipts: failed: supervised"):
        visiontune.verify(copy.path)
    data = Dataset.open(shutil.copytree(inked.path, tmp_path / "data"))
    uses = [{**use.model_dump(), "path": str(data.path)} for use in device_run.recipe.data.datasets]
    moved = Run(shutil.copytree(device_run.path, tmp_path / "moved"))
    moved.recipe.changed({"data.datasets": uses}).save(moved.recipe_path)
    shard = data.path / next(iter(data.info.files))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(CertificateError, match="data: a file of the dataset was changed"):
        visiontune.verify(moved.path)


def test_verify_of_a_folder_that_is_neither_says_so(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="no certificate"):
        visiontune.verify(tmp_path)


def test_the_android_profile_ships_its_raw_prompt_and_its_256_pixels(inked: Dataset, tmp_path: Path) -> None:
    from tests.conftest import QUICK
    from visiontune.machine import hardware
    from visiontune.training.loop import train_run
    from visiontune.training.plan import derive, plan_run

    recipe = derive([inked], [None], "tiny/smolvlm", hardware("cpu"), profile="android-256")
    run = Run(tmp_path / "phone")
    plan_run(run, recipe.changed({**QUICK, "schedule.steps": 2, "evaluation.samples": 4}), [inked])
    train_run(run)
    out = visiontune.export(run.path, to="gguf", out=tmp_path / "ship", quantisation="f16", samples=3, limit=3)["gguf"]
    assert set(statuses(out).values()) == {"passed"}
    shipment = read_shipment(out)
    assert shipment.device.image_size == 256 and shipment.example_prompt.startswith("<__media__>\nWhich of these")
    assert shipment.example_prompt.endswith("Answer:") and shipment.device.max_new_tokens == 32
