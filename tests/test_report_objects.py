import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.coco_scenes import objects
from tests.test_report import HOSTILE, Page, rows_of
from visiontune.data.annotations.masks import from_pixels
from visiontune.data.dataset_info import DatasetInfo
from visiontune.data.objects import Objects, to_text
from visiontune.data.sample import ObjectPrediction
from visiontune.data.stored_rows import StoredRow, write_shard
from visiontune.metrics.object_scores import Prompts, score_objects
from visiontune.page import within
from visiontune.recipe import parse
from visiontune.report import write_report
from visiontune.run import Run

CLASSES = (HOSTILE, "قطة", "dog")
WIDTH, HEIGHT = 120, 80
BOXES = [[5, 5, 30, 20], [50, 10, 40, 40], [10, 50, 20, 20]]
IMAGES = 6


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def with_masks(one: Objects) -> Objects:
    """Each box filled in as the mask of its object."""
    masks = []
    for left, top, width, height in one.boxes.astype(int).tolist():
        pixels = np.zeros((HEIGHT, WIDTH), np.bool_)
        pixels[top : top + height, left : left + width] = True
        masks.append(from_pixels(pixels))
    return replace(one, masks=tuple(masks))


def truth() -> Objects:
    return objects(BOXES, [0, 1, 2])


def found(right: int, *, false: int = 0, taken: int = 0) -> Objects:
    """So many of the three true objects by their class, then some by another class, and boxes where nothing is."""
    boxes = BOXES[: right + taken] + [[100, 60 - 9 * i, 15, 7] for i in range(false)]
    classes = [0, 1, 2][:right] + [(c + 1) % 3 for c in (0, 1, 2)[right : right + taken]] + [0] * false
    return objects(boxes, classes, scores=[0.9] * len(boxes))


PREDICTIONS = [found(3), found(2), found(0, false=2), found(3, false=1), found(1, taken=2), found(3)]
WORST_FIRST = [2, 4, 1, 3]  # F1 0, 0.333, 0.8 and 0.857; images 0 and 5 are right


def write_dataset(folder: Path, truths: Sequence[Objects]) -> None:
    folder.mkdir(parents=True)
    files = {}
    for split in ("train", "validation", "test"):
        rows = [
            StoredRow(f"{i}.png", [(picture(i), f"in/{i}.png")], None, to_text(one, CLASSES), [WIDTH], [HEIGHT], "c")
            for i, one in enumerate(truths)
        ]
        name = f"{split}-00000-of-00001.parquet"
        files[name] = write_shard(folder / name, rows)
    span = {"min": 8, "median": 8, "max": 8}
    info = {
        "content_hash": "ab12",
        "target": "objects",
        "labels": None,
        "objects": {
            "count": 18, "classes": dict.fromkeys(CLASSES, 6), "masks": 0, "crowds": 0, "negatives": 0,
            "on_an_image": span, "sides": span,
        },
        "splits": dict.fromkeys(("train", "validation", "test"), len(truths)),
        "split_seed": 0,
        "limit": None,
        "provenance": {"source": "x", "format": "coco", "created_by": "x", "fingerprint": "x"},
        "images": {"count": 6, "bytes": 1, "formats": {"PNG": 6}, "width": span, "height": span},
        "files": files,
        "left_out": [],
        "faults": [],
    }  # fmt: skip
    (folder / "dataset.json").write_text(DatasetInfo.model_validate(info).model_dump_json())


def write_recipe(run: Run, dataset: Path, metric: str) -> None:
    recipe = {
        "model": {"name": "tiny/rfdetr"},
        "data": {"datasets": [{"path": str(dataset), "content_hash": "ab12"}], "image_longest_edge": 64},
        "objects": {"classes": list(CLASSES), "masks": "mask" in metric, "mirror": "horizontal"},
        "parts": {"backbone": "frozen"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 200},
        "batch": {"samples": 4, "tokens": 4096, "window": 32},
        "evaluation": {"every": 100, "samples": 6, "metric": metric},
        "checkpoints": {"every": 100},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 2},
    }
    parse(recipe, "test").save(run.recipe_path)


def write_evaluation(
    run: Run, truths: Sequence[Objects], made: Sequence[Objects], prompts: Prompts = "none", split: str = "test"
) -> dict[str, Any]:
    """evaluations/SPLIT as an evaluation leaves it; its metrics."""
    folder = run.path / "evaluations" / split
    folder.mkdir(parents=True)
    size = (HEIGHT, WIDTH)
    lines = [
        ObjectPrediction(f"{i}.png", (f"{i}.png",), one, CLASSES, size, drawn).to_json()
        for i, (drawn, one) in enumerate(zip(truths, made, strict=True))
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    scores = score_objects(truths, made, [size] * len(truths), CLASSES, prompts=prompts, halves=20).to_json()
    (folder / "metrics.json").write_text(json.dumps({**scores, "split": split, "step": 200, "seconds": 4.2}))
    return scores


def write_metrics(run: Run, metric: str) -> None:
    log = run.open_metrics()
    for step in range(1, 201):
        seconds = {"data": 0.01, "forward": 0.1, "backward": 0.2, "optimizer": 0.01, "other": 0.005, "total": 0.325}
        step_line = {"kind": "step", "attempt": 1, "step": step, "loss": 2.0 / step, "learning_rate": 3e-4}
        log.write(step_line | {"gradient_norm": 0.7, "samples": 4, "tokens": 400, "seconds": seconds})
        if step % 100 == 0:
            metrics = {metric: {"value": step / 400, "low": 0.2, "high": 0.6, "n": 6}}
            log.write({"kind": "evaluation", "attempt": 1, "step": step, "split": "validation", "metrics": metrics,
                       "seconds": 1.0})  # fmt: skip
    log.close()


def example(index: int, entries: list[dict[str, Any]], masks: int = 0) -> dict[str, Any]:
    place = {"dataset": 0, "split": "train", "index": index, "id": f"{index}.png"}
    return {**place, "objects": entries, "masks": masks}


def write_receipts(run: Run, examples: list[dict[str, Any]]) -> None:
    receipt = {"name": "supervised", "status": "passed", "reason": "as drawn", "numbers": {}, "examples": examples}
    (run.path / "receipts.json").write_text(json.dumps({"receipts": [receipt]}))


def make_run(
    folder: Path,
    truths: Sequence[Objects],
    made: Sequence[Objects],
    metric: str = "box_ap",
    prompts: Prompts = "none",
) -> Run:
    write_dataset(folder / "pets", truths)
    run = Run(folder / "run")
    run.path.mkdir()
    write_recipe(run, folder / "pets", metric)
    write_metrics(run, metric)
    entries = [{"category": CLASSES[c], "bbox": box, "iscrowd": c == 2} for c, box in enumerate(BOXES)]
    write_receipts(run, [example(i, entries) for i in range(min(4, len(truths)))])
    write_evaluation(run, truths, made, prompts)
    run.set_state("finished", attempt=1, step=200)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run that finds boxes, with everything in its folder."""
    return make_run(tmp_path, [truth()] * IMAGES, PREDICTIONS)


def section(page: Page, heading: str) -> str:
    return page.source.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def metric_of(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.path / "evaluations/test/metrics.json").read_text())["metrics"][name]


def written(metric: dict[str, Any]) -> str:
    return f"{metric['value']:.3f} {metric['low']:.3f}–{metric['high']:.3f}"


def test_the_page_needs_nothing_but_itself_and_can_be_read_without_seeing_it(run: Run) -> None:
    page = Page(write_report(run))
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(header["scope"] for header in page.all("th"))


def test_no_class_name_becomes_markup_and_each_keeps_its_direction(run: Run) -> None:
    page = Page(write_report(run))
    assert "<script" not in page.source and HOSTILE in page.text
    shown = re.sub(r"<svg.*?</svg>", "", page.source.split("<h2>Recipe</h2>")[0], flags=re.DOTALL)
    assert len(re.findall("قطة", shown)) > 5 and len(re.findall("قطة", shown)) == len(re.findall("<bdi>قطة", shown))


def test_the_headline_is_the_recipes_metric_on_the_test_split_with_its_interval(run: Run) -> None:
    text = " ".join(Page(write_report(run)).text.split())
    scores = metric_of(run, "box_ap")
    assert "Box AP on the test split, model of step 200" in text
    assert f"{scores['value']:.3f} 95 % interval {scores['low']:.3f}–{scores['high']:.3f}, 6 images" in text
    assert "Validation box AP" in text


def test_all_twelve_figures_stand_in_the_results_with_the_intervals_there_are(run: Run) -> None:
    rows = {row[0]: row[1:] for row in rows_of(Page(write_report(run)), "Results")}
    shown = {" ".join(name.split()): cells for name, cells in rows.items()}
    for name, start in (("box_ap", "AP precision, mean"), ("box_ap50", "AP50"), ("box_ap75", "AP75"),
                        ("box_ap_large", "AP of large"), ("box_ar1", "AR, best 1 "), ("box_ar100", "AR, best 100"),
                        ("box_ar_medium", "AR of medium")):  # fmt: skip
        (cells,) = [cells for label, cells in shown.items() if label.startswith(start)]
        value = metric_of(run, name)
        expected = "–" if value["value"] is None else f"{value['value']:.3f}"
        assert cells == [written(value) if name in ("box_ap", "box_ap50") else expected], name
    assert len([label for label in shown if re.match("A[PR]", label)]) == 12
    assert shown["True objects"] == ["18"] and shown["Predictions"] == ["17"] and "Crowds, ignored" not in shown


def test_sizes_are_counted_and_have_their_figures(run: Run) -> None:
    rows = rows_of(Page(write_report(run)), "Results")[-3:]
    assert [(row[0].split()[0], row[1]) for row in rows] == [("small", "12"), ("medium", "6"), ("large", "0")]
    assert rows[1][2:] == [f"{metric_of(run, f'box_{name}_medium')['value']:.3f}" for name in ("ap", "ar")]


def test_the_worst_images_come_first_and_say_what_is_wrong_with_them(run: Run) -> None:
    images = section(Page(write_report(run)), "Images")
    worst, best = images.split("<h3>The best images</h3>")
    assert re.findall(r'class="id">(\d)\.png', worst) == [str(i) for i in WORST_FIRST]
    assert re.findall(r'class="id">(\d)\.png', best) == ["0", "5"]
    captions = [plain(text) for text in re.findall(r"<figcaption>(.*?)</figcaption>", worst, re.DOTALL)]
    assert captions[:3] == [
        "F1 0.000. 3 true objects: 0 found, 3 missed; 2 predictions where nothing is. 2.png",
        "F1 0.333. 3 true objects: 1 found, 0 missed, 2 taken for another class; 0 predictions where nothing is. 4.png",
        "F1 0.800. 3 true objects: 2 found, 1 missed; 0 predictions where nothing is. 1.png",
    ]


def test_an_image_where_nothing_is_and_nothing_was_found_is_no_mistake_and_not_the_best_either(tmp_path: Path) -> None:
    truths = [objects([], []), truth(), objects([], [])]
    made = [objects([], [], scores=[]), found(3), found(0, false=1)]
    images = section(Page(write_report(make_run(tmp_path, truths, made))), "Images")
    assert re.findall(r'class="id">(\d)\.png', images) == ["2", "1", "0"]
    assert "F1 0.000. 0 true objects: 0 found, 0 missed; 1 prediction where nothing is." in plain(images)


def test_each_image_is_shown_once_as_truth_and_prediction_side_by_side(run: Run) -> None:
    images = section(Page(write_report(run)), "Images")
    shown = re.findall(r'<img src="([^"]+)" width="(\d+)" height="(\d+)" alt="Truth and prediction on (\d)', images)
    assert sorted(number for *_, number in shown) == ["0", "1", "2", "3", "4", "5"]
    for uri, width, height, _ in shown:
        both = decoded(uri)
        assert both.size == (int(width), int(height)) and both.width > 2 * 480 and both.height > 480 * HEIGHT / WIDTH
    right_alone = next(decoded(uri) for uri, *_, number in shown if number == "2")
    left, right = (np.asarray(right_alone.crop((x, 40, x + 470, 340)), np.int64) for x in (0, 490))
    assert np.abs(left - right).mean() > 3, "three true boxes on the left, two false ones on the right"


def test_weak_predictions_are_neither_drawn_nor_held_against_an_image(tmp_path: Path) -> None:
    weak = replace(found(3, false=2), scores=np.array([0.9, 0.9, 0.9, 0.3, 0.49]))
    pages = [
        Page(write_report(make_run(tmp_path / name, [truth()], [one]))) for name, one in (("a", weak), ("b", found(3)))
    ]
    with_weak, without = (section(page, "Images") for page in pages)
    assert "The worst images" not in with_weak and "scores from 0.5 on" in plain(with_weak)
    assert "0 predictions where nothing is." in plain(with_weak)
    assert re.findall('src="([^"]+)"', with_weak) == re.findall('src="([^"]+)"', without)


def test_crowds_count_neither_as_missed_nor_as_false(tmp_path: Path) -> None:
    crowded = replace(truth(), crowd=np.array([False, False, True]))
    page = Page(write_report(make_run(tmp_path, [crowded] * 2, [found(2), found(3)])))
    captions = re.findall(r"<figcaption>(F1.*?)</figcaption>", section(page, "Images"), re.DOTALL)
    assert [plain(text)[:70] for text in captions] == [
        "F1 1.000. 2 true objects: 2 found, 0 missed; 0 predictions where nothin"[:70]
    ] * 2
    assert ["Crowds, ignored", "2"] in rows_of(page, "Results")
    assert [row[1] for row in rows_of(page, "Results")[-3:]] == ["2", "2", "0"]


def test_classes_stand_worst_first_with_their_counts(run: Run) -> None:
    rows = rows_of(Page(write_report(run)), "Classes")[1:]
    aps = [float(row[3].split()[0]) for row in rows]
    assert aps == sorted(aps) and {row[1] for row in rows} == {"6"}
    counts = {row[0]: row[2] for row in rows}
    value = json.loads((run.path / "evaluations/test/metrics.json").read_text())["boxes"]
    for one in value["classes"]:
        name = one["label"].replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
        assert counts[name] == str(one["predictions"])
    assert all(re.fullmatch(r"[\d.]+ [\d.]+–[\d.]+", row[column]) for row in rows for column in (3, 4))


def test_the_matrix_has_a_row_and_a_column_for_the_background(run: Run) -> None:
    page = Page(write_report(run))
    confusions = section(page, "Confusions")
    counts = json.loads((run.path / "evaluations/test/metrics.json").read_text())["boxes"]["confusion"]["counts"]
    cells = re.findall(r'<td class="(?:zero|hit|miss)"[^>]*>(\d+)</td>', confusions)
    assert len(counts) == 4 and list(map(int, cells)) == [count for row in counts for count in row]
    assert re.search(r'<th scope="row"><bdi>\(background\)</bdi></th>', confusions)
    top = rows_of(page, "Confusions")[6:]
    assert len(top) == 6 and all(row[0] != row[1] for row in top)
    assert ["(background)", "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;", "3", ""] in top
    assert ["dog", "(background)", "2", "33.3 %"] in top


def test_precision_by_recall_is_drawn_for_the_mean_and_the_worst_classes(run: Run) -> None:
    results = section(Page(write_report(run)), "Results")
    (chart,) = re.findall(r"<svg.*?</svg>", results, re.DOTALL)
    styles = set(re.findall(r'polyline class="(line-[a-z0-9-]+)"', chart))
    assert styles == {"line-main", "line-beside-0", "line-beside-1", "line-beside-2"}
    legend = plain(results.split('aria-label="Lines of the chart"')[1].split("</ul>")[0])
    value = json.loads((run.path / "evaluations/test/metrics.json").read_text())["boxes"]["classes"]
    names = [one["label"].replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") for one in value]
    assert [legend.index(name) for name in names] == sorted(legend.index(name) for name in names)


def test_masks_that_were_drawn_in_ground_truth_boxes_are_never_called_mask_ap(tmp_path: Path) -> None:
    truths = [with_masks(truth())] * 2
    made = [with_masks(found(3)), with_masks(found(3))]
    run = make_run(tmp_path, truths, made, "prompted_mask_ap", "ground-truth boxes")
    page = Page(write_report(run))
    text = plain(page.text)
    assert "Mask AP, ground-truth boxes given on the test split" in text
    assert "The masks were drawn in the boxes of the truth: the figures say how well masks are drawn" in text
    assert rows_of(page, "Results")[0] == ["Figure", "Masks in ground-truth boxes test"]


def test_boxes_and_masks_stand_side_by_side_and_the_metric_decides_what_images_are_ranked_by(tmp_path: Path) -> None:
    truths = [with_masks(truth())] * 2
    empty = replace(found(3), masks=(from_pixels(np.zeros((HEIGHT, WIDTH), np.bool_)),) * 3)
    run = make_run(tmp_path, truths, [with_masks(found(3)), empty], "mask_ap")
    page = Page(write_report(run))
    assert rows_of(page, "Results")[0] == ["Figure", "Boxes test", "Masks test"]
    assert len(re.findall("<svg", section(page, "Results"))) == 2 and section(page, "Classes").count("<table") == 2
    captions = re.findall(r"<figcaption>(F1.*?)</figcaption>", section(page, "Images"), re.DOTALL)
    assert plain(captions[0]).startswith("F1 0.000.") and plain(captions[0]).endswith("1.png")
    write_recipe(run, tmp_path / "pets", "box_ap")
    images = section(Page(write_report(run)), "Images")
    assert "The worst images" not in images


def test_several_splits_each_have_a_column_and_the_test_split_its_details(run: Run) -> None:
    write_evaluation(run, [truth()] * IMAGES, [found(3)] * IMAGES, split="validation")
    page = Page(write_report(run))
    assert rows_of(page, "Results")[0] == ["Figure", "Boxes test", "Boxes validation"]
    assert "Test split" in section(page, "Confusions") and "validation" not in section(page, "Images")


def test_what_is_taught_is_drawn_on_the_image_it_is_taught_about(run: Run) -> None:
    taught = section(Page(write_report(run)), "What the model is taught")
    assert len(re.findall("<img", taught)) == 4 and "3 objects:" in plain(taught)
    uris = re.findall(r'src="([^"]+)"', taught)
    write_receipts(run, [example(i, []) for i in range(4)])
    empty = section(Page(write_report(run)), "What the model is taught")
    bare = re.findall(r'src="([^"]+)"', empty)
    assert "0 objects" in plain(empty)
    for with_boxes, without in zip(uris, bare, strict=True):
        changed = np.abs(np.asarray(decoded(with_boxes), np.int64) - np.asarray(decoded(without), np.int64)) > 60
        rows, columns = np.flatnonzero(changed.any(axis=(1, 2))), np.flatnonzero(changed.any(axis=(0, 2)))
        scale = 300 / WIDTH
        assert rows[-1] == pytest.approx(70 * scale, abs=6) and columns[-1] == pytest.approx(90 * scale, abs=6)


@pytest.mark.parametrize("change", ["moved", "other samples"])
def test_a_dataset_that_is_not_there_any_more_costs_only_the_pictures(run: Run, tmp_path: Path, change: str) -> None:
    if change == "moved":
        (tmp_path / "pets").rename(tmp_path / "elsewhere")
    else:
        path = run.path / "evaluations/test/predictions.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")
        path.write_text("\n".join([*lines[1:-1], lines[0], ""]), encoding="utf-8")
    page = Page(write_report(run))
    assert "<img" not in section(page, "Images") and "F1 0.000." in section(page, "Images")


@pytest.mark.parametrize(
    "kept",
    [
        ["recipe.yaml"],
        ["metrics.jsonl"],
        ["receipts.json", "state.json"],
        ["evaluations"],
        ["evaluations", "recipe.yaml"],
        ["recipe.yaml", "metrics.jsonl", "receipts.json", "state.json"],
    ],
)
def test_any_part_of_the_folder_may_be_missing(run: Run, kept: list[str]) -> None:
    for entry in list(run.path.iterdir()):
        if entry.name not in kept:
            entry.rename(run.path.parent / f"away-{entry.name}")
    assert "Written by visiontune" in Page(write_report(run)).text


def test_an_evaluation_without_its_predictions_is_shown_without_images(run: Run) -> None:
    (run.path / "evaluations/test/predictions.jsonl").unlink()
    page = Page(write_report(run))
    assert "Images</h2>" not in page.source and "Confusions" in page.text
    assert rows_of(page, "Results")[-1][1] == "–"


def test_what_was_measured_on_the_data_is_shown_where_there_is_such_a_file(run: Run) -> None:
    assert "Measured on the data" not in Page(write_report(run)).text
    (run.path / "measures.json").write_text(json.dumps({"median_side": 31.5, f"hostile {HOSTILE}": 1234567}))
    page = Page(write_report(run))
    assert rows_of(page, "Measured on the data")[1:] == [
        ["median side", "31.5"],
        ["hostile &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;", "1 234 567"],
    ]


def test_many_classes_and_images_keep_the_page_small(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, [truth()] * 60, [found(1, false=1)] * 60)))
    assert len(page.all("img")) == 4 + 8 + 3 and len(page.source) < 4_000_000


def test_writing_twice_gives_the_same_page(run: Run) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_names_of_metrics_keep_their_capitals_within_a_sentence() -> None:
    assert [within(name) for name in ("Box AP", "ROUGE-L", "Macro F1")] == ["box AP", "ROUGE-L", "macro F1"]
