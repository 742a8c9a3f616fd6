"""The card of a model, written from the run that trained it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onereel.config import RunConfig, to_dict
from onereel.models.dual_encoder import DualEncoder, video_of

if TYPE_CHECKING:
    from onereel.models.video_model import VideoModel

CLASSES_SHOWN = 20


def model_card(
    model: VideoModel | DualEncoder,
    config: RunConfig,
    class_names: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Markdown with the metadata that the Hugging Face Hub reads.

    Args:
        class_names: in the order of the classifier; none of a dual encoder.
        config: of the run, without the paths of the machine that it ran on.
        facts: as far as they are known, "step" (optimiser steps), "train_list", "val_list" (names of the lists),
            "metrics" (name -> number of the last evaluation) and "versions" (name -> version).
    """
    both = isinstance(model, DualEncoder)
    parts = [
        _head(config, "feature-extraction" if both else "video-classification"),
        _what(model, config),
        _use_of_both(config) if both else _use(config),
        "" if both else _classes(class_names),
        _training(config, facts),
        _metrics(facts.get("metrics", {})),
        _configuration(config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(config: RunConfig, task: str) -> str:
    lines = [
        "---",
        "library_name: onereel",
        f"pipeline_tag: {task}",
        "tags: [video, onereel]",
    ]
    return "\n".join([*lines, "---", f"# {config.recipe or config.model.name}"])


def _what(model: VideoModel | DualEncoder, config: RunConfig) -> str:
    video = video_of(model)
    data, grid = config.data, video.encoder.grid
    num_parameters = sum(p.numel() for p in model.parameters())
    num_kept = video.selector.num_kept(grid)
    rows = {
        "model": f"{config.model.name}, tubelets of {config.model.tubelet_size} frames",
        "parameters": f"{num_parameters / 1e6:.1f} M",
        "clip": f"{data.num_frames} frames of {data.size} x {data.size} px, sampling {_sampling(config)}",
        "tokens": f"{grid.num_tokens} per clip; selector `{config.tokens.kind}` keeps "
        + (f"{num_kept}" if num_kept else "what a clip needs"),
        "cost": f"{video.macs((num_kept or grid.num_tokens,)) / 1e9:.2f} GMACs per view "
        f"with {num_kept or grid.num_tokens} tokens (FLOPs are twice as many)",
        "pixels": f"RGB in 0..1, mean {config.augment.mean}, standard deviation {config.augment.std}",
    }
    if config.model.backbone:
        rows["backbone"] = (
            f"`{config.model.backbone}`, which must be there too where this model is loaded"
        )
    if isinstance(model, DualEncoder):
        rows["text"] = (
            f"{config.text.size} tower, {model.tokenizer.vocab_size} byte pairs, at most "
            f"{config.text.context_length} tokens; features of {config.text.embed_dim} values"
        )
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def _sampling(config: RunConfig) -> str:
    data = config.data
    rate = f", {data.sampling_rate} source frames apart" if data.sampling == "dense" else ""
    return data.sampling + rate


def _use(config: RunConfig) -> str:
    return (
        "## Use\n\n"
        "```bash\nonereel predict FOLDER video.mp4\n```\n\n"
        '```python\nimport onereel\n\ntrained = onereel.load("FOLDER")\n'
        f"logits = trained.model(clips).logits  # clips: normalised float (B, {config.data.num_frames}, 3, "
        f"{config.data.size}, {config.data.size})\n```\n\n"
        "FOLDER is this folder, or the name of this model on the Hugging Face Hub."
    )


def _use_of_both(config: RunConfig) -> str:
    return (
        "## Use\n\n"
        "```bash\nonereel embed FOLDER LIST --out features.parquet\n"
        'onereel search FOLDER "a person opens a drawer" --index features.parquet\n```\n\n'
        '```python\nimport onereel\n\nmodel = onereel.load_dual_encoder("FOLDER").model\n'
        "# clips: normalised float "
        f"(B, {config.data.num_frames}, 3, {config.data.size}, {config.data.size})\n"
        "similarity = model.encode_video(clips)[0] @ model.encode_text(captions).T\n```\n\n"
        "FOLDER is this folder, or the name of this model on the Hugging Face Hub."
    )


def _classes(class_names: Sequence[str]) -> str:
    more = len(class_names) - CLASSES_SHOWN
    shown = ", ".join(class_names[:CLASSES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"## Classes\n\n{len(class_names)}: {shown}"


def _training(config: RunConfig, facts: Mapping[str, Any]) -> str:
    lines = []
    if config.recipe:
        lines.append(
            f"- recipe `{config.recipe}`, {config.train.epochs} epochs, seed {config.seed}"
        )
    if facts.get("step"):
        lines.append(f"- {facts['step']} optimiser steps")
    for key, what in (("train_list", "trained on"), ("val_list", "tested on")):
        if facts.get(key):
            lines.append(f"- {what} `{facts[key]}`")
    versions = ", ".join(
        f"{name} {value}" for name, value in facts.get("versions", {}).items() if value
    )
    if versions:
        lines.append(f"- {versions}")
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["## Evaluation", "", "| | |", "|---|---|", *rows])


def _configuration(config: RunConfig) -> str:
    text = json.dumps(to_dict(config), indent=1)
    return f"<details><summary>Configuration</summary>\n\n```json\n{text}\n```\n</details>"
