"""What docs/language.md prints is understood by the command line, and its Python runs."""

from __future__ import annotations

import pickle
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onereel import api, doctor, moments
from onereel.cli import main
from onereel.config import RunConfig
from onereel.data.annotations import read_annotations
from onereel.recipes import load_recipe
from onereel.training import on_devices

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "language.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line))]


class Called:
    """Stands for what the verbs call, and keeps what it was given."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []

    def __call__(self, *given: Any, **options: Any) -> Any:
        configs = [one for one in (*given, options.get("config")) if isinstance(one, RunConfig)]
        self.configs += configs
        return SimpleNamespace(
            ok=True,
            usable=(),
            num_records=0,
            chunks=1,
            num_failed=0,
            broken=(),
            step=0,
            run=Path("runs/x"),
        )


@pytest.mark.parametrize("words", commands(), ids=lambda words: shlex.join(words[:4]))
def test_every_command_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called = Called()
    for room, names in (
        (api, ("prepare", "check_annotations", "train", "evaluate")),
        (moments, ("embed", "write_page")),
        (doctor, ("plan_run",)),
    ):
        for name in names:
            monkeypatch.setattr(room, name, called)
    monkeypatch.setattr(api, "run_config", lambda run: load_recipe("avion_ego4d_vitb"))
    monkeypatch.setattr(moments, "search", lambda *given, **options: [])
    assert words[0] == "onereel"
    assert main(words[1:]) == 0
    for config in called.configs if words[1] == "train" else []:
        assert on_devices(config.train, 1).accum_steps >= 1
        assert config.data.train
        assert config.data.val
        assert config.data.store or config.data.root


def test_joined_lists_hold_the_entries_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = re.findall(r'"(ego4d_train\.\w+\.pkl)"', PAGE)
    for name in names:
        Path(name).write_bytes(pickle.dumps([(name, 0.0, 1.0, ["#C C waits", "#C C rests"])]))
    for code in blocks("python"):
        exec(code, {})
    found = read_annotations("lavila.pkl")
    assert [found.record(i).path for i in range(len(found))] == names
