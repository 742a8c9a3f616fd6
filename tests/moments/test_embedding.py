"""Which moments of a store or a folder are embedded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import onereel
from onereel.config import DataConfig, RunConfig
from onereel.errors import ConfigError, DataError
from onereel.moments.embedding import _moments, _windows, embed
from onereel.video.raw import RawVideos


def test_nothing_to_embed_is_said() -> None:
    with pytest.raises(DataError, match="there is no video to embed"):
        _windows(RawVideos(), [], 3.0, "")


@pytest.mark.parametrize("name", ["videos", "videos/one.mp4"])
def test_videos_are_no_list_of_moments_without_a_window(
    name: str, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "one.mp4", num_frames=8)
    with pytest.raises(ConfigError, match=rf"{name} names no moments: add --window-seconds 5"):
        _moments(RunConfig(), str(tmp_path / name), 0.0)


def test_a_store_names_no_moments_without_a_window(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store names no moments: add --window-seconds 5"):
        embed("run", store=tmp_path / "store", out=tmp_path / "f.parquet")


def test_a_part_of_a_stores_folder_is_found_in_the_store(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    part = tmp_path / "videos" / "part"
    part.mkdir(parents=True)
    make_video(part / "one.mp4", num_frames=30)
    make_video(tmp_path / "videos" / "two.mp4", num_frames=30)
    onereel.prepare(tmp_path / "videos", tmp_path / "store", num_workers=1)
    config = RunConfig(data=DataConfig(store=str(tmp_path / "store")))
    for source in (part, part / "one.mp4"):
        found, broken = _moments(config, str(source), 5.0)
        assert broken == []
        assert found.table["path"].to_pylist() == [str(part / "one.mp4")]
