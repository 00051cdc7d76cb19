"""A model for a phone or a desktop: train what llama.cpp will run, ship the file with its certificate, ask the file.

    python examples/device.py [FOLDER [OUT]]

Needs the extra [gguf]. FOLDER holds a folder for each class, as photos/cat/1.jpg. Without it scikit-learn's scanned
digits are learned. The same at the command line:
visiontune train FOLDER --model tiny/smolvlm --for desktop-llama --recipe examples/device.yaml --out OUT/run
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune
from visiontune.demo import write_digits

MODEL = "tiny/smolvlm"  # small and random; a published one: "HuggingFaceTB/SmolVLM-256M-Instruct"
LIMIT: int | None = None  # take so many samples, for a first look at large data
DEVICE = "desktop-llama"  # or "android-256"
COMPARED = 16  # inputs on which model and file are held to each other; 64 where nothing is said


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in device.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="device-"))
    if data is None:
        data = out / "photos"
        write_digits(data)
    dataset = visiontune.prepare(data, out / "data", limit=LIMIT)
    recipe = Path(__file__).with_suffix(".yaml")
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", device_profile=DEVICE, recipe=recipe, overrides=overrides
    )
    visiontune.export(run.path, to="gguf", quantisation="q8_0", samples=COMPARED, out=out / "ship")
    for check in visiontune.verify(out / "ship", data=dataset.path):
        print(f"{check.name}: {check.status}, {check.found}")
    for answer in visiontune.predict(out / "ship", [data], limit=3):
        print(answer.source[0], answer.to_json()["text"])
    print(f"what an app needs: {out / 'ship'}; the certificate as a page: {out / 'ship/certificate.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
