"""Photos in a folder for each class: train, score, ask.

    python examples/classify.py [FOLDER [OUT]]

FOLDER holds a folder for each class, as photos/cat/1.jpg. Without it scikit-learn's scanned digits are learned.
The same at the command line: visiontune train FOLDER --model tiny/smolvlm --recipe examples/classify.yaml --out OUT/run
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune
from visiontune.demo import write_digits

MODEL = "tiny/smolvlm"  # small and random; a published one: "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
LIMIT: int | None = None  # take so many samples, for a first look at large data


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in classify.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="classify-"))
    if data is None:
        data = out / "photos"
        write_digits(data)
    dataset = visiontune.prepare(data, out / "data", limit=LIMIT)
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", recipe=Path(__file__).with_suffix(".yaml"), overrides=overrides
    )
    accuracy = visiontune.evaluate(run.path, split="test").metric("accuracy")
    print(f"accuracy on the test split: {accuracy.value:.3f} (95 % interval {accuracy.low:.3f} to {accuracy.high:.3f})")
    for answer in visiontune.predict(run.path, [data], limit=3):
        print(answer.source[0], answer.to_json()["text"])
    print(f"all of it on one page: {out / 'run/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
