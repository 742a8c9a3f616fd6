import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from onereel.config import DataConfig
from onereel.data.annotations import Annotations, Origin
from onereel.data.cropping import center_box, three_crop_box
from onereel.data.dataset import ClipDataset
from onereel.data.relevancy import Actions, SentencePool
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.types import SampleKey
from onereel.video.decode import ReferenceDecoder, VideoFile
from onereel.video.library import RawVideos


def test_a_spec_is_a_pure_function_of_its_key(dataset_of):
    keys = [
        SampleKey(epoch, index, view) for epoch in (0, 1) for index in (0, 1) for view in (0, 1)
    ]
    specs = [dataset_of(2).spec(key) for key in keys]
    again = dataset_of(2)
    assert [again.spec(key) for key in reversed(keys)] == specs[::-1]
    assert len({(spec.frame_indices, spec.crop, spec.video) for spec in specs}) == len(specs)
    assert dataset_of(2, seed=1).spec(keys[0]) != specs[0]


def test_a_plain_loader_is_told_what_a_sample_is_asked_for_by(dataset_of):
    loader = DataLoader(dataset_of(2), sampler=[SampleKey(1, 0)], collate_fn=list)
    assert [batch[0].key for batch in loader] == [SampleKey(1, 0)]
    with pytest.raises(TypeError, match=r"by SampleKey\(epoch, index\), not by 0"):
        dataset_of(2)[0]


def test_training_views_share_their_frames_and_differ_in_their_crop(dataset_of):
    dataset = dataset_of(3)
    specs = [dataset.spec(SampleKey(4, 1, view)) for view in range(4)]
    assert len({spec.frame_indices for spec in specs}) == 1
    assert len({spec.crop for spec in specs}) == 4


def test_views_of_one_decode_are_what_each_spec_reads(dataset_of, fake_library):
    library = fake_library(height=480, width=640)
    # As large as the crop, so that neither side resizes: the pixels must then be the same.
    dataset = dataset_of(3, library, crop="multi-scale", size=480)
    keys = [SampleKey(0, 2, view) for view in range(40)]
    whole = [
        key for key in keys if dataset.spec(key).crop.height == 480 == dataset.spec(key).crop.width
    ]
    alone = [dataset[key] for key in whole]
    assert len(alone) > 1
    library.reads.clear()
    together = dataset.read_views(2, 0, [key.view for key in whole])
    assert library.reads == {"video2": 1}
    for one, other in zip(alone, together):
        assert one.key == other.key
        assert torch.equal(one.clip, other.clip)


def test_views_of_one_decode_on_video(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", num_frames=24, height=120, width=160)
    library = RawVideos(str(tmp_path), cache=str(tmp_path / "cache"))
    dataset = video_dataset(library, "a.mp4", size=64, training=True, crop_scale=(0.3, 0.8))
    together = dataset.read_views(0, 0, [0, 1, 2])
    for sample in together:
        spec = dataset.spec(sample.key)
        exact = ReferenceDecoder().read(
            VideoFile(str(tmp_path / "a.mp4")), spec.frame_indices, spec.crop, spec.size
        )
        error = (sample.clip.float() - exact.float()).square().mean()
        assert sample.clip.shape == (4, 3, 64, 64)
        assert 10 * torch.log10(255**2 / error) > 35


def video_dataset(library, *paths, training=False, size=32, **settings) -> ClipDataset:
    return ClipDataset(
        Annotations.of_videos(paths),
        library,
        **{"num_frames": 4, "seed": 0, "label_names": None} | settings,
        training=training,
        size=size,
    )


def test_test_views_are_clips_times_crops(dataset_of, fake_library):
    library = fake_library(num_frames=100, height=49, width=120)
    dataset = dataset_of(
        1, library, training=False, sampling="dense", sampling_rate=2, num_clips=5, num_crops=3
    )
    assert dataset.num_views == 15
    specs = [dataset.spec(SampleKey(0, 0, view)) for view in range(15)]
    assert [spec.crop for spec in specs[:3]] == [three_crop_box(49, 120, i) for i in range(3)]
    assert all(spec.crop == specs[i % 3].crop for i, spec in enumerate(specs))
    starts = [spec.frame_indices[0] for spec in specs]
    assert starts == sorted(starts)
    assert starts[::3] == [0, 23, 47, 70, 93]
    one = dataset_of(1, library, training=False)
    assert one.spec(SampleKey(0, 0)).crop == center_box(49, 120)
    assert one.spec(SampleKey(0, 0)) == one.spec(SampleKey(9, 0))


def test_a_sample_carries_what_is_known(dataset_of):
    sample = dataset_of(3)[SampleKey(0, 1)]
    assert (sample.label, sample.caption) == (1, None)
    assert sample.clip.shape == (4, 3, 16, 16)
    assert sample.clip.dtype == torch.uint8
    assert dataset_of(3, label_names=None)[SampleKey(0, 1)].label is None


def test_seconds_choose_the_frames(fake_library, annotations_of):
    annotations = annotations_of(
        ["a", "b"],
        caption=["x", "y"],
        start=pa.array([1.0, 2.5], pa.float64()),
        end=pa.array([1.5, 9.0], pa.float64()),
    )
    dataset = ClipDataset(
        annotations,
        fake_library(num_frames=60),
        **{"num_frames": 3, "size": 16, "seed": 0, "training": False, "label_names": None},
    )
    assert dataset.spec(SampleKey(0, 0)).frame_indices == (32, 37, 42)
    with pytest.raises(DecodeError, match=r"^b: the record starts at 2.5 s"):
        dataset.spec(SampleKey(0, 1))


def test_a_label_that_training_lacks_is_refused(dataset_of):
    with pytest.raises(DataError, match="label 'c' does not occur in training"):
        dataset_of(6, training=False, label_names=("a", "b"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "segments"}, "Did you mean 'segment'"),
        ({"crop": "centre"}, "Did you mean 'center'"),
        ({"num_crops": 2}, "num_crops is 2; allowed: 1 or 3"),
    ],
)
def test_unknown_settings_are_refused(dataset_of, settings, message):
    with pytest.raises(ConfigError, match=message):
        dataset_of(3, **settings)


def test_the_reader_travels_without_the_annotations(tmp_path):
    library = RawVideos(str(tmp_path))
    dataset = video_dataset(library, *(f"video{i}" for i in range(10_000)))
    assert len(pickle.dumps(dataset.reader)) < 3000


def test_defaults_are_those_of_the_configuration(dataset_of):
    reader, config = dataset_of(3).reader, DataConfig()
    names = {f.name for f in dataclasses.fields(reader)} & {
        f.name for f in dataclasses.fields(config)
    }
    names -= {"num_frames", "size"}
    assert names == {"sampling", "sampling_rate", "crop", "crop_scale", "crop_ratio", "scaling"}
    for name in names:
        assert getattr(reader, name) == getattr(config, name)


def test_one_of_several_captions_is_drawn_by_epoch_and_view(fake_library):
    texts = [f"text {i}" for i in range(5)]
    table = pa.table({"path": ["a", "b"], "caption": [texts, ["only"]]})

    def dataset(training: bool, seed: int = 0) -> ClipDataset:
        return ClipDataset(
            Annotations(table, "list"),
            fake_library(),
            num_frames=1,
            size=16,
            seed=seed,
            training=training,
            label_names=None,
        )

    keys = [SampleKey(epoch, 0, view) for epoch in range(60) for view in range(5)]
    drawn = [dataset(training=True)[key].caption for key in keys]
    counts = [drawn.count(text) for text in texts]
    assert min(counts) > 35, "each about 60 times"
    assert [dataset(training=True)[key].caption for key in reversed(keys)] == drawn[::-1]
    assert [dataset(training=True, seed=1)[key].caption for key in keys] != drawn
    assert {dataset(training=False)[key].caption for key in keys} == {"text 0"}
    assert dataset(training=True)[SampleKey(3, 1)].caption == "only"


def test_a_retrieval_list_draws_relevant_sentences(fake_library):
    actions = Actions(np.array([0, 1]), np.eye(2, dtype=bool))
    pool = SentencePool(("take cup", "put bin"), actions, actions)
    table = pa.table({"path": ["a", "b"], "caption": ["take the cup", "bin it"]})
    dataset = ClipDataset(
        Annotations(table, "list", origin=Origin(sentences=pool)),
        fake_library(),
        **{"num_frames": 1, "size": 16, "seed": 0, "training": True, "label_names": None},
    )
    assert [dataset[SampleKey(0, i)].caption for i in range(2)] == ["take cup", "put bin"]
    assert pickle.loads(pickle.dumps(dataset.reader)).sentences.texts == pool.texts
