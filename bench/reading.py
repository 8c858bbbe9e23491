"""How long it takes to read 100,000 answers of 550 bytes in each layout; one Markdown table.

python bench/reading.py [--rows N]

Also reads half of the rows, and says how many times as long the whole takes: about two where the time is linear. Each
time is the best of three, in seconds of the processor. Exits with 1 where twice the rows take more than 2.6 times as
long.
"""

import argparse
import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from preferent.data.formats import row_sources

LIMIT = 2.6
TIMES = 3
Rows = list[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def listed(rows: Rows) -> bytes:
    return json.dumps(rows, indent=2).encode()


def table(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    whole = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    return whole.getvalue()


LAYOUTS: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": lines,
    "rows.json": listed,
    "rows.csv": table,
    "rows.parquet": parquet,
}


def seconds(path: Path, count: int) -> float:
    """Return the best time of several in which all rows of a file are read."""
    times = []
    for _ in range(TIMES):
        began = time.process_time()
        assert sum(1 for _ in row_sources.objects(str(path))) == count
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    options = argparse.ArgumentParser(description="How long it takes to read many answers.")
    options.add_argument("--rows", type=int, default=100_000)
    count = options.parse_args().rows
    rows = [{"instruction": f"{i} " + "q" * 240, "output": "a" * 240, "generator": "model"} for i in range(count)]
    slow = False
    print(f"| layout | MB | seconds for {count:,} rows | times half of them |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in LAYOUTS.items():
            whole, half = Path(folder, name), Path(folder, f"half-{name}")
            whole.write_bytes(write(rows))
            half.write_bytes(write(rows[: count // 2]))
            taken, of_half = seconds(whole, count), seconds(half, count // 2)
            slow |= taken / of_half > LIMIT
            print(f"| `{name}` | {whole.stat().st_size / 1e6:.0f} | {taken:.2f} | {taken / of_half:.2f} |")
    sys.exit(slow)


if __name__ == "__main__":
    main()
