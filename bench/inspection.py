"""Inspecting many conversations about images: how long it takes and how much memory, by the source's layout.

    python bench/inspection.py [--rows 100000]

Each row has an image of its own (a part of one of scikit-learn's photographs, 96 pixels a side, JPEG) and a
conversation of two turns; once as JSON lines beside image files, once as a Parquet file with the images inside.
The peak is that of this process and of the workers that it starts, as the system counts them, added up.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.inspect import inspect
from visiontune.demo_shapes import photographs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.planted_texts import encoded

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


def measured(source: Path, out: Any) -> None:
    """Inspect in a process of its own, and say what it took."""
    started = time.monotonic()
    found = inspect(source)
    took = time.monotonic() - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    out.put((found.samples, [fault.code for fault in found.faults], took, peaks[0] / 1024, peaks[1] / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    count = parser.parse_args().rows
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        print(f"{count:,} rows, {os.cpu_count()} cores")
        print("| layout | samples | faults | s | rows/s | peak MiB, this process | largest worker |")
        print("|---|---|---|---|---|---|---|")
        for layout, source in write(Path(name), count).items():
            out: Any = context.Queue()
            process = context.Process(target=measured, args=(source, out))
            process.start()
            samples, faults, took, own, worker = out.get()
            process.join()
            told = ", ".join(sorted(set(faults))) or "none"
            print(
                f"| {layout} | {samples:,} | {told} | {took:.0f} | {samples / took:,.0f} | {own:,.0f} | {worker:,.0f} |"
            )


if __name__ == "__main__":
    main()
