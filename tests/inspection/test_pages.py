"""A page holds everything itself, and nothing that a folder holds keeps the others from their pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onereel
from onereel.build import build_selector
from onereel.cli import main
from onereel.config import TokensConfig
from onereel.errors import DataError, DecodeError
from onereel.inspection.clip import inspect_clip
from onereel.inspection.options import ClipOptions
from onereel.inspection.pages import inspect, page_name
from onereel.inspection.reading import clip_reading
from onereel.models.registry import create_encoder
from onereel.report.inspect_page import SELECTORS, render_page
from onereel.video.library import open_library
from onereel.video.prepare import prepare

SMALL = ClipOptions(num_frames=12, sampling_rate=1, size=64)
HOSTILE = "<script>alert('&\")</script> \N{SNOWMAN}.mp4"


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text of the page's data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][1].get("id") == "data":
            self.data += data

    def json(self) -> dict[str, Any]:
        return json.loads(self.data)

    def links(self) -> list[str]:
        """Whatever a browser would fetch or follow."""
        names = ("src", "href", "action", "poster", "srcset", "data")
        return [a[name] or "" for _, a in self.tags for name in names if name in a]


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def assert_self_contained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)
    for link in read_page(path).links():
        is_page = link.endswith(".html") and (path.parent / link.replace("%20", " ")).exists()
        assert link.startswith(("data:image/jpeg;base64,", "#")) or is_page, link


@pytest.fixture(scope="module")
def folder(
    moving_video: Path, make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two videos, one of them in a folder of its own, one that is cut off, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "in here").mkdir()
    (folder / "in here" / "moving.mp4").write_bytes(moving_video.read_bytes())
    make_video(folder / "b.mp4", num_frames=24, height=64, width=96)
    (folder / "cut.mp4").write_bytes(moving_video.read_bytes()[:2000])
    (folder / "text.mp4").write_text("no video")
    return folder


def test_one_video_gives_one_page_that_holds_everything(moving_video: Path, tmp_path: Path) -> None:
    report = inspect(moving_video, out=tmp_path / "new" / "page.html", clip=SMALL)
    assert report.page == tmp_path / "new" / "page.html"
    assert str(report) == f"wrote {report.page}"
    assert list(report.page.parent.iterdir()) == [report.page]
    assert_self_contained(report.page)
    assert len(read_page(report.page).json()["frames"]) == 12


def test_the_page_of_a_usual_clip_is_small(moving_video: Path, tmp_path: Path) -> None:
    report = inspect(moving_video, out=tmp_path / "page.html")
    assert report.page.stat().st_size < 1.5e6


def test_the_data_are_those_that_the_selectors_decide_by(
    moving_video: Path, tmp_path: Path
) -> None:
    data = read_page(inspect(moving_video, out=tmp_path / "page.html", clip=SMALL).page).json()
    clip = inspect_clip(open_library(), str(moving_video), clip_reading(SMALL))
    assert data["grid"] == list(clip.grid)
    assert np.array_equal(floats(data["adjacent"]), clip.adjacent.flatten().numpy())
    assert np.array_equal(floats(data["anchored"]), clip.anchored.flatten().numpy())
    assert data["scores"].keys() == {"redundancy", "group-dynamic"}
    for key, scores in clip.scores.items():
        assert np.array_equal(floats(data["scores"][key]), scores.numpy())
    for key, ranking in clip.rankings.items():
        embedded = np.frombuffer(base64.b64decode(data["rankings"][key]), "<i4")
        assert np.array_equal(embedded, ranking.numpy())
    assert [one["key"] for one in data["selectors"]] == [text.key for text in SELECTORS]
    for one in data["selectors"]:
        kind = "run-length" if one["unit"] == "threshold" else one["key"]
        selector = build_selector(TokensConfig(kind=kind), 2, 16)
        assert one["needsEmbeddings"] == selector.needs_embeddings


def test_the_models_are_the_usual_ones(moving_video: Path, tmp_path: Path) -> None:
    data = read_page(inspect(moving_video, out=tmp_path / "page.html", clip=SMALL).page).json()
    assert [m["name"] for m in data["models"]] == ["ViT-S/16", "ViT-B/16", "ViT-L/16"]
    assert [m["name"] for m in data["models"] if m["chosen"]] == ["ViT-B/16"]
    for model, name in zip(data["models"], ("small", "base", "large")):
        with torch.device("meta"):
            encoder = create_encoder(f"vit_{name}_patch16_64", num_frames=12)
        assert (model["embedDim"], model["depth"]) == (encoder.embed_dim, encoder.depth)
        assert data["patchValues"] == encoder.patch_values


def test_a_folder_gives_an_index_and_lists_what_is_broken(folder: Path, tmp_path: Path) -> None:
    report = inspect(folder, out=tmp_path / "all.html", clip=SMALL)
    assert report.num_pages == 2
    assert [one.path for one in report.broken] == ["cut.mp4", "text.mp4"]
    assert "not read: cut.mp4: " in str(report)
    pages = sorted(path.name for path in (tmp_path / "all_pages").iterdir())
    assert pages == sorted(map(page_name, ("b.mp4", "in here/moving.mp4")))
    assert_self_contained(report.page)
    index = report.page.read_text(encoding="utf-8")
    assert all(one.reason in index for one in report.broken)
    for page in (tmp_path / "all_pages").iterdir():
        assert_self_contained(page)
        assert "../all.html" in read_page(page).links()


def test_the_index_tells_what_run_length_keeps(folder: Path, tmp_path: Path) -> None:
    report = inspect(folder, out=tmp_path / "all.html", clip=SMALL)
    shares = {
        attributes["data-name"]: float(attributes["data-kept"] or "")
        for tag, attributes in read_page(report.page).tags
        if tag == "li"
    }
    library = open_library(root=str(folder))
    for name, share in shares.items():
        adjacent = inspect_clip(library, name, clip_reading(SMALL)).adjacent
        first = adjacent[0].numel()
        assert share == (first + int((adjacent > 0.1).sum())) / (first + adjacent.numel())


def test_nothing_readable_is_said_and_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    out = tmp_path / "all.html"
    assert main(["inspect", str(tmp_path / "videos"), "--out", str(out)]) == 1
    assert "not read: text.mp4: " in capsys.readouterr().out
    assert "None of 1 videos could be read" in out.read_text()


def test_a_store_gives_its_videos(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare(str(folder), str(store), num_workers=1)
    out = tmp_path / "page.html"
    assert inspect(store=store, out=out, clip=SMALL).num_pages == 2
    assert inspect("in here", store=store, out=out, clip=SMALL).num_pages == 1
    assert inspect("b.mp4", store=store, out=out, clip=SMALL).num_pages == 1
    assert len(read_page(out).json()["frames"]) == 12
    with pytest.raises(DataError, match=r"Did you mean 'b\.mp4'"):
        inspect("bb.mp4", store=store, out=out)


def test_a_hostile_name_is_shown_as_text(moving_video: Path) -> None:
    clip = inspect_clip(open_library(), str(moving_video), clip_reading(SMALL))
    object.__setattr__(clip, "name", HOSTILE)
    text = render_page(clip)
    assert "<script>alert" not in text
    assert "\N{SNOWMAN}" in text


def test_names_of_pages_are_safe_and_different() -> None:
    names = ["a.mp4", "a/b.mp4", "a_b.mp4", "a b.mp4", "../a.mp4", "x" * 300 + ".mp4", "\udcff.mp4"]
    files = [page_name(name) for name in names]
    assert files[0] == "a.mp4.html"
    assert len(set(files)) == len(files)
    assert all(re.fullmatch(r"\w[\w.=+@-]{1,100}\.html", file) for file in files)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "onereel inspect VIDEO"),
        (["none.mp4"], "none.mp4 does not exist"),
        (["none.mp4", "--out", "page.mp4"], "ends in .html"),
        (["none.mp4", "--num-frames", "15"], "num_frames 14 or 16"),
        (["none.mp4", "--start", "-1"], "--start"),
        (["none.mp4", "--run", "none"], "none"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onereel: error: ")
    assert hint in error


def test_the_one_video_that_is_broken_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"text\.mp4"):
        onereel.inspect(folder / "text.mp4", out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
