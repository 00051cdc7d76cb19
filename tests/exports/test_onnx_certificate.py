"""An ONNX folder that is not the trained model fails its certificate, each fault by its own check."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.exports.onnx_models import held_to, sample
from visiontune.exports.certificate import Check
from visiontune.exports.onnx_certificate import HeldTo, certify_onnx
from visiontune.exports.onnx_graph import plain_network
from visiontune.files import file_sha256

IMAGES = [sample(number) for number in range(6)]


@pytest.fixture(scope="module")
def adapter(finder: Any) -> Any:
    return finder


@pytest.fixture
def folder(finder_folder: Path) -> Path:
    return finder_folder


@pytest.fixture(scope="module")
def wanted(adapter: Any) -> HeldTo:
    return held_to(adapter, IMAGES)


def faults(folder: Path, wanted: HeldTo, certified: Any = None) -> dict[str, str]:
    return {check.name: check.found for check in _checks(folder, wanted, certified) if check.status == "failed"}


def _checks(folder: Path, wanted: HeldTo, certified: Any = None) -> list[Check]:
    return certify_onnx(folder, wanted, certified).checks


def edited(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy with other values in its contract."""
    shutil.copytree(folder, out)
    path = out / "contract.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return out


def rewritten(folder: Path, out: Path, change: Callable[[Any], None]) -> Path:
    """A copy whose graph was changed, and which says so itself: its hashes are those of the new file."""
    shutil.copytree(folder, out)
    model = onnx.load(out / "model.onnx")
    change(model)
    onnx.save(model, out / "model.onnx")
    path = out / "contract.json"
    files = {"files": {"model.onnx": file_sha256(out / "model.onnx")}}
    path.write_text(json.dumps(json.loads(path.read_text()) | files))
    return out


def test_the_trained_model_passes_every_check_and_its_speed_is_told(folder: Path, wanted: HeldTo) -> None:
    found = certify_onnx(folder, wanted)
    assert {check.name: check.status for check in found.checks} == dict.fromkeys(
        ("files", "contract", "pixels", "outputs", "objects", "metric"), "passed"
    )
    assert found.speed["median_ms"] > 0
    of = next(check.numbers for check in found.checks if check.name == "outputs")["of"]
    assert of.keys() == {"proposals", "logits", "boxes", "masks"}
    assert max(one["largest"] for name, one in of.items() if name != "masks") < 1e-5
    assert of["masks"]["largest"] < 5e-5  # logits, which are larger than those of classes
    assert len(found.objects) == len(IMAGES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mean": [0.229, 0.224, 0.225], "std": [0.485, 0.456, 0.406]}, "mean: "),
        ({"resize": "pillow_bilinear"}, "resize: 'bilinear' became 'pillow_bilinear'"),
        ({"fit": "upper_left"}, "fit: "),
    ],
)
def test_other_pixels_are_named(
    folder: Path, wanted: HeldTo, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    found = faults(edited(folder, tmp_path / "other", **changes), wanted)
    assert named in found["contract"] and "another resize, mean or std" in found["pixels"]


def test_classes_in_another_order_are_named(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    found = faults(edited(folder, tmp_path / "other", classes=["square", "disc", "bar"]), wanted)
    assert found.keys() == {"contract"} and "classes: ['disc', 'square', 'bar'] became" in found["contract"]


def test_an_adapter_that_was_not_merged_is_named(adapter: Any, folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    merged, base = plain_network(adapter).state_dict(), copy.deepcopy(adapter.peft).unload().state_dict()
    adapted = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    assert adapted

    def change(model: Any) -> None:
        left = set(adapted)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            for name in sorted(left):
                for turned in (torch.Tensor.numpy, lambda matrix: matrix.T.numpy()):
                    if np.array_equal(values, turned(merged[name])):
                        tensor.CopyFrom(numpy_helper.from_array(turned(base[name]).copy(), tensor.name))
                        left.discard(name)
        assert not left

    found = faults(rewritten(folder, tmp_path / "base", change), wanted)
    assert "those of the base model, the adapter is not in the file" in found["outputs"]
    assert "files" not in found and "contract" not in found and "pixels" not in found


def test_a_weight_that_is_another_is_found_in_the_outputs(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
        values = numpy_helper.to_array(tensor) * np.float32(1.02)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    found = faults(rewritten(folder, tmp_path / "other", change), wanted)
    assert "beyond 0.0001 in 6 of 6 images" in found["outputs"] and "base model" not in found["outputs"]


def test_queries_that_begin_at_worse_places_are_found(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        (choice,) = (node for node in model.graph.node if node.op_type == "TopK")
        largest = next((one for one in choice.attribute if one.name == "largest"), None)
        if largest is None:
            largest = choice.attribute.add(name="largest", type=onnx.AttributeProto.INT)
        largest.i = 0

    found = faults(rewritten(folder, tmp_path / "other", change), wanted)
    assert "proposals mean" in found["outputs"]


def test_eight_bits_that_cost_too_much_precision_fail_and_less_is_told(
    folder: Path, adapter: Any, tmp_path: Path
) -> None:
    small, wanted = edited(folder, tmp_path / "small", dtype="int8"), held_to(adapter, IMAGES, "int8")
    checks = {check.name: check for check in _checks(small, wanted)}
    assert checks["metric"].status == "passed" and checks["outputs"].status == "not checked"
    assert "logits mean" in checks["outputs"].found
    right = [replace(p, target=replace(p.truth, scores=np.ones(2))) for p in wanted.predictions if p.truth]
    found = faults(small, replace(wanted, predictions=right))
    assert found.keys() == {"metric"} and "limit 0.02" in found["metric"]


def test_a_file_that_was_exchanged_is_not_even_opened(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with (other / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert faults(other, wanted) == {"files": "model.onnx is not the file that was certified"}
    certified = {"model.onnx": {"sha256": "0" * 64}}
    assert faults(folder, wanted, certified) == {"files": "model.onnx is not the file that was certified"}


def test_a_graph_of_a_model_with_other_queries_fails_and_says_so(
    folder: Path, adapter: Any, wanted: HeldTo, tmp_path: Path
) -> None:
    def change(model: Any) -> None:
        (choice,) = (node for node in model.graph.node if node.op_type == "TopK")
        model.graph.node.append(onnx.helper.make_node("Slice", ["all", "from", "to", "axis"], ["proposals"]))
        choice.output[list(choice.output).index("proposals")] = "all"
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == "proposals":
                    node.input[place] = "all"
        for name, value in (("from", 0), ("to", 5), ("axis", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        (told,) = (one for one in model.graph.output if one.name == "proposals")
        told.type.tensor_type.shape.dim[1].dim_value = 5

    found = faults(rewritten(folder, tmp_path / "other", change), wanted)
    assert "The graph has 5 queries, not 12" in found["outputs"]


def test_a_graph_that_cannot_be_run_fails_and_says_why(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32

    found = faults(rewritten(folder, tmp_path / "other", change), wanted)
    assert "could not be compared: onnxruntime cannot run model.onnx" in found["outputs"]


def test_a_contract_of_another_family_or_size_fails_at_once(folder: Path, wanted: HeldTo, tmp_path: Path) -> None:
    assert faults(edited(folder, tmp_path / "family", family="sam"), wanted).keys() == {"contract"}
    assert faults(edited(folder, tmp_path / "side", side=96), wanted).keys() == {"contract"}
