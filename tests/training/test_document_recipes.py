"""What a recipe derives from documents, refuses about them, and does to mixtures of experts."""

import json
from pathlib import Path
from typing import Any

import pytest

import visiontune
from tests.training.test_document_runs import documents, planned  # noqa: F401  # a fixture
from visiontune.data.dataset import Dataset
from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts, x_height
from visiontune.errors import DataError, RecipeError
from visiontune.machine import hardware
from visiontune.models import generative_encoder
from visiontune.models.load import load_adapter
from visiontune.recipe import field_names
from visiontune.recipe_files import presets, read_preset
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, page_side
from visiontune.words import counted


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def test_letters_too_low_for_the_model_are_refused_before_training(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"64 pixels a side, letters with an x-height of 3\.8 pixels") as caught:
        planned(documents, tmp_path / "low", **{"data.image_longest_edge": 64})
    assert "--font-size 22" in (caught.value.fix or "") and not (tmp_path / "low").exists()
    meant = {"data.image_longest_edge": 64, "data.least_x_height": 3.5, "schedule.steps": 1}
    assert train_run(planned(documents, tmp_path / "meant", **meant)).status == "finished"


@pytest.mark.parametrize(("font_size", "side"), [(20, 576), (22, 512), (40, 512), (12, 960), (4, 1024)])
def test_a_tiny_model_is_built_as_large_as_the_letters_need(font_size: int, side: int) -> None:
    fonts = load_fonts([DEFAULT_FONT])
    spec = PageSpec(font_size=font_size, fonts=fonts.refs)
    assert page_side("tiny/deepseek-ocr", spec, fonts) == side
    assert x_height(spec, fonts) * side / 1024 >= 6 or side == 1024


def test_the_longest_document_decides_the_longest_sequence(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"{i} words. " * (900 if i == 7 else 30), "summary": "a word"} for i in range(12)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pages = {"width": 128, "height": 128, "margins": (8, 8, 8, 8), "font_size": 14}
    data = visiontune.prepare(tmp_path / "texts.jsonl", tmp_path / "data", pages=pages, workers=1)
    most = max(page for split in ("train", "validation", "test") for page in data.index(split).pages)
    assert most * 21 > 2048  # at 21 tokens a page
    recipe = derive([data], [None], "tiny/deepseek-ocr", hardware("cpu"))
    assert most * 21 < recipe.data.max_tokens <= 4096 and f"{most} pages at most" in recipe.why["data.max_tokens"]
    run = planned(data, tmp_path / "run", **{"data.max_tokens": 2048})
    with pytest.raises(DataError, match="1 sample leaves no room for an answer") as caught:
        train_run(run)
    assert (caught.value.where or "").endswith(" 7") and "--max-pages" in (caught.value.fix or "")
    assert not run.metrics("step")


def test_a_question_that_leaves_room_for_nothing_is_refused_before_training(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = planned(documents, tmp_path / "room")
    encoder = load_adapter(str(run.base_folder), None, run.recipe.data).encoder
    encoder.fonts = documents.fonts()
    pages = documents.index("train").pages
    longest = documents.sample("train", pages.index(max(pages)))
    prompt = len(encoder.encode(longest, with_answer=False).input_ids)
    exact = planned(documents, tmp_path / "exact", **{"data.max_tokens": prompt})
    with pytest.raises(DataError, match="leave no room"):
        train_run(exact)
    assert not exact.metrics("step")


@pytest.fixture(scope="module")
def plain_losses(documents: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[float]:  # noqa: F811
    return losses(train_run(planned(documents, tmp_path_factory.mktemp("plain") / "run", **{"schedule.steps": 2})))


@pytest.mark.parametrize(
    "change",
    [
        {"moe_dropout.experts": 0.5},
        {"moe_dropout.gates": 0.5},
        {"moe_dropout.experts": 0.5, "moe_dropout.keep_experts": 4},
    ],
)
def test_dropout_of_experts_and_gates_changes_the_losses(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
    change: dict[str, Any],
    plain_losses: list[float],
) -> None:
    changed = losses(train_run(planned(documents, tmp_path / "changed", **{"schedule.steps": 2, **change})))
    all_stay = change.get("moe_dropout.keep_experts") == 4
    assert (changed == plain_losses) == all_stay  # where all four of four stay, nothing is left out
    again = losses(train_run(planned(documents, tmp_path / "again", **{"schedule.steps": 2, **change})))
    assert again == changed


def test_a_model_without_experts_has_none_to_leave_out(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match="no experts to leave out"):
        train_run(planned(documents, tmp_path / "run", "tiny/smolvlm", **{"moe_dropout.gates": 0.1}))


def test_pages_are_augmented_in_training_alone_and_anew_in_each_epoch(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = planned(documents, tmp_path / "run", **{"data.augment": 0.5, "schedule.steps": 1})
    train_run(run)
    adapter = load_adapter(str(run.base_folder), None, run.recipe.data)
    adapter.encoder.fonts = documents.fonts()
    sample = documents.sample("train", 0)

    def seen(number: int | None) -> Any:
        return adapter.encoder.encode(sample, augmentation=number).pixel_values

    assert (seen(3) == seen(3)).all() and (seen(3) != seen(4)).any() and (seen(3) != seen(None)).any()
    numbers: list[int] = []
    monkeypatch.setattr(generative_encoder, "augmented_page", lambda page, *draws: (numbers.append(draws[-1]), page)[1])
    count = len(seen(3))
    assert count > 1 and len(set(numbers)) == count  # each page in its own way


@pytest.mark.parametrize("name", ["quick", "standard", "quality", "low-memory"])
def test_a_preset_changes_the_derived_recipe_and_is_changed_by_what_is_asked(
    name: str,
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from visiontune.training import loop

    monkeypatch.setattr(loop, "train_run", lambda run, callbacks: run)  # planned, not trained

    def recipe(folder: str, **options: Any) -> Any:
        return visiontune.train(documents.path, model="tiny/deepseek-ocr", out=tmp_path / folder, **options).recipe

    plain, preset = recipe("plain"), recipe("preset", preset=name)
    changed = preset.model_dump(exclude={"why"}) != plain.model_dump(exclude={"why"})
    assert changed == (name != "standard")
    epochs = read_preset(name)[1]
    if epochs is not None:
        assert (
            counted(epochs, "epoch", form="g") in preset.why["schedule.steps"]
            and preset.schedule.steps != plain.schedule.steps
        )
    mine = recipe("mine", preset=name, epochs=2, overrides={"lora.rank": 5, "parts.language_model": "lora"})
    assert mine.lora.rank == 5 and "2 epochs" in mine.why["schedule.steps"]
    assert set(presets()) == {"quick", "standard", "quality", "low-memory"}


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path, documents: Dataset) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="no preset 'fast'") as caught:
        visiontune.train(documents.path, model="tiny/deepseek-ocr", out=tmp_path / "run", preset="fast")
    assert caught.value.fix == "presets: low-memory, quality, quick, standard"


def test_presets_name_fields_of_a_recipe_only() -> None:
    from visiontune.recipe import fragment_names

    for name in presets():
        assert set(fragment_names(read_preset(name)[0])) <= set(field_names())
