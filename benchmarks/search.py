"""How long a text's search among embedded moments takes: the product with all of them, and reading their file.

`onereel search` compares a text with every moment, without an index. 2.16 million moments are 3,000 hours in windows of
five seconds. Embeddings are random ones of 256 numbers; CPU time of the process.

    python benchmarks/search.py --size full     up to 2.16 million moments, 5 GiB of memory
    python benchmarks/search.py                 up to 200,000
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from common import Claim, arguments, clock_of, report
from onereel.moments.index import IndexFacts, MomentIndex, nearest

WIDTH, TOP_K, REPEATS = 256, 10, 5
WINDOW_SECONDS, WINDOWS_PER_VIDEO = 5.0, 720
COUNTS = {"small": (20_000, 200_000), "full": (100_000, 1_000_000, 2_160_000)}


def random_index(count: int) -> MomentIndex:
    embeddings = np.random.default_rng(0).standard_normal((count, WIDTH), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = np.arange(count)
    starts = rows % WINDOWS_PER_VIDEO * WINDOW_SECONDS
    table = pa.table(
        {
            "path": [f"{row}.mp4" for row in (rows // WINDOWS_PER_VIDEO).tolist()],
            "start": starts,
            "end": starts + WINDOW_SECONDS,
            "caption": pa.nulls(count, pa.string()),
        }
    )
    return MomentIndex(table, embeddings, IndexFacts("random"))


def measure(count: int, file: Path) -> dict[str, Any]:
    clock = clock_of("cpu")
    random_index(count).write(file)
    start = clock()
    index = MomentIndex.read(file)
    reading, times = clock() - start, []
    for row in range(REPEATS):
        start = clock()
        found = nearest(index.embeddings, index.embeddings[row], TOP_K)
        times.append(clock() - start)
        assert found[0][0] == row
    return {
        "moments": count,
        "hours in windows of 5 s": count * WINDOW_SECONDS / 3600,
        "file GB": file.stat().st_size / 1e9,
        "reading s": reading,
        "search ms": 1e3 * median(times),
    }


def main() -> None:
    options = arguments(__doc__, devices=("cpu",))
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, Path(folder) / "f.parquet") for count in COUNTS[options.size]]
    last = rows[-1]
    claim = Claim(
        "search over reading, most moments",
        last["search ms"] / (1e3 * last["reading s"]),
        1,
        at_most=True,
    )
    report("a text among embedded moments", rows, [claim], options.json)


if __name__ == "__main__":
    main()
