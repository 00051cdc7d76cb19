"""An export takes the place of an earlier one of its form, and of nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import visiontune
from visiontune import lock
from visiontune.api.export_verbs import FORMS, _places, _variants
from visiontune.errors import RunError
from visiontune.exports.place import check_place, places_held
from visiontune.run import Run

CERTIFICATES: dict[str, dict[str, Any]] = {
    "adapter": {"form": "adapter", "files": {"adapter_model.safetensors": {}}},
    "merged": {"form": "merged", "files": {"model.safetensors": {}}},
    "gguf": {"quantisation": "f16", "files": {"run-F16.gguf": {}}},
    "onnx": {"form": "onnx", "files": {"model.onnx": {}}},
}


def earlier(place: Path, form: str) -> Path:
    place.mkdir()
    (place / "certificate.json").write_text(json.dumps(CERTIFICATES[form]))
    for name in (
        *CERTIFICATES[form]["files"],
        "README.md",
        "contract.json" if form in ("gguf", "onnx") else "config.json",
    ):
        (place / name).write_text("{}")
    return place


@pytest.mark.parametrize("form", FORMS)
def test_an_earlier_export_of_the_form_gives_way_and_one_of_another_does_not(form: str, tmp_path: Path) -> None:
    check_place(tmp_path / "absent", form, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", form, tmp_path / "run")
    for one in FORMS:
        place = earlier(tmp_path / one, one)
        if one == form:
            check_place(place, form, tmp_path / "run")
        else:
            with pytest.raises(RunError, match="something else"):
                check_place(place, form, tmp_path / "run")
    (tmp_path / form / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"something else: thesis\.tex"):
        check_place(tmp_path / form, form, tmp_path / "run")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_exported_over_other_files_the_run_or_where_one_stands(
    plan: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    run = plan("planned")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "contract.json").write_text("{}")
    (tmp_path / "here").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    refused = {
        tmp_path / "assets": "something else", tmp_path / "thesis.tex": "something else", Path(): "you are in",
        run.path: "place of the run", run.path.parent: "place of the run",
    }  # fmt: skip
    for out, found in refused.items():
        with pytest.raises(RunError, match=found) as caught:
            visiontune.export(run.path, to=form, out=out)
        assert caught.value.fix == "choose another --out"
    (tmp_path / "both" / "onnx").mkdir(parents=True)
    (tmp_path / "both" / "onnx" / "holiday.jpg").write_text("mine")
    with pytest.raises(RunError, match="something else"):
        visiontune.export(run.path, to="merged,onnx", out=tmp_path / "both")
    assert (run.path / "recipe.yaml").is_file() and (tmp_path / "assets" / "contract.json").is_file()


def test_exports_with_other_settings_stand_side_by_side_where_no_folder_is_given(tmp_path: Path) -> None:
    def names(forms: list[str], *settings: Any) -> list[str]:
        return [path.name for path in _places(tmp_path / "run", forms, None, _variants(*settings)).values()]

    assert names(["gguf", "onnx"], None, None, None) == ["gguf", "onnx"]
    assert names(["gguf"], "q8_0", None, None) == ["gguf"]  # which is what is written where none is asked for
    assert names(["gguf", "adapter"], "q4_0", None, 6) == ["gguf-q4_0-step-6", "adapter-step-6"]
    assert names(["onnx", "merged"], "int8", "float16", None) == ["onnx-int8", "merged-float16"]


def test_a_second_export_to_the_same_place_waits_for_the_first_and_is_told_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with places_held([tmp_path / "ship"]):
        with (
            pytest.raises(RunError, match=f"Process {os.getpid()} is exporting to this place") as caught,
            places_held([tmp_path / "a" / ".." / "ship"]),
        ):
            pass
        assert caught.value.where == str(tmp_path / "ship")
        assert caught.value.fix == "wait for it, or choose another --out"
        with places_held([tmp_path / "other"]):
            pass
    with places_held([tmp_path / "ship"]):
        assert not list(tmp_path.iterdir())
