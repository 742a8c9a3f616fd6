"""The import rule of docs/design.md, read off the syntax trees: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "onereel"
ROOMS = ("video", "data", "tokens", "models", "objectives", "training", "evaluation", "report")
LEVELS: dict[str, int] = {
    **dict.fromkeys(
        ("archives", "errors", "files", "fronts", "processes", "progress", "seeding", "types"), 0
    ),
    "config": 1,
    **dict.fromkeys(ROOMS, 2),
    **dict.fromkeys(("recipes",), 2),
    "build": 3,
    **dict.fromkeys(
        ("fitting", "loading", "teaching", "export", "validation", "pictures", "caching"), 4
    ),
    **dict.fromkeys(
        ("answering", "checking", "api", "doctor", "inspection", "moments", "tuning"), 4
    ),
    **dict.fromkeys(("commands", "demo", "deploying", "finding", "sharing"), 5),
    "cli": 6,
}
# Rooms that a room may import, besides itself and what lies below; type annotations may name any.
MAY_KNOW: dict[str, set[str]] = {
    "video": set(),
    "data": {"video"},
    "tokens": set(),
    "models": {"tokens"},
    "objectives": {"tokens", "models"},
    "training": set(),
    "evaluation": {"data", "objectives"},
    "report": set(),
    "recipes": set(),
}
TOO_MANY_LINES = 60


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
        if room in MAY_KNOW and other in MAY_KNOW and other != room:
            assert other in MAY_KNOW[room], f"{room} must not know {other}: {name}"


def selector_modules() -> set[str]:
    """Names of the files in tokens/ that define a class with a method `select`."""
    return {
        path.stem
        for path in (SOURCE / "tokens").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == "select" for part in node.body)
    }


def test_selectors_do_not_know_one_another_and_models_know_none() -> None:
    selectors = selector_modules()
    assert {"selector", "run_length"} <= selectors
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            if parts[1] == "tokens" and len(parts) > 2 and parts[2] in selectors:
                assert room_of(path) != "models", f"{path}: a model imports a selector"
                if path.stem in selectors and path.parent.name == "tokens":
                    assert parts[2] == path.stem or parts[-1] == "Selector"


def test_video_draws_no_random_number() -> None:
    for path in (SOURCE / "video").rglob("*.py"):
        names = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert not names & {"random", "rand", "randn", "randint", "Generator"}, path
        assert "onereel.seeding" not in "".join(imported(path)), path


def num_lines(function: ast.FunctionDef, path: Path) -> int:
    """Lines of a function; without its docstring among the verbs, where that is the help on the screen."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if path.name in ("commands.py", "deploying.py") and ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def test_files_and_functions_stay_small() -> None:
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path}: past 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = num_lines(node, path)
                assert lines < TOO_MANY_LINES, f"{path}: {node.name} has {lines} lines"
