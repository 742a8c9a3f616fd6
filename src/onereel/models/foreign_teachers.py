"""Teachers from `transformers`: video models, and image models that see each frame. Needs onereel[text]."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onereel.errors import ConfigError, unknown_name
from onereel.models.libraries import library
from onereel.models.pretrained.reading import read_json
from onereel.models.teachers import Stats, Teacher, TeacherFeatures, View
from onereel.types import TokenSelection, TubeletGrid

logger = logging.getLogger(__name__)


class Family(NamedTuple):
    """How a family of models is called.

    Attributes:
        model: class in transformers.
        is_video: takes `(B, T, C, H, W)`; else each frame is an image.
        made: arguments when it is made.
        called: arguments of each call.
        clips: name of the argument that takes the pixels.
    """

    model: str
    is_video: bool = False
    made: Mapping[str, Any] = {}
    called: Mapping[str, Any] = {}
    clips: str = "pixel_values"


ANY_SIZE = {"interpolate_pos_encoding": True}
FAMILIES = {
    "videomae": Family("VideoMAEModel", is_video=True),
    "vjepa2": Family(
        "VJEPA2Model",
        is_video=True,
        called={"skip_predictor": True},
        clips="pixel_values_videos",
    ),
    "dinov2": Family("Dinov2Model"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel"),
    "dinov3_vit": Family("DINOv3ViTModel"),
    "vit": Family("ViTModel", made={"add_pooling_layer": False}, called=ANY_SIZE),
    "clip": Family("CLIPVisionModel", called=ANY_SIZE),
    "clip_vision_model": Family("CLIPVisionModel", called=ANY_SIZE),
    "siglip": Family("SiglipVisionModel", called=ANY_SIZE),
    "siglip_vision_model": Family("SiglipVisionModel", called=ANY_SIZE),
}
"""By `model_type` of config.json. SigLIP 2's models of a fixed resolution are of type siglip."""
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


class ForeignTeacher(Teacher):
    """A model of `FAMILIES`.

    Args:
        model: with `config`.
        family: how to call it.
        view: how it sees clips.
        attends: whether its first token is a class token, and its attention can be had.
    """

    def __init__(self, model: Any, family: Family, view: View, attends: bool) -> None:
        super().__init__()
        config = model.config
        self.model, self.family, self.view, self.attends = model, family, view, attends
        self.depth, self.embed_dim = config.num_hidden_layers, config.hidden_size
        self.final_dim = config.hidden_size
        # The encoder's own come first where there is a predictor too.
        self.blocks = next(
            part
            for part in model.modules()
            if isinstance(part, torch.nn.ModuleList) and len(part) == self.depth
        )
        self.freeze()

    def see(
        self,
        clips: Tensor,
        layers: Sequence[int],
        pool: TokenSelection | None,
        attention: bool,
    ) -> TeacherFeatures:
        assert pool is None  # `tubelet_size` is None
        clips = self.view(clips)
        batch, num_frames = clips.shape[:2]
        if not self.family.is_video:
            clips = clips.flatten(0, 1)
        grid = self._grid(num_frames, *clips.shape[-2:])
        between: list[Tensor] = []
        hooks = [
            self.blocks[number].register_forward_hook(
                lambda _, __, out: between.append(out[0] if isinstance(out, tuple) else out)
            )
            for number in layers
        ]
        asked = {"output_attentions": True} if attention else {}
        try:
            out = self.model(**{self.family.clips: clips}, **self.family.called, **asked)
        finally:
            for hook in hooks:
                hook.remove()
        return TeacherFeatures(
            tuple(_tokens(x, batch, grid) for x in between),
            self._final(out, batch, grid),
            grid,
            _tokens(_class_attention(out)[..., None], batch, grid).squeeze(-1)
            if attention
            else None,
        )

    def _grid(self, num_frames: int, height: int, width: int) -> TubeletGrid:
        patch = self.model.config.patch_size
        per_tubelet = self.model.config.tubelet_size if self.family.is_video else 1
        return TubeletGrid(num_frames // per_tubelet, height // patch, width // patch)

    def _final(self, out: Any, batch: int, grid: TubeletGrid) -> Tensor:
        """The model's own pooled feature, else its class token, else the mean of its tokens; the mean over frames."""
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = out.last_hidden_state
            pooled = last[:, 0] if self.attends else last.mean(dim=1)
        return pooled.unflatten(0, (batch, -1)).mean(dim=1)

    def macs(self, batch_size: int, num_frames: int, size: int, num_shown: int = 0) -> int:
        frames, side = self.view.num_frames or num_frames, self.view.size or size
        grid = self._grid(frames, side, side)
        images, n = (1, grid.num_tokens) if self.family.is_video else (frames, grid.gh * grid.gw)
        weights = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        attended = 2 * n**2 * self.embed_dim * self.depth
        return batch_size * images * (n * weights + attended)


def foreign_teacher(
    folder: Path, source: str, student: Stats, *, size: int = 0, attention: bool = False
) -> ForeignTeacher:
    """The model that transformers saved in `folder`.

    Args:
        source: as the user called it.
        student: pixel statistics of the clips that it will be given.
        size: pixels per side that it is to see; 0: those it was made for.
        attention: whether it will be asked where it looks.

    Raises:
        ConfigError: its family is none of ours, weights are missing, or it cannot do what is asked.
    """
    values = read_json(folder / "config.json")
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise unknown_name("kind of teacher", str(kind), FAMILIES)
    family = FAMILIES[kind]
    model = _model(folder, source, family, eager=attention)
    made_for, stats = _view_of(folder, model.config, student, source)
    fixed = kind == "videomae"
    if fixed and size not in (0, made_for):
        raise ConfigError(
            f"distill.teacher_size is {size}, but {source} sees {made_for} pixels and nothing else; set it to 0"
        )
    side = size or made_for
    if side % model.config.patch_size:
        raise ConfigError(
            f"{source} would see {side} pixels, which its patches of {model.config.patch_size} do not divide; "
            f"set distill.teacher_size to {side // model.config.patch_size * model.config.patch_size}"
        )
    frames = model.config.num_frames if fixed else 0
    view = View.between(student, stats, frames, side)
    return ForeignTeacher(model, family, view, not family.is_video and kind not in _POOLED)


_POOLED = ("siglip", "siglip_vision_model")
"""Without a class token."""


def _model(folder: Path, source: str, family: Family, *, eager: bool) -> Any:
    transformers = library("transformers", source)
    made = {**family.made, **({"attn_implementation": "eager"} if eager else {})}
    model, found = getattr(transformers, family.model).from_pretrained(
        str(folder), output_loading_info=True, local_files_only=True, **made
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ConfigError(
            f"{source} lacks {len(missing)} tensors of a {family.model}, {missing[0]} the first of them"
        )
    return model.float()


def _view_of(folder: Path, config: Any, student: Stats, source: str) -> tuple[int, Stats]:
    """Size and pixel statistics of the model's own preprocessing, else of its configuration, else the student's."""
    processor: dict[str, Any] = {}
    for name in PROCESSORS:
        processor |= read_json(folder / name)
    size: Any = processor.get("crop_size") or processor.get("size") or {}
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    size = size or getattr(config, "crop_size", None) or config.image_size
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not (mean and std):
        logger.warning(
            "%s does not say how pixels are normalised; it gets them as the student does", source
        )
        return int(size), student
    return int(size), (tuple(mean), tuple(std))


def _tokens(x: Tensor, batch: int, grid: TubeletGrid) -> Tensor:
    """`(B, N, D)` of the grid, from rows per clip or per frame, whose class and register tokens come first."""
    per_row = batch * grid.num_tokens // len(x)
    return x[:, x.shape[1] - per_row :].reshape(batch, grid.num_tokens, -1)


def _class_attention(out: Any) -> Tensor:
    """The class token's attention in the last block, the mean over heads: `(rows, tokens)`."""
    return out.attentions[-1][:, :, 0].float().mean(dim=1)
