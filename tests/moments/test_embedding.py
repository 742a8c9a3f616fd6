"""Which moments of a store or a folder are embedded."""

from __future__ import annotations

import pytest

from onereel.errors import DataError
from onereel.moments.embedding import _windows
from onereel.video.raw import RawVideos


def test_nothing_to_embed_is_said() -> None:
    with pytest.raises(DataError, match="there is no video to embed"):
        _windows(RawVideos(), [], 3.0, "")
