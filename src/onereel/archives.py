"""Files of tensors from anywhere, read without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from onereel.errors import DataError

DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, SafetensorError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What zipfile, safetensors and torch raise, between them, for files with flipped or missing bytes."""


def read_archive(path: str | Path) -> Any:
    """What a `.safetensors` file or one of `torch.save` holds, on the CPU; checksums, where it has any, are checked.

    Raises:
        DataError: the file is missing, cut short, damaged, or holds more than plain containers and tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        with zipfile.ZipFile(path) as archive:  # what torch.save writes since PyTorch 1.6
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        # Training scripts of this field, VideoMAE's among them, save their parsed arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read: {error}") from error
