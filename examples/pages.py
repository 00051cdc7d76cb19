"""Long texts, seen as pages: train DeepSeek-OCR to write a short text about each.

    python examples/pages.py [TABLE [OUT]]

TABLE is a .jsonl, .csv or .parquet file with a text and a summary (or an answer to a question) a row, or a folder of
them. Without it the topics of Python's own manual are taken, each with its first sentence as its summary.
A small model of random weights does not learn to read in two minutes: this shows the way, `visiontune demo pages` shows
one that reads, and a published model brings it along.
The same at the command line: visiontune train TABLE --model tiny/deepseek-ocr --recipe examples/pages.yaml --out RUN
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune

MODEL = "tiny/deepseek-ocr"  # small and random; a published one: "deepseek-community/DeepSeek-OCR-2"
LIMIT: int | None = None  # take so many samples, for a first look at large data


def write_topics(folder: Path) -> Path:
    """Write `folder`/topics.jsonl from the manual that comes with Python: a topic's text and its first sentence."""
    from pydoc_data.topics import topics

    lines = []
    for name, text in topics.items():
        body = text.split("\n\n", 1)[-1].strip()[:1500]
        sentence = re.match(r"[^.:]{20,200}[.:]", body.replace("\n", " "))
        if sentence is not None:
            lines.append(json.dumps({"id": name, "text": body, "summary": sentence[0]}))
    folder.mkdir(parents=True)
    (folder / "topics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "topics.jsonl"


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in pages.yaml."""
    out = out or Path(tempfile.mkdtemp(prefix="pages-"))
    dataset = visiontune.prepare(
        data or write_topics(out / "source"),
        out / "data",
        limit=LIMIT,
        pages={"width": 512, "height": 512, "font_size": 16},
    )
    run = visiontune.train(
        dataset.path, model=MODEL, out=out / "run", recipe=Path(__file__).with_suffix(".yaml"), overrides=overrides
    )
    scores = visiontune.evaluate(run.path, split="test", limit=8)
    print(f"ROUGE-L on the test split: {scores.metric('rougeL').value:.3f}; beside other ways to answer: the report")
    (out / "article.txt").write_text("A statement that is executed ends with a new line. Several may share a line.")
    for answer in visiontune.predict(run.path, [out / "article.txt"]):
        print(answer.source[0], answer.to_json()["text"])
    print(f"all of it on one page: {out / 'run/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
