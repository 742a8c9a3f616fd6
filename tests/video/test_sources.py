"""Which videos a folder, a list or a CSV names."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from onereel.errors import DataError
from onereel.video.prepare import prepare
from onereel.video.sources import Source, file_size, list_sources, looked_at, named_videos


def test_a_folder_gives_its_videos_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.AVI", "a/.hidden.mp4", ".git/d.mp4", "notes.txt", "store/e.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root, sources = list_sources(tmp_path, out=str(tmp_path / "store"))
    assert root == str(tmp_path)
    assert [s.name for s in sources] == ["a/c.AVI", "b.mp4"]
    assert sources[0].path == str(tmp_path / "a/c.AVI")


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    """Each round would list every video again, until a path is too long for the system."""
    for name in ("in/a/1.mp4", "in/b/2.mp4", "elsewhere/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/loop").symlink_to(".")
    (tmp_path / "in/up").symlink_to(tmp_path)
    (tmp_path / "in/a/b").symlink_to("../b")
    (tmp_path / "in/b/a").symlink_to("../a")
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/back").symlink_to("../in")
    names = [source.name for source in list_sources(tmp_path / "in")[1]]
    assert names == ["a/1.mp4", "a/b/2.mp4", "b/2.mp4", "b/a/1.mp4", "linked/3.mp4"]


@pytest.mark.parametrize(
    "text",
    [
        "my video.mp4 3\nb.webm 4\nmy video.mp4 7\n",
        "my video.mp4,3\nb.webm,4\n",
        "my video.mp4\nb.webm\n",
        "my video.mp4 120 3\nb.webm 90 4\n",
        "path\tlabel\nmy video.mp4\tx\nb.webm\ty\n",
        "label,path\nx,my video.mp4\ny,b.webm\n",
        'path,caption\n"my video.mp4","a, b"\nb.webm,c d\n',
        "\ufeffpath,label\r\nmy video.mp4,1\r\nb.webm,2\r\n",
        "\ufeffLabel;Path\r\n1, 2;my video.mp4\r\n2;b.webm\r\n",
    ],
)
def test_every_form_of_list_names_each_video_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    root, sources = list_sources(path)
    assert root == str(tmp_path)
    assert [s.name for s in sources] == ["b.webm", "my video.mp4"]
    _, elsewhere = list_sources(path, root="/videos")
    assert elsewhere[0].path == "/videos/b.webm"


def test_one_file_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    root, sources = list_sources(tmp_path / "a.mp4")
    assert (root, sources[0].name) == (str(tmp_path), "a.mp4")
    root, sources = list_sources(["x/a.mp4", "/y/b.mp4"], root=str(tmp_path))
    assert [s.path for s in sources] == ["/y/b.mp4", str(tmp_path / "x/a.mp4")]


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no video"):
        list_sources(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        list_sources(tmp_path / "absent")
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="neither a video"):
        list_sources(tmp_path / "list.csv")


def test_folders_and_lists_stand_for_their_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in/b.mp4", "in/deep/a.mp4", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/list.csv").write_text("path,label\nabsent.mp4,x\n/b.mp4,y\n")
    monkeypatch.chdir(tmp_path)
    assert named_videos("in") == ["in/b.mp4", "in/deep/a.mp4"]
    assert named_videos(["z.mp4", tmp_path / "in/b.mp4", "in/list.csv"]) == [
        *("z.mp4", str(tmp_path / "in/b.mp4"), "/b.mp4", "in/absent.mp4")
    ]
    with pytest.raises(DataError, match="names no video"):
        named_videos(tmp_path / "in/notes.txt")


def test_sources_are_looked_at_many_at_a_time_and_come_in_order() -> None:
    together = threading.Barrier(8, timeout=60)  # passes only where eight wait in it

    def look(source: Source) -> str:
        together.wait()
        return source.name

    sources = [Source(str(number), "", "") for number in range(8)]
    assert list(looked_at(look, sources)) == [source.name for source in sources]


def test_prepare_looks_at_many_files_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=60)

    def late(path: str) -> int:
        together.wait()
        return file_size(path)

    for number in range(4):
        (tmp_path / f"{number}.mp4").touch()
    monkeypatch.setattr("onereel.video.schedule.file_size", late)
    settings = {"num_workers": 1, "progress": False}
    report = prepare(tmp_path, tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert len(report.quarantined) == 4


@pytest.mark.parametrize("name", ["missing.mp4", "", "a\0b.mp4"])
def test_what_is_no_file_has_no_size(tmp_path: Path, name: str) -> None:
    assert file_size(str(tmp_path / name)) == -1
