"""Facts about trained weights as ONNX graphs, and about a shipped folder as an app runs it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exports.onnx_models import CLASSES, SIDE, sample
from tests.object_samples import changed, objects_of
from visiontune.data.annotations.masks import to_pixels
from visiontune.data.images import decode
from visiontune.errors import CertificateError, ModelError
from visiontune.exports.onnx_graph import plain_network
from visiontune.exports.onnx_quantise import quantise
from visiontune.exports.onnx_runtime import (
    bilinear,
    find_in_files,
    is_onnx_shipment,
    open_model,
    open_session,
    read_onnx_contract,
)
from visiontune.exports.reference import image_of
from visiontune.files import file_sha256


@pytest.fixture
def adapter(finder: Any) -> Any:
    return finder


@pytest.fixture
def folder(finder_folder: Path) -> Path:
    return finder_folder


def test_rf_detr_with_masks_gives_what_torch_gives_at_any_batch_size(adapter: Any, folder: Path) -> None:
    session = open_session(folder / "model.onnx", 1)
    for batch in (1, 2, 5):
        pixels = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            trained = adapter.network(pixel_values=pixels)  # the adapter beside the weights, not merged
        made = session.run(["logits", "boxes", "masks"], {"pixel_values": pixels.numpy()})
        for mine, its in zip((trained.logits, trained.pred_boxes, trained.pred_masks), made, strict=True):
            assert mine.shape == its.shape and mine.dtype == torch.float32
            assert np.abs(mine.numpy() - its).max() < 1e-4


def test_graphs_do_not_tell_where_they_were_made(folder: Path) -> None:
    written = (folder / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in written and b"/visiontune/" not in written


def test_merging_for_the_graph_leaves_the_trained_model_as_it_is(adapter: Any) -> None:
    before = {name: tensor.clone() for name, tensor in adapter.trained_module.state_dict().items()}
    merged = plain_network(adapter)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    after = adapter.trained_module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_it_sees_the_encoders_pixels_and_finds_what_the_trained_model_finds(adapter: Any, folder: Path) -> None:
    model = open_model(folder, threads=1)
    for number, (width, height) in enumerate([(90, 70), (33, 180), (64, 64)]):
        encoded = adapter.encoder.encode(sample(number, width, height), with_answer=False)
        image = decode(image_of(sample(number, width, height)))
        assert encoded.pixel_values is not None
        assert np.abs(model.pixels(image) - encoded.pixel_values.numpy()).max() < 1e-6
        (trained,), found = adapter.find(adapter.encoder.collate([encoded])), model.find(image)
        assert len(found) == len(trained) == 20
        assert found.classes.tolist() == trained.classes.tolist()
        assert np.abs(found.boxes - trained.boxes).max() < 1e-4 * max(width, height)
        assert trained.scores is not None and found.scores is not None
        assert np.abs(found.scores - trained.scores).max() < 1e-5
        for mine, its in zip(found.masks, trained.masks, strict=True):
            assert mine is not None and its is not None
            assert (to_pixels(mine) != to_pixels(its)).sum() <= 2  # a pixel on the very edge


def test_classes_that_were_not_looked_for_are_not_found(adapter: Any, folder: Path) -> None:
    told = changed(sample(0), looked_for=np.array([True, False, True]))
    (trained,) = adapter.find(adapter.encoder.collate([adapter.encoder.encode(told, with_answer=False)]))
    found = open_model(folder, threads=1).find(decode(image_of(told)), objects_of(told))
    assert len(found) == 20 and found.classes.tolist() == trained.classes.tolist() and 1 not in found.classes
    assert found.soft is not None and not found.soft[:, 1].any()


@pytest.mark.parametrize("size", [(7, 5), (40, 31), (16, 16), (1, 90)])
def test_resizing_is_that_of_torch(size: tuple[int, int]) -> None:
    values = torch.randn(3, 16, 21, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(values[None], size, mode="bilinear")[0].numpy()
    assert np.abs(bilinear(values.numpy(), size) - wanted).max() < 5e-6


def test_a_shipped_folder_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(image_of(sample(0)))
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from visiontune.exports.onnx_runtime import find_in_files\n"
        "import visiontune.exports.onnx_certificate, visiontune.exports.onnx_verify\n"
        f"(found,) = find_in_files(Path({str(folder)!r}), [Path({str(tmp_path / 'photo.png')!r})], 1)\n"
        "print(len(found.target), found.classes, found.size)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"20 {CLASSES} (70, 90)"


def test_weights_in_eight_bits_take_a_third_of_the_space_and_find_nearly_the_same(
    adapter: Any, folder: Path, tmp_path: Path
) -> None:
    small = tmp_path / "int8"
    small.mkdir()
    seen = [adapter.encoder.encode(sample(100 + i), with_answer=False).pixel_values for i in range(8)]
    how = quantise(folder / "model.onnx", small / "model.onnx", ({"pixel_values": one[None].numpy()} for one in seen))
    assert how["form"] == "static" and how["share"] > 0.9
    assert (small / "model.onnx").stat().st_size < 0.4 * (folder / "model.onnx").stat().st_size
    files = {"model.onnx": file_sha256(small / "model.onnx")}
    read_onnx_contract(folder).model_copy(update={"dtype": "int8", "files": files}).write(small)
    image = decode(image_of(sample(3)))
    mine, its = (open_model(place, 1).find(image) for place in (folder, small))
    assert mine.scores is not None and its.scores is not None
    assert 0 < np.abs(mine.scores - its.scores).max() < 0.1


def test_where_calibration_fails_each_image_measures_its_own_range(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = quantise(folder / "model.onnx", tmp_path / "model.onnx", [])
    assert how["form"] == "dynamic" and how["share"] > 0.9
    assert "cannot be calibrated" in capsys.readouterr().err


def test_a_folder_that_is_not_whole_says_what_is_wrong_with_it(folder: Path, tmp_path: Path) -> None:
    assert is_onnx_shipment(folder) and not is_onnx_shipment(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.onnx").unlink()
    with pytest.raises(CertificateError, match=r"model\.onnx is missing"):
        open_model(broken)
    (broken / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:9999])
    with pytest.raises(ModelError, match="onnxruntime does not read it"):
        open_model(broken)
    contract = broken / "contract.json"
    contract.write_text(contract.read_text().replace('"stretch"', '"squeeze"'))
    with pytest.raises(ModelError, match=r"fit: .*squeeze"):
        find_in_files(broken, [])
    contract.write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        is_onnx_shipment(broken)
