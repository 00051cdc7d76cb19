import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from visiontune.data.dataset_info import DatasetInfo
from visiontune.data.sample import Prediction, Text
from visiontune.data.stored_rows import StoredRow, write_shard
from visiontune.metrics.text import score_texts
from visiontune.page import duration, fact, memory
from visiontune.recipe import parse
from visiontune.report import _exports, write_report
from visiontune.run import Run

HOSTILE = "<script>alert('x')</script>"
LABELS = [HOSTILE, "قطة", "猫", "dog"]
VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline", "polygon"}


class Page(HTMLParser):
    """The tags of a page, and whether each that opens also closes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == [], "tags that stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(shade: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def write_dataset(folder: Path, labels: list[str], size: tuple[int, int] = (8, 8), rows: int = 40) -> None:
    folder.mkdir(parents=True)
    files = {}
    for split in ("train", "validation", "test"):
        stored = [
            StoredRow(f"{i}.png", [(picture(i % 7, size), f"in/{i}.png")], None, labels[i % len(labels)], [8], [8], "c")
            for i in range(rows)
        ]
        name = f"{split}-00000-of-00001.parquet"
        files[name] = write_shard(folder / name, stored)
    sizes = {"min": 8, "median": 8, "max": 8}
    info = {
        "content_hash": "ab12",
        "labels": dict.fromkeys(labels, 1),
        "splits": dict.fromkeys(("train", "validation", "test"), rows),
        "split_seed": 0,
        "limit": None,
        "provenance": {"source": "x", "format": "folder", "created_by": "x", "fingerprint": "x"},
        "images": {"count": rows, "bytes": 1, "formats": {"PNG": rows}, "width": sizes, "height": sizes},
        "files": files,
        "left_out": [],
        "faults": [],
    }
    (folder / "dataset.json").write_text(DatasetInfo.model_validate(info).model_dump_json())


def write_recipe(run: Run, dataset: Path) -> None:
    recipe = {
        "model": {"name": "tiny/smolvlm"},
        "data": {
            "datasets": [{"path": str(dataset), "content_hash": "ab12"}],
            "prompt": f"Which? {HOSTILE}",
            "image_longest_edge": 64,
            "image_splitting": False,
            "max_tokens": 256,
        },
        "parts": {"vision_encoder": "frozen"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 1200},
        "batch": {"samples": 32, "tokens": 4096, "window": 256},
        "evaluation": {"every": 100, "samples": 64, "metric": "accuracy", "max_new_tokens": 4},
        "checkpoints": {"every": 100},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 2},
        "why": {"lora.rank": "the labels are few", "parts.vision_encoder": f"because {HOSTILE}"},
    }
    parse(recipe, "test").save(run.recipe_path)


def write_metrics(run: Run, steps: int = 1200) -> None:
    log = run.open_metrics()
    for step in range(1, steps + 1):
        seconds = {"data": 0.01, "forward": 0.1, "backward": 0.2, "optimizer": 0.01, "other": 0.005, "total": 0.325}
        log.write(
            {
                "kind": "step", "attempt": 1, "step": step, "loss": None if step == 7 else 2.0 / step,
                "learning_rate": 3e-4, "gradient_norm": 0.7, "samples": 32, "target_tokens": 64, "tokens": 2100,
                "padding": 0.02, "seconds": seconds, "peak_memory_bytes": 812_000_000 if step % 2 else None,
            }
        )  # fmt: skip
        if step % 100 == 0:
            metric = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 64}
            log.write(
                {
                    "kind": "evaluation",
                    "attempt": 1,
                    "step": step,
                    "split": "validation",
                    "metrics": {"accuracy": metric},
                    "seconds": 1.0,
                }
            )
    log.close()


def write_receipts(run: Run) -> None:
    segments = [{"text": "User: ", "supervised": False}, {"text": f" {HOSTILE}<end>", "supervised": True}]
    examples = [{"dataset": 0, "split": "train", "index": i, "id": f"{i}.png", "segments": segments} for i in range(9)]
    receipts = [
        ("supervised", "passed", "The loss covers the answers.", {"samples": 1234567}, examples),
        ("image matters", "failed", f"The model does not need the image. {HOSTILE}", {"difference": -0.0014}, []),
        ("memory", "not applicable", "Compared on CUDA only.", {"measured_bytes": 812_000_000}, []),
        ("seen", "pending", "Known at the end.", {}, []),
    ]
    names = ("name", "status", "reason", "numbers", "examples")
    (run.path / "receipts.json").write_text(
        json.dumps({"receipts": [dict(zip(names, receipt, strict=True)) for receipt in receipts]})
    )


def predictions(labels: list[str] | None, known: list[str], wrong: int = 20, rows: int = 40) -> list[Prediction]:
    """The first `wrong` answers are mistakes, the more confident the later."""
    result = []
    for i in range(rows):
        truth = known[i % len(known)]
        answer = truth if i >= wrong else known[(i + 1) % len(known)] if i % 5 else "no label\u2028at all"
        result.append(Prediction(f"{i}.png", (f"{i}.png",), Text(answer), {"confidence": i / 100}, Text(truth)))
    return result


def write_evaluation(run: Run, split: str, answers: list[Prediction], labels: list[str] | None) -> dict[str, Any]:
    folder = run.path / "evaluations" / split
    folder.mkdir(parents=True)
    lines = [json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in answers]
    (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    scores = {**score_texts(answers, labels).to_json(), "split": split, "step": 1100, "seconds": 4.2}
    (folder / "metrics.json").write_text(json.dumps(scores))
    return scores


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run with everything in its folder."""
    write_dataset(tmp_path / "pets", LABELS)
    run = Run(tmp_path / "run")
    run.path.mkdir()
    write_recipe(run, tmp_path / "pets")
    write_metrics(run)
    write_receipts(run)
    (run.path / "parts.json").write_text(
        json.dumps([{"part": "vision_encoder", "state": "frozen", "modules": 12, "parameters": 1000, "trainable": 0}])
    )
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "best.json").write_text('{"step": 1100, "metric": "accuracy", "value": 0.5}')
    for split in ("validation", "test"):
        write_evaluation(run, split, predictions(LABELS, LABELS), LABELS)
    run.set_state("finished", attempt=1, step=1200)
    return run


def test_the_page_needs_nothing_but_itself(run: Run) -> None:
    page = Page(write_report(run))
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page.source)


def test_no_text_of_the_user_becomes_markup(run: Run) -> None:
    run = Run(run.path.rename(run.path.with_name("a<b>&run")))
    page = Page(write_report(run))
    assert "<script" not in page.source and "<b>" not in page.source
    assert HOSTILE in page.text and "a<b>&run" in page.text


def test_labels_in_other_scripts_keep_their_own_direction(run: Run) -> None:
    source = Page(write_report(run)).source
    for label in ("قطة", "猫"):
        isolated = re.findall(f"(<bdi[^>]*>)?{label}", source)
        assert len(isolated) > 5 and all(isolated)


def test_it_can_be_read_without_seeing_it(run: Run) -> None:
    page = Page(write_report(run))
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(header["scope"] for header in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_failed_receipts_stand_first_and_are_counted_first(run: Run) -> None:
    page = Page(write_report(run))
    order = [page.text.index(name) for name in ("✗ failed", "The loss covers the answers", "Compared on CUDA only")]
    assert order == sorted(order)
    assert re.search(r"1\s+receipt failed", page.text) and re.search(r"1\s+receipt passed", page.text)
    assert page.text.index("receipt failed") < page.text.index("receipt passed")
    assert "1\u202f234\u202f567" in page.text and "−0.0014" in page.text and "812 MB" in page.text


def test_the_headline_is_the_recipes_metric_on_the_test_split_with_its_interval(run: Run) -> None:
    scores = json.loads((run.path / "evaluations/test/metrics.json").read_text())["metrics"]["accuracy"]
    text = Page(write_report(run)).text
    assert "Accuracy on the test split, model of step 1\u202f100" in text
    assert f"95 % interval {scores['low']:.3f}–{scores['high']:.3f}, 40 samples" in text


def test_a_run_without_a_final_evaluation_shows_its_best_validation(run: Run) -> None:
    for file in (run.path / "evaluations").rglob("*.*"):
        file.unlink()
    run.set_state("running", step=1200)
    text = Page(write_report(run)).text
    assert "Accuracy on the validation split, model of step 1\u202f100" in text
    assert "95 % interval 0.400–0.600, 64 samples" in text
    assert "This run is not finished: it is running." in text


def test_the_most_confident_mistakes_come_first_each_with_its_own_picture(run: Run, tmp_path: Path) -> None:
    page = Page(write_report(run))
    cards = page.source.split('<li class="card ')[1:]
    wrong = [card for card in cards if card.startswith("wrong")]
    shown = [float(re.search(r"confidence ([\d.]+)", card)[1]) for card in wrong]  # pyright: ignore
    assert shown == [i / 100 for i in range(19, 3, -1)]
    assert len(cards) == 24 and not any(card.startswith("right") for card in cards[: len(wrong)])
    for card, i in zip(wrong, range(19, 3, -1), strict=True):
        assert f'alt="Image of {i}.png"' in card
    pictures = [re.search(r'src="([^"]+)"', card)[1] for card in wrong]  # pyright: ignore
    same = {(i % 7, uri) for i, uri in zip(range(19, 3, -1), pictures, strict=True)}
    assert len(same) == 7, "samples with equal images show equal pictures, others differ"


def test_only_the_supervised_text_is_marked(run: Run) -> None:
    source = Page(write_report(run)).source
    marked = re.findall(r"<mark>(.*?)</mark>", source)
    assert marked[0] == "marked" and len(marked) == 7
    assert marked[1] == " &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&lt;end&gt;"


@pytest.mark.parametrize("change", ["moved", "changed"])
def test_a_dataset_that_is_not_there_any_more_costs_only_the_pictures(run: Run, tmp_path: Path, change: str) -> None:
    if change == "moved":
        (tmp_path / "pets").rename(tmp_path / "elsewhere")
    else:
        info = tmp_path / "pets" / "dataset.json"
        info.write_text(info.read_text().replace("ab12", "cd34"))
    page = Page(write_report(run))
    assert "Without pictures: the dataset" in page.text and str(tmp_path / "pets") in page.text
    assert not page.all("img") and "The most confident mistakes" in page.text


def test_predictions_of_other_samples_get_no_picture_rather_than_a_wrong_one(run: Run) -> None:
    path = run.path / "evaluations/test/predictions.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[1:-1], lines[0], ""]), encoding="utf-8")
    source = Page(write_report(run)).source
    assert "<img" not in source[source.index("The most confident mistakes") :]


def test_two_datasets_with_the_same_ids_show_each_its_own_pictures(run: Run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "wide", LABELS, size=(64, 32))
    values = run.recipe.model_dump(mode="json")
    values["data"]["datasets"].append({"path": str(tmp_path / "wide"), "content_hash": "ab12"})
    parse(values, "test").save(run.recipe_path)
    path = run.path / "evaluations/test/predictions.jsonl"
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    page = Page(write_report(run))
    shapes = [(image["width"], image["height"]) for image in page.all("img")]
    assert shapes.count(("96", "48")) == 12 and shapes.count(("96", "96")) == 12 + 6


@pytest.mark.parametrize(
    "kept",
    [
        [],
        ["recipe.yaml"],
        ["metrics.jsonl"],
        ["receipts.json", "state.json"],
        ["recipe.yaml", "metrics.jsonl", "state.json"],
        ["evaluations"],
        ["evaluations", "recipe.yaml"],
    ],
)
def test_any_part_of_the_folder_may_be_missing(run: Run, kept: list[str]) -> None:
    for entry in list(run.path.iterdir()):
        if entry.name not in kept:
            entry.rename(run.path.parent / f"away-{entry.name}")
    assert "Written by visiontune" in Page(write_report(run)).text


def test_a_failed_run_says_so_and_why_before_anything_else(run: Run) -> None:
    run.set_state("failed", reason=f"the loss is not finite at step 12 {HOSTILE}")
    text = Page(write_report(run)).text
    assert "This run failed. the loss is not finite at step 12" in " ".join(text.split())
    assert text.index("This run failed") < text.index("Receipts")


def write_free_text(run: Run, answers: list[tuple[str, str]]) -> None:
    """The test split alone, with (truth, answer) of each sample in free text."""
    shutil.rmtree(run.path / "evaluations")
    made = [Prediction(f"{i}.png", (f"{i}.png",), Text(a), {}, Text(t)) for i, (t, a) in enumerate(answers)]
    write_evaluation(run, "test", made, None)


def test_free_text_stands_beside_its_truth_the_least_like_it_first(run: Run) -> None:
    words = [f"w{i}" for i in range(20)]
    answers = [(" ".join(words), " ".join([*words[:i], HOSTILE])) for i in range(20)]
    write_free_text(run, answers[::-1])
    page = Page(write_report(run))
    assert "Confusions" not in page.text and "Character error rate" in page.text and "mistakes" not in page.text
    shown = [float(value) for value in re.findall(r"ROUGE-L ([\d.]+),", page.text)]
    assert len(shown) == 12 and shown[:8] == sorted(shown[:8]) and shown[8:] == sorted(shown[8:], reverse=True)
    assert max(shown[:8]) < min(shown[8:])
    section = page.source.split("<h2>Answers beside their truth</h2>")[1].split("</section>")[0]
    assert section.count("<img") == 12 and section.count(" ".join(words)) == 12
    assert section.index('alt="Image of 19.png"') < section.index('alt="Image of 18.png"')


def test_long_answers_are_shortened_and_few_are_shown_once(run: Run) -> None:
    long = "a caption of many words " * 60
    write_free_text(run, [(long, "a caption"), ("another", long)])
    page = Page(write_report(run))
    assert long not in page.text and page.text.count(f"{long[:600]} …") == 2
    assert "The least like their truth" in page.text and "The most like their truth" not in page.text


def metric(value: float, n: int = 9) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def baseline_of(name: str, value: float, ahead: float, left_out: int = 0) -> dict[str, Any]:
    return {"name": name, "metrics": {"rougeL": metric(value)}, "ahead": metric(ahead), "left_out": left_out}


def test_each_baseline_has_a_row_with_the_difference_and_what_was_left_out(run: Run) -> None:
    rows = [baseline_of("blank page", 0.2, 0.3), baseline_of(f"text {HOSTILE}", 0.65, -0.15, left_out=2)]
    value = {"n": 9, "step": 1100, "own": {"rougeL": metric(0.5)}, "baselines": rows}
    (run.path / "evaluations/test/baselines.json").write_text(json.dumps(value))
    page = Page(write_report(run))
    assert rows_of(page, "Beside the baselines")[1:] == [
        ["the model", "0.500 0.400–0.600", "", "9", "0"],
        ["blank page", "0.200 0.100–0.300", "0.300 0.200–0.400", "9", "0"],
        [
            "text &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;",
            "0.650 0.550–0.750",
            "−0.150 −0.250 to −0.050",
            "9",
            "2",
        ],
    ]
    assert "first 9 documents, model of step 1\u202f100" in page.text


def write_ratios(run: Run) -> None:
    def point(asked: float | None, ratio: float, value: float, left_out: int = 0) -> dict[str, Any]:
        return {
            "asked": asked, "ratio": ratio, "font_size": 20, "x_height": 8.25, "page_spec": "ab", "pages": 30, "n": 9,
            "left_out": left_out, "metrics": {"rougeL": metric(value)},
            "beside_own": None if asked is None else metric(value - 0.5),
            "baselines": [baseline_of("first three sentences", 0.3, 0.2), baseline_of("truncated text", 1 / ratio, 0)],
        }  # fmt: skip

    reason = {"asked": 50, "reason": "The letters run together.", "fix": "ask for a ratio of at most 12"}
    points = [point(None, 1.5, 0.5), point(5, 5.25, 0.45), point(10, 10.5, 0.2, left_out=3)]
    value = {"step": 1100, "n": 12, "tokens_per_page": 100, "points": points, "unreachable": [reason]}
    (run.path / "evaluations/test/ratios.json").write_text(json.dumps(value))


def test_quality_is_drawn_over_compression_with_its_interval_and_the_baselines(run: Run) -> None:
    write_ratios(run)
    page = Page(write_report(run))
    section = page.source.split("<h2>Quality and compression</h2>")[1].split("</section>")[0]
    chart = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", section, re.DOTALL)[0])
    lines = {e.attrib["class"]: e.attrib["points"].split() for e in chart.iter() if e.tag == "polyline"}
    assert set(lines) == {"line-main", "line-beside-0", "line-beside-1"}
    heights = [float(place.split(",")[1]) for place in lines["line-main"]]
    across = [float(place.split(",")[0]) for place in lines["line-main"]]
    assert heights == sorted(heights) and (across[1] - across[0]) / (across[2] - across[0]) == pytest.approx(
        (5.25 - 1.5) / (10.5 - 1.5), abs=0.01
    )
    assert len({place.split(",")[1] for place in lines["line-beside-0"]}) == 1, "sentences do not depend on the ratio"
    assert len([e for e in chart.iter() if e.attrib.get("class") == "band"]) == 1
    assert "0.500 at 1.5, 0.450 at 5.2, 0.200 at 10.5" in chart.attrib["aria-label"]
    for name in ("line-main", "line-beside-0", "line-beside-1"):
        assert f'class="key {name}"' in section
    rows = rows_of(page, "Quality and compression")[1:]
    assert [row[0] for row in rows] == ["own pages", "5", "10"]
    assert rows[2][1:6] == ["10.50", "20 px", "8.2 px", "0.200 0.100–0.300", "−0.300 −0.400 to −0.200"]
    assert rows[0][5] == "" and rows[2][-2:] == ["9", "3"]


def test_a_ratio_that_is_not_reached_is_said_in_words(run: Run) -> None:
    write_ratios(run)
    text = " ".join(Page(write_report(run)).text.split())
    assert (
        "A ratio of 50 is not reached. The letters run together. To change that: ask for a ratio of at most 12." in text
    )


def test_the_matrix_holds_the_counts_and_many_classes_only_their_confusions(run: Run) -> None:
    page = Page(write_report(run))
    counts = json.loads((run.path / "evaluations/test/metrics.json").read_text())["confusion"]["counts"]
    matrix = page.source[page.source.index('class="matrix"') :]
    cells = re.findall(r'<td class="(?:zero|hit|miss)"[^>]*>(\d+)</td>', matrix)
    assert list(map(int, cells)) == [count for row in counts for count in row]

    many = [f"class {i}" for i in range(300)]
    for file in (run.path / "evaluations/test").iterdir():
        file.unlink()
    (run.path / "evaluations/test").rmdir()
    write_evaluation(run, "test", predictions(many, many, rows=300), many)
    page = Page(write_report(run))
    assert 'class="matrix"' not in page.source
    assert "how often a class got which other answer" in page.text and "The first 200 of 300" in page.text


def test_large_photographs_do_not_make_a_large_file(run: Run, tmp_path: Path) -> None:
    for file in sorted((tmp_path / "pets").iterdir()):
        file.unlink()
    (tmp_path / "pets").rmdir()
    write_dataset(tmp_path / "pets", LABELS, size=(400, 300))
    page = Page(write_report(run))
    images = page.all("img")
    assert len(images) == 24 + 6
    assert all(max(int(image["width"] or 0), int(image["height"] or 0)) == 96 for image in images)
    assert len(page.source) < 1_500_000


def test_each_choice_stands_beside_its_reason(run: Run) -> None:
    source = Page(write_report(run)).source
    assert re.search(r"<code>  rank: 8</code></pre><span[^>]*>the labels are few</span>", source)
    assert re.search(r"<code>  vision_encoder: frozen</code></pre><span[^>]*>because &lt;script", source)
    assert "why:" not in source


def write_export(run: Run, quantisation: str, size: int, failed: tuple[str, ...] = (), asked: bool = True) -> None:
    """A certificate as an export leaves it in the run; `asked`: the shipped files could be asked."""
    rates = {
        of: {"value": at, "low": at - 0.1, "high": at + 0.1, "n": 9} for of, at in (("trained", 0.8), ("shipped", 0.7))
    }
    value = {
        "folder": f"/exports/{quantisation}{HOSTILE}",
        "verdict": "failed" if failed else "passed",
        "quantisation": quantisation,
        "files": {"text.gguf": {"bytes": size}, "mmproj.gguf": {"bytes": 1_000_000}},
        "checks": [
            {"name": name, "status": "failed" if name in failed else "passed", "numbers": {}}
            for name in ("prompt", "tokens")
        ]
        + [{"name": "metric", "status": "passed", "numbers": {"name": "accuracy", **rates} if asked else {}}],
        "speed": {"median_seconds": 0.0625} if asked else {},
        "trained": {"step": 1100},
    }
    (run.path / "exports").mkdir(exist_ok=True)
    (run.path / "exports" / f"gguf-{quantisation}.json").write_text(json.dumps(value))


def test_an_export_whose_folder_another_one_has_taken_is_not_listed(run: Run, tmp_path: Path) -> None:
    for quantisation in ("f16", "q8_0"):
        write_export(run, quantisation, 1)
        path = run.path / "exports" / f"gguf-{quantisation}.json"
        value = json.loads(path.read_text()) | {"folder": str(tmp_path)}
        path.write_text(json.dumps(value))
        (tmp_path / "certificate.json").write_text(json.dumps({k: one for k, one in value.items() if k != "folder"}))
    assert [row["quantisation"] for row in _exports(run)] == ["q8_0"]


def write_calibration(run: Run, **changes: Any) -> None:
    value = {
        "temperature": 0.625, "abstain_below": 0.652034, "wanted_accuracy": 0.99, "coverage": 0.875, "accuracy": 0.9921,
        "error_before": 0.0421, "error_after": 0.0123, "n": 1270, "step": 1100,
    }  # fmt: skip
    (run.path / "calibration.json").write_text(json.dumps(value | changes))


def rows_of(page: Page, heading: str) -> list[list[str]]:
    """The cells of the table behind a heading, row by row, as plain text."""
    section = page.source.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    cells = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr.*?</tr>", section, re.DOTALL)
    ]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_each_export_has_a_row_with_what_failed_failed_ones_first(run: Run) -> None:
    write_export(run, "f16", 3_000_000)
    write_export(run, "q4_0", 1_000_000)
    write_export(run, "q8_0", 9_000_000, failed=("prompt", "tokens"), asked=False)
    page = Page(write_report(run))
    rows = rows_of(page, "Exports")
    assert [row[0].split(" ")[0] for row in rows[1:]] == ["q8_0", "q4_0", "f16"]
    assert rows[1][1:] == ["✗ failed prompt, tokens", "1 100", "10 MB", "–", "–", "–"]
    assert rows[3][1:] == ["✓ passed", "1 100", "4 MB", "0.0625", "0.800 0.700–0.900", "0.700 0.600–0.800"]
    assert HOSTILE in page.text and "<script" not in page.source
    assert len(page.all("table")) == len(page.all("caption"))


def test_the_confidence_says_when_it_abstains_and_what_that_rests_on(run: Run) -> None:
    write_calibration(run)
    text = " ".join(Page(write_report(run)).text.split())
    assert (
        "Below a confidence of 0.652 the model abstains: it answers 87.5 % of the validation samples, and 99.2 % of "
        "those are right (99 % were wanted)."
    ) in text
    assert (
        "Calibrated on 1 270 validation answers of step 1 100: temperature 0.625, calibration error 0.042 before and "
        "0.012 after."
    ) in text
    assert text.index("Results") < text.index("Below a confidence") < text.index("Training")
    write_calibration(run, abstain_below=None, coverage=0.0, accuracy=None)
    text = " ".join(Page(write_report(run)).text.split())
    assert "No confidence was high enough for 99 % right answers, so no answer is withheld." in text


def test_a_calibration_without_an_evaluation_is_shown_all_the_same(run: Run) -> None:
    write_calibration(run)
    (run.path / "evaluations").rename(run.path / "away")
    assert "Below a confidence of 0.652" in " ".join(Page(write_report(run)).text.split())


def test_a_run_without_exports_and_calibration_says_nothing_of_them(run: Run) -> None:
    (run.path / "exports").mkdir()
    (run.path / "exports" / "merged").mkdir()
    text = Page(write_report(run)).text
    assert "Exports" not in text and "Confidence" not in text and "alibrat" not in text


def test_writing_twice_gives_the_same_page(run: Run) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_numbers_are_written_for_people() -> None:
    assert [fact(v) for v in (True, 1234567, 0.000123, 12345.6, -0.5, None, [1, 2])] == [
        "yes", "1\u202f234\u202f567", "0.000123", "12\u202f346", "−0.5", "–", "1, 2",
    ]  # fmt: skip
    assert fact({"peak_bytes": 2_500_000, "ok": False}) == "peak_bytes: 2.5 MB, ok: no"
    assert [duration(s) for s in (0.25, 12, 59.7, 192, 3600 * 5 + 240)] == [
        "0.2 s", "12 s", "1 min 00 s", "3 min 12 s", "5 h 04 min",
    ]  # fmt: skip
    assert [memory(b) for b in (12, 3_200, 812_000_000, 1.5e10)] == ["12 bytes", "3.2 kB", "812 MB", "15 GB"]
