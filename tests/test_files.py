"""Files appear whole or not at all, and nothing is left of an attempt."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from onereel.files import create_once, write_atomically, written_aside


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    for content in ("ä new text\n", b"\x00\xff", ""):
        write_atomically(tmp_path / "a", content)
        expected = content.encode() if isinstance(content, str) else content
        assert (tmp_path / "a").read_bytes() == expected
    assert os.listdir(tmp_path) == ["a"]


def test_others_may_read_what_they_may_read_of_plain_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_attempt_leaves_the_old_content_alone(tmp_path: Path, durable: bool) -> None:
    def fail() -> None:
        with written_aside(tmp_path / "a", durable) as partial:
            partial.write_text("ha")
            raise KeyError

    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_must_last_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append((tmp_path / "a").exists()))
    write_atomically(tmp_path / "a", "x", durable=False)
    assert flushed == []
    (tmp_path / "a").unlink()
    write_atomically(tmp_path / "a", "x")
    assert flushed == [False]


def test_many_may_write_at_once(tmp_path: Path) -> None:
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(tmp_path / "a", content))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_is_created_once_stays(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr("onereel.files.os.link", refused)
    create_once(tmp_path / "a", "first")
    if has_links:
        create_once(tmp_path / "a", "second")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "first"
