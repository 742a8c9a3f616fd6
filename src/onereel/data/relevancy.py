"""How well a sentence fits a video of EPIC-KITCHENS-100: by the classes of verb and nouns, not by the words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onereel.errors import DataError

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Actions:
    """What happens in N clips, or is said in N sentences.

    Attributes:
        verbs: int64 `(N,)`, verb class.
        nouns: bool `(N, C)`, which noun classes are named.
    """

    verbs: np.ndarray
    nouns: np.ndarray

    def __post_init__(self) -> None:
        if self.nouns.shape[:1] != self.verbs.shape or self.nouns.ndim != 2:
            raise ValueError(f"verbs {self.verbs.shape} and nouns {self.nouns.shape} don't match")

    def __len__(self) -> int:
        return len(self.verbs)

    def __getitem__(self, chosen: slice | np.ndarray) -> Actions:
        return Actions(self.verbs[chosen], self.nouns[chosen])


def relevancy_matrix(videos: Actions, sentences: Actions) -> np.ndarray:
    """float32 `(V, S)` from 0 to 1: half for the same verb class, half for the nouns' intersection over union.

    As in EPIC-KITCHENS-100's multi-instance retrieval (Damen et al., arXiv 2006.13256). 1 exactly where verb and set
    of nouns are the same; two that name no noun at all have none in common.
    """
    shared = min(videos.nouns.shape[1], sentences.nouns.shape[1])
    sentence_nouns = sentences.nouns[:, :shared].astype(np.float32).T
    sentence_counts = sentences.nouns.sum(1, dtype=np.float32)
    relevancy = np.empty((len(videos), len(sentences)), np.float32)
    for first in range(0, len(videos), ROWS_AT_ONCE):
        block = videos[first : first + ROWS_AT_ONCE]
        rows = relevancy[first : first + ROWS_AT_ONCE]
        common = block.nouns[:, :shared].astype(np.float32) @ sentence_nouns
        union = block.nouns.sum(1, dtype=np.float32)[:, None] + sentence_counts - common
        np.divide(common, np.maximum(union, 1), out=rows)
        rows += block.verbs[:, None] == sentences.verbs
        rows *= 0.5
    return relevancy


class SentencePool:
    """The sentences that describe the clips of a list, each of them more or less.

    Args:
        texts: S sentences.
        sentences: what each of them says.
        videos: what happens in each record of the list.
    """

    threshold = 0.1
    """A training clip may be paired with any sentence that is more relevant than this (AVION, LaViLa)."""

    def __init__(self, texts: tuple[str, ...], sentences: Actions, videos: Actions) -> None:
        if len(texts) != len(sentences):
            raise ValueError(f"{len(texts)} texts, but {len(sentences)} sentences")
        self.texts, self.sentences = texts, sentences
        self._num_nouns = sentences.nouns.sum(1, dtype=np.float32)
        # Few clips differ in what happens: workers get each different action once, and its number for each clip.
        verbs = np.ascontiguousarray(videos.verbs, np.int64)[:, None].view(np.uint8)
        keys = np.concatenate([verbs, np.packbits(videos.nouns, axis=1)], axis=1)
        _, first, self._kind = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self._kinds = videos[first]

    @property
    def videos(self) -> Actions:
        """What happens in each record of the list."""
        return self._kinds[self._kind]

    def relevancy(self) -> np.ndarray:
        """float32 `(V, S)`, see `relevancy_matrix`."""
        return relevancy_matrix(self.videos, self.sentences)

    def relevancy_of(self, index: int) -> np.ndarray:
        """Row `index` of `relevancy()`, from the few nouns that the record names; a hundred times as fast."""
        kind = self._kind[index]
        named = np.flatnonzero(self._kinds.nouns[kind])
        shared = named[named < self.sentences.nouns.shape[1]]
        common = self.sentences.nouns[:, shared].sum(1, dtype=np.float32)
        union = np.maximum(len(named) + self._num_nouns - common, 1)
        return (common / union + (self.sentences.verbs == self._kinds.verbs[kind])) / 2

    def draw(self, index: int, generator: np.random.Generator) -> str:
        """One of the sentences that are relevant enough to record `index`, each as probable. Raises DataError."""
        relevant = np.flatnonzero(self.relevancy_of(index) > self.threshold)
        if not len(relevant):
            raise DataError(
                f"record {index} has no sentence of relevance above {self.threshold:g}: the sentence table must "
                "be the one of this list"
            )
        return self.texts[int(generator.choice(relevant))]
