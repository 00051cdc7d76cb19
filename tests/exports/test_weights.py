"""What is exported is the model that was trained, and loads in plain PEFT and plain transformers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import visiontune
from tests.conftest import planner
from visiontune import lock
from visiontune.data.dataset import Dataset
from visiontune.data.sample import Images
from visiontune.errors import CertificateError, DataError, RecipeError, RunError, VisiontuneError
from visiontune.exports.answers import references
from visiontune.exports.place import places_held
from visiontune.models.text import writes_text
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained

Plan = Callable[..., Run]
Trained = Callable[[dict[str, Any]], Run]
Exported = Callable[[dict[str, Any]], dict[str, Path]]
SHORT = {"schedule.steps": 4, "evaluation.every": 4, "evaluation.samples": 4, "checkpoints.every": 2}
MIXED = {"parts.vision_encoder": "full", "parts.embeddings": "full", "lora.rank": 4}
VARIANTS = {
    "lora.decomposed": True,
    "lora.stabilised": True,
    "lora.layers": {"language_model": ["q_proj", "down_proj"]},
}
OVERRIDES = pytest.mark.parametrize(
    "overrides", [{}, MIXED, VARIANTS], ids=["lora", "lora beside full parts", "DoRA of some layers, rsLoRA"]
)


@pytest.fixture(scope="module")
def trained(digits: Dataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`trained({"lora.rank": 4})`: a finished run, the same one wherever it is asked for with these choices."""
    plan = planner(digits, tiny_checkpoint, tmp_path_factory.mktemp("runs"))
    runs: dict[str, Run] = {}

    def make(overrides: dict[str, Any]) -> Run:
        name = json.dumps(overrides)
        if name not in runs:
            runs[name] = train_run(plan(f"run-{len(runs)}", SHORT | overrides))
        return runs[name]

    return make


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported({"lora.rank": 4})`: the adapter and the merged folder of that run, written once."""
    folders: dict[str, dict[str, Path]] = {}

    def make(overrides: dict[str, Any]) -> dict[str, Path]:
        name = json.dumps(overrides)
        if name not in folders:
            out = tmp_path_factory.mktemp("exported")
            folders[name] = visiontune.export(trained(overrides).path, to=["adapter", "merged"], out=out)
        return folders[name]

    return make


def inputs_and_logits(run: Run, digits: Dataset) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    adapter, _ = load_trained(run, run.recipe, torch.device("cpu"))
    batch = adapter.encoder.collate([adapter.encoder.encode(digits.sample("test", i)) for i in range(4)])
    inputs = {name: tensor for name, tensor in batch.tensors.items() if name not in ("supervised", "views")}
    with torch.no_grad():
        return inputs, adapter.network(**inputs).logits  # pyright: ignore[reportCallIssue]


@OVERRIDES
def test_the_adapter_in_plain_peft_is_the_trained_model_bit_for_bit(
    trained: Trained, exported: Exported, digits: Dataset, overrides: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run, folder = trained(overrides), exported(overrides)["adapter"]
    inputs, logits = inputs_and_logits(run, digits)
    base = AutoModelForImageTextToText.from_pretrained(run.recipe.model.name, dtype=torch.float32)
    with torch.no_grad():
        before = base(**inputs).logits
        plain = PeftModel.from_pretrained(base, folder).eval()
        assert torch.equal(plain(**inputs).logits, logits)
        with plain.disable_adapter():
            assert torch.equal(plain(**inputs).logits, before)
    assert not torch.equal(before, logits)
    assert AutoProcessor.from_pretrained(folder).chat_template


@OVERRIDES
def test_the_merged_folder_in_plain_transformers_is_the_trained_model(
    trained: Trained, exported: Exported, digits: Dataset, overrides: dict[str, Any]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run, folder = trained(overrides), exported(overrides)["merged"]
    inputs, logits = inputs_and_logits(run, digits)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(plain(**inputs).logits, logits, atol=1e-5)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": run.recipe.data.prompt}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked.endswith("Assistant:")
    assert (folder / "generation_config.json").is_file()


def test_a_run_without_lora_is_exported_merged_only(plan: Plan, digits: Dataset, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    run = train_run(plan("tiny", SHORT, model="tiny/smolvlm"))
    with pytest.raises(RunError, match="no adapter") as caught:
        visiontune.export(run.path, to="adapter", out=tmp_path / "ship")
    assert "merged" in (caught.value.fix or "") and not (tmp_path / "ship").exists()
    folder = visiontune.export(run.path, to="merged", out=tmp_path / "ship")["merged"]
    inputs, logits = inputs_and_logits(run, digits)
    with torch.no_grad():
        assert torch.equal(AutoModelForImageTextToText.from_pretrained(folder)(**inputs).logits, logits)


def test_an_unknown_form_is_refused_with_the_list(plan: Plan, tmp_path: Path) -> None:
    run = plan("planned")
    with pytest.raises(VisiontuneError, match="'tflite'") as caught:
        visiontune.export(run.path, to="tflite", out=tmp_path / "ship")
    assert "adapter" in (caught.value.fix or "")


def test_a_run_without_a_checkpoint_says_so(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint yet"):
        visiontune.export(plan("planned").path, to="merged", out=tmp_path / "ship")


def test_another_step_is_another_model(trained: Trained, tmp_path: Path) -> None:
    run = trained({})
    folders = [
        visiontune.export(run.path, to="merged", out=tmp_path / str(step), step=step)["merged"]
        for step in run.checkpoint_steps()[:2]
    ]
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one != two


def test_each_folder_carries_how_it_compares_with_the_trained_model(trained: Trained, tmp_path: Path) -> None:
    run = trained({"machine.precision": "bf16"})
    with pytest.raises(RunError, match="'float8' is no type of weights"):
        visiontune.export(run.path, to="merged", out=tmp_path, dtype="float8")  # pyright: ignore[reportArgumentType]
    folders = visiontune.export(run.path, to="adapter,merged", out=tmp_path, dtype="float16")
    assert folders == {"adapter": tmp_path / "adapter", "merged": tmp_path / "merged"}
    for form, dtype in (("adapter", "float32"), ("merged", "float16")):
        value = json.loads((folders[form] / "certificate.json").read_text())
        assert value["verdict"] == "passed" and (value["form"], value["dtype"]) == (form, dtype)
        assert value["limits"]["near_tie"] == 0.3  # the run computed in bfloat16: that is what it is compared with
        assert {check["name"] for check in value["checks"]} == {"log-probabilities", "tokens", "labels"}
        assert value["checks"][0]["numbers"]["mean"] > 0
    assert load_file(folders["merged"] / "model.safetensors")["lm_head.weight"].dtype == torch.float16


def test_samples_of_several_images_and_of_none_are_compared_too(trained: Trained, digits: Dataset) -> None:
    run, sample = trained({}), digits.sample("test", 0)
    adapter, _ = load_trained(run, run.recipe, torch.device("cpu"))
    assert isinstance(sample.seen, Images)
    samples = [replace(sample, seen=Images(sample.seen.files * count)) for count in (1, 2, 0)]
    made = list(references(writes_text(adapter), samples, run.recipe, None))
    assert [reference.image_tokens / made[0].image_tokens for reference in made] == [1, 2, 0]
    assert len({reference.image_sha256 for reference in made}) == len({one.pixels_sha256 for one in made}) == 3


def test_exported_weights_are_verified_by_their_files_and_beside_the_run(
    trained: Trained, exported: Exported, tmp_path: Path
) -> None:
    run = trained({})
    for form in ("adapter", "merged"):
        folder = shutil.copytree(exported({})[form], tmp_path / form)
        assert [check.name for check in visiontune.verify(folder)] == ["files"]
        checks = visiontune.verify(folder, run=run.path)
        assert {check.status for check in checks} == {"passed"} and len(checks) > 1
        name = "adapter_model.safetensors" if form == "adapter" else "model.safetensors"
        changed = bytearray((folder / name).read_bytes())
        changed[-1] ^= 1
        (folder / name).write_bytes(changed)
        with pytest.raises(CertificateError, match=name):
            visiontune.verify(folder)
    with pytest.raises(RecipeError, match="no --data"):
        visiontune.verify(folder, data=tmp_path)
    stands = folder / "certificate.json"
    value = json.loads(stands.read_text())
    stands.write_text(json.dumps({name: one for name, one in value.items() if name != "files"}))
    with pytest.raises(CertificateError, match="names no files"):
        visiontune.verify(folder)


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_every_file_of_exported_weights_is_certified(tmp_path: Path, form: str) -> None:
    from visiontune.exports.hub import _without_local_base
    from visiontune.exports.weights import LIMITS, _write_certificate

    folder = tmp_path / "ship"
    (folder / "templates").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    config = "adapter_config.json" if form == "adapter" else "config.json"
    for name in ("model.safetensors", "tokenizer.json", "templates/a.jinja", "README.md"):
        (folder / name).write_text("{}")
    (folder / config).write_text(json.dumps({"r": 8, "base_model_name_or_path": str(tmp_path / "base")}))
    _write_certificate(folder, form, "float32", 6, [], LIMITS["f32"])
    (folder / "README.md").write_text("another card")
    assert [check.status for check in visiontune.verify(folder)] == ["passed"]
    if form == "adapter":
        with _without_local_base(folder) as sent:
            assert sent != folder and visiontune.verify(sent)
    for name in (config, "tokenizer.json", "templates/a.jinja"):
        whole = (folder / name).read_bytes()
        for changed in (b'{"r": 4}', b"[]", whole[:-1]):
            (folder / name).write_bytes(changed)
            with pytest.raises(CertificateError, match=name):
                visiontune.verify(folder)
        (folder / name).unlink()
        with pytest.raises(CertificateError, match=name):
            visiontune.verify(folder)
        (folder / name).write_bytes(whole)
    assert [check.status for check in visiontune.verify(folder)] == ["passed"]


@pytest.mark.parametrize(
    ("forms", "options", "named"),
    [
        ("merged", {"quantisation": "q8_0"}, "--quant"),
        ("merged", {"samples": 3}, "--samples"),
        ("adapter", {"limit": 3}, "--limit"),
        ("adapter", {"dtype": "float32"}, "--dtype"),
        ("onnx", {"with_inputs": True}, "--with-inputs"),
        ("merged", {"public": True}, "--public"),
    ],
)
def test_an_option_of_another_form_is_refused(
    trained: Trained, tmp_path: Path, forms: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        visiontune.export(trained({}).path, to=forms, out=tmp_path / "out", **options)
    assert caught.value.where == named and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("option", ["samples", "limit"])
def test_an_export_that_would_compare_nothing_is_refused(
    plan: Plan, tmp_path: Path, form: str, option: str, number: int
) -> None:
    options: dict[str, Any] = {option: number}
    with pytest.raises(RecipeError, match=str(number)) as caught:
        visiontune.export(plan("planned").path, to=form, out=tmp_path / "out", **options)
    assert caught.value.where == f"--{option}" and caught.value.fix == "use 1 or more"


def test_a_path_that_does_not_exist_and_options_of_a_shipped_folder_are_refused(
    trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        visiontune.verify(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="no --data"):
        visiontune.verify(trained({}).path, data=tmp_path)


def test_nothing_is_exported_to_a_place_that_another_export_holds(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with places_held([tmp_path / "ship"]), pytest.raises(RunError, match="is exporting to this place"):
        visiontune.export(trained({}).path, to="adapter", out=tmp_path / "ship")
    assert not (tmp_path / "ship").exists()


def test_merged_weights_are_rounded_once(trained: Trained, exported: Exported, tmp_path: Path) -> None:
    exact = load_file(exported({})["merged"] / "model.safetensors")
    once = visiontune.export(trained({}).path, to="merged", out=tmp_path, dtype="bfloat16")["merged"]
    for name, tensor in load_file(once / "model.safetensors").items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_folder_that_is_not_the_trained_model_is_kept_aside(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from visiontune.exports import weights

    run = trained({"evaluation.answers": "generated"})
    name = f"_save_{form}"
    original = getattr(weights, name)

    def save(adapter: Any, *args: Any) -> None:
        with torch.no_grad():
            for parameter in adapter.trained_module.parameters():
                if parameter.requires_grad:
                    parameter.mul_(-1.5)
        original(adapter, *args)

    monkeypatch.setattr(weights, name, save)
    with pytest.raises(CertificateError, match="log-probabilities"):
        visiontune.export(run.path, to=form, out=tmp_path / "ship")
    assert not (tmp_path / "ship").exists()
    assert json.loads((tmp_path / "ship.failed" / "certificate.json").read_text())["verdict"] == "failed"


def test_weights_merged_upon_the_full_base_are_measured_against_the_rounded_base_that_was_trained_on(
    plan: Plan, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with QLoRA: training holds the frozen weights in four bits, the export merges upon the full ones."""
    from visiontune.training import model, session

    original = model.load_base

    def in_four_bits(run: Run, recipe: Any, device: torch.device) -> Any:
        adapter = original(run, recipe, device)
        if recipe.machine.precision != "fp32":
            for parameter in adapter.network.parameters():
                step = parameter.data.abs().amax().clamp(min=1e-6) / 7
                parameter.data = (parameter.data / step).round() * step
        return adapter

    monkeypatch.setattr(model, "load_base", in_four_bits)
    monkeypatch.setattr(session, "load_base", in_four_bits)
    run = train_run(plan("four bits", SHORT | {"machine.precision": "bf16"}))
    try:
        folder = visiontune.export(run.path, to="merged", out=tmp_path / "merged")["merged"]
    except CertificateError:
        folder = tmp_path / "merged.failed"
    exact = load_file(Path(run.recipe.model.name) / "model.safetensors")
    merged = load_file(folder / "model.safetensors")
    assert all(torch.equal(merged[name], exact[name]) for name in exact if "vision_model" in name)
    (distance,) = [
        check["numbers"]["mean"]
        for check in json.loads((folder / "certificate.json").read_text())["checks"]
        if check["name"] == "log-probabilities"
    ]
    monkeypatch.undo()
    plain = trained({"machine.precision": "bf16"})
    beside = visiontune.export(plain.path, to="merged", out=tmp_path / "plain")["merged"]
    checks = json.loads((beside / "certificate.json").read_text())["checks"]
    assert distance > 3 * checks[0]["numbers"]["mean"]
