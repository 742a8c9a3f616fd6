"""What `prepare --check` says of a list: everything that is wrong, and everything that will be bent."""

import pyarrow as pa

from onereel.data.annotation_check import check_annotations
from onereel.data.annotations import Annotations, Origin, read_annotations
from onereel.errors import DecodeError
from onereel.types import VideoInfo


def test_check_reports_everything(fake_library, annotations_of):
    class Library(fake_library):
        def info(self, video: str) -> VideoInfo:
            if video.startswith("bad"):
                raise DecodeError(video, "not a video")
            return super().info(video)

    annotations = annotations_of(
        ["gone.mp4", "bad.mp4", "a.mp4", "a.mp4", "a.mp4", "gone.mp4"],
        ["x", "x", "x", "y", "zz", "x"],
        start=pa.array([None, None, 0.5, 1.9, 9.0, None], pa.float64()),
    )
    report = check_annotations(annotations, Library(), 16, 2, label_names=("x", "y"))
    assert report.missing == ("gone.mp4",)
    assert [q.path for q in report.unreadable] == ["bad.mp4"]
    assert [r.index for r in report.outside] == [4]
    assert [r.index for r in report.short] == [3]
    assert report.unknown_labels == {"zz": 1}
    assert report.class_counts == {"x": 4, "y": 1, "zz": 1}
    assert report.single_clip_classes == ("y", "zz")
    assert report.usable == (2, 3)
    assert not report.ok
    for part in ("gone.mp4", "bad.mp4: not a video", "zz (1 records)", "shorter than 31 frames"):
        assert part in str(report)


def test_a_missing_file_is_told_from_a_misspelt_one(fake_library, annotations_of):
    class Library(fake_library):
        def __contains__(self, video: str) -> bool:
            return video in self.videos()

        def videos(self) -> list[str]:
            return ["wave/Clip 1.mp4", "wave/b.v2.mov"]

    names = [r"Wave\Clip 1.mp4", "wave/clip 1", "wave/b.v2", "wave/b", "wave/b.v2.mov"]
    report = check_annotations(annotations_of(names, ["x"] * 5), Library(), 16)
    assert report.missing == tuple(names[:4])
    assert report.similar == dict(
        zip(names, ["wave/Clip 1.mp4", "wave/Clip 1.mp4", "wave/b.v2.mov"])
    )
    assert "wave/clip 1 (there is wave/Clip 1.mp4)\n" in str(report)


def test_a_video_that_could_not_be_prepared_is_told_from_a_missing_one(
    fake_library, annotations_of
):
    annotations = annotations_of(["gone1", "gone2"], ["x", "x"])
    reasons = {"gone2": "no video stream"}
    report = check_annotations(
        annotations, fake_library(), 16, refused=lambda video: reasons.get(video, "")
    )
    assert report.missing == ("gone1",)
    assert not report.ok
    assert "  gone2: not in the store: no video stream" in str(report)


def test_check_of_a_good_list_is_ok(fake_library, annotations_of):
    report = check_annotations(annotations_of(["a", "b"], ["x", "x"]), fake_library(), 16)
    assert report.ok
    assert "1 classes of 2 to 2 clips" in str(report)


def test_records_that_will_be_bent_are_counted_and_usable(fake_library):
    """60 frames at 30 fps, chunks of 20 frames."""
    spans = {
        (0.0, 0.6): "in one chunk",
        (0.6, 0.7): "crosses at frame 20",
        (0.0, 2.0): "crosses twice, counts once",
        (0.6, 2 / 3): "ends at the border",
        (1.5, 2.4): "ends behind the video",
        (1.5, 2.01): "ends behind it by less than half a frame",
        (0.31, 0.32): "shorter than a frame",
    }
    starts, ends = zip(*spans)
    table = pa.table(
        {"path": ["v"] * len(spans), "caption": list(spans.values()), "start": starts, "end": ends}
    )
    annotations = Annotations(table, "list", origin=Origin(left_out={"without text": 3}))
    report = check_annotations(annotations, fake_library(num_chunk_frames=20), 2)
    assert report.ok
    assert report.num_crossing == 2
    assert [r.caption for r in report.cut] == ["ends behind the video"]
    assert [r.caption for r in report.tiny] == ["shorter than a frame"]
    assert report.short == ()
    text = str(report)
    assert "entries without text, left out: 3" in text
    assert "records that lie in more than one chunk: 2" in text
    assert "records that end after their video (cut there): 1" in text
    assert "records shorter than a frame (they repeat it): 1" in text
    assert check_annotations(annotations, fake_library(), 2).num_crossing == 0


def test_epic_segments_that_cross_borders(fake_library, real_data):
    """Of 9,668 segments 2,116 touch two chunks of 15 s, 70 two of 300 s; a few of them end before the next frame."""
    annotations = read_annotations(str(real_data / "epic100" / "EPIC_100_validation.csv"))
    start, end = (annotations.table[name].to_numpy() for name in ("start", "end"))
    for seconds, touching in ((15, 2116), (300, 70)):
        assert (start // seconds != end // seconds).sum() == touching
        library = fake_library(num_frames=10**6, num_chunk_frames=seconds * 30)
        crossing = check_annotations(annotations, library, 4).num_crossing
        assert 0.98 * touching <= crossing <= touching
