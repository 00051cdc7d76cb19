"""Inspecting many conversations about images: how long it takes and how much memory, by the source's layout.

    python bench/inspection.py [--rows 100000]

Each row has an image of its own (a part of one of scikit-learn's photographs, 96 pixels a side, JPEG) and a
conversation of two turns; once as JSON lines beside image files, once as a Parquet file with the images inside.
The peak is the most that the process and its workers held at a time; on Linux a page that they share counts once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.inspect import inspect
from visiontune.demo_shapes import photographs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.pictures import encoded

SIDE = 96
GROUP = 500


def rows(count: int) -> Any:
    """Conversations and encoded images."""
    generator = np.random.default_rng(0)
    grounds = photographs()
    for number in range(count):
        ground = grounds[number % len(grounds)]
        left, top = (int(generator.integers(side - SIDE)) for side in ground.size)
        image = ground.crop((left, top, left + SIDE, top + SIDE)).rotate(90 * int(generator.integers(4)))
        said = [
            f"<image>\nWhat is in part {number}?",
            f"It starts at {left}, {top}.",
            "Are you sure?",
            f"Yes, {number}.",
        ]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        yield messages, encoded(image, "JPEG", quality=85)


def write(folder: Path, count: int) -> dict[str, Path]:
    """Both layouts."""
    files, table = folder / "files", folder / "table.parquet"
    (files / "images").mkdir(parents=True)
    schema = pa.schema(
        {
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        }
    )
    group: list[dict[str, Any]] = []
    with (files / "rows.jsonl").open("w") as lines, pq.ParquetWriter(table, schema) as writer:
        for number, (messages, data) in enumerate(rows(count)):
            name = f"images/{number:06d}.jpg"
            (files / name).write_bytes(data)
            lines.write(json.dumps({"messages": messages, "images": [name]}) + "\n")
            group.append({"messages": messages, "images": [{"bytes": data, "path": name}]})
            if len(group) == GROUP or number == count - 1:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
    return {"JSON lines and files": files, "Parquet with images": table}


def measured(source: Path) -> dict[str, Any]:
    """Inspect, and say what it took."""
    started = time.monotonic()
    found = inspect(source)
    took = time.monotonic() - started
    return {"samples": found.samples, "faults": sorted({fault.code for fault in found.faults}), "seconds": took}


def held(process: psutil.Process) -> int:
    """Bytes of a process; of pages that several share its part."""
    return process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss


def watched(source: Path) -> tuple[dict[str, Any], float]:
    """`measured` in a process of its own, and the most memory that it and its workers held at a time, in MiB."""
    command = [sys.executable, __file__, "--source", str(source)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, sum(held(one) for one in (root, *root.children(recursive=True))))
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # one of them has just ended
            continue
        time.sleep(0.1)
    assert process.stdout is not None
    return json.loads(process.stdout.read()), peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--source", type=Path, help="inspect this, and print what it took as JSON")
    options = parser.parse_args()
    if options.source is not None:
        print(json.dumps(measured(options.source)))
        return
    with tempfile.TemporaryDirectory() as name:
        print(f"{options.rows:,} rows, {os.cpu_count()} cores")
        print("| layout | samples | faults | s | rows/s | peak MiB, all processes |")
        print("|---|---|---|---|---|---|")
        for layout, source in write(Path(name), options.rows).items():
            found, peak = watched(source)
            told = ", ".join(found["faults"]) or "none"
            speed = f"{found['seconds']:.0f} | {found['samples'] / found['seconds']:,.0f}"
            print(f"| {layout} | {found['samples']:,} | {told} | {speed} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
