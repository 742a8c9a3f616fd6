"""The door to videos by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from onereel.errors import DataError
from onereel.video.library import RawVideos, open_library


def test_without_a_store_raw_files_are_read(tmp_path: Path) -> None:
    library = open_library(root=str(tmp_path), timeout_seconds=7.0)
    assert isinstance(library, RawVideos)
    assert library.root == str(tmp_path)
    assert library.decoder.timeout_seconds == 7.0


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_library(store=str(tmp_path))
