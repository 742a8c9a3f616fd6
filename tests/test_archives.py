"""Files of tensors: read as they were written, or refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import torch

from onereel.archives import read_archive
from onereel.errors import DataError

TENSORS = {"a": torch.arange(5.0), "b": torch.ones(2, 3)}


def write(path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    found = read_archive(write(tmp_path / name))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_cut_short_anywhere_it_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    content = path.read_bytes()
    for length in (0, 1, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read"):
            read_archive(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(5.0).numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="the checksum of x/data/0 differs"):
        read_archive(path)


def test_parsed_arguments_are_harmless_and_other_objects_are_not(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "args.pth")
    assert read_archive(tmp_path / "args.pth")["args"].lr == 1.0
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(DataError, match="cannot be read"):
        read_archive(tmp_path / "code.pth")
    with pytest.raises(DataError, match="cannot be read"):
        read_archive(tmp_path / "absent.pth")
