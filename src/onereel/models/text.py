"""Captions to features: byte-pair tokenizers, and CLIP's text transformer from `transformers`. Needs onereel[text]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from onereel.errors import DataError, unknown_name
from onereel.models.libraries import library

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENIZER = "tokenizer.json"
"""Of a video-language run or model, in its folder."""
MLP_RATIO = 4
MIN_PAIR_COUNT = 2
NEEDED_BY = "a video-language model"


class TextSize(NamedTuple):
    """Width, blocks, heads."""

    width: int
    depth: int
    num_heads: int


TEXT_SIZES = {
    "micro": TextSize(96, 3, 3),
    "base": TextSize(512, 12, 8),
    "large": TextSize(768, 12, 12),
}
"""`base` and `large` go with CLIP's ViT-B and ViT-L."""


class Tokenizer:
    """Captions to token ids: start, byte pairs, end.

    Args:
        backend: of the library `tokenizers`; puts `START` and `END` around a text.
        context_length: most tokens of a text; longer ones lose their last words, never their end token.
    """

    def __init__(self, backend: Backend, context_length: int) -> None:
        end = backend.token_to_id(END)
        if end is None:
            raise DataError(
                f"the tokenizer knows no {END}; allowed: CLIP's, or one made by onereel"
            )
        self.end_id: int = end
        self.backend, self.context_length = backend, context_length
        # A caption that spells one of them is text: its feature would else be that of a place within it.
        backend.encode_special_tokens = True
        backend.enable_truncation(context_length)
        # What comes after the end is never looked at: attention is causal and the feature is the end's.
        backend.enable_padding(pad_id=end, pad_token=END)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Byte pairs of `captions`, lower case, at most `vocab_size` of them; the 256 bytes make any text sayable."""
        tokenizers = library("tokenizers", NEEDED_BY)
        clean, parts = tokenizers.normalizers, tokenizers.pre_tokenizers
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        one_space = clean.Replace(tokenizers.Regex(r"\s+"), " ")
        backend.normalizer = clean.Sequence(
            [clean.NFC(), clean.Lowercase(), one_space, clean.Strip()]
        )
        backend.pre_tokenizer = parts.ByteLevel(add_prefix_space=True)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_PAIR_COUNT,
            special_tokens=[START, END],
            initial_alphabet=sorted(parts.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        ends = [(token, backend.token_to_id(token)) for token in (START, END)]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=ends
        )
        return cls(backend, context_length)

    @classmethod
    def load(cls, path: str | Path, context_length: int) -> Tokenizer:
        """The tokenizer in a `tokenizer.json`, ours or one of the hub's."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer; a video-language run keeps its own there")
        return cls.from_json(path.read_text(encoding="utf-8"), context_length)

    @classmethod
    def from_json(cls, text: str, context_length: int) -> Tokenizer:
        """The inverse of `to_json`."""
        return cls(library("tokenizers", NEEDED_BY).Tokenizer.from_str(text), context_length)

    def to_json(self) -> str:
        return self.backend.to_str()

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """int64 `(B, L)` on the CPU; L is the longest of the batch, `context_length` at most."""
        encoded = self.backend.encode_batch_fast(list(captions))
        return torch.tensor([text.ids for text in encoded], dtype=torch.int64)


class TextTower(nn.Module):
    """CLIP's text transformer with its projection, freshly initialised: token ids `(B, L)` to features `(B, E)`.

    Args:
        size: a name of `TEXT_SIZES`.
        vocab_size, context_length: of the tokenizer.
        out_dim: E.
        end_id: the token whose feature stands for the text.
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        size: str,
        *,
        vocab_size: int,
        context_length: int,
        out_dim: int,
        end_id: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in TEXT_SIZES:
            raise unknown_name("text.size", size, TEXT_SIZES)
        self.width, self.depth, num_heads = TEXT_SIZES[size]
        self.out_dim = out_dim
        transformers = library("transformers", NEEDED_BY)
        config = transformers.CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=self.width,
            intermediate_size=MLP_RATIO * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=num_heads,
            max_position_embeddings=context_length,
            projection_dim=out_dim,
            bos_token_id=None,
            pad_token_id=None,
            eos_token_id=end_id,
        )
        self.model = transformers.CLIPTextModelWithProjection(config)
        if checkpointing:
            checkpoint_blocks(self.model)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, E)`, not normalised."""
        return self.model(input_ids=tokens).text_embeds

    def macs(self, batch_size: int, length: int) -> int:
        """Multiply-adds of the matrix products for `batch_size` texts padded to `length` tokens."""
        d = self.width
        block = 12 * length * d**2 + 2 * length**2 * d
        return batch_size * (self.depth * block + d * self.out_dim)


def checkpoint_blocks(model: Any) -> None:
    """Let a model of `transformers` recompute its blocks in the backward pass."""
    # The second name is the older one, which transformers 5 deprecates.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
