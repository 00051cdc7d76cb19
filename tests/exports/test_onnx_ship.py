"""A run that finds objects becomes an ONNX folder that can be verified wherever it stands."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image

import visiontune
from tests.conftest import SAME_EVERYWHERE
from tests.exports.onnx_models import shallow_config
from tests.killed import Counted, killed
from tests.object_samples import listing
from visiontune.data.dataset import Dataset
from visiontune.demo_shapes import draw_source
from visiontune.errors import CertificateError, DataError, ModelError
from visiontune.exports import onnx_ship
from visiontune.exports.certificate import Check
from visiontune.exports.onnx_runtime import open_model
from visiontune.exports.onnx_ship import ship_onnx
from visiontune.exports.onnx_verify import verify_onnx
from visiontune.exports.reference import image_of
from visiontune.models import rf_detr
from visiontune.run import Run

QUICK: dict[str, Any] = {
    "data.image_longest_edge": 64,
    "objects.queries": 12,
    "batch.samples": 4,
    "batch.window": 8,
    "schedule.steps": 2,
    "evaluation.every": 2,
    "evaluation.samples": 2,
    "checkpoints.every": 2,
    **SAME_EVERYWHERE,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = draw_source(tmp_path_factory.mktemp("shapes") / "source", 24, masks=False)
    return visiontune.prepare(source, tmp_path_factory.mktemp("prepared") / "shapes")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of discs and squares in which discs were not looked for."""
    folder = tmp_path_factory.mktemp("squares")
    return visiontune.prepare(listing(folder / "source", ("square",), 1, ("disc", "square"), 12), folder / "data")


@pytest.fixture(scope="module")
def run(shapes: Dataset, squares: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "detector"
    with patch.object(rf_detr, "tiny_config", shallow_config):
        return visiontune.train(shapes.path, squares.path, model="tiny/rf-detr", out=out, overrides=QUICK)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ship_onnx(run, tmp_path_factory.mktemp("shipped") / "onnx", samples=3)


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_everything_that_an_app_needs_is_in_the_folder_and_nothing_else(run: Run, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "contract.json", "certificate.json", "reference.jsonl", "README.md"}
    value = json.loads((folder / "certificate.json").read_text())
    assert value["verdict"] == "passed" and value["trained"]["step"] == 2
    assert value["versions"]["onnxruntime"] and value["speed"]["median_ms"] > 0
    contract = json.loads((folder / "contract.json").read_text())
    assert contract["classes"] == ["disc", "square"] and contract["side"] == 64
    card = (folder / "README.md").read_text()
    assert "disc, square" in card and "| outputs | passed |" in card
    for file in ("contract.json", "certificate.json", "README.md", "reference.jsonl"):
        assert str(run.path.parent) not in (folder / file).read_text()


def test_it_is_verified_alone_with_its_data_and_with_its_run_whatever_that_is_called(
    run: Run, folder: Path, shapes: Dataset, tmp_path: Path
) -> None:
    alone = statuses(verify_onnx(folder))
    assert alone["files"] == alone["contract"] == "passed" and alone["objects"] == "not checked"
    assert statuses(verify_onnx(folder, data=shapes))["objects"] == "passed"
    renamed = Run(shutil.copytree(run.path, tmp_path / "renamed"))
    for one in (run, renamed):
        assert set(statuses(verify_onnx(folder, run=one)).values()) == {"passed"}
    for check in visiontune.verify(folder):
        assert check.to_json()["what"]


def test_images_are_asked_for_the_classes_of_their_own_dataset(folder: Path, run: Run, squares: Dataset) -> None:
    lines = [json.loads(line) for line in (folder / "reference.jsonl").read_text().splitlines()]
    files = {hashlib.sha256(image_of(squares.sample("validation", i))).hexdigest() for i in range(2)}
    own = [line for line in lines if line["image_sha256"] in files]
    assert own and {one["category"] for line in own for one in line["objects"]} == {"square"}
    assert {one["category"] for line in lines for one in line["objects"]} == {"disc", "square"}
    assert all(line["looked_for"] == ["square"] for line in own) and any("looked_for" not in line for line in lines)
    assert statuses(verify_onnx(folder, data=squares))["objects"] == "passed"
    # The same images verify whatever else is listed of them.
    more = squares.info.objects
    assert more is not None
    more = more.model_copy(update={"classes": {"triangle": 0, **more.classes, "disc": 0}})
    others = Dataset(squares.path, squares.info.model_copy(update={"objects": more}))
    assert statuses(verify_onnx(folder, data=others))["objects"] == "passed"


def test_folders_of_several_models_name_them(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "ship" / "detector")
    with pytest.raises(DataError, match="holds 1 model") as refused:
        visiontune.verify(tmp_path / "ship")
    assert refused.value.fix == "verify detector"
    with pytest.raises(ModelError, match="holds 1 shipped model") as refused:
        visiontune.predict(tmp_path / "ship", tmp_path / "ship")
    assert refused.value.fix == "ask detector"
    (tmp_path / "ship" / "merged").mkdir()  # plain weights, which are verified and not asked
    (tmp_path / "ship" / "merged" / "certificate.json").write_text("{}")
    with pytest.raises(DataError, match="holds 2 models") as refused:
        visiontune.verify(tmp_path / "ship")
    assert refused.value.fix == "verify each: detector, merged"
    with pytest.raises(ModelError, match="holds 1 shipped model"):
        visiontune.predict(tmp_path / "ship", tmp_path / "ship")


def test_pictures_of_what_a_shipped_model_found_lie_beside_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "ship")
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    (found,) = visiontune.predict(tmp_path / "ship", [tmp_path / "a.png"], least_score=0.9)
    assert Path(found.source[1]) == tmp_path / "ship-predictions/a.png"
    assert not (tmp_path / "ship/predictions").exists()


def test_a_folder_whose_graph_is_of_another_run_fails_verification(
    folder: Path, shapes: Dataset, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    lines = [json.loads(line) for line in (other / "reference.jsonl").read_text().splitlines()]
    for line in lines:
        for entry in line["objects"]:
            entry["bbox"] = [value + 30 for value in entry["bbox"]]
    (other / "reference.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert statuses(verify_onnx(other, data=shapes))["objects"] == "failed"
    (other / "certificate.json").unlink()
    with pytest.raises(CertificateError, match="no certificate"):
        verify_onnx(other)


@pytest.fixture
def copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graph that was made once: making it takes most of the time."""

    def copy(family: str, network: Any, side: int, place: Path) -> list[str]:
        shutil.copy(folder / "model.onnx", place)
        return ["model.onnx"]

    monkeypatch.setattr(onnx_ship, "write_graphs", copy)


@pytest.mark.usefixtures("copied")
def test_eight_bits_are_calibrated_on_training_images_and_their_loss_is_told(
    run: Run, shapes: Dataset, squares: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    quantise = onnx_ship.quantise

    def watched(graph: Path, out: Path, inputs: Any) -> Any:
        seen.extend(inputs)
        return quantise(graph, out, seen)

    monkeypatch.setattr(onnx_ship, "quantise", watched)
    small = ship_onnx(run, tmp_path / "int8", int8=True, samples=3)
    assert len(seen) == shapes.count("train") + squares.count("train") and seen[0]["pixel_values"].shape == (
        1,
        3,
        64,
        64,
    )
    names = {path.name for path in small.iterdir()}
    assert names == {"model.onnx", "contract.json", "certificate.json", "reference.jsonl", "README.md"}
    value = json.loads((small / "certificate.json").read_text())
    assert value["export"]["graphs"]["model.onnx"]["form"] == "static"
    (metric,) = (check for check in value["checks"] if check["name"] == "metric")
    assert metric["status"] == "passed" and {"trained", "shipped", "difference"} == metric["numbers"]["box_ap"].keys()
    assert open_model(small, 1).contract.dtype == "int8"


@pytest.mark.usefixtures("copied")
def test_graphs_that_are_not_the_trained_model_do_not_get_the_name_that_was_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = onnx_ship.load_finder

    def otherwise(*arguments: Any) -> Any:
        trained = load(*arguments)
        network: Any = trained.adapter.network
        network.class_embed.bias.data += 0.1
        return trained

    monkeypatch.setattr(onnx_ship, "load_finder", otherwise)
    with pytest.raises(CertificateError, match=r"outputs: .*logits mean"):
        ship_onnx(run, tmp_path / "out", samples=2, limit=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


@pytest.mark.usefixtures("copied")
def test_graphs_that_cannot_be_read_fail_the_certificate(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: Any) -> Any:
        raise ModelError("onnxruntime does not read it: Unsupported model IR version: 11")

    monkeypatch.setattr("visiontune.exports.onnx_certificate.open_model", unread)
    with pytest.raises(CertificateError, match="Unsupported model IR version"):
        ship_onnx(run, tmp_path / "out", samples=2, limit=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
    assert json.loads((tmp_path / "out.failed" / "certificate.json").read_text())["verdict"] == "failed"


def test_an_export_that_is_killed_as_it_is_checked_leaves_no_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    def work(counted: Counted) -> None:
        onnx_ship.write_graphs = lambda *given: [Path(shutil.copy(folder / "model.onnx", given[-1])).name]
        onnx_ship.certify_onnx = counted(onnx_ship.certify_onnx)
        ship_onnx(run, tmp_path / "out", samples=2, limit=2)

    assert not killed(0, work)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and (left / "contract.json").is_file()


def test_failed_receipts_are_said_where_their_run_is_exported(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Run(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    written = json.loads((copy.path / "receipts.json").read_text())
    written["receipts"][0] |= {"status": "failed", "name": "image matters"}
    (copy.path / "receipts.json").write_text(json.dumps(written))
    monkeypatch.setattr("visiontune.exports.onnx_ship.ship_onnx", lambda *_, **__: None)  # what it writes is not asked
    visiontune.export(copy.path, to="onnx", out=tmp_path / "ship")
    assert "receipts of this run failed: image matters" in capsys.readouterr().err
