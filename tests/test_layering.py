"""The import rule of docs/design.md, read off the syntax trees: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "onereel"
ROOMS = ("video", "data", "tokens", "models", "objectives", "training", "evaluation", "report")
LEVELS: dict[str, int] = {
    **dict.fromkeys(("errors", "files", "seeding", "types"), 0),
    "config": 1,
    **dict.fromkeys(ROOMS, 2),
    **dict.fromkeys(("recipes",), 2),
    "build": 3,
    "loading": 4,
    **dict.fromkeys(("api", "doctor"), 4),
    **dict.fromkeys(("commands", "demo"), 5),
    "cli": 6,
}
FORBIDDEN = {
    "video": {"data", "tokens", "models", "objectives", "training", "evaluation", "report"},
    "data": {"tokens", "models", "objectives", "training", "evaluation", "report"},
    "tokens": {"video", "data", "models", "objectives", "training", "evaluation", "report"},
    "models": {"video", "data", "objectives", "training", "evaluation", "report"},
    "training": {"video", "models", "tokens", "objectives", "data", "report"},
    "objectives": {"video", "data", "training", "report"},
    "recipes": set(ROOMS),
}
SELECTOR_MODULES = {"selector", "run_length"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full names `onereel.…` that the file imports, wherever in it the import stands, annotations aside."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("onereel.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_rule(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not imported(path), "the front door imports nothing until it is asked"
        return
    for name in imported(path) - {"onereel.__version__"}:
        other = name.split(".")[1]
        assert other in LEVELS, (
            f"{name}: give the new room a level in this test and in docs/design.md"
        )
        assert LEVELS[other] <= LEVELS[room], f"{room} imports upwards: {name}"
        assert other not in FORBIDDEN.get(room, set()), f"{room} must not know {other}: {name}"


def test_selectors_do_not_know_one_another_and_models_know_none() -> None:
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            if parts[1] == "tokens" and len(parts) > 2 and parts[2] in SELECTOR_MODULES:
                assert room_of(path) != "models", f"{path}: a model imports a selector"
                if path.stem in SELECTOR_MODULES and path.parent.name == "tokens":
                    assert parts[2] == path.stem or parts[-1] == "Selector"


def test_video_draws_no_random_number() -> None:
    for path in (SOURCE / "video").rglob("*.py"):
        names = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert not names & {"random", "rand", "randn", "randint", "Generator"}, path
        assert "onereel.seeding" not in "".join(imported(path)), path


def test_files_and_functions_stay_small() -> None:
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path}: past 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= 75, f"{path}: {node.name} has {length} lines"
