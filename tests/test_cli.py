"""The command line: every verb, its JSON, its errors and exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import QUICK, Call
from visiontune.cli import recipe_options
from visiontune.cli.answer import counts
from visiontune.data.dataset import Dataset
from visiontune.errors import RecipeError
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.loop import train_run


def options() -> list[str]:
    return [part for name, value in QUICK.items() for part in (f"--{name}", json.dumps(value))]


def test_the_whole_path_from_photos_to_a_shipped_model(call: Call, digits_folder: Path, tmp_path: Path) -> None:
    data, run, ship = tmp_path / "data", tmp_path / "run", tmp_path / "ship"
    code, out, _ = call("inspect", digits_folder, "--json")
    inspected = json.loads(out)
    assert code == 0 and set(inspected) >= {"targets", "samples", "splits", "faults", "trains"}
    assert inspected["samples"] == 600 and len(inspected["targets"]["text"]["labels"]) == 10
    code, out, _ = call("prepare", digits_folder, "--out", data, "--json")
    assert code == 0 and json.loads(out)["splits"] == inspected["splits"]
    code, out, err = call("train", data, "--model", "tiny/smolvlm", "--out", run, *options(), "--json")
    trained = json.loads(out)
    assert code == 0, err
    assert trained["status"] == "finished" and trained["receipts"]["supervised"] == "passed"
    assert set(trained["validation"]["accuracy"]) == {"value", "low", "high", "n"}
    code, out, _ = call("evaluate", run, "--json", "--limit", 20)
    evaluated = json.loads(out)
    assert code == 0 and evaluated["metrics"]["accuracy"]["n"] == 20
    lines = (run / "evaluations" / "test" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 20
    first = json.loads(lines[0])
    picture = digits_folder / first["source"][0]
    code, out, _ = call("predict", run, picture, "--json")
    (prediction,) = json.loads(out)["predictions"]
    assert code == 0 and prediction["text"] == first["text"] and prediction["kind"] == "text"
    assert prediction["scores"]["confidence"] == pytest.approx(first["scores"]["confidence"], abs=1e-4)
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, out, err = call("predict", run, tmp_path / "broken.png", picture)
    assert code == 1 and out.count("\n") == 1 and str(picture) in out, "the good one is answered"
    assert "1 of 2 files cannot be read" in err and "broken.png: not an image" in err
    code, out, _ = call("predict", run, tmp_path / "broken.png", picture, "--json")
    answered = json.loads(out)
    assert code == 1 and answered["predictions"] == [prediction] and "1 of 2 files" in answered["error"]["found"]
    assert [entry["file"] for entry in answered["unreadable"]] == [str(tmp_path / "broken.png")]
    code, out, _ = call("export", run, "--to", "merged", "--out", ship, "--json")
    assert code == 0 and Path(json.loads(out)["merged"], "config.json").is_file()
    code, _, err = call("predict", json.loads(out)["merged"], picture)
    assert code == 1 and "exported from a run" in err and "--to gguf" in err
    assert (run / "report.html").read_text().count("<svg") >= 1
    code, out, _ = call("resume", run)
    assert code == 0 and "finished" in out


def test_prepare_may_be_skipped_and_limit_is_a_first_look(call: Call, digits_folder: Path, tmp_path: Path) -> None:
    arguments = options()
    at = arguments.index("--data.limit")
    del arguments[at : at + 2]
    run = tmp_path / "run"
    code, _, err = call("train", digits_folder, "--model", "tiny/smolvlm", "--out", run, "--limit", 40, *arguments)
    assert code == 0, err
    assert len(Dataset.open(run / "data" / digits_folder.name)) == 40
    code, out, _ = call("predict", run, digits_folder, "--limit", 3, "--json")
    assert code == 0 and len(json.loads(out)["predictions"]) == 3


def test_for_trains_what_the_device_will_do(call: Call, digits: Dataset, tmp_path: Path) -> None:
    train = ["train", digits.path, "--model", "tiny/smolvlm", *options(), "--schedule.steps", 2]
    asked = ["--for", "android-256", "--device.image-size", 32, "--device.fill", "[9,9,9]", "--json"]
    code, _, err = call(*train, "--out", tmp_path / "run", *asked)
    assert code == 0, err
    device = Run(tmp_path / "run").recipe.device
    assert device is not None and device.profile == "android-256"
    assert (device.image_size, device.fill, device.resize) == (32, (9, 9, 9), "bilinear")
    code, _, err = call(*train, "--out", tmp_path / "none", "--device.image-size", 32)
    assert code == 1 and "for no device" in err and "--for android-256" in err
    code, _, err = call(*train, "--out", tmp_path / "other", "--for", "toaster")
    assert code == 1 and "toaster" in err and "android-256, desktop-llama" in err


def test_require_sets_the_exit_status(call: Call, plan: Callable[..., Run]) -> None:
    run = train_run(plan())
    assert call("evaluate", run.path, "--require", "accuracy>=0")[0] == 0
    code, _, err = call("evaluate", run.path, "--require", "accuracy>=0.99")
    assert code == 3 and "accuracy>=0.99" in err
    code, _, err = call("evaluate", run.path, "--require", "beauty>=1")
    assert code == 1 and "accuracy" in err
    assert call("evaluate", run.path, "--split", "nothing")[0] == 2


def test_texts_need_a_model(call: Call, digits: Dataset, tmp_path: Path) -> None:
    code, _, err = call("train", digits.path, "--out", tmp_path / "run")
    assert code == 1 and "--model" in err


def test_pause_asks_through_the_folder(call: Call, plan: Callable[..., Run]) -> None:
    run = plan()
    assert call("pause", run.path)[0] == 0
    code, _, err = call("resume", run.path)
    assert code == 75 and "resume" in err and run.status == "paused"
    code, _, err = call("pause", run.path)
    assert code == 1 and "Nothing is trained here: paused" in err and not (run.path / "control.json").exists()
    assert call("resume", run.path)[0] == 0
    code, _, err = call("predict", run.path)
    assert code == 1 and "No files were given" in err
    code, _, err = call("predict", run.path, "--no-such-option", 3)
    assert code == 2 and "visiontune predict --help" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inspect", "no-such-folder"], 1, "no-such-folder"),
        (["train", "x", "--model", "tiny/smolvlm", "--out", "o", "--lora.rnak", "8"], 1, "lora.rank"),
        (["train", "x", "--model", "tiny/smolvlm", "--out", "o", "--lora.rank"], 1, "no value"),
        (["predict", "no-run", "a.png"], 1, "a.png"),
        (["resume", "no-run"], 1, "recipe.yaml"),
        (["evaluate", "no-run", "--lora.rank", "3"], 1, "only `train`"),
        (["trian"], 2, "train"),
        (["train", "x", "--out", "o"], 1, "x"),
        (["inspect", "x", "--colour", "red"], 2, "colour"),
    ],
)
def test_a_mistake_is_one_clear_message_and_no_traceback(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--lora.rnak" in arguments:
        pytest.importorskip("sklearn")
        from visiontune.demo import write_digits

        write_digits(tmp_path / "x")
    found, out, err = call(*arguments)
    assert found == code and says in err and "Traceback" not in err and not out
    found, out, _ = call(*arguments, "--json")
    assert found == code and set(json.loads(out)["error"]) == {"found", "where", "fix"}


def test_debug_shows_the_traceback(call: Call) -> None:
    assert "Traceback" in call("inspect", "no-such-folder", "--debug")[2]


def test_a_hub_that_cannot_be_reached_names_the_ways_out(
    call: Call, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what it says after half a minute, at once
    code, _, err = call("train", digits.path, "--model", "nobody/no-such-model", "--out", tmp_path / "run")
    assert code == 1 and "tiny/smolvlm" in err and "path" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_newer_recipe_and_a_taken_folder_are_refused(
    call: Call, digits: Dataset, recipe_of: Recipe, plan: Callable[..., Run], tmp_path: Path
) -> None:
    newer = tmp_path / "newer.yaml"
    newer.write_text(yaml.safe_dump({**recipe_of.model_dump(mode="json"), "schema_version": 99}))
    base = ["train", digits.path, "--model", "tiny/smolvlm", "--out"]
    code, _, err = call(*base, tmp_path / "run", "--recipe", newer)
    assert code == 1 and "schema version 99" in err and "upgrade" in err
    taken = plan("taken").path
    (taken / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "attempt": 1}\n')
    code, _, err = call(*base, taken)
    assert code == 1 and "holds a run already" in err and "resume" in err


def test_doctor_says_what_this_machine_has(call: Call) -> None:
    code, out, _ = call("doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["devices"][-1]["device"] == "cpu" and facts["versions"]["torch"]
    assert {"memory_bytes", "disk_free_bytes", "missing", "cores"} <= set(facts)


def test_recipe_options_have_types_and_may_stand_anywhere() -> None:
    rest, overrides = recipe_options(["train", "--lora.rank", "8", "d", "--optimizer.learning-rate=1e-3", "--out", "o"])
    assert rest == ["train", "d", "--out", "o"]
    assert overrides == {"lora.rank": 8, "optimizer.learning_rate": 1e-3}


@pytest.mark.parametrize("text", ["Is this item #3?", '"Digit" or not?', "[image] which?", "Which: one or two?", "7"])
def test_text_on_the_command_line_is_taken_as_it_stands(text: str) -> None:
    assert recipe_options(["--data.prompt", text]) == ([], {"data.prompt": text})


def test_optional_text_may_be_null_and_what_is_no_yaml_names_its_field() -> None:
    assert recipe_options(["--model.revision", "null"])[1] == {"model.revision": None}
    with pytest.raises(RecipeError, match=r"'lora\.layers' is not YAML"):
        recipe_options(["--lora.layers", "{a: ["])


def test_help_does_not_import_torch() -> None:
    code = "import sys\nfrom visiontune.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "bad = {'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_python_gives_the_same_as_the_command_line(plan: Callable[..., Run], call: Call) -> None:
    import visiontune

    run = train_run(plan())
    scores: Any = visiontune.evaluate(run.path, split="validation", limit=10)
    _, out, _ = call("evaluate", run.path, "--split", "validation", "--limit", 10, "--json")
    assert json.loads(out)["metrics"] == json.loads(json.dumps(scores.to_json()["metrics"]))


def test_a_handful_of_images_trains_and_says_what_cannot_be_known(call: Call, digit_scans: Any, tmp_path: Path) -> None:
    from tests.conftest import png

    for number in range(6):
        place = tmp_path / "photos" / ("even" if number % 2 == 0 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(digit_scans[0][number]))
    overrides = [*options(), "--batch.samples", "4", "--batch.window", "8", "--schedule.steps", "3"]
    code, out, err = call(
        "train", tmp_path / "photos", "--model", "tiny/smolvlm", "--out", tmp_path / "run", *overrides, "--json"
    )
    assert code == 0, err
    trained = json.loads(out)
    assert trained["status"] == "finished" and trained["receipts"]["image matters"] == "not applicable"


def test_two_folders_of_the_same_name_are_two_datasets(call: Call, digit_scans: Any, tmp_path: Path) -> None:
    from tests.conftest import png

    for parent in ("a", "b"):
        for number in range(12):
            place = tmp_path / parent / "photos" / str(number % 3)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(png(digit_scans[0][number + (20 if parent == "b" else 0)]))
    sources = [tmp_path / "a" / "photos", tmp_path / "b" / "photos"]
    more = ["--weights", "2,1", "--schedule.steps", "2"]
    code, _, err = call("train", *sources, "--model", "tiny/smolvlm", "--out", tmp_path / "run", *options(), *more)
    assert code == 0, err
    uses = Run(tmp_path / "run").recipe.data.datasets
    assert len({use.content_hash for use in uses}) == 2 and [use.weight for use in uses] == [2, 1]


def test_a_corrupt_file_is_named_left_out_and_counted_and_strict_refuses(
    call: Call, digits_folder: Path, tmp_path: Path
) -> None:
    import shutil

    photos = tmp_path / "photos"
    shutil.copytree(digits_folder, photos)
    (photos / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    code, out, err = call("prepare", photos, "--out", tmp_path / "data", "--json")
    info = json.loads(out)
    assert code == 0 and sum(info["splits"].values()) == 600
    assert [entry["id"] for entry in info["left_out"]] == ["3/broken.png"] and "broken.png" in err
    code, _, err = call("prepare", photos, "--out", tmp_path / "strict", "--strict")
    assert code == 1 and "broken.png" in err and not (tmp_path / "strict" / "dataset.json").exists()


def test_a_folder_without_images_says_what_is_accepted(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for verb in (["inspect"], ["prepare", "--out", tmp_path / "data"]):
        code, _, err = call(verb[0], tmp_path / "empty", *verb[1:])
        assert code == 1 and "image" in err and "fix:" in err


def test_the_known_corpora_are_listed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visiontune.data.corpora import CORPORA

    monkeypatch.chdir(tmp_path)
    code, out, _ = call("prepare", "--list")
    assert code == 0 and len(out.splitlines()) == len(CORPORA) and not list(tmp_path.iterdir())
    (line,) = (line for line in out.splitlines() if line.startswith("mlsum-fr "))
    assert all(said in line for said in ("reciTAL/mlsum fr", "French", "document: text", "research only"))
    listed = json.loads(call("prepare", "--list", "--json")[1])["corpora"]
    assert [one["name"] for one in listed] == list(CORPORA) and listed[2]["language"] == "French"
    for arguments in (["prepare"], ["prepare", "--out", "x"], ["prepare", "x"]):
        code, _, err = call(*arguments)
        assert code == 2 and "--list" in err


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., Path]:
    """`texts("name")`: a table of twelve texts of about 600 characters."""

    def make(name: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": i, "text": f"{name} number {i} is a text. " * 25, "summary": f"{name} {i}"} for i in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def test_pages_are_chosen_at_the_command_line(call: Call, texts: Callable[..., Path], tmp_path: Path) -> None:
    sources, data = [texts("news"), texts("laws")], tmp_path / "data"
    pages = ["--page", "512x640", "--font-size", 24, "--line-spacing", 1.5, "--max-pages", 9]
    code, out, err = call("prepare", *sources, "--out", data, *pages, "--json")
    assert code == 0, err
    info = json.loads(out)
    spec = info["pages"]
    assert (spec["width"], spec["height"], spec["font_size"], spec["line_spacing"]) == (512, 640, 24, 1.5)
    assert info["max_pages"] == 9 and info["provenance"]["sources"] == {"laws.jsonl": 12, "news.jsonl": 12}
    code, out, _ = call("inspect", data)
    said = ["24 samples", "documents: ", "of 512 x 640 px, font size 24 px", "scripts: Latin", "x-height: 13."]
    assert code == 0 and all(one in out for one in [*said, "0 characters without a glyph", "at 512"])
    code, out, _ = call("inspect", sources[0], "--page", "256x256", "--font-size", 8, "--json")
    found = json.loads(out)
    assert found["documents"]["page"] == {"width": 256, "height": 256, "font_size": 8}
    assert "illegible-pages" in [fault["code"] for fault in found["faults"]]
    code, _, err = call("prepare", *sources, "--out", tmp_path / "other", "--page", "512")
    assert code == 1 and "--page 1024x1024" in err
    code, _, err = call("prepare", *sources, "--out", tmp_path / "other", "--max-pages", 0)
    assert code == 1 and "--max-pages" in err


def test_pages_are_refused_for_images(call: Call, digits_folder: Path, tmp_path: Path) -> None:
    for option in (["--page", "512x512"], ["--font-size", 20], ["--line-spacing", 1.5], ["--max-pages", 3]):
        code, _, err = call("prepare", digits_folder, "--out", tmp_path / "data", *option)
        assert code == 1 and "these are images" in err


def test_a_model_says_how_it_reads_documents(
    call: Call, texts: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = call("inspect", texts("news"), "--model", tiny_checkpoint)
    assert code == 0, err
    assert "text tokens /" in out and "vision tokens = " in out and "(of 12 documents)" in out
    assert "error: letters have an x-height" in out and "use --font-size" in out
    code, out, _ = call("inspect", texts("news"), "--model", "tiny/deepseek-ocr")
    assert code == 0 and "no tokenizer before it is built" in out
    code, _, err = call("prepare", texts("news"), "--out", tmp_path / "data", "--ratio", 2)
    assert code == 1 and "--model" in err


def test_a_killed_run_is_not_said_to_be_running(plan: Callable[..., Run]) -> None:
    run = plan()
    run.set_state("running")
    assert run.status == "interrupted"
    with run.locked():
        assert run.status == "running"


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"cat": 2, "big dog": 1}, "cat 2, big dog 1"),
        ({"a, b": 2, "class 0": 3, "it's": 1}, "'a, b' 2, 'class 0' 3, \"it's\" 1"),
    ],
)
def test_names_of_classes_are_told_apart_from_what_counts_them(labels: dict[str, int], line: str) -> None:
    assert counts(labels) == line
