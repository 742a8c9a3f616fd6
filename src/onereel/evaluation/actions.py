"""Verbs and nouns out of a classifier of actions: the probabilities of a verb's actions add up to the verb's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onereel.data.sources.epic import ACTION


@dataclass(frozen=True)
class ActionParts:
    """What K actions are made of.

    Attributes:
        verb_names, noun_names: the classes that occur, by number.
        verbs, nouns: int64 `(K,)`, position in these of each action's verb and noun.
    """

    verb_names: tuple[str, ...]
    noun_names: tuple[str, ...]
    verbs: Tensor
    nouns: Tensor


def action_parts(class_names: Sequence[str]) -> ActionParts:
    """The verbs and nouns of actions named `verb class:noun class`. Raises ValueError for other names."""
    found = [ACTION.fullmatch(name) for name in class_names]
    if not all(found):
        raise ValueError(f"not all of {list(class_names[:5])}… are verb class:noun class")
    verbs, nouns = zip(*(match.groups() for match in found if match))
    verb_names, noun_names = (tuple(sorted(set(part), key=int)) for part in (verbs, nouns))
    return ActionParts(
        verb_names=verb_names,
        noun_names=noun_names,
        verbs=torch.tensor([verb_names.index(verb) for verb in verbs]),
        nouns=torch.tensor([noun_names.index(noun) for noun in nouns]),
    )


def marginalise(probabilities: Tensor, parts: Tensor, num_parts: int) -> Tensor:
    """float64 `(V, num_parts)`: sums of `probabilities` `(V, K)` over the classes of each part, `parts` `(K,)`."""
    sums = torch.zeros(len(probabilities), num_parts, dtype=torch.float64)
    return sums.index_add_(1, parts, probabilities.double().cpu())


def part_accuracies(
    probabilities: Tensor, labels: Tensor, class_names: Sequence[str]
) -> dict[str, float]:
    """verb_top1 and noun_top1 of `(V, K)` action probabilities; where sums tie, the class with the lower number wins.

    A verb that no action has cannot be answered, and is not (AVION's script gives it the score of action 0).
    """
    parts = action_parts(class_names)
    accuracies = {}
    for name, part, names in (
        ("verb_top1", parts.verbs, parts.verb_names),
        ("noun_top1", parts.nouns, parts.noun_names),
    ):
        guesses = marginalise(probabilities, part, len(names)).argmax(dim=1)
        accuracies[name] = (guesses == part[labels]).double().mean().item()
    return accuracies
