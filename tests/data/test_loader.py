import csv
import errno
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from onereel.data import loader as loading
from onereel.data.annotations import Annotations
from onereel.data.augment import mirror
from onereel.data.dataset import ClipDataset
from onereel.data.loader import ClipLoader
from onereel.data.workers import DeadWorkerError, received
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.seeding import clip_generators
from onereel.tokens.packing import pack_clips
from onereel.tokens.picking import PatchPicker
from onereel.tokens.selector import Tube
from onereel.types import Packed, TokenSelection
from onereel.video.library import RawVideos


def train_loader(dataset, batch_size=4, **settings):
    return ClipLoader(
        dataset,
        **{"batch_size": batch_size, "seed": 7, "shuffle": True, "drop_last": True} | settings,
    )


def eval_loader(dataset, batch_size=4, **settings):
    return train_loader(
        dataset, batch_size, shuffle=False, drop_last=False, strict=True, **settings
    )


def pick_at_random(clips, keys):
    """Patches of 8 x 8 x 2, each with a chance drawn per clip; one at least."""
    draws = torch.stack(
        [torch.rand(clips.shape[1:].numel() // 384, generator=g) for g in clip_generators(7, keys)]
    )
    keep = draws < draws[:, :1]
    keep[:, -1] = True
    return pack_clips(clips, TokenSelection(keep), tubelet_size=2, patch_size=8)


PICK = PatchPicker(
    Tube(0.5),
    None,
    training=True,
    tubelet_size=2,
    patch_size=16,
    seed=7,
)
"""One that a worker can be sent: it must import it."""


def same_packed(a: Packed, b: Packed) -> bool:
    return (
        torch.equal(a.values, b.values)
        and torch.equal(a.coordinates, b.coordinates)
        and torch.equal(a.cu_seqlens, b.cu_seqlens)
        and (a.lengths, a.grid) == (b.lengths, b.grid)
    )


def keys_of(batches):
    return [list(batch.keys) for batch in batches]


def quarantined(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def same(a, b):
    return (
        a.keys == b.keys
        and torch.equal(a.clips, b.clips)
        and torch.equal(a.labels, b.labels)
        and (a.num_clips, a.num_failed, a.captions) == (b.num_clips, b.num_failed, b.captions)
    )


# ------------------------------------------------------------------------------------------------------------ order


def test_a_batch_holds_what_its_keys_say(dataset_of):
    dataset = dataset_of(10)
    batch = next(train_loader(dataset).batches(3))
    assert batch.clips.shape == (4, 4, 3, 16, 16)
    assert batch.clips.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert (batch.num_clips, batch.num_failed, batch.captions) == (4, 0, None)
    for key, clip, label in zip(batch.keys, batch.clips, batch.labels):
        assert key.epoch == 3
        assert torch.equal(clip, dataset[key].clip)
        assert label == dataset[key].label


def test_an_epoch_is_a_permutation_of_its_own(dataset_of):
    loader = train_loader(dataset_of(40))
    orders = [
        [key.index for keys in keys_of(loader.batches(epoch)) for key in keys] for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    again = train_loader(dataset_of(40))
    assert [key.index for keys in keys_of(again.batches(1)) for key in keys] == orders[1]


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("num_records", [16, 21])
def test_ranks_together_read_what_one_reads(dataset_of, num_records, repeats):
    def all_keys(world_size, batch_size):
        loaders = [
            train_loader(
                dataset_of(num_records), batch_size, rank=r, world_size=world_size, repeats=repeats
            )
            for r in range(world_size)
        ]
        assert len({loader.num_batches for loader in loaders}) == 1
        steps = zip(*(keys_of(loader.batches(2)) for loader in loaders), strict=True)
        return [list(itertools.chain(*step)) for step in steps]

    assert all_keys(2, 2) == all_keys(1, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_records", [1, 5, 12, 13])
@pytest.mark.parametrize("views", [1, 2])
def test_evaluation_covers_every_view_once(dataset_of, world_size, num_records, views):
    seen = []
    for rank in range(world_size):
        dataset = dataset_of(num_records, training=False, num_clips=views)
        loader = eval_loader(dataset, 3, rank=rank, world_size=world_size)
        batches = list(loader.batches(0))
        assert len(batches) == loader.num_batches
        seen += [key for batch in batches for key in batch.keys]
    assert sorted(seen) == [(0, i, view) for i in range(num_records) for view in range(views)]


def test_epochs_in_order_follow_one_another(dataset_of):
    loader = eval_loader(dataset_of(5, training=False), 2)
    for epoch in (0, 1, 1, 0):
        keys = list(itertools.chain(*keys_of(loader.batches(epoch))))
        assert keys == [(epoch, i, 0) for i in range(5)]
    assert list(loader.batches(0, start=3)) == []


def test_an_epoch_resumes_anywhere_without_decoding_what_is_behind(dataset_of, fake_library):
    whole = list(train_loader(dataset_of(23)).batches(5))
    for start in range(6):
        library = fake_library()
        rest = list(train_loader(dataset_of(23, library)).batches(5, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:]))
        assert sum(library.reads.values()) == 4 * len(rest)


@pytest.mark.parametrize("accum_steps", [1, 2, 3, 11, 12])
def test_batches_that_fill_no_step_are_not_read(dataset_of, fake_library, accum_steps):
    whole, library = train_loader(dataset_of(23), batch_size=2), fake_library()
    loader = train_loader(dataset_of(23, library), batch_size=2, accum_steps=accum_steps)
    num_read = 11 // accum_steps * accum_steps
    streams = []
    for epoch in range(3):
        batches = list(itertools.islice(loader.batches(epoch), num_read))  # as a plan of steps does
        streams.append(loader._stream)
        assert keys_of(batches) == keys_of(whole.batches(epoch))[:num_read]
        assert list(loader.batches(epoch, start=num_read)) == []
    assert loader.num_batches == 11
    assert all(stream is streams[0] for stream in streams)  # what was read ahead is not thrown away


def test_repeats_are_views_of_one_decode(dataset_of, fake_library):
    library = fake_library()
    loader = train_loader(dataset_of(8, library), repeats=2)
    batches = list(loader.batches(0))
    assert loader.num_batches == 4
    for batch in batches:
        assert [key.view for key in batch.keys] == [0, 1, 0, 1]
        assert [key.index for key in batch.keys[::2]] == [key.index for key in batch.keys[1::2]]
        assert not torch.equal(batch.clips[0], batch.clips[1])
    assert set(library.reads.values()) == {1}
    assert len(library.reads) == 8


def test_settings_that_do_not_fit_are_refused(dataset_of):
    with pytest.raises(ConfigError, match=r"4 clips and data\.repeats 3"):
        train_loader(dataset_of(9), repeats=3)
    with pytest.raises(DataError, match="fewer than one batch of 12 over all devices"):
        train_loader(dataset_of(11), world_size=3)


def test_the_global_random_state_is_left_alone(dataset_of):
    state = torch.get_rng_state()
    list(train_loader(dataset_of(8)).batches(0))
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------------------- failures


def test_one_percent_of_bad_files_is_skipped_and_listed(dataset_of, tmp_path, caplog):
    names = ["bad7", "disk88"] + [f"video{i}" for i in range(198)]
    quarantine = tmp_path / "run" / "quarantine.csv"
    loader = train_loader(dataset_of(names), quarantine=quarantine)
    with caplog.at_level(logging.WARNING, "onereel"):
        batches = [batch for epoch in range(2) for batch in loader.batches(epoch)]
    assert sum(batch.num_failed for batch in batches) == 4
    assert sum(batch.num_clips for batch in batches) == 2 * 198
    assert all(len(batch.clips) == len(batch.keys) == batch.num_clips for batch in batches)
    assert not any(key.index < 2 for batch in batches for key in batch.keys)
    rows = quarantined(quarantine)
    assert sorted((row["path"], row["epoch"], row["index"]) for row in rows) == [
        *(("bad7", str(e), "0") for e in range(2)),
        *(("disk88", str(e), "1") for e in range(2)),
    ]
    assert {row["reason"] for row in rows} == {"broken packet", "Input/output error"}
    assert all(row["frame"].isdigit() for row in rows if row["path"] == "bad7")
    assert "skipped sample 0: bad7, frame" in caplog.text


def test_too_many_bad_files_stop_the_run(dataset_of, tmp_path):
    names = ["bad0", "bad1", "bad2"] + [f"video{i}" for i in range(197)]
    quarantine = tmp_path / "quarantine.csv"
    loader = train_loader(dataset_of(names), quarantine=quarantine)
    with pytest.raises(DataError) as error:
        list(loader.batches(0))
    for part in ("3 of", "data.max_bad_ratio = 0.01", "bad", str(quarantine), "prepare --check"):
        assert part in str(error.value)
    assert len(quarantined(quarantine)) == 3
    assert len(list(train_loader(dataset_of(names), max_bad_ratio=0.02).batches(0))) == 50


def test_one_bad_file_never_stops_a_run_unless_none_is_allowed(dataset_of):
    names = ["bad0"] + [f"video{i}" for i in range(7)]
    assert sum(batch.num_failed for batch in train_loader(dataset_of(names)).batches(0)) == 1
    with pytest.raises(DataError, match=r"1 of \d samples"):
        list(train_loader(dataset_of(names), max_bad_ratio=0.0).batches(0))


def test_a_wrong_root_stops_the_run_early(dataset_of, fake_library):
    library = fake_library()
    loader = train_loader(dataset_of([f"bad{i}" for i in range(1000)], library), max_bad_ratio=0.4)
    with pytest.raises(DataError, match="32 of 32 samples"):
        list(loader.batches(0))


def test_a_batch_of_which_nothing_could_be_read_keeps_its_shape(dataset_of):
    names = [f"bad{i}" for i in range(4)] + [f"video{i}" for i in range(4)]
    loader = train_loader(dataset_of(names), shuffle=False, max_bad_ratio=1.0)
    empty, full = loader.batches(0)
    assert (empty.num_clips, empty.num_failed, len(empty.keys)) == (0, 4, 1)
    assert empty.clips.shape == (1, 4, 3, 16, 16)
    assert not empty.clips.any()
    assert empty.labels.tolist() == [0]
    assert (full.num_clips, full.num_failed) == (4, 0)


def test_evaluation_raises_the_decode_error(dataset_of):
    loader = eval_loader(dataset_of(["video", "bad file.mp4"], training=False))
    with pytest.raises(DecodeError, match=r"bad file\.mp4, frame 7: broken packet") as error:
        list(loader.batches(0))
    assert error.value.path == "bad file.mp4"


def test_ranks_share_one_quarantine_file(dataset_of, tmp_path):
    names = [f"bad{i}" for i in range(8)]
    path = tmp_path / "quarantine.csv"
    for rank in range(2):
        loader = train_loader(
            dataset_of(names), 2, rank=rank, world_size=2, quarantine=path, max_bad_ratio=1.0
        )
        list(loader.batches(0))
    assert sorted(row["path"] for row in quarantined(path)) == names


def test_a_quarantine_file_that_cannot_be_written_stops_nothing(dataset_of, tmp_path, caplog):
    names = ["bad0"] + [f"video{i}" for i in range(7)]
    (tmp_path / "file").write_text("")
    for path in ("/dev/full", tmp_path / "file" / "quarantine.csv"):
        caplog.clear()
        loader = train_loader(dataset_of(names), quarantine=Path(path))
        assert sum(batch.num_failed for batch in loader.batches(0)) == 1
        assert f"{path} could not be written" in caplog.text


def test_failures_are_kept_where_the_file_system_has_no_locks(dataset_of, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("onereel.data.loader.fcntl.flock", refused)
    loader = train_loader(dataset_of(["bad0", *map(str, range(7))]), quarantine=tmp_path / "q.csv")
    list(loader.batches(0))
    assert [row["path"] for row in quarantined(tmp_path / "q.csv")] == ["bad0"]


# ------------------------------------------------------------------------------------------- selection in the loader


def test_kept_patches_are_those_of_the_mirrored_clips(dataset_of):
    names = ["bad0"] + [f"video{i}" for i in range(15)]
    settings = {"max_bad_ratio": 0.5}
    whole = train_loader(dataset_of(names), **settings).batches(2)
    picked = train_loader(
        dataset_of(names), pick=pick_at_random, hflip_prob=0.5, **settings
    ).batches(2)
    num_mirrored = 0
    for a, b in zip(whole, picked, strict=True):
        assert (a.keys, a.num_clips, a.num_failed) == (b.keys, b.num_clips, b.num_failed)
        assert torch.equal(a.labels, b.labels)
        clips = a.clips.clone()
        mirror(clips, a.keys, 0.5, seed=0)
        num_mirrored += int((clips != a.clips).flatten(1).any(1).sum())
        assert same_packed(b.clips, pick_at_random(clips, a.keys))
        assert b.clips.values.dtype == torch.uint8
    assert 3 < num_mirrored < 12


def test_a_batch_of_which_nothing_could_be_read_has_the_patches_of_a_blank_clip(dataset_of):
    names = [f"bad{i}" for i in range(4)]
    loader = train_loader(dataset_of(names), pick=pick_at_random, max_bad_ratio=1.0)
    (empty,) = loader.batches(0)
    assert (empty.num_clips, empty.num_failed, len(empty.keys)) == (0, 4, 1)
    assert empty.clips.batch_size == 1
    assert not empty.clips.values.any()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_picked_batches_do_not_depend_on_workers_or_on_where_an_epoch_starts(video_dataset):
    def batches(num_workers, start=0):
        return list(
            train_loader(
                video_dataset,
                repeats=2,
                num_workers=num_workers,
                max_bad_ratio=0.1,
                pick=PICK,
                hflip_prob=0.5,
            ).batches(1, start)
        )

    alone = batches(0)
    for other in (batches(2), alone[:3] + batches(0, 3)):
        for a, b in zip(alone, other, strict=True):
            assert a.keys == b.keys
            assert same_packed(a.clips, b.clips)
    assert any(batch.num_failed for batch in alone)


# ---------------------------------------------------------------------------------------------------------- workers


@pytest.fixture(scope="module")
def video_dataset(tmp_path_factory, make_video):
    """Twelve records of two small videos, one of them cut in half."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", num_frames=24, height=48, width=64)
    make_video(folder / "b.mp4", num_frames=30, height=64, width=48)
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    paths = ["a.mp4", "b.mp4"] * 5 + ["c.mp4", "a.mp4"]
    return ClipDataset(
        Annotations.of_videos(paths),
        RawVideos(str(folder), cache=str(folder / "cache")),
        **{"num_frames": 4, "size": 32, "seed": 0, "training": True, "label_names": None},
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_the_number_of_workers(video_dataset):
    def batches(num_workers):
        loader = train_loader(video_dataset, repeats=2, num_workers=num_workers, max_bad_ratio=0.1)
        # Two whole epochs in sequence, then a jump into the middle of a third, then one that is abandoned.
        out = [*loader.batches(0), *loader.batches(1), *loader.batches(4, 3)]
        out.append(next(loader.batches(6)))
        return [*out, *loader.batches(2)]

    alone = batches(0)
    assert len(alone) == 6 + 6 + 3 + 1 + 6
    for num_workers in (1, 3):
        for a, b in zip(alone, batches(num_workers), strict=True):
            assert a.keys == b.keys
            assert torch.equal(a.clips, b.clips)
            assert (a.num_clips, a.num_failed) == (b.num_clips, b.num_failed)


class Deadly(RawVideos):
    """Ends the process that reads a video whose name says so."""

    def read(self, spec):
        if "deadly" in spec.video:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().read(spec)


def test_a_worker_that_is_killed_is_replaced(video_dataset, caplog):
    expected = list(train_loader(video_dataset, max_bad_ratio=1.0).batches(0))
    loader = train_loader(video_dataset, num_workers=1, max_bad_ratio=1.0, prefetch=1)
    stream = loader.batches(0)
    batches = [next(stream)]
    os.kill(loader._data_loader._iterator._workers[0].pid, signal.SIGKILL)
    batches += stream
    assert [batch.keys for batch in batches] == [batch.keys for batch in expected]
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(batches, expected))
    assert "a data worker died" in caplog.text


def test_a_video_that_workers_die_of_is_left_out(tmp_path, make_video, caplog):
    for name in ("a.mp4", "deadly.mp4", "c.mp4"):
        make_video(tmp_path / name, num_frames=8)
    annotations = Annotations.of_videos(["a.mp4", "deadly.mp4", "c.mp4"], str(tmp_path))
    library = Deadly(str(tmp_path), cache=str(tmp_path / "cache"))
    dataset = ClipDataset(
        annotations, library, num_frames=2, size=16, seed=0, training=True, label_names=None
    )
    quarantine = tmp_path / "quarantine.csv"
    loader = train_loader(
        dataset, 3, shuffle=False, num_workers=1, max_bad_ratio=0.5, quarantine=quarantine
    )
    (batch,) = loader.batches(0)
    assert [key.index for key in batch.keys] == [0, 2]
    assert batch.num_failed == 1
    row = quarantine.read_text().splitlines()[1]
    assert row.startswith("deadly.mp4,,")
    assert "the process that read it died" in row
    assert caplog.text.count("a data worker died while it read deadly.mp4") == 2


def test_workers_that_die_whatever_they_read_are_a_clear_error(video_dataset, monkeypatch):
    loader = train_loader(video_dataset, num_workers=1)

    def dies(stream, remedy):
        raise DeadWorkerError(f"a data worker died: {remedy}", [1])

    monkeypatch.setattr(loading, "received", dies)
    monkeypatch.setattr(loader, "_start_at", lambda *place: None)
    with pytest.raises(DataError, match=r"a data worker died: lower data\.num_workers"):
        next(loader.batches(0))
    assert len(loader._suspects) == 9


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_signals_to_the_whole_group_do_not_end_the_workers(video_dataset, name):
    loader = train_loader(video_dataset, num_workers=1, max_bad_ratio=1.0, prefetch=1)
    stream = loader.batches(0)
    next(stream)
    worker = loader._data_loader._iterator._workers[0].pid
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    time.sleep(0.2)
    assert len(list(stream)) == 2


def test_the_training_process_can_end_its_workers(video_dataset):
    """multiprocessing does so at exit, to workers that still have work, and then waits for them."""
    loader = train_loader(video_dataset, num_workers=1, max_bad_ratio=1.0, prefetch=1)
    next(loader.batches(0))
    worker = loader._data_loader._iterator._workers[0]
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


def test_workers_do_not_run_the_users_script_again(video_dataset, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('the script ran again')")
    main = ModuleType("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    loader = train_loader(video_dataset, num_workers=1, max_bad_ratio=1.0)
    assert next(loader.batches(0)).num_clips > 0
    assert sys.modules["__main__"] is main


def test_workers_end_with_the_loader(video_dataset):
    loader = train_loader(video_dataset, num_workers=1, max_bad_ratio=1.0)
    next(loader.batches(0))
    workers = loader._data_loader._iterator._workers
    assert workers[0] in multiprocessing.active_children()
    del loader
    workers[0].join(10)
    assert not workers[0].is_alive()


@pytest.mark.gpu
def test_pinned_patches_are_the_same(video_dataset):
    pinned = list(
        train_loader(
            video_dataset, max_bad_ratio=1.0, pin_memory=True, num_workers=1, pick=PICK
        ).batches(0)
    )
    plain = list(train_loader(video_dataset, max_bad_ratio=1.0, pick=PICK).batches(0))
    for a, b in zip(pinned, plain, strict=True):
        assert a.clips.values.is_pinned()
        assert same_packed(a.clips.to("cuda", non_blocking=True).to("cpu"), b.clips)


@pytest.mark.gpu
def test_pinned_batches_are_the_same(video_dataset):
    pinned = list(
        train_loader(video_dataset, max_bad_ratio=1.0, pin_memory=True, num_workers=1).batches(0)
    )
    plain = list(train_loader(video_dataset, max_bad_ratio=1.0).batches(0))
    for a, b in zip(pinned, plain, strict=True):
        assert a.clips.is_pinned()
        assert torch.equal(a.clips, b.clips)
        assert (a.keys, a.num_clips, a.num_failed) == (b.keys, b.num_clips, b.num_failed)


@pytest.mark.parametrize(
    ("said", "pids"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", [12]),
        ("DataLoader worker (pid(s) 12, 345) exited unexpectedly", [12, 345]),
    ],
)
def test_torch_says_which_workers_are_gone(said, pids):
    def stream():
        raise RuntimeError(said)
        yield

    with pytest.raises(DeadWorkerError, match="lower it") as error:
        received(stream(), "lower it")
    assert error.value.pids == pids
