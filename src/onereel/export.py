"""Trained models as graphs that run without onereel: `torch.export` programs and ONNX files, checked against eager.

B clips, N tubelets of a clip of which K are kept (K is the same for every clip, or there is no fixed graph), D width.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.loading import TrainedModel
from onereel.models.blocks import Attention, Segments
from onereel.models.factorised import FactorisedEncoder
from onereel.models.heads import ClassificationHead
from onereel.models.video_model import VideoModel
from onereel.tokens.tubelets import patchify
from onereel.types import Packed, TokenSelection, TubeletGrid

Format = Literal["torch-export", "onnx"]
SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""Largest difference of a logit, in float32, that a check forgives: sums are taken in another order."""
CHECKED_BATCHES = (1, 3)
FACTS = "onereel.json"
LARGEST_ONNX_BYTES = 1 << 30
"""Weights above this lie in a file beside the graph: an ONNX file itself must stay below 2 GB."""


@dataclass(frozen=True)
class Check:
    """How far the exported model is from the one it was made of, on random clips.

    Attributes:
        difference: largest absolute difference of a logit.
        largest: largest absolute logit.
        num_clips: clips compared, in batches of several sizes.
    """

    difference: float
    largest: float
    num_clips: int

    @property
    def ok(self) -> bool:
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        verdict = "within" if self.ok else "ABOVE"
        return (
            f"largest difference of a logit on {self.num_clips} random clips: {self.difference:.1e}, {verdict} the "
            f"tolerance of {TOLERANCE:.0e} (largest logit {self.largest:.2f})"
        )


class FixedShapes(nn.Module):
    """A `VideoModel`'s logits by operations whose shapes depend on B alone.

    The blocks and the head are the model's own; only attention and pooling know that all clips have the same number of
    tokens.

    Args:
        grid: of the clips; None: the encoder's own. Positions are then those that the model interpolates or computes.

    Raises:
        ConfigError: the number of kept tokens depends on the clip, or the selector draws.
    """

    class_token: Tensor | None

    def __init__(self, model: VideoModel, grid: TubeletGrid | None = None) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval().float().cpu()
        if isinstance(model.encoder, FactorisedEncoder):
            raise ConfigError(
                "a factorised encoder (model.temporal_depth above 0) cannot be exported: answer with it by onereel "
                "predict or onereel.load, or export a model over space and time at once (model.temporal_depth 0)"
            )
        self.encoder, self.selector = model.encoder, model.selector
        self.grid = grid or model.encoder.grid
        self.num_kept = fixed_count(model, self.grid)
        head = model.head_of(self.num_kept)
        if not isinstance(head, ClassificationHead):
            raise ConfigError("only models that classify can be exported")
        self.head = head
        self.encoder.checkpointing = False
        # One grid, one table: what was interpolated to it, once, is a constant of the graph.
        token = self.encoder.class_token()
        self.register_buffer("class_token", None if token is None else token.detach())
        if self.encoder.global_positions is not None:
            with torch.no_grad():
                table = self.encoder.global_positions(self.grid)
            self.encoder.global_positions = Constant(table)
        num_attending = self.num_kept + (token is not None)
        for module in self.encoder.modules():
            if isinstance(module, Attention):
                module.attend = equal_lengths(num_attending)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of normalised float clips `(B, T, C, H, W)`."""
        encoder, grid = self.encoder, self.grid
        patches = patchify(clips, encoder.tubelet_size, encoder.patch_size)
        x, index, run_lengths = self._kept(clips, patches)
        coordinates = torch.stack(_coordinates(index, grid), dim=-1)
        runs = None if run_lengths is None else run_lengths.flatten()
        # Lengths are for attention and pooling, which here know them; positions don't ask.
        nowhere = torch.zeros(1, dtype=torch.int32)
        tokens = Packed(x.flatten(0, 1), (), nowhere, coordinates.flatten(0, 1), grid, runs)
        x = encoder.place(tokens).unflatten(0, (-1, self.num_kept))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len_of(x), 1, -1), x], dim=1)
            coordinates = F.pad(coordinates, (0, 0, 1, 0), value=-1)
        if encoder.input_norm is not None:
            x = encoder.input_norm(x)
        num_tokens = x.shape[1]
        x = x.flatten(0, 1)
        segments = encoder.segments(replace(tokens, coordinates=coordinates.flatten(0, 1)))
        for block in encoder.blocks:
            x = block(x, segments)
        x = encoder.norm(x).unflatten(0, (-1, num_tokens))
        return self.head.logits(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        """`(B, F)` of features `(B, n, D)`."""
        if self.head.pooler is not None:
            return self.head.pooler.of_equal_lengths(x)
        return x[:, 0] if self.head.pool == "cls" else x.mean(dim=1)

    def _kept(self, clips: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings `(B, K, D)`, their numbers `(B, K)` in the clip, in order, and run lengths `(B, K)` or None."""
        encoder, grid = self.encoder, self.grid
        every = torch.arange(grid.num_tokens).expand(len_of(clips), -1)
        if self.num_kept == grid.num_tokens:
            return encoder.embed(patches), every, None
        embeddings = encoder.embed(patches) if self.selector.needs_embeddings else None
        chosen: TokenSelection = self.selector.select(clips, embeddings, grid, None)
        # Numbers of kept tokens come first when all others are raised above them.
        numbers = torch.where(chosen.keep_mask, every, every + grid.num_tokens)
        index = numbers.topk(self.num_kept, dim=1, largest=False, sorted=True).values
        values = patches if embeddings is None else embeddings
        kept = values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
        runs = None if chosen.run_lengths is None else chosen.run_lengths.gather(1, index)
        return (encoder.embed(kept) if embeddings is None else kept), index, runs


class Constant(nn.Module):
    """Gives the same `value`, whatever it is asked."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: object) -> Tensor:
        return self.value


def len_of(x: Tensor) -> int:
    """The first size, which `len` would fix in the graph."""
    return x.shape[0]


def _coordinates(index: Tensor, grid: TubeletGrid) -> tuple[Tensor, Tensor, Tensor]:
    place = index % (grid.gh * grid.gw)
    return index // (grid.gh * grid.gw), place // grid.gw, place % grid.gw


def equal_lengths(num_tokens: int) -> Callable[..., Tensor]:
    """Attention of clips of `num_tokens` each: one batched SDPA of whatever batch comes."""

    def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments, backend: str) -> Tensor:
        q, k, v = (x.unflatten(0, (-1, num_tokens)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    return attend


def fixed_count(model: VideoModel, grid: TubeletGrid) -> int:
    """Tokens that every clip of `grid` keeps. Raises ConfigError where that depends on the clip, or the choice on
    chance."""
    selector = model.selector
    if model.frames is not None:
        raise ConfigError(
            "frame selection cannot be exported: turn it off (--tokens.frame-selection 0)"
        )
    num_kept = selector.num_kept(grid)
    if num_kept is None:
        raise ConfigError(
            "how many tokens a clip keeps depends on the clip, and an exported graph has fixed shapes: give an exact "
            "budget (--tokens.budget clip --tokens.token-budget K), or export the dense model (--tokens.kind all)"
        )
    if num_kept == grid.num_tokens:
        return num_kept
    clips = example_clips(model, 1, grid)
    try:
        with torch.no_grad():
            model(clips)
    except ValueError as error:
        raise ConfigError(
            f"this selector cannot be exported: {error}. Use one that draws nothing "
            "(--tokens.kind run-length --tokens.budget clip, redundancy, group-dynamic, or all)"
        ) from error
    return num_kept


def example_clips(model: VideoModel, batch: int, grid: TubeletGrid | None = None) -> Tensor:
    """Random clips `(batch, T, C, H, W)` of `grid`; None: of the model's own."""
    encoder = model.encoder
    grid, p = grid or encoder.grid, encoder.patch_size
    shape = (batch, grid.gt * encoder.tubelet_size, 3, grid.gh * p, grid.gw * p)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def export(
    trained: TrainedModel, form: Format, out: str | Path, grid: TubeletGrid | None = None
) -> Path:
    """Write the model as one graph from normalised `clips` to `logits`, for any batch size; the path is the answer.

    The clips are of `grid`, where it is given, else of the model's own; `trained.config` says so in frames and pixels.
    Class names, pixel statistics and clip size go along: in the archive's extra file `onereel.json`, or as ONNX
    metadata.

    Raises:
        ConfigError: the model has no fixed shapes, or the packages that ONNX needs are not installed.
    """
    module = FixedShapes(trained.model, grid)
    # Two clips: a batch of one would be taken for a constant.
    clips = (example_clips(trained.model, 2, grid),)
    shapes = {"clips": {0: torch.export.Dim("batch", min=1, max=1 << 16)}}
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            program = torch.export.export(module, clips, dynamic_shapes=shapes)
            if form == "onnx":
                _write_onnx(program, out, facts(trained, module.num_kept))
            else:
                known = json.dumps(facts(trained, module.num_kept))
                torch.export.save(program, out, extra_files={FACTS: known})
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}") from error
    except torch.onnx.errors.OnnxExporterError as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = str(root).partition("\n")[0]
        raise ConfigError(
            f"PyTorch cannot write this model as ONNX: {reason} Use --format torch-export"
        ) from error
    return out


def facts(trained: TrainedModel, token_budget: int) -> dict[str, object]:
    """What a user of the graph must know."""
    data, augment = trained.config.data, trained.config.augment
    return {
        "class_names": trained.class_names,
        "num_frames": data.num_frames,
        "size": data.size,
        "token_budget": token_budget,
        "sampling": data.sampling,
        "sampling_rate": data.sampling_rate,
        "mean": augment.mean,
        "std": augment.std,
    }


def _write_onnx(program: torch.export.ExportedProgram, out: Path, known: dict[str, object]) -> None:
    _require("onnx", "onnxscript")
    # PyTorch's converter says on each call that torchvision is not there, and warns of its own insides.
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            exported = torch.onnx.export(
                program,
                input_names=["clips"],
                output_names=["logits"],
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert exported is not None  # a program comes back where no path is given
    exported.model.metadata_props.update({k: json.dumps(v) for k, v in known.items()})
    size = sum(p.numel() * p.element_size() for p in program.parameters())
    exported.save(out, external_data=size > LARGEST_ONNX_BYTES)


def _stable_sort(x: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten.sort.stable, which PyTorch cannot translate; of equals, ONNX's TopK puts the lower index first."""
    op: Any = importlib.import_module("onnxscript").opset18
    length = op.Gather(op.Shape(x), op.Constant(value_int=dim))
    size = op.Reshape(length, op.Constant(value_ints=[1]))
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"this needs {', '.join(missing)}: pip install 'onereel[onnx]'")


def check(
    trained: TrainedModel, form: Format, path: str | Path, grid: TubeletGrid | None = None
) -> Check:
    """Read the written file back and compare its logits with the model's own, in batches of several sizes."""
    run = _onnx_runner(path) if form == "onnx" else torch.export.load(path).module()
    difference = largest = 0.0
    model = trained.model.eval().cpu()
    for batch in CHECKED_BATCHES:
        clips = example_clips(model, batch, grid)
        with torch.no_grad():
            expected, given = model(clips).logits, run(clips)
        difference = max(difference, (given - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return Check(difference, largest, sum(CHECKED_BATCHES))


def _onnx_runner(path: str | Path) -> Callable[[Tensor], Tensor]:
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])
