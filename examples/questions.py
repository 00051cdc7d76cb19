"""Questions about images, each with its answer: train with and without augmentation, and ask which run is better.

    python examples/questions.py [TABLE [OUT]]

TABLE is a .jsonl, .json, .csv or .parquet file with the columns image, prompt and answer, or a folder of them. Without
it scikit-learn's scanned digits are shown: which one is it, is it odd?
The same at the command line: visiontune train TABLE --model tiny/smolvlm --recipe examples/questions.yaml --out OUT/a
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune

MODEL = "tiny/smolvlm"  # small and random; a published one: "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
LIMIT: int | None = None  # take so many samples, for a first look at large data


def write_questions(folder: Path) -> Path:
    """Write `folder`/questions.jsonl, its images beside it."""
    from sklearn.datasets import load_digits

    from visiontune.demo import write_digits

    write_digits(folder / "digits")
    lines = []
    for number, digit in enumerate(load_digits(return_X_y=True)[1].tolist()):
        asked, answer = [("Which digit is it?", str(digit)), ("Is it odd?", "yes" if digit % 2 else "no")][
            number // 10 % 2
        ]
        lines.append(json.dumps({"image": f"digits/{digit}/{number:04d}.png", "prompt": asked, "answer": answer}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in questions.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="questions-"))
    dataset = visiontune.prepare(data or write_questions(out / "source"), out / "data", limit=LIMIT)
    recipe = Path(__file__).with_suffix(".yaml")
    for name, changed in (("a", {"data.augment": 0.0}), ("b", {"data.augment": 0.25})):
        run = visiontune.train(
            dataset.path, model=MODEL, out=out / name, recipe=recipe, overrides={**(overrides or {}), **changed}
        )
        visiontune.evaluate(run.path, split="test")
    found = visiontune.compare(out / "a", out / "b", split="test")
    for one in found.metrics:
        if one.first.value is not None and one.second.value is not None:
            print(f"{one.name}: {one.first.value:.3f}, {one.second.value:.3f}: the second run is {one.verdict}")
    print(f"all of it on one page each: {out / 'a/report.html'}, {out / 'b/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
