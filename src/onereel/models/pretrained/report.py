"""Weights into a model: all of them or none, and an account of every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.models.pretrained.convert import Converted

MAY_BE_NEW = (
    r"encoder\.length_embed$|encoder\.norm\.|head\.(heads\.\d+\.)?(norm|fc|pooler)\.|decoder\."
    r"|encoder\.spatial\.(norm\.|cls_token$)|encoder\.adapter\."
    r"|encoder\.temporal\.(blocks\.|norm\.|pos_embed$|cls_token$)"
)
"""What may start fresh: zeros, norms, classifiers, a decoder, and what follows the frames of a factorised encoder.
Anything else that is missing is an error."""
CLASSIFIERS = r"head\.(heads\.\d+\.)?fc\."


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor.

    Attributes:
        source, family: where the weights came from.
        matched: our names whose tensors the file has under the same name.
        renamed: our names whose tensors the file has, as they are, under other names.
        changed: our name -> what was done to the file's tensor (fused biases, interpolation, inflation, ...).
        new: our names that start fresh.
        left_out: names in the file that our model has no place for -> why.
    """

    source: str
    family: str
    matched: tuple[str, ...]
    renamed: tuple[str, ...]
    changed: Mapping[str, str]
    new: tuple[str, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        loaded = len(self.matched) + len(self.renamed) + len(self.changed)
        lines = [
            f"weights from {self.source} ({self.family}): {loaded} tensors loaded, {len(self.matched)} matched, "
            f"{len(self.renamed)} renamed, {len(self.changed)} changed; {len(self.new)} new; "
            f"{len(self.left_out)} left out; none unexpected"
        ]
        lines += [f"  changed: {names}: {how}" for how, names in _by_reason(self.changed)]
        lines += [f"  new: {names}" for names in (_short(self.new),) if self.new]
        lines += [f"  left out: {names}: {why}" for why, names in _by_reason(self.left_out)]
        return "\n".join(lines)


def load_converted(
    model: nn.Module,
    converted: Converted,
    *,
    source: str,
    whole: bool = False,
    keep_head: bool = False,
    may_be_new: str = MAY_BE_NEW,
) -> LoadReport:
    """Put weights into a model, all or none.

    Args:
        may_be_new: regular expression of how the names of a part begin that may start fresh, whole.
        whole: take the classifier too, and let nothing start fresh. Else the model's own classifier stays as it is.
        keep_head: take the classifier too.

    Raises:
        ConfigError: a tensor is unexpected, missing, or of another shape; the model is unchanged then.
    """
    wanted = model.state_dict()
    _fit_heads(converted, wanted)
    found, left_out = dict(converted.tensors), dict(converted.left_out)
    if not (whole or keep_head):
        for name in [name for name in found if re.match(CLASSIFIERS, name)]:
            left_out[converted.origins[name]] = f"classifier of {len(found.pop(name))} classes"
    missing = [name for name in wanted if name not in found]
    lacking = [name for name in missing if whole or not _may_be_new(name, found, may_be_new)]
    _check(wanted, found, lacking, converted, source)
    model.load_state_dict({**wanted, **found})
    changed = {name: how for name, how in converted.changes.items() if name in found}
    same = [name for name in found if name not in changed]
    return LoadReport(
        source,
        converted.family,
        matched=tuple(name for name in same if converted.origins[name] == name),
        renamed=tuple(name for name in same if converted.origins[name] != name),
        changed=changed,
        new=tuple(missing),
        left_out=left_out,
    )


def _fit_heads(converted: Converted, wanted: Mapping[str, Tensor]) -> None:
    """Each of the model's heads gets that of the same place, from the largest budget on, or the last that there is.

    A single head is a first one.
    """
    theirs, ours = _heads_in(converted.tensors), _heads_in(wanted)
    if theirs == ours or not theirs or not ours:
        return
    for name in [name for name in converted.tensors if name.startswith(tuple(theirs))]:
        value, origin = converted.tensors.pop(name), converted.origins.pop(name)
        how = converted.changes.pop(name, "")
        (source,) = (prefix for prefix in theirs if name.startswith(prefix))
        takers = [
            taker
            for place, taker in enumerate(ours)
            if theirs[min(place, len(theirs) - 1)] == source
        ]
        if not takers:
            converted.left_out[origin] = "of a smaller budget"
        for taker in takers:
            new_name = taker + name.removeprefix(source)
            converted.tensors[new_name], converted.origins[new_name] = value, origin
            converted.changes |= {new_name: how} if how else {}


def _heads_in(names: Iterable[str]) -> list[str]:
    """What the names of each head begin with."""
    heads = [re.match(r"head\.(?:heads\.(\d+)\.)?", name) for name in names]
    numbers = sorted({int(head[1]) for head in heads if head and head[1]})
    if numbers:
        return [f"head.heads.{number}." for number in numbers]
    return ["head."] if any(heads) else []


def _may_be_new(name: str, found: Iterable[str], may_be_new: str) -> bool:
    """Whether `name` belongs to a part that may start fresh and of which nothing was found."""
    part = re.match(may_be_new, name)
    return part is not None and not any(other.startswith(part[0]) for other in found)


def _check(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    lacking: Sequence[str],
    converted: Converted,
    source: str,
) -> None:
    shapes = [
        f"{name} {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in found.keys() & wanted.keys()
        if found[name].shape != wanted[name].shape
    ]
    problems: dict[str, Sequence[str]] = {
        "unexpected in the file": converted.unexpected,
        "not in this model": sorted(found.keys() - wanted.keys()),
        "missing in the file": lacking,
        "of another shape": sorted(shapes),
    }
    said = [f"{len(names)} {what} ({_short(names)})" for what, names in problems.items() if names]
    if said:
        raise ConfigError(
            f"{source} ({converted.family}) does not fit this model, and nothing was loaded: {'; '.join(said)}. "
            "Use the model, frames and size that the weights were trained with"
        )


def _short(names: Iterable[str], shown: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """(reason, names) for each reason."""
    return [
        (reason, _short(name for name, r in reasons.items() if r == reason))
        for reason in dict.fromkeys(reasons.values())
    ]
