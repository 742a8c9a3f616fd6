"""The feature cache: what is read is what was written, whoever wrote it and however often it was interrupted."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.data import features as features_module
from onereel.data.annotations import Record
from onereel.data.features import FORMAT, FeatureCache, FeatureReader, claim
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.types import FrameFeatures, SampleKey, TubeletGrid

GRID, DIM = TubeletGrid(4, 1, 1), 3
KEY = {"weights": "1f", "data.num_frames": 8, "data.crop_scale": (0.5, 1.0)}


def make(folder: Path, num_samples: int = 5, num_views: int = 2, **options: str) -> FeatureCache:
    claim(folder, KEY)
    shape = {"grid": GRID, "embed_dim": DIM}
    dtype = options.get("dtype", "float32")
    return FeatureCache(folder, num_samples=num_samples, num_views=num_views, dtype=dtype, **shape)


def times_of(sample: int) -> list[int]:
    """The frames of a sample that kept a token: one to four of them."""
    return list(range(GRID.gt))[sample % 4 :]


def rows_of(sample: int, view: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * view + sample)
    return torch.randn(len(times_of(sample)), DIM, generator=generator)


def encoded(samples: Sequence[int], view: int) -> FrameFeatures:
    """What a model says of the clips of `samples`."""
    lengths = tuple(len(times_of(sample)) for sample in samples)
    times = torch.tensor([t for sample in samples for t in times_of(sample)])
    return FrameFeatures(
        values=torch.cat([rows_of(sample, view) for sample in samples]),
        lengths=lengths,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        coordinates=torch.stack([times, times * 0, times * 0], dim=1),
        grid=GRID,
    )


def write(cache: FeatureCache, view: int, samples: Sequence[int], rank: int = 0) -> None:
    writer = cache.writer(view, rank)
    writer.add(samples, encoded(samples, view), [])
    writer.flush()


def assert_holds(cache: FeatureCache, view: int, samples: Sequence[int]) -> None:
    assert np.flatnonzero(cache.done(view)).tolist() == sorted(samples)
    for sample in samples:
        rows = cache.read(sample, view)
        assert rows is not None
        assert torch.equal(rows[0].float(), rows_of(sample, view).to(cache.dtype).float())
        assert rows[1].tolist() == times_of(sample)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_read_is_what_was_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In any order, in any number of shards, by any number of processes, some samples twice."""
    order = data.draw(st.permutations(range(9)))
    cut = data.draw(st.integers(1, 8))
    overlap = data.draw(st.integers(0, 1))
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    cache = make(tmp_path_factory.mktemp("cache") / "of", 9, dtype=dtype)
    for view in range(2):
        write(cache, view, order[: cut + overlap], rank=0)
        write(cache, view, order[cut:], rank=data.draw(st.integers(0, 1)))
    for view in range(2):
        assert_holds(cache, view, order)


def test_epochs_take_turns_with_the_views(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache", num_views=3)
    for view in range(3):
        write(cache, view, range(5))
    for epoch in range(7):
        rows = cache.read(2, epoch)
        assert rows is not None
        assert torch.equal(rows[0], rows_of(2, epoch % 3))


def test_a_cache_may_grow_by_views(tmp_path: Path) -> None:
    write(make(tmp_path / "cache", num_views=1), 0, range(5))
    cache = make(tmp_path / "cache", num_views=2)
    assert cache.done(0).all()
    assert not cache.done(1).any()
    write(cache, 1, range(5))
    for view in range(2):
        assert_holds(cache, view, range(5))


def test_shards_are_memory_mapped_and_closed(tmp_path: Path) -> None:
    """Thousands of shards must not need as many open files."""
    files = Path("/proc/self/fd")
    if not files.is_dir():
        pytest.skip("no /proc to count open files in")
    cache = make(tmp_path / "cache")
    for sample in range(5):
        write(cache, 0, [sample])
    before = len(list(files.iterdir()))
    assert_holds(cache, 0, range(5))
    assert len(list(files.iterdir())) == before
    assert "cache/view000" in Path("/proc/self/maps").read_text()


def test_maps_do_not_grow_with_the_number_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc to count memory maps in")
    monkeypatch.setattr(features_module, "KEPT_SHARDS", 2)
    cache = make(tmp_path / "cache")
    for sample in range(5):
        write(cache, 0, [sample])
    for _ in range(2):
        assert_holds(cache, 0, range(5))
    assert 0 < maps.read_text().count(str(tmp_path)) <= 2


def test_a_full_shard_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SHARD_BYTES", 1)
    cache = make(tmp_path / "cache")
    writer = cache.writer(0, 0)
    for sample in range(3):
        writer.add([sample], encoded([sample], 0), [])
        assert cache.done(0).sum() == sample + 1
    writer.flush()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def test_what_a_killed_process_left_is_not_taken(tmp_path: Path) -> None:
    """A shard under its final name is whole; what was being written has another name."""
    cache = make(tmp_path / "cache")
    write(cache, 0, [0, 1])
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    half = shard.read_bytes()[: shard.stat().st_size // 2]
    (tmp_path / "cache" / ".view000-000-00001.safetensors.partial").write_bytes(half)
    assert_holds(cache, 0, [0, 1])
    claim(tmp_path / "cache", KEY)
    write(cache, 0, [2, 3, 4])
    assert_holds(make(tmp_path / "cache"), 0, range(5))


def test_features_that_were_known_by_the_whole_store_are_refused(tmp_path: Path) -> None:
    claim(tmp_path / "cache", {**KEY, "store": "0f" * 32})
    with pytest.raises(ConfigError, match=r"an earlier version of onereel made.*or delete"):
        claim(tmp_path / "cache", {**KEY, "store": f"7 chunks, {'0f' * 32}"})


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    write(cache, 0, range(5))
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"view000-000-00000\.safetensors .*delete it"):
        cache.done(0)


def test_features_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache", dtype="float16")
    features = encoded([3], 0)
    features.values.mul_(1e6)
    with pytest.raises(DataError, match=r"samples 3 are not finite in float16: .*bfloat16"):
        cache.writer(0, 0).add([3], features, [])


# ---------------------------------------------------------------------------------------------------- the key


def test_a_changed_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    claim(folder, KEY)
    claim(folder, dict(KEY))
    changed = {**KEY, "data.num_frames": 16, "weights": "2e"}
    with pytest.raises(ConfigError) as caught:
        claim(folder, changed)
    message = str(caught.value)
    assert "data.num_frames was 8 and is 16; weights was '1f' and is '2e'" in message
    assert "crop_scale" not in message
    for remedy in ("Set back", "--data.cache", f"delete {folder}"):
        assert remedy in message


def test_other_features_are_removed_where_that_is_asked_for(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    write(cache, 0, range(5))
    claim(tmp_path / "cache", KEY, discard=True)
    assert cache.done(0).all()
    (tmp_path / "cache" / "notes.txt").touch()
    claim(tmp_path / "cache", {**KEY, "weights": "2e"}, discard=True)
    assert not cache.done(0).any()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"key.json", "notes.txt"}
    with pytest.raises(ConfigError, match="weights was '2e'"):
        claim(tmp_path / "cache", KEY)


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, KEY)
    key = json.loads((tmp_path / "key.json").read_text())
    (tmp_path / "key.json").write_text(json.dumps({**key, "format": FORMAT + 1}))
    with pytest.raises(ConfigError, match=f"format was {FORMAT + 1} and is {FORMAT}"):
        claim(tmp_path, KEY)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match="is not empty and holds no features"):
        claim(tmp_path, KEY)
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        claim(tmp_path, KEY)


# ------------------------------------------------------------------------------------------------- the reader


class Clips:
    """Labels and captions as a ClipReader gives them."""

    def label_id(self, record: Record) -> int:
        return record.index + 10

    def caption(self, record: Record, key: SampleKey) -> str:
        return f"epoch {key.epoch}"


@pytest.fixture
def reader(tmp_path: Path) -> FeatureReader:
    """Two views; sample 4 could not be read."""
    cache = make(tmp_path / "cache")
    for view in range(2):
        writer = cache.writer(view, 0)
        writer.add([2, 0, 3, 1], encoded([2, 0, 3, 1], view), [4])
        writer.flush()
    return FeatureReader(cache, Clips())  # type: ignore[arg-type]


def test_a_batch_is_what_the_model_gave(reader: FeatureReader) -> None:
    reader = pickle.loads(pickle.dumps(reader))
    samples = [reader.read(Record(i, "x.mp4"), [SampleKey(3, i)])[0] for i in (0, 1, 3)]
    assert [s.label for s in samples] == [10, 11, 13]
    assert {s.caption for s in samples} == {"epoch 3"}
    found, wanted = reader.batch(samples), encoded([0, 1, 3], view=1)
    assert isinstance(found, FrameFeatures)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.coordinates, wanted.coordinates)
    assert torch.equal(found.cu_seqlens, wanted.cu_seqlens)
    assert (found.lengths, found.grid) == (wanted.lengths, GRID)
    assert found.cu_seqlens.dtype == torch.int32


def test_a_sample_that_could_not_be_read_stays_so(reader: FeatureReader) -> None:
    record = Record(4, "broken.mp4")
    assert reader.cache.done(0).all()
    with pytest.raises(DecodeError, match=r"broken\.mp4: .*quarantine\.csv"):
        reader.read(record, [SampleKey(0, 4)])
    blank = reader.blank(record, [SampleKey(0, 4)])
    assert reader.batch([blank]).values.tolist() == [[0.0] * DIM]


def test_a_view_that_was_never_made_is_said(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    write(cache, 0, [1])
    with pytest.raises(DataError, match="lacks view 0 of sample 2"):
        cache.read(2, 0)
