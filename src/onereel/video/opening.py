"""How every video file is opened for reading."""

from __future__ import annotations

from typing import Any

import av


def open_video(path: str, timeout: float | None = None) -> Any:
    """FFmpeg's container of a file, whose titles and comments may be bytes of any encoding: nothing here reads them.

    Args:
        path: the file.
        timeout: seconds that FFmpeg may wait for the file; None = for ever.

    Raises:
        av.FFmpegError: the file is missing, or no media file.
    """
    return av.open(path, timeout=timeout, metadata_errors="replace")
