"""What a page replays is what the selectors do: their differences, rankings and scores, at every setting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onereel.build import build_selector
from onereel.config import TokensConfig
from onereel.inspection.clip import draw, head_differences, inspect_clip
from onereel.inspection.options import ClipOptions
from onereel.inspection.reading import clip_reading
from onereel.report.inspect_page import InspectedClip
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import TubeletGrid
from onereel.video.library import open_library

BUDGETED = ("redundancy", "group-dynamic", "random", "tube")


@pytest.fixture(scope="module")
def inspected(moving_video: Path, tmp_path_factory: pytest.TempPathFactory) -> InspectedClip:
    reading = clip_reading(ClipOptions(num_frames=12, sampling_rate=1, size=64))
    return inspect_clip(open_library(), str(moving_video), reading)


def anchored_mask(differences: torch.Tensor, grid: TubeletGrid, threshold: float) -> torch.Tensor:
    """The anchored rule as the page replays it: bool `(gt, gh, gw)`."""
    mask = torch.ones(tuple(grid), dtype=torch.bool)
    head = torch.zeros(grid.gh, grid.gw, dtype=torch.long)
    for k in range(1, grid.gt):
        rows = differences[k * (k - 1) // 2 :][:k]
        mask[k] = rows.gather(0, head[None])[0] > threshold
        head[mask[k]] = k
    return mask


@pytest.mark.parametrize("shape", [(16, 3, 32, 48), (3, 3, 16, 16), (1, 3, 16, 32)])
@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_anchored_runs_replay_at_every_threshold(shape: tuple[int, ...], tubelet_size: int) -> None:
    shape = (max(tubelet_size, shape[0] // tubelet_size * tubelet_size), *shape[1:])
    clips = torch.randn(1, *shape).mul(0.05).cumsum(dim=1)
    grid = clip_grid(clips, tubelet_size, 16)
    differences = head_differences(clips, tubelet_size, 16)
    assert differences.shape == (1, grid.gt * (grid.gt - 1) // 2, grid.gh, grid.gw)
    # Thresholds that some difference equals are where rounding would show.
    for threshold in [0.0, 0.05, 0.1, *differences.flatten()[::5].tolist()]:
        tokens = TokensConfig(kind="run-length", reference="anchor", threshold=threshold)
        selection = build_selector(tokens, tubelet_size, 16).select(clips, None, grid, None)
        replayed = anchored_mask(differences[0], grid, threshold)
        assert torch.equal(replayed.flatten(), selection.keep_mask[0])


def selected(
    tokens: TokensConfig, moving_video: Path, options: ClipOptions | None = None
) -> torch.Tensor:
    """The mask `(N,)` of the selector itself, on the clip that the page shows."""
    reading = clip_reading(options or ClipOptions(num_frames=12, sampling_rate=1, size=64))
    library = open_library()
    clip = library.read(reading.spec(str(moving_video), library.info(str(moving_video))))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (reading.augment.mean, reading.augment.std))
    clips = ((clip.float() / 255 - mean) / std)[None]
    embeddings = patchify(clips, reading.tubelet_size, reading.patch_size)
    selector = build_selector(tokens, reading.tubelet_size, reading.patch_size)
    return selector.select(clips, embeddings, reading.grid, draw()).keep_mask[0]


@pytest.mark.parametrize("kind", BUDGETED)
def test_every_budget_is_the_first_of_the_ranking(
    kind: str, inspected: InspectedClip, moving_video: Path
) -> None:
    step = inspected.grid.gt if kind == "tube" else 7
    for budget in range(step, inspected.grid.num_tokens + 1, step):
        mask = selected(TokensConfig(kind=kind, token_budget=budget), moving_video)
        assert mask.sum() == budget
        ranking = inspected.rankings[kind]
        if kind == "tube":
            places = torch.zeros(inspected.grid.gh * inspected.grid.gw, dtype=torch.bool)
            places[ranking[: budget // inspected.grid.gt]] = True
            assert torch.equal(places.repeat(inspected.grid.gt), mask)
        else:
            assert set(ranking[:budget].tolist()) == set(mask.nonzero().flatten().tolist())


def test_adjacent_runs_replay_at_every_threshold(
    inspected: InspectedClip, moving_video: Path
) -> None:
    first = torch.ones(1, *inspected.grid[1:], dtype=torch.bool)
    for threshold in [0.0, 0.1, *inspected.adjacent.flatten()[::9].tolist()]:
        mask = selected(TokensConfig(kind="run-length", threshold=threshold), moving_video)
        replayed = torch.cat([first, inspected.adjacent > threshold])
        assert torch.equal(replayed.flatten(), mask)


def test_a_short_video_says_that_frames_repeat(
    inspected: InspectedClip, moving_video: Path
) -> None:
    reading = clip_reading(ClipOptions(num_frames=60, sampling_rate=1, size=32))
    short = inspect_clip(open_library(), str(moving_video), reading)
    assert any("repeat" in note for note in short.notes)
    assert not any("repeat" in note for note in inspected.notes)


def test_frames_are_shown_finer_where_the_video_is(moving_video: Path) -> None:
    for size, shown in ((32, 64), (64, 96), (96, 96), (128, 128)):
        reading = clip_reading(ClipOptions(num_frames=4, size=size))
        clip = inspect_clip(open_library(), str(moving_video), reading)
        assert clip.frames.shape == (4, 3, shown, shown)
        assert clip.grid == TubeletGrid(2, size // 16, size // 16)
