"""The verbs that write a trained model for others: convert, export.

Options are the parameters of the plain functions below; tyro turns their types and docstrings into `--help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from onereel.config import TokensConfig
from onereel.errors import ConfigError

if TYPE_CHECKING:
    from onereel.loading import TrainedModel
    from onereel.types import TubeletGrid

Source = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]


def convert(
    model: Source,
    /,
    to: Literal["onereel", "videomae"],
    out: str,
) -> None:
    """Write a trained model for others: a folder of onereel's own with a card, or one that transformers loads.

    Example: onereel convert runs/actions --to onereel --out actions-model

    Args:
        model: run folder, checkpoint, saved folder, or OWNER/MODEL of the Hugging Face Hub.
        to: onereel (`onereel predict FOLDER` and `onereel.load` take it; a video-language model, `onereel embed FOLDER`
            and `onereel.load_dual_encoder`), or videomae (transformers'
            VideoMAEForVideoClassification, for models with model.positions sincos-1d and model.fc_norm true; or, of
            masked pre-training, VideoMAEForPreTraining, for models with model.positions sincos-1d).
        out: folder to write.
    """
    from onereel.loading import Pretrained, TrainedDualEncoder, load_trained
    from onereel.models import Student
    from onereel.models.pretrained.videomae import write_videomae

    trained = load_trained(model)
    if isinstance(trained.model, Student):
        raise ConfigError(
            f"{model} was distilled without labels and has no classes: fine-tune it first"
        )
    if to == "onereel":
        if isinstance(trained, Pretrained):
            raise ConfigError(
                f"{model} was pre-trained without labels and has no classes: fine-tune it first, or --to videomae"
            )
        print(trained.save_pretrained(out))
        return
    if isinstance(trained, TrainedDualEncoder):
        raise ConfigError(
            f"{model} reads texts too, which VideoMAE's layout cannot hold: --to onereel"
        )
    print(write_videomae(out, trained.model, trained.config, trained.class_names))
    if trained.config.tokens.kind != "all":
        print("VideoMAE's layout knows no token selection: the model there keeps every token")


def convert_command(argv: Sequence[str]) -> int:
    tyro.cli(convert, prog="onereel convert", args=list(argv))
    return 0


EXPORT_HELP = """usage: onereel export RUN --format torch-export|onnx [--out FILE] [--check]
                     [--budget K | --tokens.kind KIND]

Write a model as one graph from normalised clips (any number of them) to logits, which runs without onereel.

  --format torch-export   a program of torch.export (.pt2): torch.export.load(FILE).module()(clips)
  --format onnx           an ONNX file, for onnxruntime and others; needs pip install 'onereel[onnx]'
  --out FILE              default: model.pt2 or model.onnx in RUN, or here
  --check                 read the file back, compare logits on random clips, and fail if they differ
  --budget K              exactly K tokens per clip: the most accurate such row of RUN/budgets.json (`onereel
                          tune-budget`), its frames and its size; without that table, of the run's own clips
  --tokens.kind KIND      other tokens; each clip must keep the same number, chosen without chance

RUN is a run folder, a checkpoint, a saved folder, or OWNER/MODEL of the Hugging Face Hub. Class names, pixel statistics
and clip size are in the file's metadata.

Example: onereel export runs/actions --format onnx --check --tokens.budget clip --tokens.token-budget 100"""


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as one graph."""

    run: Source
    """Run folder, checkpoint, saved folder, or OWNER/MODEL of the Hugging Face Hub."""
    format: Literal["torch-export", "onnx"]
    """What to write."""
    out: str = ""
    """File; default: model.pt2 or model.onnx in RUN, or here."""
    check: bool = False
    """Read the file back and compare logits on random clips."""
    budget: int = 0
    """Exactly so many tokens per clip, of the frames and size that `onereel tune-budget` found best for them."""
    tokens: TokensConfig = field(default_factory=TokensConfig)


def export_command(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(EXPORT_HELP)
        return 0
    if not argv or argv[0].startswith("-"):
        raise ConfigError("`onereel export` wants the run first: onereel export RUN --format onnx")
    from onereel import export
    from onereel.loading import load

    trained = load(argv[0])
    default = ExportOptions(argv[0], tyro.MISSING, tokens=trained.config.tokens)
    options = tyro.cli(ExportOptions, prog="onereel export", args=list(argv), default=default)
    trained, grid = _as_asked(trained, options)
    folder = Path(argv[0]) if Path(argv[0]).is_dir() else Path()
    out = options.out or folder / f"model{export.SUFFIXES[options.format]}"
    print(export.export(trained, options.format, out, grid))
    if not options.check:
        return 0
    result = export.check(trained, options.format, out, grid)
    print(result)
    return 0 if result.ok else 1


def _as_asked(
    trained: TrainedModel, options: ExportOptions
) -> tuple[TrainedModel, TubeletGrid | None]:
    """The model with the tokens of the options, and the grid of its clips where that is not its own."""
    from onereel.build.selection import check_given
    from onereel.loading import load
    from onereel.tuning import with_budget

    changed = options.tokens != trained.config.tokens
    if options.budget and changed:
        raise ConfigError("give --budget, or --tokens.…: the one sets what the other does")
    if options.budget:
        trained, grid, why = with_budget(options.run, trained, options.budget)
        print(why)
        return trained, grid
    if changed:
        check_given(options.tokens, trained.config.tokens)
        trained = load(options.run, replace(trained.config, tokens=options.tokens))
    return trained, None
