"""What `onereel inspect` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from onereel.errors import ConfigError


@dataclass(frozen=True)
class ClipOptions:
    """Which clip of a video; what is None is as the run has it, or a default where there is no run."""

    start: float | None = None
    """Seconds at which the clip starts; default: so that it lies in the middle."""
    num_frames: int | None = None
    """Frames of the clip; default: the run's, else 16."""
    sampling_rate: int | None = None
    """Source frames between two of them; default: the run's, else 4."""
    size: int | None = None
    """Height and width in pixels; default: the run's, else 224."""
    patch_size: int | None = None
    """Pixels per side of a patch; default: the run's, else 16."""
    tubelet_size: int | None = None
    """Frames per tubelet; default: the run's, else 2."""

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 0:
            raise ConfigError(f"--start is {self.start:g}; allowed: 0 or more seconds")
        for name in ("num_frames", "sampling_rate", "size", "patch_size", "tubelet_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is {value}; allowed: 1 or more")
        if self.size is not None and self.size % 2:
            raise ConfigError(f"--size is {self.size}; allowed: even numbers")


@dataclass(frozen=True)
class InspectOptions:
    """Write a page that shows which tokens of a video every selector keeps; of a folder, one per video and an index.

    Example: onereel inspect holiday.mp4 --out holiday.html

    The pages need no network and no other file; open them in any browser.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="VIDEO|FOLDER")] = ""
    """Video, folder or list; with --store a video or folder of it, or nothing: all."""
    store: str = ""
    """Chunk store to read from."""
    run: str = ""
    """Run whose token selection the page begins with, and whose clips and patch embedding to use; without it,
    embeddings are raw pixels."""
    out: str = "inspect.html"
    """The page, NAME.html; those of a folder's videos go to the folder NAME_pages beside it."""
    clip: Annotated[ClipOptions, tyro.conf.arg(name="")] = field(default_factory=ClipOptions)
