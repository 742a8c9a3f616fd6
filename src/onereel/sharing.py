"""The verbs that write a trained model for others: convert.

Options are the parameters of the plain functions below; tyro turns their types and docstrings into `--help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


def convert(
    model: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")],
    /,
    to: Literal["onereel", "videomae"],
    out: str,
) -> None:
    """Write a trained model for others: a folder of onereel's own with a card, or one that transformers loads.

    Example: onereel convert runs/actions --to onereel --out actions-model

    Args:
        model: run folder, checkpoint, saved folder, or OWNER/MODEL of the Hugging Face Hub.
        to: onereel (`onereel predict FOLDER` and `onereel.load` take it), or videomae (transformers'
            VideoMAEForVideoClassification; for models with model.positions sincos-1d and model.fc_norm true).
        out: folder to write.
    """
    from onereel.loading import load
    from onereel.models.pretrained.videomae import write_videomae

    trained = load(model)
    if to == "onereel":
        print(trained.save_pretrained(out))
        return
    print(write_videomae(out, trained.model, trained.class_names))
    if trained.config.tokens.kind != "all":
        print("VideoMAE's layout knows no token selection: the model there keeps every token")


def convert_command(argv: Sequence[str]) -> int:
    tyro.cli(convert, prog="onereel convert", args=list(argv))
    return 0
