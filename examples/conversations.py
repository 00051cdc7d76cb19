"""Conversations about several images: train Qwen-VL with packed sequences.

    python examples/conversations.py [TABLE [OUT]]

TABLE is a .jsonl, .json or .parquet file with `messages` and `images` (docs/data.md), or a folder of them. Without it
conversations about two of scikit-learn's scanned digits are written: which ones they are, and which is larger.
The same at the command line: visiontune train TABLE --model tiny/qwen-vl --recipe examples/conversations.yaml --out RUN
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune

MODEL = "tiny/qwen-vl"  # small and random; a published one: "Qwen/Qwen2.5-VL-3B-Instruct"
LIMIT: int | None = None  # take so many samples, for a first look at large data
ROWS = 600


def write_conversations(folder: Path) -> Path:
    """Write `folder`/conversations.jsonl, its images beside it."""
    from sklearn.datasets import load_digits

    from visiontune.demo import write_digits

    write_digits(folder / "digits")
    digits = load_digits(return_X_y=True)[1].tolist()
    lines = []
    for row in range(ROWS):
        pair = digits[2 * row : 2 * row + 2]
        images = [f"digits/{digit}/{2 * row + place:04d}.png" for place, digit in enumerate(pair)]
        said = [
            ("user", "<image><image>Which digits are these?"),
            ("assistant", f"{pair[0]} and {pair[1]}"),
            ("user", "Is one of them larger?"),
            ("assistant", "no" if pair[0] == pair[1] else f"yes, the {'first' if pair[0] > pair[1] else 'second'}"),
        ]
        messages = [{"role": role, "content": content} for role, content in said]
        lines.append(json.dumps({"images": images, "messages": messages}))
    (folder / "conversations.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "conversations.jsonl"


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in conversations.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="conversations-"))
    dataset = visiontune.prepare(data or write_conversations(out / "source"), out / "data", limit=LIMIT)
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", recipe=Path(__file__).with_suffix(".yaml"), overrides=overrides
    )
    scores = visiontune.evaluate(run.path, split="test")  # the last answer of each conversation
    print(f"answers that are right to the letter: {scores.metric('exact_match').value:.3f}")
    print(f"all of it on one page: {out / 'run/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
