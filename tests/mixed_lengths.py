"""Questions about images with answers of very different lengths, as instruction data have them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = """
    the a of and to in it is was on at with small large left right red blue green white dark bright old new house tree
    river road field cloud window door stone bridge tower garden boat bird horse table chair cup stands lies near behind
    before under above between shows holds carries turns meets follows leads ends
"""


def write_mixed(
    folder: Path, rows: int, *, side: int = 48, median: int = 12, spread: float = 1.1, seed: int = 0
) -> Path:
    """A JSON-lines file of prompt, answer and image, its images beside it. Answers have `median` words, log-normal with
    this `spread`, at most 160; a spread of 0 gives every answer `median` words."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    words, lines = WORDS.split(), []
    for row in range(rows):
        count = int(np.clip(round(median * np.exp(spread * generator.normal())), 1, 160))
        answer = " ".join(generator.choice(words, count).tolist())
        pixels = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        name = f"images/{row}.png"
        Image.fromarray(pixels).resize((side, side)).save(folder / name)
        lines.append(json.dumps({"image": name, "prompt": "What does the picture show?", "answer": answer}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
