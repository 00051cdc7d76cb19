"""How close shipped files are to the trained model, on over 1,000 images of 20 classes.

Trains a small SmolVLM for a device on scikit-learn's digit scans in two inks (classes such as "red 3"), exports it as
F16, Q8_0 and Q4_0, and compares every validation picture with the trained model. The alternative beside it is what
merging in bfloat16 before the conversion costs, as pipelines often do.

    python bench/certificate.py [FOLDER]    (what stands in FOLDER is used again)
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import visiontune
from visiontune.exports.certificate import run_shipped
from visiontune.exports.gguf import write_gguf
from visiontune.exports.reference import REFERENCE_NAME, image_of, read_references
from visiontune.exports.shipment import open_runtime, read_shipment
from visiontune.machine import cores

INKS = {"red": (235, 60, 40), "blue": (60, 110, 245)}
FIRST_HELD_OUT = 1200
QUESTION = "Which ink, which digit?"


def write_inked(folder: Path) -> None:
    """Each scan in each ink, in a folder for each class; the last scans are for validation."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    for ink, colour in INKS.items():
        for number, (scan, label) in enumerate(zip(scans, labels, strict=True)):
            place = folder / ("train" if number < FIRST_HELD_OUT else "validation") / f"{ink} {label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = scan.reshape(8, 8, 1) / 16 * np.array(colour)
            Image.fromarray(pixels.round().astype("uint8")).save(place / f"{number:04d}.png")


def main(folder: Path) -> None:
    data, run = folder / "data", folder / "run"
    if not data.exists():
        write_inked(folder / "photos")
        visiontune.prepare(folder / "photos", data)
    if not (run / "recipe.yaml").exists():
        visiontune.train(
            data, model="tiny/smolvlm", out=run, device_profile="desktop-llama", overrides={"data.prompt": QUESTION}
        )
    else:
        visiontune.resume(run)
    everything = 10**6
    rows = []
    for quantisation in ("f16", "q8_0", "q4_0"):
        ship = folder / f"ship-{quantisation}"
        if not ship.exists():
            visiontune.export(run, to="gguf", out=ship, quantisation=quantisation, samples=everything)
        certificate = json.loads((ship / "certificate.json").read_text())
        checks = {check["name"]: check for check in certificate["checks"]}
        labels, tokens, metric = (checks[name]["numbers"] for name in ("labels", "tokens", "metric"))
        rows.append(
            (
                quantisation,
                f"{tokens['identical']}/{tokens['inputs']} ({len(tokens['near_ties'])} near-ties)",
                f"{labels['same'] / labels['inputs']:.2%}",
                f"{metric['trained']['value']:.4f} -> {metric['shipped']['value']:.4f}",
                f"{checks['log-probabilities']['numbers']['mean']:.1e}",
                f"{sum(file['bytes'] for file in certificate['files'].values()) / 1e6:.2f} MB",
            )
        )
    rows.append(("f16, merged in bf16", *rounded_before(folder, run)))
    print(f"{rows[0][1].split('/')[1].split()[0]} validation pictures, {len(INKS) * 10} classes")
    print(f"{'files':20} {'identical answers':28} {'same label':11} {'accuracy':18} {'log-prob. off':14} size")
    for name, tokens, labels, metric, distance, size in rows:
        print(f"{name:20} {tokens:28} {labels:11} {metric:18} {distance:14} {size}")


def rounded_before(folder: Path, run: Path) -> tuple[str, str, str, str, str]:
    """The same comparison for F16 files made from weights that were merged and rounded to bfloat16 first."""
    from visiontune.data.dataset import Dataset

    shipment = read_shipment(folder / "ship-f16")
    merged = visiontune.export(run, to="merged", out=folder / "merged-bf16", dtype="bfloat16")["merged"]
    out = folder / "rounded"
    files = write_gguf(
        merged, out, "f16", image_size=shipment.device.image_size, name=shipment.name,
        with_template=shipment.device.chat_template(),
    )  # fmt: skip
    references = read_references(folder / "ship-f16" / REFERENCE_NAME)
    dataset = Dataset.open(folder / "data")
    places = {sample: i for i, sample in enumerate(dataset.index("validation").ids)}
    images = (image_of(dataset.sample("validation", places[reference.id])) for reference in references)
    with open_runtime(out, shipment, cores()) as runtime:
        outcomes = run_shipped(runtime, shipment, zip(references, images, strict=True), lambda _: None)
    identical = sum(r.tokens == o.tokens for r, o in zip(references, outcomes, strict=True))
    best = [(np.argmax(r.labels or ()), np.argmax(o.labels or ())) for r, o in zip(references, outcomes, strict=True)]
    same = sum(a == b for a, b in best)
    names = [label.label for label in shipment.labels or ()]
    right = [(names[a] == r.truth, names[b] == r.truth) for (a, b), r in zip(best, references, strict=True)]
    distances = [
        abs(a - b)
        for r, o in zip(references, outcomes, strict=True)
        if r.tokens == o.tokens
        for a, b in zip(r.log_probabilities, o.log_probabilities, strict=True)
    ]
    n = len(references)
    return (
        f"{identical}/{n}",
        f"{same / n:.2%}",
        f"{sum(a for a, _ in right) / n:.4f} -> {sum(b for _, b in right) / n:.4f}",
        f"{np.mean(distances):.1e}",
        f"{sum(file.bytes for file in files) / 1e6:.2f} MB",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
