"""Under what circumstances a table of budgets is measured: on which list, with which weights, on what machine."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import RunConfig, to_dict
from onereel.data.annotations import Annotations
from onereel.errors import ConfigError
from onereel.loading import TrainedModel
from onereel.video.schedule import num_cores


def list_to_choose_on(config: RunConfig, val: str) -> tuple[Annotations, tuple[str, ...]]:
    """The records to choose on, and what must be known of accuracies on them."""
    if not val:
        held = _trained_on(config)[1] if config.data.hold_out_ratio else None
        if held is None:
            raise ConfigError(
                "no list to choose on: give --val LIST, labelled videos that the run has neither trained on nor is "
                "tested on. A run that is trained with --data.hold-out-ratio 0.1 keeps such videos itself"
            )
        return held, ()
    if _same_file(val, config.data.train):
        raise ConfigError(
            f"{val} is the list that the run trained on, where every budget looks good: accuracies there say nothing. "
            "Give another list; or train with --data.hold-out-ratio 0.1, which keeps videos of it for this"
        )
    annotations = build.build_annotations(config, val)
    caveats = []
    if _same_file(val, config.data.val):
        caveats.append(
            f"{Path(val).name} is the list that the run is tested on: chosen there, a setting's accuracy on it is no "
            "test result any more"
        )
    shared = len(_videos(annotations) & _training_videos(config))
    if shared:
        caveats.append(
            f"the run has trained on {shared} of the {len(_videos(annotations))} videos of {Path(val).name}: "
            "accuracies are too high, and too much alike"
        )
    return annotations, tuple(caveats)


def _same_file(one: str, other: str) -> bool:
    return bool(other) and os.path.realpath(one) == os.path.realpath(other)


def _videos(annotations: Annotations) -> set[str]:
    root = os.path.realpath(annotations.root or ".")
    return {os.path.join(root, path) for path in annotations.table["path"].to_pylist()}


def _training_videos(config: RunConfig) -> set[str]:
    """Those that can still be told; a model from elsewhere has no training list here."""
    if not os.path.exists(config.data.train):
        return set()
    return _videos(_trained_on(config)[0])


def _trained_on(config: RunConfig) -> tuple[Annotations, Annotations | None]:
    return build.split_held_out(config, build.build_annotations(config, config.data.train))


def conditions_of(
    trained: TrainedModel, config: RunConfig, annotations: Annotations, device: torch.device
) -> dict[str, Any]:
    """What a row depends on, as JSON has it."""
    table = annotations.table
    columns = [name for name in ("path", "start", "end", "label") if name in table.column_names]
    listed = repr([list(map(str, table[name].to_pylist())) for name in columns])
    return {
        "weights": weights_of(trained),
        "list": os.path.abspath(annotations.source),
        "records": hashlib.blake2b(listed.encode(), digest_size=8).hexdigest(),
        "num_clips": config.eval.num_clips,
        "num_crops": config.eval.num_crops,
        "tokens": to_dict(config.tokens),
        **machine_of(device),
        "num_threads": torch.get_num_threads(),
        "precision": config.train.precision,
    }


def weights_of(trained: TrainedModel) -> str:
    """What tells these weights from others: the step, where it is known, and a digest of the head's."""
    digest = hashlib.blake2b(digest_size=8)
    for value in trained.model.head.state_dict().values():
        digest.update(value.detach().cpu().float().numpy().tobytes())
    step = trained.facts.get("step")
    return digest.hexdigest() if step is None else f"step {step}, {digest.hexdigest()}"


def machine_of(device: torch.device) -> dict[str, str]:
    """The processor, and the device that answers."""
    processor = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        names = [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {"processor": f"{processor}, {num_cores()} cores", "device": gpu or "cpu"}
