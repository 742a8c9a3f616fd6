"""Clips to logits: selection, encoding and head together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onereel.errors import ConfigError
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.tokens.frames import FrameSelection
from onereel.tokens.packing import pack_clips
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import random_tokens
from onereel.tokens.selector import KeepAll, Selector, Tube
from onereel.tokens.tubelets import patchify
from onereel.types import TokenSelection, TubeletGrid

NUM_TOKENS = 4 * 3 * 3
SELECTORS = [KeepAll(), random_tokens(0.4), Tube(0.4), RunLength(0.3), RunLength(0.3, "anchor")]


class LargestEmbeddings:
    """Keeps the `count` tokens of largest embedding: a selector that needs them."""

    needs_embeddings = True

    def __init__(self, count: int) -> None:
        self.count = count

    def num_kept(self, grid: TubeletGrid) -> int:
        return self.count

    def select(
        self,
        clips: torch.Tensor,
        embeddings: torch.Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        assert embeddings is not None
        assert not embeddings.requires_grad
        assert not torch.is_grad_enabled()
        chosen = embeddings.norm(dim=-1).topk(self.count).indices
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        return TokenSelection(mask.scatter(1, chosen, True))


class Fixed:
    """A choice made elsewhere."""

    needs_embeddings = False

    def __init__(self, selection: TokenSelection) -> None:
        self.selection = selection

    def num_kept(self, grid: TubeletGrid) -> None:
        return None

    def select(self, *arguments: object) -> TokenSelection:
        return self.selection


def video_model(selector: Selector, **options: Any) -> VideoModel:
    torch.manual_seed(0)
    encoder = create_encoder("vit_micro_patch16_48", num_frames=8, **options)
    return VideoModel(encoder, ClassificationHead(96, 5, encoder.pool), selector)


def make_clips(batch: int = 3) -> torch.Tensor:
    """Clips of which some patches move and some stand still."""
    clips = torch.randn(batch, 8, 3, 48, 48)
    moving = torch.rand(batch, 1, 1, 3, 3) < 0.5
    moving = moving.repeat_interleave(16, -1).repeat_interleave(16, -2)
    return torch.where(moving, clips, clips[:, :1])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_clip_gets_the_logits_it_gets_alone(selector: Selector, pool: str) -> None:
    model, clips = video_model(selector, pool=pool, drop_path_rate=0.3), make_clips()
    together = model(clips, generators=generators(1, 2, 3))
    for b in range(3):
        alone = model(clips[b : b + 1], generators=generators(b + 1))
        assert alone.lengths == together.lengths[b : b + 1]
        assert torch.allclose(alone.logits[0], together.logits[b], atol=1e-5)


@pytest.mark.parametrize("selector", SELECTORS)
def test_permuting_clips_permutes_logits(selector: Selector) -> None:
    model, clips = video_model(selector), make_clips()
    logits = model(clips, generators=generators(1, 2, 3)).logits
    moved = model(clips[[2, 0, 1]], generators=generators(3, 1, 2)).logits
    assert torch.allclose(moved, logits[[2, 0, 1]], atol=1e-5)


def test_no_technique_shifts_the_draws_of_another() -> None:
    def draws(selector: Selector, **options: Any) -> list[list[float]]:
        """What drop path and dropout would draw first, for two clips each."""
        model, found = video_model(selector, **options), []
        encode, classify = model.encoder.forward, model.head.logits

        def look(given: Any) -> None:
            copies = [torch.Generator().set_state(g.get_state()) for g in given]
            found.extend(torch.rand(2, generator=g).tolist() for g in copies)

        def encoder(tokens: Any, given: Any, **rest: Any) -> Any:
            look(given)
            return encode(tokens, given, **rest)

        def logits(pooled: Any, given: Any) -> Any:
            look(given)
            return classify(pooled, given)

        model.encoder.forward, model.head.logits = encoder, logits
        model(make_clips(2), generators=generators(1, 2))
        return found

    plain = draws(KeepAll())
    assert len({tuple(values) for values in plain}) == 4
    assert draws(random_tokens(0.4)) == plain
    assert draws(Tube(0.4), drop_path_rate=0.3) == plain


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_off_is_identical(pool: str) -> None:
    model, clips = video_model(KeepAll(), pool=pool), make_clips()
    dense = model(clips)
    assert dense.lengths == (NUM_TOKENS,) * 3
    assert dense.num_dense_tokens == NUM_TOKENS
    for off in (RunLength(-1.0), random_tokens(1.0), Tube(1.0), LargestEmbeddings(NUM_TOKENS)):
        model.selector = off
        assert torch.equal(model(clips).logits, dense.logits)


def test_dropped_patches_are_never_read() -> None:
    model, clips = video_model(RunLength(0.3)), make_clips()
    clean = model(clips)
    mask = model.selector.select(clips, None, model.encoder.grid, None).keep_mask
    assert clean.lengths == tuple(mask.sum(1).tolist())
    poison = torch.zeros(3, NUM_TOKENS, 1).masked_fill(~mask[..., None], float("nan"))
    pixels = poison.expand(-1, -1, 1536).reshape(3, 4, 3, 3, 3, 2, 16, 16)
    spoilt = clips + pixels.permute(0, 1, 5, 4, 2, 6, 3, 7).reshape(clips.shape)
    assert patchify(spoilt, 2, 16).isnan().any(-1).equal(~mask)
    assert torch.equal(model(spoilt, scoring_clips=clips).logits, clean.logits)


@pytest.mark.parametrize("selector", [RunLength(0.3), LargestEmbeddings(10)])
def test_scoring_clips_decide_which_and_clips_decide_what(selector: Selector) -> None:
    model, clips, other = video_model(selector), make_clips(), make_clips()
    scored = model(clips, scoring_clips=other)
    assert scored.lengths == model(other).lengths
    assert torch.equal(model(clips, scoring_clips=clips).logits, model(clips).logits)
    gradient = torch.autograd.grad(scored.logits.sum(), model.encoder.patch_embed.weight)[0]
    assert gradient.isfinite().all()


def test_a_selector_may_score_embeddings_and_the_choice_is_all_that_counts() -> None:
    model, clips = video_model(LargestEmbeddings(10)), make_clips()
    out = model(clips)
    assert out.lengths == (10, 10, 10)
    embeddings = model.encoder.embed(patchify(clips, 2, 16)).detach()
    with torch.no_grad():
        chosen = model.selector.select(clips, embeddings, model.encoder.grid, None)
    model.selector = Fixed(chosen)
    same = model(clips)
    assert torch.allclose(out.logits, same.logits, atol=1e-6)
    gradients = [
        torch.autograd.grad(o.logits.square().sum(), list(model.parameters())) for o in (out, same)
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients))


def test_the_backward_pass_holds_kept_patches_only() -> None:
    model, clips, rows = video_model(LargestEmbeddings(10)), make_clips(), set()

    def note(saved: torch.Tensor) -> torch.Tensor:
        if saved.ndim == 2 and saved.shape[1] == model.encoder.patch_values:
            rows.add(len(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        model(clips)
    assert 30 in rows
    assert model.encoder.grid.num_tokens * 3 not in rows


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("selector", [*SELECTORS, LargestEmbeddings(10)])
def test_multiply_adds_are_those_that_run(selector: Selector, pool: str) -> None:
    # PyTorch's counter doesn't know the CPU's fused attention, and does know products.
    model = video_model(selector, pool=pool, attention="reference").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(make_clips(), generators=generators(1, 2, 3))
    assert counter.get_total_flops() == 2 * model.macs(out.lengths)


def test_selected_patches_may_come_in_place_of_clips() -> None:
    model, clips = video_model(RunLength(0.3), length_embedding=True), make_clips()
    assert model.encoder.length_embed is not None
    torch.nn.init.normal_(model.encoder.length_embed)
    whole = model(clips, generators=generators(1, 2, 3))
    chosen = model.selector.select(clips, None, model.encoder.grid, None)
    model.selector = KeepAll()  # which is then not asked
    picked = model(pack_clips(clips, chosen, 2, 16), generators=generators(1, 2, 3))
    assert torch.equal(picked.logits, whole.logits)
    assert picked.lengths == whole.lengths
    assert picked.num_dense_tokens == whole.num_dense_tokens == NUM_TOKENS


@pytest.mark.parametrize("selector", [*SELECTORS, LargestEmbeddings(10)])
def test_frame_selection_counts_tokens_of_the_frames_it_gives(selector: Selector) -> None:
    """Two of four tubelets in time: dense is half; positions are those of the candidates; costs are what runs."""
    model = video_model(selector, attention="reference")
    model.frames = FrameSelection(2)
    clips = make_clips()
    for training in (True, False):
        out = model.train(training)(clips, generators=generators(1, 2, 3))
        assert out.num_dense_tokens == NUM_TOKENS // 2
        assert out.features.grid == model.encoder.grid
        for times in out.features.coordinates[:, 0].split(out.lengths):
            assert len(times.unique()) <= 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(clips, generators=generators(1, 2, 3))
    assert counter.get_total_flops() == 2 * model.macs(out.lengths)
    assert max(out.lengths) <= NUM_TOKENS // 2


def test_frames_are_drawn_in_training_and_the_best_in_evaluation() -> None:
    model, clips = video_model(KeepAll()), make_clips(1)
    model.frames = FrameSelection(2)

    def times(seed: int) -> tuple[int, ...]:
        out = model(clips, generators=generators(seed))
        return tuple(out.features.coordinates[:, 0].unique().tolist())

    assert len({times(seed) for seed in range(30)}) == 6  # of 4 over 2
    model.eval()
    assert {times(seed) for seed in range(30)} == {(0, 1)}


def test_the_dense_path_exports_with_fixed_shapes() -> None:
    class Logits(torch.nn.Module):
        def __init__(self, model: VideoModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return self.model(clips).logits

    model, clips = video_model(KeepAll()).eval(), make_clips(2)
    program = torch.export.export(Logits(model), (clips,))
    assert torch.allclose(program.module()(clips), model(clips).logits, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_the_gpu_gives_the_logits_of_the_cpu(selector: Selector, pool: str) -> None:
    model = video_model(selector, pool=pool, length_embedding=True, qk_norm=True)
    clips = make_clips()
    expected = model(clips, generators=generators(1, 2, 3))
    model.cuda()
    exact = model(clips.cuda(), generators=generators(1, 2, 3))
    assert exact.lengths == expected.lengths
    assert torch.allclose(exact.logits.cpu(), expected.logits, atol=1e-3)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = model(clips.cuda(), generators=generators(1, 2, 3))
    assert torch.allclose(half.logits.float().cpu(), expected.logits, atol=5e-2)
    half.logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_other_sizes_and_lengths_are_welcome() -> None:
    model = video_model(RunLength(0.3))
    out = model(torch.randn(2, 12, 3, 32, 64))
    assert out.num_dense_tokens == 6 * 2 * 4


def test_poolings_must_agree() -> None:
    encoder = create_encoder("vit_micro_patch16_48", num_frames=8, pool="cls")
    with pytest.raises(ConfigError, match="encoder pools by 'cls', head by 'mean'"):
        VideoModel(encoder, ClassificationHead(96, 5), KeepAll())


def test_clips_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="height 50 is not a multiple of patch_size 16"):
        video_model(KeepAll())(torch.zeros(1, 8, 3, 50, 48))
