"""What a list asks of a model that embeds videos and texts: the texts to embed, and the figures they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onereel.errors import DataError
from onereel.evaluation.multiple_choice import MultipleChoice, multiple_choice
from onereel.evaluation.retrieval import (
    CaptionRetrieval,
    MultiInstanceRetrieval,
    caption_retrieval,
    caption_set,
    multi_instance_retrieval,
)
from onereel.evaluation.zero_shot import ZeroShot, class_embeddings, prompts, zero_shot

if TYPE_CHECKING:
    from onereel.data.annotations import Annotations

Figures = CaptionRetrieval | MultiInstanceRetrieval | MultipleChoice | ZeroShot


def task_texts(annotations: Annotations, templates: Sequence[str] = ()) -> tuple[str, ...]:
    """The texts that `text_figures` wants embedded.

    The sentences of an EPIC-KITCHENS-100 retrieval list, the questions of EgoMCQ, all captions of a list that has
    captions, or else prompts for its classes, by `templates` (see `prompts`).

    Raises DataError for a list with neither captions nor labels, or with numbers for labels.
    """
    origin = annotations.origin
    if origin.sentences is not None:
        return origin.sentences.texts
    if origin.questions is not None:
        return origin.questions.texts
    if annotations.has_captions or not annotations.has_labels:
        return caption_set(annotations).texts
    try:
        return tuple(prompts(annotations.label_names(), templates))
    except DataError as error:
        raise DataError(f"{annotations.source}: {error}") from error


def text_figures(
    annotations: Annotations, videos: Tensor, texts: Tensor, templates: Sequence[str] = ()
) -> Figures:
    """What the list is tested by: graded mAP and nDCG, multiple choice, recall, or zero-shot accuracy.

    Args:
        videos: `(N, D)` embeddings of the list's records, in order.
        texts: `(T, D)` embeddings of `task_texts(annotations, templates)`.

    Raises DataError where the shapes don't fit the list or a value is not finite.
    """
    origin, num_texts = annotations.origin, len(task_texts(annotations, templates))
    if len(videos) != len(annotations) or len(texts) != num_texts:
        raise DataError(
            f"{annotations.source}: {len(videos)} videos and {len(texts)} texts were embedded, not "
            f"{len(annotations)} and {num_texts}"
        )
    if origin.sentences is not None:
        relevancy = torch.from_numpy(origin.sentences.relevancy())
        return multi_instance_retrieval(videos, texts, relevancy)
    if origin.questions is not None:
        answers = torch.tensor(origin.questions.answers)
        return multiple_choice(texts, videos, answers, origin.questions.kinds)
    if annotations.has_captions:
        captions = caption_set(annotations)
        return caption_retrieval(videos[captions.records], texts, captions.video_of_text)
    names = annotations.label_names()
    number = {name: i for i, name in enumerate(names)}
    labels = [number[str(name)] for name in annotations.table["label"].to_pylist()]
    return zero_shot(videos, class_embeddings(texts, len(names)), torch.tensor(labels))
