"""Reading, changing and writing recipes. That each field changes something is tested where it is used."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.contract import DeviceContract, contract_for
from visiontune.errors import RecipeError
from visiontune.recipe import ObjectChoices, Recipe, ResponseChoices, Section, field_names, fragment_names, parse
from visiontune.recipe_files import load, read_fragment


def values() -> dict[str, Any]:
    return {
        "model": {"name": "tiny/smolvlm"},
        "data": {
            "datasets": [{"path": "data/ziffern-数字", "content_hash": "ab12", "weight": 2.0}],
            "prompt": "Which digit?\nAnswer: one digit",
            "image_longest_edge": 128,
            "image_splitting": False,
            "max_tokens": 512,
        },
        "parts": {"vision_encoder": "frozen", "language_model": "lora"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 600},
        "batch": {"samples": 32, "tokens": 4096, "window": 256},
        "evaluation": {"every": 100, "samples": 64, "metric": "accuracy", "max_new_tokens": 4},
        "checkpoints": {"every": 100},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 2},
        "why": {"lora.rank": "8: the labels are few"},
    }


def values_for_a_device() -> dict[str, Any]:
    device = contract_for("android-256", image_size=512, chat_prompt="{marker}{question}")
    plain = values()
    plain["data"]["image_longest_edge"], plain["evaluation"]["max_new_tokens"] = 256, 32
    return {**plain, "device": device.model_dump(mode="json")}


RECIPE = parse(values(), "here")
FOR_A_DEVICE = parse(values_for_a_device(), "here")


def test_a_recipe_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    for recipe in (FOR_A_DEVICE, RECIPE):
        recipe.save(tmp_path / "recipe.yaml")
        assert load(tmp_path / "recipe.yaml") == recipe
    assert "数字" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8"), "readable, not escaped"


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\x85"), min_size=1
    ),  # PyYAML turns U+0085 into a line break
    st.floats(1e-300, 1e300),
    st.integers(0, 2**70),
    st.dictionaries(st.text("abc.é数"), st.text("abc é数\n:#'\""), max_size=3),
)
def test_any_text_and_number_survives_the_file(prompt: str, rate: float, seed: int, why: dict[str, str]) -> None:
    plain = values()
    plain["data"]["prompt"], plain["optimizer"]["learning_rate"] = prompt, rate
    recipe = parse(plain | {"seed": seed, "why": why}, "here")
    assert parse(yaml.safe_load(recipe.to_yaml()), "back") == recipe


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("seed", "7", 7),
        ("schedule.steps", "1000", 1000),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("optimizer.clip_norm", None, None),
        ("data.image_splitting", "true", True),
        ("machine.precision", "bf16", "bf16"),
        ("data.limit", 50, 50),
        ("parts.projector", "full", "full"),
        ("optimizer.part_learning_rates.projector", "0.01", 0.01),
        ("evaluation.answers", "scored", "scored"),
        ("evaluation.wanted_accuracy", "0.9", 0.9),
    ],
)
def test_an_override_takes_its_fields_type_and_says_who_set_it(name: str, value: Any, got: Any) -> None:
    changed = RECIPE.changed({name: value})
    place: Any = changed.model_dump()
    for part in name.split("."):
        place = place[part]
    assert place == got and type(place) is type(got)
    assert changed.why[name] == "set by hand"
    assert changed.why["lora.rank"] == RECIPE.why["lora.rank"], "the other reasons stay"
    assert RECIPE.why == values()["why"], "the recipe it was made from is untouched"


@pytest.mark.parametrize(
    "name", ["learning_rate", "optimizer.lr", "optimiser.learning_rate", "seed.x", "parts.a.b", ""]
)
def test_an_unknown_field_is_refused_with_the_list_of_fields(name: str) -> None:
    with pytest.raises(RecipeError, match=f"no recipe field '{name}'") as caught:
        RECIPE.changed({name: 1})
    assert caught.value.fix is not None
    assert "optimizer.learning_rate" in caught.value.fix and "parts" in caught.value.fix


def test_the_list_of_fields_names_each_field_that_can_be_set() -> None:
    names = field_names()
    assert {"seed", "model.name", "parts", "lora.rank", "optimizer.part_learning_rates", "machine.threads"} <= set(
        names
    )
    assert "why" not in names and "schema_version" not in names
    dumped = FOR_A_DEVICE.model_dump() | {
        "objects": dict(ObjectChoices.model_fields),
        "responses": dict(ResponseChoices.model_fields),
    }
    for name in names:
        section, _, field = name.partition(".")
        assert field in dumped[section] if field else section in dumped


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("lora", "rank", 0),
        ("lora", "dropout", 1.0),
        ("optimizer", "learning_rate", 0),
        ("optimizer", "learning_rate", float("nan")),
        ("optimizer", "learning_rate", float("inf")),
        ("optimizer", "clip_norm", -1),
        ("schedule", "kind", "cosin"),
        ("schedule", "warmup", 1.0),
        ("parts", "vision_encoder", "freeze"),
        ("machine", "device", "tpu"),
        ("data", "datasets", []),
        ("batch", "window", 100),
        ("evaluation", "answers", "guessed"),
        ("evaluation", "wanted_accuracy", 0),
        ("evaluation", "wanted_accuracy", 1.5),
        ("device", "fit", "crop"),
        ("device", "image_size", 0),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_field_and_what_was_found(
    section: str, field: str, value: Any
) -> None:
    plain = values_for_a_device()
    plain[section][field] = value
    with pytest.raises(RecipeError) as caught:
        parse(plain, "recipe.yaml")
    assert section in caught.value.found and caught.value.where == "recipe.yaml"
    assert repr(value) in caught.value.found


def test_a_field_that_nobody_knows_is_refused_wherever_it_stands() -> None:
    for plain in (values() | {"learning_rate": 1}, values() | {"lora": {"rank": 8, "alpha": 16, "dropout": 0, "r": 4}}):
        with pytest.raises(RecipeError, match=r"(learning_rate|lora\.r): Extra inputs"):
            parse(plain, "here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"responses": {}}, ["responses.channels: Field required"]),
        ({"objects": {"classes": ["a"], "masks": 5}}, ["objects.masks: ", "(found 5)"]),
        ({"evaluation.metric": "box_ap"}, ["The recipe is not valid: evaluation.metric is box_ap; of text there are"]),
        ({"parts": {"vision_encoder": ["x"] * 50}}, ["parts.vision_encoder: "]),
        ({"device": {**values_for_a_device()["device"], "prompt": "no"}}, ["device: the prompt must hold {marker}"]),
        ({"data.prompt": ""}, ["The recipe is not valid: data.prompt is needed for text"]),
    ],
)
def test_an_error_about_a_whole_section_says_what_is_wrong_and_not_all_that_stands_there(
    changes: dict[str, Any], said: list[str]
) -> None:
    plain = values()
    for name, value in changes.items():
        section, _, field = name.partition(".")
        plain |= {section: {**plain[section], field: value} if field else value}
    with pytest.raises(RecipeError) as caught:
        parse(plain, "here")
    assert all(part in caught.value.found for part in said), caught.value.found
    assert "{'" not in caught.value.found and "Value error" not in caught.value.found
    assert "['x'" not in caught.value.found


def test_a_list_whose_values_are_refused_is_not_called_too_short() -> None:
    stages = [{"until": 0.3, "weights": [0.0, 0.0, 0.0]}, {"until": 0.6, "weights": [1.0]}]
    with pytest.raises(RecipeError) as caught:
        parse(values() | {"data": {**values()["data"], "curriculum": {"score": "contrast", "stages": stages}}}, "here")
    faults = caught.value.found.split("; ")
    assert [fault.partition(": Tuple")[0] for fault in faults if "at least 2" in fault] == [
        "data.curriculum.stages.1.weights"
    ], "of two lists one has too few values"
    assert sum("stages.0.weights" in fault and "greater than 0 (found 0.0)" in fault for fault in faults) == 3


def test_an_error_in_a_recipe_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    for text in ("lora:\n  rank: 0\n", "lora:\n  r: 4\n"):
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            RECIPE.overlaid(read_fragment(path))
        assert caught.value.where == str(path)
    with pytest.raises(RecipeError) as caught:
        RECIPE.changed({"lora.rank": 0})
    assert caught.value.where == "the command line"


def test_a_recipe_of_a_newer_schema_is_refused_and_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("schema_version: 2\nsomething_new: 1\n")
    for read in (load, read_fragment):
        with pytest.raises(RecipeError, match="schema version 2; this visiontune reads up to 1") as caught:
            read(path)
        assert caught.value.where == str(path) and caught.value.fix is not None and "upgrade" in caught.value.fix


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "just words"])
def test_a_file_that_is_no_recipe_is_a_plain_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where == str(path) and caught.value.fix


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"machine: cpu", "'machine' is a section"),
        ("data: {prompt: café}".encode("latin-1"), "not UTF-8"),
        (None, "read"),
    ],
)
def test_what_cannot_be_read_as_a_partial_recipe_is_a_plain_error(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    path = tmp_path if content is None else tmp_path / "part.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=found) as caught:
        read_fragment(path)
    assert caught.value.where == str(path) and caught.value.fix


def test_a_section_with_nothing_in_it_changes_nothing_and_layers_of_adapters_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("machine:\nlora:\n  layers:\n    language_model: [q_proj]\n")
    fragment = read_fragment(path)
    assert "machine" not in fragment and fragment_names(fragment) == ["lora.layers"]
    assert RECIPE.overlaid(fragment).lora.layers == {"language_model": ("q_proj",)}


def test_a_missing_file_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        load(tmp_path / "recipe.yaml")


def test_a_partial_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("lora:\n  rank: 4\nparts:\n  projector: full\nwhy:\n  lora.rank: mine\n")
    changed = RECIPE.overlaid(read_fragment(path))
    assert changed.lora.rank == 4 and changed.lora.alpha == RECIPE.lora.alpha
    assert changed.parts == {**RECIPE.parts, "projector": "full"}
    with pytest.raises(RecipeError, match=r"no recipe field 'lora\.r'"):
        RECIPE.overlaid({"lora": {"r": 4}})


def test_a_whole_recipe_laid_over_another_wins_in_every_field() -> None:
    other = RECIPE.changed({"seed": 5, "data.prompt": "What is it?", "evaluation.patience": 3})
    laid = RECIPE.overlaid(other.model_dump(mode="json"))
    assert laid.model_dump(exclude={"why"}) == other.model_dump(exclude={"why"})
    device = FOR_A_DEVICE.changed({"device.fill": [1, 2, 3], "device.image_size": 128})
    laid = FOR_A_DEVICE.overlaid(device.model_dump(mode="json"))
    assert laid.model_dump(exclude={"why"}) == device.model_dump(exclude={"why"})


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RECIPE.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_each_field_says_what_it_is() -> None:
    for name, field in DeviceContract.model_fields.items():
        assert field.description, f"device.{name}"
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for inner, inner_field in field.annotation.model_fields.items():
                assert inner_field.description, f"{name}.{inner}"


def test_reasons_and_trackers_do_not_make_another_recipe() -> None:
    recipe = parse(values(), "here")
    told = recipe.model_copy(update={"why": {"seed": "because"}}).changed({"tracking.trackers": ["tensorboard"]})
    assert told.sha256 == recipe.sha256 != recipe.changed({"seed": 7}).sha256


def test_off_cuda_weights_are_whole_and_attention_is_torchs_own() -> None:
    recipe = parse(values(), "here")
    machine = recipe.machine.model_copy(update={"attention": "flash", "device": "cuda"})
    recipe = recipe.model_copy(update={"machine": machine})
    assert recipe.computing_on("cpu", "fp32").machine.attention == "sdpa"
    assert recipe.computing_on("cuda", "bf16").machine.attention == "flash"
