"""Memory and speed of video-language training: attention, checkpointing, and large batches on one device.

A training step (forward, backward) of ViT-B/16 on 4 frames of 224x224, 785 tokens attended jointly: plain attention,
SDPA, SDPA with checkpointing; and TimeSformer, the divided space-time encoder of `transformers`, same width and depth,
with and without its checkpointing (AVION, arXiv 2309.16669, figure 4). Repeats are interleaved, and timed by the CPU
time of one thread, or by the wall clock on CUDA. Memory is the tensors that a step needs at once beyond weights and
clips, as PyTorch counts them, and memory per clip what another clip adds to that. Then a contrastive step of both
towers at a fixed micro-batch: its peak must not grow with the batch.

    python benchmarks/language.py --device cuda --size full      batches from 16 to the largest that fits
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import Claim, arguments, clock_of, peak_bytes, report
from onereel import build
from onereel.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from onereel.data.augment import BatchAugment
from onereel.evaluation.efficiency import synchronize
from onereel.models.registry import create_encoder
from onereel.models.text import Tokenizer, checkpoint_blocks
from onereel.tokens.packing import pack_all
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.training.interrupt import StopRequest
from onereel.training.meters import Meter
from onereel.training.plan import plan_steps
from onereel.training.state import TrainState
from onereel.training.step import TrainStep
from onereel.types import Batch, SampleKey

NUM_FRAMES, SIZE, PATCH = 4, 224, 16
MIB = 2**20
OURS = {
    "plain attention": {"attention": "reference"},
    "SDPA": {},
    "SDPA, checkpointing": {"checkpointing": True},
}
THEIRS = {"TimeSformer": False, "TimeSformer, checkpointing": True}
BATCHES = {"cpu": {"small": (2, 4), "full": (4, 8)}, "cuda": {"small": (16, 32), "full": (16, 64)}}
REPEATS = {"small": 2, "full": 5}
WORDS = ("a", "person", "opens", "the", "drawer", "cuts", "an", "onion", "washes", "hands")
MICRO_BATCH = {"cpu": 4, "cuda": 64}
COUPLED_BATCHES = {
    "cpu": {"small": (8, 64), "full": (8, 32, 128)},
    "cuda": {"small": (128, 512, 2048), "full": (128, 512, 2048)},
}
SPEED_GOAL = {"cpu": 1.15, "cuda": 1.5}
MEMORY_GOAL, FLAT_GOAL = 0.5, 1.1


def make(name: str, device: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A contender in training mode, and clips `(B, T, 3, H, W)` to a scalar."""
    torch.manual_seed(0)
    if name in THEIRS:
        from transformers import TimesformerConfig, TimesformerModel

        model = TimesformerModel(
            TimesformerConfig(num_frames=NUM_FRAMES, image_size=SIZE, patch_size=PATCH)
        )
        if THEIRS[name]:
            checkpoint_blocks(model)
        model = model.to(device).train()
        return model, lambda clips: model(clips).last_hidden_state.float().square().mean()
    encoder = create_encoder(
        "vit_base_patch16_224",
        num_frames=NUM_FRAMES,
        tubelet_size=1,
        pool="cls",
        positions="space-time",
        style="clip",
        **OURS[name],
    )
    encoder = encoder.to(device).train()

    def loss(clips: Tensor) -> Tensor:
        tokens = pack_all(patchify(clips, 1, PATCH), clip_grid(clips, 1, PATCH))
        return encoder(tokens).values.float().square().mean()

    return encoder, loss


def step(model: nn.Module, loss: Callable[[Tensor], Tensor], clips: Tensor) -> None:
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda):
        value = loss(clips)
    value.backward()
    for parameter in model.parameters():
        parameter.grad = None


def random_clips(batch_size: int, device: str) -> Tensor:
    return torch.randn(batch_size, NUM_FRAMES, 3, SIZE, SIZE, device=device)


# ------------------------------------------------------------------------------------------------------- memory


def peaks_of_step(name: str, batch_sizes: tuple[int, ...], device: str) -> list[int]:
    """Bytes that a step of each batch needs at once."""
    model, loss = make(name, device)
    return [
        peak_bytes(partial(step, model, loss, random_clips(batch_size, device)), device)
        for batch_size in batch_sizes
    ]


def largest_batch(name: str, device: str) -> int:
    """The largest power of two that a CUDA device holds."""
    batch_size = 16
    while True:
        try:
            peaks_of_step(name, (2 * batch_size,), device)
        except torch.cuda.OutOfMemoryError:
            return batch_size
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        batch_size *= 2


# -------------------------------------------------------------------------------------------------------- speed


def seconds_per_clip(
    names: list[str], batch_size: int, device: str, repeats: int
) -> dict[str, float]:
    """Median over repeats, one contender after the other in each."""
    contenders = {name: make(name, device) for name in names}
    clips, clock = random_clips(batch_size, device), clock_of(device)
    found: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name, (model, loss) in contenders.items():
            synchronize(clips.device)
            start = clock()
            step(model, loss, clips)
            synchronize(clips.device)
            if repeat:  # the first is to warm up
                found[name].append((clock() - start) / batch_size)
    return {name: median(values) for name, values in found.items()}


# -------------------------------------------------------------------------------------------- cached gradients


class RandomPairs:
    """Micro-batches of random uint8 clips with random captions, made as they are asked for."""

    def __init__(self, batch_size: int, num_batches: int, size: int) -> None:
        self.batch_size, self.num_batches, self.size = batch_size, num_batches, size

    def batches(self, epoch: int, start: int = 0):
        for number in range(start, self.num_batches):
            keys = [SampleKey(epoch, number * self.batch_size + i) for i in range(self.batch_size)]
            shape = (self.batch_size, NUM_FRAMES, 3, self.size, self.size)
            clips = torch.randint(0, 256, shape, dtype=torch.uint8)
            captions = [
                " ".join(WORDS[(key.index * k) % len(WORDS)] for k in (1, 3, 7)) for key in keys
            ]
            yield Batch(clips, keys, captions=captions, num_clips=self.batch_size)


def peak_of_coupled_step(batch_size: int, device: str) -> int:
    """Bytes that a contrastive step of `batch_size` clips in micro-batches needs at once."""
    micro, size = MICRO_BATCH[device], SIZE if device == "cuda" else 112
    config = RunConfig(
        data=DataConfig(num_frames=NUM_FRAMES, size=size),
        model=ModelConfig(
            name=f"vit_{'base' if device == 'cuda' else 'small'}_patch16_{size}",
            tubelet_size=1,
            pool="cls",
            positions="space-time",
            style="clip",
        ),
        text=TextConfig(size="base", vocab_size=400),
        objective=ObjectiveConfig(kind="contrastive"),
        train=TrainConfig(batch_size_per_device=micro, accum_steps=batch_size // micro),
    )
    target = torch.device(device)
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 2, 400, config.text.context_length)
    objective = build.build_objective(config, build.build_dual_encoder(config, tokenizer))
    objective = objective.to(target).train()
    loader = RandomPairs(micro, batch_size // micro, size)
    plan = plan_steps(config, loader.num_batches)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.0)
    state = TrainState(objective, optimizer, None, Meter(target, 1.0), plan)
    augment = BatchAugment(config.augment, None, 0, training=True)
    take = TrainStep(objective, optimizer, lambda i: 0.0, augment, config, target)
    return peak_bytes(
        lambda: take(state, plan.batches(loader, 0), StopRequest()).read(),
        device,
    )


# ------------------------------------------------------------------------------------------------------- report


def measure(device: str, size: str) -> tuple[list[dict[str, Any]], list[Claim]]:
    small, large = BATCHES[device][size]
    names = [*OURS, *THEIRS]
    seconds = seconds_per_clip(names, small, device, REPEATS[size])
    rows, memory = [], {}
    for name in names:
        peaks = peaks_of_step(name, (small, large), device)
        memory[name] = (peaks[1] - peaks[0]) / (large - small)
        row = {
            "encoder": name,
            "batch": small,
            "clips/s": 1 / seconds[name],
            "MiB per clip": memory[name] / MIB,
            "peak MiB": peaks[0] / MIB,
        }
        if device == "cuda" and size == "full":
            row["largest batch"] = largest_batch(name, device)
        rows.append(row)
    coupled = {}
    for batch in COUPLED_BATCHES[device][size]:
        coupled[batch] = peak_of_coupled_step(batch, device)
        rows.append(
            {
                "encoder": f"both towers, micro-batches of {MICRO_BATCH[device]}",
                "batch": batch,
                "peak MiB": coupled[batch] / MIB,
            }
        )
    first, last = min(coupled), max(coupled)
    return rows, [
        Claim(
            "SDPA over TimeSformer, clips/s",
            seconds["TimeSformer"] / seconds["SDPA"],
            SPEED_GOAL[device],
        ),
        Claim(
            "with checkpointing, memory per clip over TimeSformer's",
            memory["SDPA, checkpointing"] / memory["TimeSformer"],
            MEMORY_GOAL,
            at_most=True,
        ),
        Claim(
            "SDPA's memory per clip over plain attention's",
            memory["SDPA"] / memory["plain attention"],
            1.0,
            at_most=True,
        ),
        Claim(
            f"peak of a contrastive step of {last} clips over one of {first}",
            coupled[last] / coupled[first],
            FLAT_GOAL,
            at_most=True,
        ),
    ]


def main() -> None:
    options = arguments(__doc__)
    rows, claims = measure(options.device, options.size)
    report("ViT-B/16, 4 frames of 224x224, training step", rows, claims, options.json)


if __name__ == "__main__":
    main()
