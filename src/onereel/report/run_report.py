"""`report.html`: one page, from the files of the run folder alone, that needs no network and no script."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from onereel.files import write_atomically
from onereel.report import view
from onereel.report.budget_view import budget_charts, budget_lines, promises_latency
from onereel.report.pictures import data_uri
from onereel.report.run_files import RunFiles, read_run
from onereel.report.templates import environment

QUARANTINE_ROWS = 200


def write_report(run: str | Path) -> Path:
    """Write `run/report.html` from the run's own files and return its path; a run in progress gives a shorter page.

    Raises:
        ConfigError: there is no run in the folder.
    """
    folder = Path(run)
    page = render_report(read_run(folder))
    target = folder / "report.html"
    write_atomically(target, page)
    return target


def render_report(files: RunFiles) -> str:
    """The page as text."""
    main, dense = view.main_evaluation(files), view.dense_evaluation(files)
    recipe = str(files.config.get("recipe") or files.folder.name)
    return (
        environment()
        .get_template("run_report.html.jinja")
        .render(
            title=f"{recipe}: {files.config.get('model', {}).get('name', 'run')}",
            recipe=recipe,
            headline=view.headline(files),
            tiles=view.tiles(files),
            charts=view.charts(files),
            main=main,
            dense=dense,
            figure_columns=view.figure_columns(files),
            rows=[view.evaluation_row(one, dense) for one in files.evaluations],
            confusions=[view.confusion(one) for one in files.evaluations if one.class_names],
            class_rows=view.class_rows(files),
            examples=_examples(files),
            budgets=files.budgets,
            budget_lines=budget_lines(files.budgets),
            budget_charts=budget_charts(files.budgets),
            settings=view.settings(files.config),
            versions=files.versions,
            quarantine_header=files.quarantine[0] if files.quarantine else [],
            quarantine=files.quarantine[1 : 1 + QUARANTINE_ROWS],
            num_quarantined=max(0, len(files.quarantine) - 1),
            commands=_commands(files),
            unreadable=files.unreadable,
        )
    )


def _commands(files: RunFiles) -> list[tuple[str, str]]:
    """(what it does, the command) to go on from here."""
    run = shlex.quote(str(files.folder))
    resume = ("Resume training where it stopped", f"onereel train --resume {run}")
    again = ("Write this page again", f"onereel report {run}")
    if view.is_pretraining(files):
        tune = f"onereel train RECIPE --model.pretrained {run} --data.train LIST"
        return [resume, ("Fine-tune its encoder", tune), again]
    evaluate = f"onereel eval {run}"
    return [
        resume,
        ("Evaluate the newest checkpoint", f"{evaluate} --name val"),
        ("Evaluate it with every token", f"{evaluate} --tokens.kind all --name dense"),
        *(_search_videos(run) if view.learns_pairs(files) else [_label_videos(files, run)]),
        again,
    ]


def _search_videos(run: str) -> list[tuple[str, str]]:
    index = "features.parquet"
    embed = f"onereel embed {run} VIDEOS --window-seconds 5 --out {index}"
    search = f'onereel search {run} "WHAT TO LOOK FOR" --index {index} --html found.html'
    return [("Embed other videos", embed), ("Search them by a text", search)]


def _label_videos(files: RunFiles, run: str) -> tuple[str, str]:
    if not promises_latency(files.budgets):
        return "Label other videos", f"onereel predict {run} VIDEO.mp4"
    quickest = min(one.latency_ms for one in budget_lines(files.budgets))
    limit = f"--latency-ms {math.ceil(quickest)}"
    return "Label other videos within a latency", f"onereel predict {run} VIDEO.mp4 {limit}"


def _examples(files: RunFiles) -> list[dict[str, Any]]:
    """The entries of examples.json with each picture's bytes; one whose picture is gone is named, not shown."""
    found = []
    for entry in files.examples:
        path = files.folder / "examples" / Path(entry["file"]).name
        if not path.is_file():
            files.unreadable.append(f"{path.name}: missing")
            continue
        found.append({**entry, "data": data_uri(path.read_bytes())})
    return found
