"""The file of moments: what is written is read, and the nearest rows are the loop's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import DataError
from onereel.moments import index as index_module
from onereel.moments.index import IndexFacts, Moment, MomentIndex, nearest


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 1000))
def test_nearest_is_the_sorted_loop(num_rows, top_k, seed):
    generator = np.random.default_rng(seed)
    rows = generator.integers(-2, 3, (num_rows, 3)).astype(np.float32)  # many of them tie
    query = generator.integers(-2, 3, 3).astype(np.float32)
    expected = sorted(((-float(row @ query), i) for i, row in enumerate(rows)))[:top_k]
    assert nearest(rows, query, top_k) == [(i, -score) for score, i in expected]


def test_blocks_of_rows_change_nothing(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    whole = nearest(rows, rows[7], 5)
    monkeypatch.setattr(index_module, "ROWS_AT_ONCE", 8)
    blocks = nearest(rows, rows[7], 5)
    assert [row for row, _ in blocks] == [row for row, _ in whole]
    np.testing.assert_allclose([s for _, s in blocks], [s for _, s in whole], rtol=1e-6)


def make_index():
    table = pa.table(
        {
            "path": ["a.mp4", "b.mp4"],
            "start": pa.array([1.5, None], pa.float64()),
            "end": pa.array([3.0, None], pa.float64()),
            "caption": pa.array(["one", None], pa.string()),
        }
    )
    embeddings = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    return MomentIndex(table, embeddings, IndexFacts("model", "/videos", "store"))


def test_a_file_holds_everything(tmp_path):
    index = make_index()
    index.write(tmp_path / "new" / "features.parquet")
    read = MomentIndex.read(tmp_path / "new" / "features.parquet")
    assert read.facts == index.facts
    assert [read.moment(i) for i in range(2)] == [
        Moment("a.mp4", 1.5, 3.0, "one"),
        Moment("b.mp4", None, None, None),
    ]
    np.testing.assert_array_equal(read.embeddings, index.embeddings)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["features.parquet"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.parquet; `onereel embed"):
        MomentIndex.read(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"path": ["a"]}), other)
    with pytest.raises(DataError, match="not written by"):
        MomentIndex.read(other)
    (tmp_path / "text.parquet").write_text("path,start\n")
    with pytest.raises(DataError, match="cannot be read"):
        MomentIndex.read(tmp_path / "text.parquet")
