"""certificate.html, of a real shipped folder and of ones whose certificate says other things."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import visiontune
from tests.test_report import HOSTILE, Page
from visiontune.data.images import decode
from visiontune.exports.certificate_page import PICTURES_SHOWN, SAMPLES_SHOWN, write_page
from visiontune.exports.interval_chart import LEFT, RIGHT, WIDTH, around, interval_chart
from visiontune.exports.reference import pixels_sha256, read_references
from visiontune.exports.shipment import Shipment, read_shipment
from visiontune.report import write_report
from visiontune.run import Run

COMPARED = 6


@pytest.fixture(scope="module")
def shipped(device_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real shipped folder, with the compared pictures."""
    out = tmp_path_factory.mktemp("page") / "ship"
    options: dict[str, Any] = {"samples": COMPARED, "limit": 12, "with_inputs": True}
    return visiontune.export(device_run.path, to="gguf", out=out, quantisation="f16", **options)["gguf"]


@pytest.fixture
def folder(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the shipped folder."""
    return Path(shutil.copytree(shipped, tmp_path / "copy"))


def certificate(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text(encoding="utf-8"))


def page_of(folder: Path, value: dict[str, Any] | None = None) -> Page:
    write_page(folder, value or certificate(folder))
    return Page(folder / "certificate.html")


def words(page: Page) -> str:
    """What a reader sees, a space between cells, every kind of space as a plain one."""
    return _text(page.source[page.source.index("</style>") :])


def check_of(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(check for check in value["checks"] if check["name"] == name)


def failed_early(value: dict[str, Any]) -> None:
    """As `ship` writes it where the shipped files could not be asked."""
    value |= {"verdict": "failed", "speed": {}, "runtime": "", "files": {}, "predicted_bytes": {}}
    for check in value["checks"]:
        check |= {"status": "not checked", "found": "an earlier check failed", "numbers": {}}
    check_of(value, "prompt").update(status="failed", found="the shipped files could not be asked: no memory")


def shipped_answers(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path = folder / "evaluation/validation/predictions.jsonl"
    entries = change([json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]])
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def card_of(page: Page, sample: str) -> str:
    cards = page.source.split('<li class="card ')[1:]
    return next("<li " + card for card in cards if f'alt="Picture of {sample}"' in card)


def test_a_real_export_has_its_page_and_writing_it_again_gives_the_same(shipped: Path, folder: Path) -> None:
    written = (shipped / "certificate.html").read_bytes()
    page_of(folder)
    assert (folder / "certificate.html").read_bytes() == written


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = page_of(folder)
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert str(folder) not in page.source


def test_it_can_be_read_without_seeing_it(folder: Path) -> None:
    page = page_of(folder)
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1 and page.all("html")[0]["lang"] == "en"
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(header["scope"] for header in page.all("th"))
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    assert page.all("svg") and all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))


def test_no_text_of_the_user_becomes_markup(folder: Path) -> None:
    value = certificate(folder)
    value["name"] = HOSTILE
    value["contract"]["question"] = HOSTILE
    value["contract"]["device"]["prompt"] = f"{HOSTILE}{{marker}}{{question}}"
    for check in value["checks"]:
        check["found"] = HOSTILE
    page = page_of(folder, value)
    assert "<script" not in page.source and page.text.count(HOSTILE) >= 15


@pytest.mark.parametrize(
    ("verdict", "shown"), [("passed", "✓ Passed"), ("failed", "✗ Failed"), ("not checked", "Not checked")]
)
def test_the_verdict_stands_before_everything_else(folder: Path, verdict: str, shown: str) -> None:
    text = words(page_of(folder, certificate(folder) | {"verdict": verdict}))
    assert shown in text and text.index(shown) < text.index("Checks")
    assert ("Do not ship these files." in text) == (verdict == "failed")


def test_every_check_is_there_with_its_sentence_finding_and_limit_failed_ones_first(folder: Path) -> None:
    value = certificate(folder) | {"verdict": "failed"}
    check_of(value, "metric")["status"] = "failed"
    check_of(value, "weights")["status"] = "not checked"
    page = page_of(folder, value)
    rows = re.findall(r"<tr class=\"([\w-]+)\">\s*<th scope=\"row\">([^<]+)</th>(.*?)</tr>", page.source, re.DOTALL)
    assert len(rows) == 12
    assert [row[:2] for row in rows[:2]] == [("failed", "metric"), ("not-checked", "weights")]
    assert [name for status, name, _ in rows if status == "passed"] == [
        check["name"] for check in value["checks"] if check["status"] == "passed"
    ]
    for check in value["checks"]:
        assert check["what"] in page.text and check["found"] in page.text
    limits = {name: re.sub(r"<[^>]+>", "", rest).strip().splitlines()[-1] for _, name, rest in rows}
    assert limits["pixels"] == "no difference"
    assert limits["log-probabilities"] == "a mean distance of at most 0.02"
    assert limits["tokens"] == f"another one where the lead was at most 0.1; beyond that in 0 of {COMPARED} samples"
    assert limits["metric"] == "lower by at most 0 %; by one right answer always"
    assert "1 failed 1 not checked 10 passed" in words(page)


def test_what_was_compared_is_named_to_the_last_hash(folder: Path) -> None:
    value = certificate(folder)
    text = words(page_of(folder))
    for wanted in (
        *value["trained"]["data"],
        value["trained"]["recipe_sha256"],
        value["runtime"],
        value["speed"]["machine"],
        *(f"{name} {version}" for name, version in value["versions"].items()),
        *(f"SHA-256 {file['sha256']}" for file in value["files"].values()),
        f"{COMPARED} validation samples",
        "the first 12 rows of validation at most: 12 samples",
    ):
        assert wanted in text


@pytest.mark.parametrize(
    ("name", "shown"), [("/home/me/models/base", "base"), ("C:\\models\\base", "base"), ("org/model", "org/model")]
)
def test_of_a_base_model_in_a_folder_only_its_name_is_told(folder: Path, name: str, shown: str) -> None:
    value = certificate(folder)
    value["trained"]["base_model"] = name
    page = page_of(folder, value)
    assert f"on {shown}, data" in words(page)
    assert name == shown or name not in page.source


def test_the_contract_is_there_with_the_prompt_character_by_character(folder: Path) -> None:
    value = certificate(folder)
    prompt = " <|x|>\n\n{marker}  {question}\n\tAnswer: "
    value["contract"]["device"]["prompt"] = prompt
    value["contract"] |= {"example_prompt": "a\n b <c>", "temperature": 0.625, "abstain_below": 0.875}
    page = page_of(folder, value)
    blocks = re.findall(r'<pre class="verbatim" dir="auto">(.*?)</pre>', page.source, re.DOTALL)
    assert blocks == [prompt.replace("<", "&lt;").replace(">", "&gt;"), "a\n b &lt;c&gt;"]
    text = words(page)
    assert "temperature 0.625" in text and "abstain below 0.875" in text
    assert f"image size {value['contract']['device']['image_size']}" in text
    assert ", ".join(label["label"] for label in value["contract"]["labels"]) in text


def test_the_metric_has_both_values_their_difference_and_what_follows_from_it(folder: Path) -> None:
    value = certificate(folder)
    rates = {"trained": (0.95, 0.92, 0.97), "shipped": (0.83, 0.78, 0.87), "difference": (-0.12, -0.16, -0.08)}
    numbers = {of: dict(zip(("value", "low", "high", "n"), (*ends, 270), strict=True)) for of, ends in rates.items()}
    check_of(value, "metric")["numbers"] = {"name": "accuracy", **numbers}
    page = page_of(folder, value)
    text = words(page)
    assert "trained 0.950 0.920–0.970 270 shipped 0.830 0.780–0.870 270" in text
    assert "difference −0.120 −0.160 to −0.080 270" in text and "worse on these samples, beyond chance" in text
    labels = [svg["aria-label"] or "" for svg in page.all("svg")]
    assert any("difference -0.12, 95 % interval -0.16 to -0.08" in label for label in labels)
    numbers["difference"] |= {"high": 0.01}
    assert "the interval holds zero" in words(page_of(folder, value))


def test_sizes_stand_beside_the_predicted_ones_with_the_types_of_the_tensors(folder: Path) -> None:
    value = certificate(folder)
    name = value["contract"]["text_model"]
    value["files"][name] |= {"bytes": 1234567, "types": {"Q8_0": 23, "F32": 7}}
    value["predicted_bytes"] = {name: 1234631}
    text = words(page_of(folder, value))
    assert "1 234 567 1 234 631 64 fewer written 23 Q8_0, 7 F32" in text
    value["predicted_bytes"] = {name: 1234567}
    assert "1 234 567 1 234 567 exact" in words(page_of(folder, value))


def test_an_export_that_failed_early_has_a_page_that_says_so(folder: Path) -> None:
    value = certificate(folder)
    failed_early(value)
    for name in ("reference.jsonl", "evaluation", "inputs"):
        (folder / name).rename(folder / f"away-{name}")
    text = words(page_of(folder, value))
    assert "Do not ship these files." in text and "no memory" in text
    assert "Speed and memory were not measured" in text and "Runtime not known" in text
    assert "Compared by tokens nothing" in text and "Evaluated nothing" in text
    assert "Other answers" not in text, "where nothing was compared nothing can be said about answers"


def test_the_samples_that_answer_otherwise_are_listed_the_largest_lead_first(folder: Path) -> None:
    value = certificate(folder)
    first, second = (reference.id for reference in read_references(folder / "reference.jsonl")[:2])
    tokens, labels = check_of(value, "tokens")["numbers"], check_of(value, "labels")["numbers"]
    assert "None: all 6 compared samples get the same answer" in words(page_of(folder)) or tokens["near_ties"]
    tokens["near_ties"] = [{"id": first, "place": 2, "margin": 0.0625}]
    tokens["beyond"] = [{"id": f"x{i}", "place": i, "margin": 1 + i} for i in range(SAMPLES_SHOWN)]
    labels["other"] = [{"id": second, "lead": 9999.0}]
    page = page_of(folder, value)
    section = page.source[page.source.index("<h2>Other answers") : page.source.index("<h2>The compared pictures")]
    ids = re.findall(r'<th scope="row"><bdi>([^<]+)</bdi>', section)
    assert ids == [second, *(f"x{i}" for i in reversed(range(1, SAMPLES_SHOWN)))]
    assert f"The first {SAMPLES_SHOWN} of {SAMPLES_SHOWN + 2}" in words(page)
    tokens["beyond"] = []
    assert re.search(re.escape(first) + r" token 2 0\.0625 a near-tie", words(page_of(folder, value)))
    assert re.search(re.escape(second) + r" label 9999 beyond", words(page_of(folder, value)))


def test_pictures_are_those_that_the_model_saw_pixel_by_pixel(folder: Path) -> None:
    page, device = page_of(folder), read_shipment(folder).device
    references = read_references(folder / "reference.jsonl")
    assert len(page.all("img")) == len(references) == COMPARED
    for reference in references:
        uri = re.search(r'src="data:image/png;base64,([^"]+)"', card_of(page, reference.id))
        assert uri is not None and 'class="pixels"' in card_of(page, reference.id)
        shown = Image.open(io.BytesIO(base64.b64decode(uri[1])))
        wanted = device.picture(decode((folder / "inputs" / reference.image_sha256).read_bytes()))
        assert np.array_equal(np.asarray(shown), np.asarray(wanted))


def test_large_pictures_do_not_make_a_large_page(folder: Path) -> None:
    value = certificate(folder)
    value["contract"]["device"]["image_size"] = 256
    device = Shipment.model_validate(value["contract"]).device
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = folder / "reference.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    for entry in entries:
        Image.fromarray(noise).save(folder / "inputs" / entry["image_sha256"], "png")
        entry["pixels_sha256"] = pixels_sha256(np.asarray(device.picture(Image.fromarray(noise))))
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    page = page_of(folder, value)
    assert [(image["width"], image.get("class")) for image in page.all("img")] == [("128", None)] * COMPARED
    assert len(page.source) < COMPARED * 100_000 + 50_000, "PNG would be three times as large"


def test_a_picture_that_is_not_the_compared_one_is_left_out(folder: Path) -> None:
    first, second, *_ = (reference.image_sha256 for reference in read_references(folder / "reference.jsonl"))
    shutil.copy(folder / "inputs" / first, folder / "inputs" / second)
    (folder / "inputs" / first).write_bytes(b"no picture")
    assert len(page_of(folder).all("img")) == COMPARED - 2
    shutil.rmtree(folder / "inputs")
    page = page_of(folder)
    assert not page.all("img") and "The compared pictures" not in page.text


def test_pictures_stand_beside_truth_and_both_answers_other_ones_first(folder: Path) -> None:
    references = read_references(folder / "reference.jsonl")
    labels = [label.label for label in read_shipment(folder).labels or ()]
    answered = {entry["id"] for entry in map(json.loads, _lines(folder))}
    known = references[-1]
    unknown = next(reference for reference in references[:-1] if reference.id not in answered)

    def other(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [entry for entry in entries if entry["id"] != known.id]
        return [*kept, entries[0] | {"id": known.id, "text": "quite another"}]

    shipped_answers(folder, other)
    page = page_of(folder)
    assert page.source.index(f"Picture of {known.id}") == page.source.index("Picture of ")
    text = _text(card_of(page, known.id))
    trained = labels[int(np.argmax(known.labels or ()))]
    assert text.startswith(f"truth {known.truth} trained {trained} shipped quite another")
    assert "shipped" not in _text(card_of(page, unknown.id)), "an answer that is not known is not made up"


def test_an_id_of_two_samples_gets_no_answer_rather_than_a_wrong_one(folder: Path) -> None:
    answered = {entry["id"] for entry in map(json.loads, _lines(folder))}
    known = next(r.id for r in read_references(folder / "reference.jsonl") if r.id in answered)
    shipped_answers(folder, lambda entries: [*entries, *(e for e in entries if e["id"] == known)])
    page = page_of(folder)
    assert f"Picture of {known}" not in page.source and len(page.all("img")) == COMPARED - 1


def test_very_many_pictures_are_shortened(folder: Path) -> None:
    path = folder / "reference.jsonl"
    line = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    many = [json.dumps(line | {"id": f"{i}.png"}) + "\n" for i in range(PICTURES_SHOWN + 5)]
    path.write_text("".join(many), encoding="utf-8")
    page = page_of(folder)
    assert len(page.all("img")) == PICTURES_SHOWN
    assert f"The first {PICTURES_SHOWN} of {PICTURES_SHOWN + 5}." in words(page)


def test_the_report_of_the_run_lists_its_export(shipped: Path, device_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(device_run.path, tmp_path / "run"))
    assert json.loads((run.path / "exports/gguf-f16.json").read_text()).items() >= certificate(shipped).items()
    text = words(Page(write_report(run)))
    assert re.search(
        rf"Exports .* f16 {re.escape(str(shipped))} ✓ passed {certificate(shipped)['trained']['step']} ", text
    )


def test_a_chart_places_values_and_intervals_on_its_axis() -> None:
    rows = [("a", 0.5, 0.25, 1.0), ("b", 0.0, 0.0, 0.25)]
    assert around(rows, 0.0, 1.0) == (0.0, 1.0)
    assert around([("a", 0.95, 0.92, 0.97)], 0.0, 1.0) == pytest.approx((0.9, 1.0))
    chart = ElementTree.fromstring(interval_chart(rows, (-0.25, 1.0), name="x <y>"))
    bars, dots = ([e.attrib for e in chart if e.tag == tag] for tag in ("rect", "circle"))
    zero, quarter = float(bars[1]["x"]), float(bars[1]["width"])
    assert float(bars[0]["x"]) == pytest.approx(zero + quarter, abs=0.2)
    assert float(bars[0]["width"]) == pytest.approx(3 * quarter, abs=0.3)
    assert [float(dot["cx"]) for dot in dots] == pytest.approx([zero + 2 * quarter, zero], abs=0.3)
    axis = [(e.text, float(e.attrib["x"])) for e in chart if e.tag == "text"][:3]
    assert [text for text, _ in axis] == ["\u22120.25", "0.375", "1"]
    assert [x for _, x in axis] == pytest.approx([zero - quarter, zero + 1.5 * quarter, zero + 4 * quarter], abs=0.3)
    assert (axis[0][1], axis[2][1]) == (LEFT, WIDTH - RIGHT)
    assert chart.attrib["aria-label"] == "x <y>"


def _lines(folder: Path) -> list[str]:
    return (folder / "evaluation/validation/predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]


def _text(source: str) -> str:
    inline = re.sub(r"</?(bdi|code|strong)\b[^>]*>", "", source)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", inline)).split())
