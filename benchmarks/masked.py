"""What masked pre-training costs: VideoMAE here and in transformers, dual masking, EVEREST; and fine-tuning after it.

Steps (forward, backward, AdamW) of ViT-B on random clips of 16x224x224, all methods in turn on one machine in one dtype
(bfloat16 on CUDA), by the CPU time of one thread, or by the wall clock on CUDA; ours draw their masks within the step,
transformers' model is given its mask. Memory is that of tensors at the peak of a step, beyond weights and AdamW's
state, as PyTorch counts them; per clip: what each further clip adds to it. Multiply-adds are the papers', which embed
every patch.

    python benchmarks/masked.py --size full     larger batches, more repeats
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import Claim, arguments, clock_of, peak_bytes, report
from onereel.build import build_autoencoder, build_model, build_objective
from onereel.config import ModelConfig, ObjectiveConfig, RunConfig, TokensConfig
from onereel.evaluation.efficiency import synchronize
from onereel.evaluation.inference import autocast
from onereel.models.masked_autoencoder import published_macs
from onereel.models.registry import DECODER_SIZES, SIZES
from onereel.training import create_optimizer
from onereel.types import Batch, SampleKey

MIB, GIB = 2**20, 2**30
SHAPE = (16, 3, 224, 224)
NUM_TOKENS = 1568
MODEL = "base"
BATCH = {
    "cpu": {"small": {"pre": 2, "fine": 1}, "full": {"pre": 4, "fine": 1}},
    "cuda": {"small": {"pre": 64, "fine": 32}, "full": {"pre": 256, "fine": 64}},
}
MEMORY_BATCH = {"cpu": {"pre": 8, "fine": 2}, "cuda": {"pre": 128, "fine": 64}}
"""Large enough that activations, not gradients, are what a step needs most of."""
REPEATS = {"cpu": {"small": 3, "full": 5}, "cuda": {"small": 10, "full": 20}}
WARMUP = {"cpu": 1, "cuda": 3}
TUBES = ObjectiveConfig(kind="masked", mask="tube", mask_ratio=0.9)
METHODS: dict[str, tuple[str, TokensConfig, ObjectiveConfig]] = {
    "VideoMAE": ("pre", TokensConfig(), TUBES),
    "dual masking": ("pre", TokensConfig(), ObjectiveConfig(kind="masked", decode_ratio=0.5)),
    "EVEREST": (
        "pre",
        TokensConfig(kind="redundancy", keep_ratio=0.3),
        ObjectiveConfig(kind="masked", mask="random", mask_ratio=2 / 3),
    ),
    "dense": ("fine", TokensConfig(), ObjectiveConfig()),
    "EVEREST 940": ("fine", TokensConfig(kind="redundancy", keep_ratio=0.6), ObjectiveConfig()),
}
THEIRS = "VideoMAE, transformers"
GMACS = {"VideoMAE": 35.44, "EVEREST": 19.78, "dense": 180.3, "EVEREST 940": 98.0}
"""Of ViT-B as published: arXiv 2211.10636, and derived from its shapes."""

Step = Callable[[Tensor], Tensor]


@dataclass
class Method:
    """A loss of clips, the optimiser of its weights, and what its steps took."""

    name: str
    phase: str
    module: nn.Module
    loss: Step
    optimizer: torch.optim.Optimizer
    gmacs: float
    seconds: list[float] = field(default_factory=list)
    step_bytes: int = 0
    clip_bytes: float = 0.0

    def step(self, clips: Tensor) -> None:
        with autocast(clips.device, "auto"):
            loss = self.loss(clips)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def model_bytes(self) -> int:
        """Weights and AdamW's two averages."""
        return 12 * sum(p.numel() for p in self.module.parameters())


def our_method(name: str, size: str, device: str) -> Method:
    phase, tokens, learned = METHODS[name]
    config = RunConfig(
        model=ModelConfig(name=f"vit_{size}_patch16_224", positions="sincos-1d"),
        tokens=tokens,
        objective=learned,
    )
    model = build_autoencoder(config) if phase == "pre" else build_model(config, 400)
    objective = build_objective(config, model).to(device)

    def loss(clips: Tensor) -> Tensor:
        keys = [SampleKey(0, index) for index in range(len(clips))]
        labels = torch.zeros(len(clips), dtype=torch.long, device=clips.device)
        return objective(Batch(clips, keys, labels=labels, num_clips=len(clips)))["loss"]

    return Method(
        name,
        phase,
        objective,
        loss,
        create_optimizer(objective, config.optim),
        _macs(name, objective) / 1e9,
    )


def _macs(name: str, objective: nn.Module) -> int:
    counts = {"VideoMAE": (160, 1408), "dual masking": (160, 704), "EVEREST": (156, 314)}
    if name in counts:
        visible, targets = counts[name]
        return published_macs(objective.model, (visible,), (targets,))
    return objective.model.macs((NUM_TOKENS if name == "dense" else 940,))


def their_method(size: str, device: str) -> Method:
    """`VideoMAEForPreTraining` of the same shapes, given a tube mask."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    encoder, decoder = SIZES[size], DECODER_SIZES[size]
    config = VideoMAEConfig(
        hidden_size=encoder.embed_dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=4 * encoder.embed_dim,
        decoder_hidden_size=decoder.embed_dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.embed_dim,
        use_mean_pooling=False,
    )
    config._attn_implementation = "sdpa"
    model = VideoMAEForPreTraining(config).to(device).train()
    hidden = torch.ones(1, 8, 196, dtype=torch.bool, device=device)
    hidden[:, :, :20] = False

    def loss(clips: Tensor) -> Tensor:
        return model(clips, bool_masked_pos=hidden.flatten(1).expand(len(clips), -1)).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Method(THEIRS, "pre", model, loss, optimizer, float("nan"))


def make(name: str, size: str, device: str) -> Method:
    return their_method(size, device) if name == THEIRS else our_method(name, size, device)


def random_clips(batch: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *SHAPE, generator=generator).to(device)


def measure(methods: list[Method], batch: int, device: str, repeats: int) -> None:
    """Time the steps of all methods in turn."""
    clips, clock = random_clips(batch, device), clock_of(device)
    for round_number in range(WARMUP[device] + repeats):
        for method in methods:
            synchronize(clips.device)
            start = clock()
            method.step(clips)
            synchronize(clips.device)
            if round_number >= WARMUP[device]:
                method.seconds.append(clock() - start)


def measure_memory(methods: list[Method], batch: int, device: str) -> None:
    """Peak of a step of `batch` clips, and what a clip adds to it from half of them on."""
    few, many = (random_clips(n, device) for n in (batch // 2, batch))
    for method in methods:
        method.step(few[:1])  # makes AdamW's state
        method.step_bytes = peak_bytes(partial(method.step, many), device)
        rest = method.step_bytes - peak_bytes(partial(method.step, few), device)
        method.clip_bytes = rest / (batch - batch // 2)


def row(method: Method, batch: int, reference: Method) -> dict[str, Any]:
    return {
        "phase": {"pre": "pre-training", "fine": "fine-tuning"}[method.phase],
        "method": method.name,
        "clips per step": batch,
        "GMACs per clip": method.gmacs if method.gmacs == method.gmacs else "",
        "seconds per clip": f"{median(method.seconds) / batch:.4g}",
        "time ratio": median(method.seconds) / median(reference.seconds),
        "MiB per clip": f"{method.clip_bytes / MIB:.1f}",
        "memory ratio": f"{method.clip_bytes / reference.clip_bytes:.4f}",
        "peak GiB": (method.step_bytes + method.model_bytes) / GIB,
    }


def claims(found: dict[str, Method], device: str) -> list[Claim]:
    def time_ratio(a: str, b: str) -> float:
        return median(found[a].seconds) / median(found[b].seconds)

    def memory_ratio(a: str, b: str) -> float:
        return found[a].clip_bytes / found[b].clip_bytes

    at_most = partial(Claim, at_most=True)
    made = [
        at_most("VideoMAE, time over transformers'", time_ratio("VideoMAE", THEIRS), 1.0),
        at_most(
            "VideoMAE, memory per clip over transformers'", memory_ratio("VideoMAE", THEIRS), 1.0
        ),
        Claim(
            "dual masking, speed over transformers'", 1 / time_ratio("dual masking", THEIRS), 1.25
        ),
        Claim("EVEREST, speed over transformers'", 1 / time_ratio("EVEREST", THEIRS), 1.6),
    ]
    for ours, base in (("EVEREST", "VideoMAE"), ("EVEREST 940", "dense")):
        made += [
            at_most(f"{ours}, time over {base}", time_ratio(ours, base), 0.6),
            at_most(f"{ours}, memory per clip over {base}", memory_ratio(ours, base), 0.6),
        ]
        if device == "cuda":
            peaks = [found[n].step_bytes + found[n].model_bytes for n in (ours, base)]
            made.append(at_most(f"{ours}, peak over {base}", peaks[0] / peaks[1], 0.6))
    return made + [
        at_most(f"{name}, MACs off the published", abs(found[name].gmacs / goal - 1), 0.02)
        for name, goal in GMACS.items()
    ]


def main() -> None:
    options = arguments(__doc__)
    size, device = options.size, options.device
    model, batches = MODEL, BATCH[device][size]
    rows, found = [], {}
    phases = {
        "pre": [THEIRS, "VideoMAE", "dual masking", "EVEREST"],
        "fine": ["dense", "EVEREST 940"],
    }
    for phase, names in phases.items():
        methods = [make(name, model, device) for name in names]
        measure(methods, batches[phase], device, REPEATS[device][size])
        measure_memory(methods, MEMORY_BATCH[device][phase], device)
        rows += [row(method, batches[phase], methods[0]) for method in methods]
        found |= {method.name: method for method in methods}
        for method in methods:
            method.module.to("meta")  # makes room for the next phase
            method.optimizer.state.clear()
    report(f"ViT-{model}/16, 16x224x224, {device}", rows, claims(found, device), options.json)


if __name__ == "__main__":
    main()
