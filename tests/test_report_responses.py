import base64
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.made_recordings import made
from tests.test_report import HOSTILE, Page, rows_of
from visiontune.charts import histogram
from visiontune.data.recordings.store import write_recording
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.response_scores import ResponseScores
from visiontune.pictures import field_picture
from visiontune.recipe import parse
from visiontune.report import write_report
from visiontune.report_responses import repeats_of
from visiontune.run import Run
from visiontune.training.evaluate_responses import evaluate_split_of_responses
from visiontune.training.ranks import Ranks

RATE = 20.0  # bins a second
BURN_IN, BINS = 4, 40
UNITS = 12


def predicted(name: str, seed: int, *, repeats: int, silent: int = 0, units: int = UNITS) -> PredictedSession:
    """A stimulus shown so often, another half as often, and six shown once, 40 bins each. Unit 0 is predicted best."""
    random = np.random.default_rng(seed)
    shows = [0] * repeats + [1] * (repeats // 2) + [-1] * 6
    films = {condition: random.gamma(1.0, 0.8, (BINS, units)) + 0.02 for condition in (0, 1)}
    truth = np.concatenate([films.get(c, random.gamma(1.0, 0.8, (BINS, units)) + 0.02) for c in shows])
    share = np.linspace(1, -0.3, units)
    rates = np.clip(share * truth + (1 - share) * truth.mean(axis=0), 0.01, None)
    counts = random.poisson(truth).astype(np.float64)
    if silent:
        counts[:, -silent:] = 0
    return PredictedSession(
        name=name,
        units=tuple(f"{name}/u{i}" for i in range(units)),
        rates=rates,
        counts=counts,
        valid=np.ones_like(counts, bool),
        trials=np.repeat(np.arange(len(shows)), BINS),
        conditions=np.repeat(shows, BINS),
        places=np.tile(np.arange(BURN_IN, BURN_IN + BINS), len(shows)),
    )


def write_recipe(run: Run, datasets: Sequence[Path]) -> None:
    hashes = [json.loads((path / "dataset.json").read_text())["content_hash"] for path in datasets]
    value = {
        "model": {"name": "cortex"},
        "data": {"datasets": [{"path": str(p), "content_hash": h} for p, h in zip(datasets, hashes, strict=True)]},
        "responses": {
            "clip": 32, "burn_in": BURN_IN, "rate": RATE,
            "frontend": "none", "modulation": "none", "recurrence": "none",
            "channels": [2], "kernels": [3], "temporal_kernels": [3], "strides": [1], "pools": [1],
        },
        "parts": {"core": "full"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 20},
        "batch": {"samples": 4, "tokens": 400, "window": 32},
        "evaluation": {"every": 10, "samples": 6, "metric": "bits_per_spike"},
        "checkpoints": {"every": 10},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 1},
    }  # fmt: skip
    parse(value, "test").save(run.recipe_path)


def write_metrics(run: Run) -> None:
    log = run.open_metrics()
    for step in range(1, 21):
        seconds = {"data": 0.01, "forward": 0.1, "backward": 0.2, "optimizer": 0.01, "other": 0.005, "total": 0.325}
        step_line = {"kind": "step", "attempt": 1, "step": step, "loss": 0.3, "learning_rate": 3e-4}
        log.write(step_line | {"gradient_norm": 0.7, "samples": 4, "tokens": 144, "seconds": seconds})
    metrics = {"bits_per_spike": {"value": 0.1, "low": None, "high": None, "n": 24}}
    log.write({"kind": "evaluation", "attempt": 1, "step": 20, "split": "validation", "metrics": metrics, "seconds": 1})
    log.close()


def write_receipts(run: Run) -> None:
    place = {"dataset": 1, "split": "train", "index": 12, "id": f"{HOSTILE}/36"}
    examples = [{**place, "first_bin": 11302, "bins": 33, "units": UNITS, "spikes": 397.0}]
    receipt = {"name": "supervised", "status": "passed", "reason": "as held", "numbers": {}, "examples": examples}
    (run.path / "receipts.json").write_text(json.dumps({"receipts": [receipt]}))


def write_fields(run: Run, units: Sequence[str]) -> dict[str, np.ndarray]:
    """Fields of 3 lags and 5 x 6 pixels, each with one pixel that stands out; the first unit never fired."""
    films = {name: np.zeros((len(units), 3, 5, 6), np.float32) for name in ("average", "gradient", "exciting")}
    for kind, (lag, value) in {"average": (2, -0.5), "gradient": (1, 0.25), "exciting": (0, 4.0)}.items():
        films[kind][:, lag, 1, 2] = value
        films[kind][:, lag, 3, 3] = -value / 2
    films["average"][0] = np.nan
    (run.path / "evaluations").mkdir(exist_ok=True)
    np.savez_compressed(run.path / "evaluations/fields.npz", units=np.array(units), **films)  # pyright: ignore
    said = [{"unit": unit, "mean_rate": 0.25, "exciting_rate": 3.125, "spikes": 7.0} for unit in units]
    facts = {"step": 20, "lags": 3, "clips": 32, "seconds": 1.0, "units": said}
    (run.path / "evaluations/fields.json").write_text(json.dumps(facts))
    return films


def evaluated(run: Run, split: str, sessions: Sequence[PredictedSession]) -> ResponseScores:
    return evaluate_split_of_responses(run, sessions, split, Ranks("cpu"), 20, time.monotonic())


def make_run(folder: Path, *, repeats: int, silent: int = 0) -> Run:
    """A finished run on the sessions a and b with everything in its folder."""
    datasets = [write_recording(made(name=name, seed=s, rate=RATE), folder / name) for s, name in enumerate("ab")]
    run = Run(folder / "run")
    run.path.mkdir()
    write_recipe(run, datasets)
    write_metrics(run)
    write_receipts(run)
    evaluated(run, "test", [predicted(name, s, repeats=repeats, silent=silent) for s, name in enumerate("ab")])
    write_fields(run, ["a/u0", "b/u1"])
    run.set_state("finished", attempt=1, step=20)
    return run


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("repeated"), repeats=10, silent=1)


@pytest.fixture(scope="module")
def page(repeated: Run) -> Page:
    return Page(write_report(repeated))


@pytest.fixture
def shown_once(tmp_path: Path) -> Run:
    return make_run(tmp_path, repeats=0)


def section(page: Page, heading: str) -> str:
    return page.source.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def scores_of(run: Run, split: str = "test") -> dict[str, Any]:
    return json.loads((run.path / "evaluations" / split / "metrics.json").read_text())


def written(metric: dict[str, Any]) -> str:
    to = " to " if metric["low"] < 0 else "–"
    return f"{metric['value']:.3f} {metric['low']:.3f}{to}{metric['high']:.3f}".replace("-", "\u2212")


def test_the_page_needs_nothing_but_itself_and_can_be_read_without_seeing_it(page: Page) -> None:
    assert not page.all("script") and not page.all("link") and "<script" not in page.source and HOSTILE in page.text
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(header["scope"] for header in page.all("th"))


def test_the_headline_counts_units(repeated: Run, page: Page) -> None:
    metric = scores_of(repeated)["metrics"]["bits_per_spike"]
    text = plain(page.text)
    assert f"{metric['value']:.3f} 95 % interval" in text and f"{metric['n']} units" in text
    assert "Frames a second" in text and "Clips a second" in text


def test_a_run_under_way_counts_units_too(shown_once: Run) -> None:
    for name in ("test/metrics.json", "fields.json", "fields.npz"):
        (shown_once.path / "evaluations" / name).unlink()
    (shown_once.path / "checkpoints").mkdir()
    best = {"step": 20, "metric": "bits_per_spike", "value": 0.1}
    (shown_once.path / "checkpoints/best.json").write_text(json.dumps(best))
    assert "24 units" in plain(Page(write_report(shown_once)).text)


def test_all_metrics_stand_in_the_results_with_their_intervals(repeated: Run, page: Page) -> None:
    rows = {row[0]: row[1] for row in rows_of(page, "Results")}
    metrics = scores_of(repeated)["metrics"]
    shown = {" ".join(name.split()): cell for name, cell in rows.items()}
    for name, start in (("bits_per_spike", "Bits per spike mean"), ("bits_per_spike_median", "Bits per spike, median"),
                        ("above_zero", "Units above zero"), ("correlation", "Correlation, single trials"),
                        ("average_correlation", "Correlation with the average"), ("feve", "FEVE"),
                        ("ccnorm", "CCnorm")):  # fmt: skip
        (cell,) = [cell for label, cell in shown.items() if label.startswith(start)]
        assert cell == written(metrics[name]), name
    assert shown["Units"] == "24"


def test_sessions_have_their_own_figures(repeated: Run, page: Page) -> None:
    rows = rows_of(page, "Results")
    for one in scores_of(repeated)["sessions"]:
        (row,) = [row for row in rows if row[0] == one["name"]]
        assert row[1:5] == ["12", f"{one['bins']}", f"{one['trials']}", "2"]
        names = ("bits_per_spike", "correlation", "average_correlation", "feve", "ccnorm")
        assert row[5:] == [written(one["metrics"][name]) for name in names]


def test_silent_units_are_counted_and_named_and_not_among_the_worst(repeated: Run, page: Page) -> None:
    rows = {" ".join(row[0].split()): row[1] for row in rows_of(page, "Results")}
    assert rows["Silent units without a spike; they count in no metric"] == "2"
    units = section(page, "Units")
    assert "2 units have no spike in a valid bin: a/u11 , b/u11 ." in plain(units)
    worst = [row[0] for row in rows_of(page, "Units")[1:]]
    bits = {one["unit"]: one["bits_per_spike"]["value"] for one in scores_of(repeated)["per_unit"]}
    known = {unit: value for unit, value in bits.items() if value is not None}
    assert worst == sorted(known, key=lambda unit: (known[unit], unit))[:10]


def test_bits_per_spike_are_drawn_over_units(repeated: Run, page: Page) -> None:
    (chart,) = re.findall(r"<svg.*?</svg>", section(page, "Units"), re.DOTALL)
    bits = [one["bits_per_spike"]["value"] for one in scores_of(repeated)["per_unit"]]
    above = sum(value > 0 for value in bits if value is not None)
    assert f"Bits per spike of 22 units: {above} above zero" in chart


def test_the_best_units_and_those_about_the_median_are_drawn_over_time_in_seconds(repeated: Run, page: Page) -> None:
    shown = section(page, "Repeated stimuli")
    captions = [plain(text) for text in re.findall(r"<figcaption>(.*?)</figcaption>", shown, re.DOTALL)]
    ranked = [one for one in scores_of(repeated)["per_unit"] if one["ccnorm"] is not None]
    ranked.sort(key=lambda one: -one["ccnorm"])
    first = max(6, len(ranked) // 2 - 1)
    wanted = [*ranked[:6], *ranked[first : first + 3]]
    assert captions == [
        f"{one['unit']} spikes a second, 10 repeats; CCnorm {one['ccnorm']:.3f}" for one in wanted
    ] and len(wanted) == 9  # fmt: skip
    chart = re.findall(r"<svg.*?</svg>", shown, re.DOTALL)[0]
    assert f"Spikes of {wanted[0]['unit']} over 10 repeats, recorded and predicted" in chart and ">seconds<" in chart
    assert 'class="band"' in chart and set(re.findall(r'polyline class="(.*?)"', chart)) == {
        "line-main", "line-beside-0",
    }  # fmt: skip


def test_a_psth_is_the_mean_over_valid_repeats_with_its_standard_error() -> None:
    session = predicted("a", 3, repeats=6)
    valid = session.valid.copy()
    valid[: 5 * BINS, 1] = np.arange(5 * BINS) % BINS != 7  # place 7 of unit 1 is valid in the last repeat alone
    valid[:BINS, 1] = False  # and the first repeat is not valid at all
    arrays = {name: getattr(session, name) for name in ("rates", "counts", "trials", "conditions", "places")}
    found = repeats_of({**arrays, "valid": valid}, 1)
    assert found is not None and found.trials == 5 and found.places.tolist() == list(range(BURN_IN, BURN_IN + BINS))
    counts = session.counts[: 6 * BINS, 1].reshape(6, BINS)[1:]
    rates = session.rates[: 6 * BINS, 1].reshape(6, BINS)[1:]
    other = np.arange(BINS) != 7
    assert found.recorded[other] == pytest.approx(counts.mean(axis=0)[other])
    assert found.error[other] == pytest.approx(counts.std(axis=0, ddof=1)[other] / np.sqrt(5))
    assert found.predicted == pytest.approx(rates.mean(axis=0))
    assert found.recorded[7] == counts[4, 7] and np.isnan(found.error[7])


def test_a_bin_that_is_never_valid_leaves_a_gap_and_two_trials_are_needed() -> None:
    session = predicted("a", 3, repeats=2)
    arrays = {name: getattr(session, name) for name in ("rates", "counts", "trials", "conditions", "places")}
    valid = session.valid & (session.places != BURN_IN + 5)[:, None]
    found = repeats_of({**arrays, "valid": valid}, 0)
    assert found is not None and np.flatnonzero(np.isnan(found.recorded)).tolist() == [5]
    assert repeats_of({**arrays, "valid": session.valid & (session.trials > 0)[:, None]}, 0) is None


def test_without_repeats_the_page_says_why_and_draws_none(shown_once: Run) -> None:
    page = Page(write_report(shown_once))
    repeats = section(page, "Repeated stimuli")
    assert "<svg" not in repeats and "no unit has an average correlation over repeats" in plain(repeats)
    results = plain(section(page, "Results"))
    assert "Correlation with the average, FEVE, CCnorm – no stimulus has bins that are valid in two trials" in results
    rows = {" ".join(row[0].split())[:6]: row[1] for row in rows_of(page, "Results")}
    assert rows["CCnorm"] == rows["FEVE s"] == "–"
    assert "The worst units" in page.text and "Bits per spike of 24 units" in page.source


def test_where_the_noise_leaves_no_ccnorm_units_are_ranked_by_average_correlation(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=4)
    noise = predicted("a", 5, repeats=4)
    counts = np.random.default_rng(0).poisson(0.05, noise.counts.shape).astype(np.float64)
    arrays = {
        name: getattr(noise, name) for name in ("name", "units", "rates", "valid", "trials", "conditions", "places")
    }
    evaluated(run, "test", [PredictedSession(counts=counts, **arrays)])
    scores = scores_of(run)
    for one in scores["per_unit"]:
        one["ccnorm"] = None
    scores["metrics"]["ccnorm"] = {"value": None, "low": None, "high": None, "n": 0}
    (run.path / "evaluations/test/metrics.json").write_text(json.dumps(scores))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", section(Page(write_report(run)), "Repeated stimuli"))
    shown = [float(plain(text).split()[-1].replace("\u2212", "-")) for text in captions]
    assert "Correlation with the average" in captions[0] and shown[:6] == sorted(shown[:6], reverse=True)


def test_a_unit_whose_name_holds_a_slash_has_its_psth_and_its_seconds(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=10)
    session = predicted("a", 0, repeats=10)
    evaluated(run, "test", [replace(session, units=("a/p/0", *session.units[1:]))])
    write_fields(run, ["a/u1", "a/p/0"])
    page = Page(write_report(run))
    repeats, fields = section(page, "Repeated stimuli"), section(page, "What makes units fire")
    assert "a/p/0 spikes a second, 10 repeats" in plain(repeats) and ">bins<" not in repeats
    assert "a/p/0 mean rate 5 most exciting 62.5 spikes a second" in plain(fields)


def test_datasets_that_are_not_there_any_more_cost_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=10)
    for name in "ab":
        (tmp_path / name).rename(tmp_path / f"elsewhere-{name}")
    shown = section(Page(write_report(run)), "Repeated stimuli")
    assert ">seconds<" in shown and ">bins<" not in shown


def test_without_a_recipe_time_is_in_bins(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=10)
    run.recipe_path.unlink()
    page = Page(write_report(run))
    shown, fields = section(page, "Repeated stimuli"), section(page, "What makes units fire")
    assert ">bins<" in shown and ">seconds<" not in shown and "spikes a bin, 10 repeats" in plain(shown)
    assert "bins from the bin" in fields and "most exciting 3.125" in plain(fields)
    assert "1 bin " in plain(fields) and "2 bins" in plain(fields)


def test_fields_are_pictures_of_their_peak_with_a_course_in_time(page: Page) -> None:
    fields = section(page, "What makes units fire")
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", fields, re.DOTALL)
    assert [plain(row).split()[0] for row in rows] == ["a/u0", "b/u1"]
    assert "mean rate 5 most exciting 62.5 spikes a second" in plain(rows[0])
    alts = re.findall(r'alt="(.*?)"', rows[1])
    assert alts == [
        "Spike-triggered average of b/u1, 100 ms before the bin",
        "Gradient of the rate of b/u1, 50 ms before the bin",
        "Most exciting input of b/u1, 0 ms before the bin",
    ]
    assert "no spike" in plain(rows[0]) and len(re.findall("<img", rows[0])) == 2
    assert all(image["class"] == "pixels" for image in page.all("img"))
    (chart,) = re.findall(r"<svg.*?</svg>", rows[1], re.DOTALL)
    courses = dict(re.findall(r'polyline class="(.*?)" points="(.*?)"', chart))
    assert set(courses) == {"line-main", "line-beside-0", "line-beside-1"}
    ends = {style: [float(p.split(",")[1]) for p in points.split()] for style, points in courses.items()}
    # the oldest frame stands at the left: the average has its trough there, the film its peak at the right
    assert ends["line-beside-0"][0] > ends["line-beside-0"][2] and ends["line-beside-1"][2] < ends["line-beside-1"][0]


def test_zero_is_mid_grey_and_the_peak_is_black_or_white() -> None:
    frame = np.zeros((5, 60), np.float32)
    frame[1, 2], frame[3, 3] = -0.5, 0.25
    picture = field_picture(frame)
    shades = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition("base64,")[2]))))
    assert shades.shape == (5, 60) and shades[0, 0] in (127, 128) and shades[1, 2] == 0 and shades[3, 3] == 191
    assert (picture.width, picture.height, picture.pixelated) == (96, 8, True)


def test_what_is_taught_stands_in_a_table(page: Page) -> None:
    (row,) = rows_of(page, "What the model is taught")[1:]
    assert row[0].endswith("/36 train clip 12") and row[1:] == ["b", "11 302", "33", "12", "397"]


def test_several_splits_each_have_a_column_and_the_test_split_its_details(shown_once: Run) -> None:
    evaluated(shown_once, "validation", [predicted("a", 8, repeats=4)])
    page = Page(write_report(shown_once))
    assert rows_of(page, "Results")[0] == ["Metric", "test", "validation"]
    assert "Test split" in section(page, "Units") and "Bits per spike of 24 units" in section(page, "Units")


@pytest.mark.parametrize("kept", [["recipe.yaml"], ["receipts.json"], ["evaluations"], ["evaluations", "recipe.yaml"]])
def test_any_part_of_the_folder_may_be_missing(shown_once: Run, kept: list[str]) -> None:
    for entry in list(shown_once.path.iterdir()):
        if entry.name not in kept:
            entry.rename(shown_once.path.parent / f"away-{entry.name}")
    assert "Written by visiontune" in Page(write_report(shown_once)).text


def test_predictions_and_fields_may_be_missing_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, repeats=4)
    for path in [*(run.path / "evaluations/test").glob("*.npz"), run.path / "evaluations/fields.npz"]:
        path.unlink()
    page = Page(write_report(run))
    assert "do not stand in evaluations/test" in plain(page.text) and "What makes units fire" not in page.text


def test_fields_alone_are_shown_where_nothing_was_evaluated(shown_once: Run) -> None:
    (shown_once.path / "evaluations/test/metrics.json").unlink()
    page = Page(write_report(shown_once))
    assert "<h2>Results</h2>" not in page.source and "What makes units fire" in page.text


def test_writing_twice_gives_the_same_page(repeated: Run) -> None:
    first = write_report(repeated).read_bytes()
    assert write_report(repeated).read_bytes() == first


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-1e-9, 3e9], [0.1 * i - 1 for i in range(40)], [1e-12] * 3])
def test_a_histogram_counts_every_value_in_bars_of_one_width(values: list[float]) -> None:
    assert histogram([], name="nothing", x_label="x") == ""
    svg = ElementTree.fromstring(histogram(values, name="<values>", x_label="x"))
    bars = [bar.attrib for bar in svg.iter("rect")]
    assert svg.attrib["aria-label"] == "<values>" and 1 <= len(bars) <= 26
    assert len({bar["width"] for bar in bars}) == 1
    heights = [float(bar["height"]) for bar in bars]
    lines = [float(line.attrib["y1"]) for line in svg.iter("line") if line.attrib["class"] == "grid"]
    at_the_left = [text for text in svg.iter("text") if text.attrib["text-anchor"] == "end"][: len(lines)]
    labels = [float(text.text or "") for text in at_the_left]
    a_count = (max(lines) - min(lines)) / (max(labels) - min(labels))
    assert sum(heights) / a_count == pytest.approx(len(values), rel=0.01)
