"""Weights of other families under our names and in our layout: fused, inflated, interpolated, folded.

Letters: D width, t tubelet_size, p patch_size, n tubelets along a side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.models.pretrained.layouts import Layout, recognise
from onereel.models.vit import COLORS, VisionTransformer
from onereel.tokens.positions import flat_sincos_positions, resize_positions
from onereel.types import TubeletGrid

Inflation = Literal["central", "mean"]


@dataclass
class Converted:
    """Weights under the names of a `VideoModel`, not yet fitted to one.

    Attributes:
        family: of the file.
        tensors: our name -> value.
        origins: our name -> the name (or names) in the file.
        changes: our name -> what was done to the values, where they are not the file's.
        left_out: name in the file -> why our model has no place for it.
        unexpected: names in the file that nothing accounts for.
    """

    family: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()


def convert(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    encoder: VisionTransformer,
    *,
    inflation: Inflation,
    source: str,
    decoder_heads: int | None = None,
    class_token: bool = True,
) -> Converted:
    """The weights of a file of another family, for a model with this encoder.

    Args:
        tensors: as in the file.
        config: the `config.json` beside it; empty where there is none.
        encoder: the encoder to be; read for its sizes and options, not changed.
        inflation: how a patch embedding for images becomes one for tubelets: "central" (all in the frame t // 2,
            ViViT arXiv 2103.15691 section 3.4) or "mean" (spread over the frames).
        source: named in errors.
        decoder_heads: attention heads of the masked autoencoder's decoder that is to be converted too; None: leave it.
        class_token: take an image model's class token; else only its position.

    Raises:
        ConfigError: the family is unknown, or the encoder's options cannot express these weights; the remedy is said.
    """
    layout = recognise(tensors, source)
    _check_config(config, layout, encoder, source, decoder_heads)
    conversion = _Conversion(tensors, layout, encoder, inflation, source)
    conversion.class_token = class_token
    if layout.style:
        conversion.demand("style", encoder.style, layout.style)
    return conversion.run(decoder_heads is not None and bool(layout.decoder_block))


def convert_blocks(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    encoder: VisionTransformer,
    source: str,
) -> Converted:
    """Only the blocks and the last norm of a file of another family, whatever else it holds; errors as `convert`."""
    layout = recognise(tensors, source)
    _check_config(config, layout, encoder, source, None)
    return _Conversion(tensors, layout, encoder, "central", source).run_blocks()


def _check_config(
    config: Mapping[str, Any],
    layout: Layout,
    encoder: VisionTransformer,
    source: str,
    decoder_heads: int | None,
) -> None:
    """What the tensors' shapes cannot tell."""
    heads = {"num_attention_heads": encoder.num_heads, "decoder_num_attention_heads": decoder_heads}
    for key, ours in heads.items():
        if ours is not None and config.get(key, ours) != ours:
            raise ConfigError(f"{source} has {key} {config[key]}, this model {ours}")
    activation = config.get("hidden_act", layout.activations[0])
    if activation not in layout.activations:
        allowed = ", ".join(map(repr, layout.activations))
        raise ConfigError(f"{source} uses the activation {activation!r}; allowed: {allowed}")


class _Conversion:
    """One file on its way; `file` holds, by names without prefix, what has not been taken yet."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layout: Layout,
        encoder: VisionTransformer,
        inflation: Inflation,
        source: str,
    ) -> None:
        self.layout, self.encoder, self.inflation, self.source = layout, encoder, inflation, source
        # In float32: what is folded and interpolated below should not be rounded twice.
        self.file = {without_prefix(name, layout): value.float() for name, value in tensors.items()}
        self.full_names = {without_prefix(name, layout): name for name in tensors}
        self.out = Converted(layout.family)
        self.class_token = True

    def run(self, with_decoder: bool) -> Converted:
        self._check_size()
        self._patch_embedding()
        self._positions_and_class_token()
        for index in range(self._depth(self.layout.block)):
            self._block(f"encoder.blocks.{index}", self.layout.block.format(index))
        self._norms_and_head()
        if with_decoder:
            self._decoder()
        for name in list(self.file):
            for pattern, why in self.layout.left_out.items():
                if name in self.file and re.match(pattern, name):
                    self._leave(name, why)
        self.out.unexpected = tuple(sorted(self.full_names[name] for name in self.file))
        return self.out

    def run_blocks(self) -> Converted:
        for index in range(self._depth(self.layout.block)):
            self._block(f"encoder.blocks.{index}", self.layout.block.format(index))
        self._module("encoder.norm", self.layout.norm)
        return self.out

    # ---------------------------------------------------------------------------------------------- one tensor

    def _take(self, name: str) -> Tensor | None:
        return self.file.pop(name, None)

    def _leave(self, name: str, why: str) -> None:
        if self._take(name) is not None:
            self.out.left_out[self.full_names[name]] = why

    def _put(self, ours: str, value: Tensor, theirs: str, change: str = "") -> None:
        self.out.tensors[ours] = value
        self.out.origins[ours] = self.full_names.get(theirs, theirs)
        if change:
            self.out.changes[ours] = change

    def _module(self, ours: str, theirs: str, scale: Tensor | None = None) -> None:
        """Weight and bias of a module, as far as the file has them, times `scale` per output."""
        for kind in ("weight", "bias"):
            value = self._take(f"{theirs}.{kind}")
            if value is None:
                continue
            change = ""
            if scale is not None:
                value = value * (scale[:, None] if value.ndim == 2 else scale)
                change = "LayerScale multiplied in"
            self._put(f"{ours}.{kind}", value, f"{theirs}.{kind}", change)

    # --------------------------------------------------------------------------------------- sizes and options

    def _depth(self, block: str) -> int:
        pattern = re.escape(block).replace(re.escape("{}"), r"(\d+)")
        numbers = (re.match(pattern, name) for name in self.file)
        return 1 + max((int(match[1]) for match in numbers if match), default=-1)

    def _check_size(self) -> None:
        patch = self.file[f"{self.layout.patch}.weight"]
        found = {
            "embed_dim": (patch.shape[0], self.encoder.embed_dim),
            "patch_size": (patch.shape[-1], self.encoder.patch_size),
            "depth": (self._depth(self.layout.block), self.encoder.depth),
        }
        if self.layout.video:
            found["tubelet_size"] = (patch.shape[2], self.encoder.tubelet_size)
        wrong = [f"{name} {a}, not {b}" for name, (a, b) in found.items() if a != b]
        if wrong:
            raise ConfigError(
                f"{self.source} is of another size than this model: {'; '.join(wrong)}. "
                "Choose model.name and model.tubelet_size to fit."
            )

    def demand(self, option: str, given: object, needed: object) -> None:
        if given != needed:
            raise ConfigError(
                f"{self.source} ({self.layout.family}) needs model.{option} {needed}; it is {given}"
            )

    # ---------------------------------------------------------------------------------------------------- parts

    def _patch_embedding(self) -> None:
        name, change = self.layout.patch, ""
        weight = self.file.pop(f"{name}.weight")
        if not self.layout.video:
            weight = inflate(weight, self.encoder.tubelet_size, self.inflation)
            change = f"inflated to {self.encoder.tubelet_size} frames ({self.inflation})"
        # A convolution's kernel (D, C, t, p, p) and our patches share the order (c, t, h, w).
        self._put("encoder.patch_embed.weight", weight.flatten(1), f"{name}.weight", change)
        self._module("encoder.patch_embed", name)  # the bias

    def _positions_and_class_token(self) -> None:
        table = self._take(self.layout.positions)
        token = self._take(self.layout.cls)
        if self.layout.video:
            if table is not None and token is not None:
                table = self._class_token_of_video(table, token)
            self._video_positions(table)
            return
        if table is None:
            raise ConfigError(f"{self.source} has no position table")
        self.demand("positions", self.encoder.positions, "learned")
        spatial, of_token = split_class_position(table[0], token is not None)
        grid = self.encoder.grid
        side = math.isqrt(len(spatial))
        change = f"{side} x {side} interpolated to {grid.gh} x {grid.gw}, " * (
            (side, side) != grid[1:]
        )
        self._put(
            "encoder.pos_embed",
            spread_positions(spatial, grid),
            self.layout.positions,
            f"{change}the same for {grid.gt} times",
        )
        if token is None:
            return
        if self.encoder.pool == "cls" and self.class_token:
            self._put(
                "encoder.cls_token",
                token.flatten() + (0 if of_token is None else of_token),
                self.layout.cls,
                "with its position added" * (of_token is not None),
            )
        elif self.encoder.pool == "cls":
            value = torch.zeros_like(token.flatten()) if of_token is None else of_token
            self._put("encoder.cls_token", value, self.layout.positions, "its position alone")
            self.out.left_out[self.full_names[self.layout.cls]] = "model.image_class_token is off"
        else:
            self.out.left_out[self.full_names[self.layout.cls]] = "class token (model.pool mean)"

    def _class_token_of_video(self, table: Tensor, token: Tensor) -> Tensor:
        """Put the class token with its position, the first of `table (1, 1 + N, D)`; the others."""
        self.demand("pool", self.encoder.pool, "cls")
        value = token.flatten() + table[0, 0]
        self._put("encoder.cls_token", value, self.layout.cls, "with its position added")
        return table[:, 1:]

    def _video_positions(self, table: Tensor | None) -> None:
        """VideoMAE's table is fixed and seldom in the file; where it was learned, it is."""
        name, grid = self.layout.positions, self.encoder.grid
        if table is None:
            self.demand("positions", self.encoder.positions, "sincos-1d")
            return
        table = table[0]
        fixed = flat_sincos_positions(TubeletGrid(len(table), 1, 1), table.shape[1])
        if torch.allclose(table.float(), fixed, atol=1e-4):
            self.demand("positions", self.encoder.positions, "sincos-1d")
            self.out.left_out[self.full_names[name]] = "fixed table, computed here"
            return
        self.demand("positions", self.encoder.positions, "learned")
        side = math.isqrt(len(table) // grid.gt)
        source_grid = TubeletGrid(grid.gt, side, side)
        if source_grid.num_tokens != len(table):
            raise ConfigError(
                f"{self.source} has {len(table)} positions, which are no square at {grid.gt} times; "
                "use data.num_frames of the weights"
            )
        change = f"interpolated from {tuple(source_grid)}" * (source_grid != grid)
        aligned = self.encoder.align_corners
        resized = resize_positions(table, source_grid, grid, align_corners=aligned)
        self._put("encoder.pos_embed", resized, name, change)

    def _block(self, ours: str, block: str) -> None:
        scales = [self._take(block + name) for name in self.layout.scales]
        scale_of = dict(zip(("attn.proj", "fc2"), scales))
        for part, theirs in self.layout.parts.items():
            self._module(f"{ours}.{part}", block + theirs, scale_of.get(part))
        self._qkv(f"{ours}.attn.qkv", block)

    def _qkv(self, ours: str, block: str) -> None:
        """One fused matrix and one fused bias; a bias that the file lacks (VideoMAE's of the keys) is zero."""
        fused, separate = f"{block}attn.qkv", f"{block}attention.attention"
        weight = self._take(f"{fused}.weight")
        if weight is None:
            parts = [self._take(f"{separate}.{part}.weight") for part in ("query", "key", "value")]
            if any(part is None for part in parts):
                return  # said as missing
            weight = torch.cat([part for part in parts if part is not None])
            self._put(f"{ours}.weight", weight, f"{separate}.{{query,key,value}}.weight")
        else:
            self._put(f"{ours}.weight", weight, f"{fused}.weight")
        bias = self._take(f"{fused}.bias")
        if bias is not None:
            self._put(f"{ours}.bias", bias, f"{fused}.bias")
            return
        names = {
            "query": (f"{separate}.query.bias", f"{separate}.q_bias", f"{block}attn.q_bias"),
            "key": (f"{separate}.key.bias",),
            "value": (f"{separate}.value.bias", f"{separate}.v_bias", f"{block}attn.v_bias"),
        }
        found = {
            part: next((self._take(name) for name in allowed if name in self.file), None)
            for part, allowed in names.items()
        }
        absent = [part for part, value in found.items() if value is None]
        zeros = weight.new_zeros(weight.shape[1])
        bias = torch.cat([zeros if value is None else value for value in found.values()])
        change = f"zeros for {', '.join(absent)}: the file has no such bias" if absent else ""
        self._put(f"{ours}.bias", bias, f"{block}attn.{{q,k,v}} biases", change)

    def _norms_and_head(self) -> None:
        """A norm of the tokens may start one of the pooled feature (as VideoMAE v2's fine-tuning does), not reverse."""
        normalises_tokens = not isinstance(self.encoder.norm, torch.nn.Identity)
        has_fc_norm = f"{self.layout.fc_norm}.weight" in self.file
        if has_fc_norm:
            self.demand("fc_norm", not normalises_tokens, True)
            self._module("head.norm", self.layout.fc_norm)
        elif normalises_tokens:
            self._module("encoder.norm", self.layout.norm)
        else:
            self._module("head.norm", self.layout.norm)
            for name in ("head.norm.weight", "head.norm.bias"):
                if name in self.out.tensors:
                    self.out.changes[name] = "was the norm of the tokens"
        self._module("head.fc", self.layout.head)

    def _decoder(self) -> None:
        """Its pixels come in order (t, h, w, c), ours in (c, t, h, w)."""
        self._module("decoder.embed", "encoder_to_decoder")
        token = self._take("mask_token")
        if token is not None:
            self._put("decoder.mask_token", token.flatten(), "mask_token")
        for index in range(self._depth(self.layout.decoder_block)):
            self._block(f"decoder.blocks.{index}", self.layout.decoder_block.format(index))
        self._module("decoder.norm", "decoder.norm")
        self._module("decoder.head", "decoder.head")
        for name in ("decoder.head.weight", "decoder.head.bias"):
            if name in self.out.tensors:
                by_pixel = self.out.tensors[name].unflatten(0, (-1, COLORS))
                self.out.tensors[name] = by_pixel.transpose(0, 1).flatten(0, 1)
                self.out.changes[name] = "pixels from (t, h, w, c) to (c, t, h, w)"


def without_prefix(name: str, layout: Layout) -> str:
    for prefix in layout.prefixes:
        name = name.removeprefix(prefix)
    return name


def inflate(kernel: Tensor, tubelet_size: int, inflation: Inflation) -> Tensor:
    """A kernel for images `(D, C, p, p)` as one for tubelets `(D, C, t, p, p)`.

    On a clip that stands still, "mean" gives what the image gives, and "central" gives it on any clip for the frame
    t // 2 of each tubelet.
    """
    if inflation == "mean":
        return kernel[:, :, None].expand(-1, -1, tubelet_size, -1, -1) / tubelet_size
    tubelets = kernel.new_zeros(*kernel.shape[:2], tubelet_size, *kernel.shape[2:])
    tubelets[:, :, tubelet_size // 2] = kernel
    return tubelets


def split_class_position(table: Tensor, has_class_token: bool) -> tuple[Tensor, Tensor | None]:
    """A table `(L, D)` as that of a square of patches and, where it has one in front, the class token's row."""
    if has_class_token and math.isqrt(len(table) - 1) ** 2 == len(table) - 1:
        return table[1:], table[0]
    if math.isqrt(len(table)) ** 2 != len(table):
        raise ConfigError(f"a position table of {len(table)} rows is that of no square picture")
    return table, None


def spread_positions(table: Tensor, grid: TubeletGrid) -> Tensor:
    """A picture's table `(n * n, D)`, bicubically interpolated to `grid`, at every time: `(N, D)`."""
    side = math.isqrt(len(table))
    if (side, side) != grid[1:]:
        picture = table.unflatten(0, (side, side)).movedim(-1, 0)[None].float()
        picture = F.interpolate(picture, size=grid[1:], mode="bicubic", align_corners=False)
        table = picture[0].flatten(1).T.to(table.dtype)
    return table.repeat(grid.gt, 1)
