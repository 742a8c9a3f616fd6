"""The page says what the run's files say, whatever they are called and however far the run has got."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from onereel.config import DataConfig, ObjectiveConfig, RunConfig, TokensConfig, to_json
from onereel.errors import ConfigError
from onereel.evaluation.multiple_choice import MultipleChoice
from onereel.evaluation.pairs import Cost, PairResult
from onereel.evaluation.retrieval import CaptionRetrieval, MultiInstanceRetrieval, Recall
from onereel.evaluation.text_tasks import Figures
from onereel.evaluation.zero_shot import ZeroShot
from onereel.report.examples import write_examples
from onereel.report.measures import TOP1
from onereel.report.run_files import Evaluation, read_run
from onereel.report.run_report import QUARANTINE_ROWS, write_report
from onereel.report.view import MATRIX_CLASSES, confusion, main_evaluation
from onereel.types import TubeletGrid

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert('\"&')</script>"
CLASSES = ["moves left", "moves right", "grows"]


class Page(HTMLParser):
    """Tags with their attributes, the text, and the nesting checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def evaluation(top1: float = 2 / 3, kept_ratio: float = 1.0, **more: Any) -> dict[str, Any]:
    values = {
        "class_names": CLASSES,
        "num_videos": 6,
        "num_views": 1,
        "top1": top1,
        "top5": 1.0,
        "class_accuracy": [0.5, 0.5, None],
        "class_counts": [2, 4, 0],
        "confusion": [[0, 0, 1], [0, 2, 1], [1, 1, 2], [1, 0, 2]],
        "seconds": 8.0 * kept_ratio,
        "clips_per_second": 0.75 / kept_ratio,
        "data_wait": 0.25,
        "kept_ratio": kept_ratio,
        "macs_per_view": 1.5e9 * kept_ratio,
    }
    return values | more


def make_run(folder: Path, **data: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig(
        recipe="demo",
        data=DataConfig(train="lists/train.csv", **data),
        tokens=TokensConfig(kind="run-length"),
    )
    (folder / "config.json").write_text(to_json(config))
    return folder


def log(folder: Path, *records: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def add_evaluation(folder: Path, name: str, values: dict[str, Any]) -> None:
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"{name}.json").write_text(json.dumps(values))


def full_run(folder: Path) -> Path:
    make_run(folder)
    for step in range(1, 21):
        log(
            folder,
            {"kind": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "top1": 0.5},
        )
    log(folder, {"kind": "eval", "step": 20, "epoch": 2.0, "top1": 0.625})
    add_evaluation(folder, "random", evaluation(1 / 3, 0.25))
    add_evaluation(folder, "run-length", evaluation(5 / 6, 0.25))
    add_evaluation(folder, "dense", evaluation(2 / 3))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0", "git_commit": ""}))
    (folder / "quarantine.csv").write_text("path,frame,reason\nbad.mp4,3,cut short\n")
    grid = TubeletGrid(2, 2, 2)
    clip = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    mask = torch.tensor([True] * 5 + [False] * 3)
    write_examples(folder, [clip], [mask], ["a disc"], grid=grid, tubelet_size=2, patch_size=16)
    return folder


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def exact_values(page: Page) -> set[float]:
    return {float(attributes["value"] or "nan") for attributes in page.all("data")}


def test_the_page_holds_the_figures_of_the_files_exactly(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    for values in (evaluation(1 / 3, 0.25), evaluation(5 / 6, 0.25), evaluation(2 / 3)):
        for key in ("top1", "top5", "kept_ratio", "seconds", "data_wait", "clips_per_second"):
            assert values[key] in exact_values(page)
        assert 2 * values["macs_per_view"] / 1e9 in exact_values(page)
    assert "83.3\N{NO-BREAK SPACE}% top‑1 on 6 test samples" in page.text
    assert "4.00 ×" in page.text
    assert "2.13.0" in page.text
    assert "cut short" in page.text
    assert "onereel train --resume" in page.text


def test_evaluations_come_in_the_order_dense_run_length_random_others(tmp_path: Path) -> None:
    add_evaluation(full_run(tmp_path), "anchor", evaluation())
    names = [one.name for one in read_run(tmp_path).evaluations]
    assert names == ["dense", "run-length", "random", "anchor"]


def test_the_headline_quotes_the_tokens_of_training(tmp_path: Path) -> None:
    files = read_run(full_run(tmp_path))
    main = main_evaluation(files)
    assert main is not None
    assert main.name == "run-length"
    whole = main_evaluation(dataclasses.replace(files, config={"tokens": {"kind": "all"}}))
    assert whole is not None
    assert whole.name == "dense"


def test_nothing_is_loaded_from_elsewhere_and_every_picture_has_a_text(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    text = (tmp_path / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert not page.all("script")
    assert page.all("img")
    assert all(attributes["alt"] for attributes in page.all("img"))
    pictures = [attributes for attributes in page.all("svg") if "aria-hidden" not in attributes]
    assert len(pictures) == 2
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)
    assert all(attributes.get("scope") for attributes in page.all("th"))


def test_pictures_are_embedded_whole(tmp_path: Path) -> None:
    (attributes,) = page_of(full_run(tmp_path)).all("img")
    data = base64.b64decode((attributes["src"] or "").removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert str(picture.width) == attributes["width"]
    assert attributes["alt"] == "2 frames of “a disc”; 3 of 8 patches are greyed out."


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run & 'more'", val=HOSTILE)
    log(run, {"kind": "train", "step": 1, "epoch": 0.1, "loss": 1.0})
    add_evaluation(run, "dense", evaluation(class_names=[HOSTILE, "</style>", "{{ 7 * 7 }}"]))
    (run / "quarantine.csv").write_text(f'path,reason\n"{HOSTILE.replace(chr(34), "")}",x\n')
    grid, clip = TubeletGrid(1, 1, 1), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    mask = torch.ones(1, dtype=torch.bool)
    write_examples(run, [clip], [mask], [HOSTILE], grid=grid, tubelet_size=2, patch_size=16)
    page = page_of(run)
    assert not page.all("script")
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert f"onereel report '{str(run).split(chr(39))[0]}" in page.text  # quoted for the shell


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "nothing logged yet"),
        ([{"kind": "train", "step": 7, "epoch": 0.25, "loss": 2.5}], "step 7, epoch 0.25 of 100"),
        ([{"kind": "train", "step": 7, "loss": float("nan")}], "not evaluated yet"),
        ([{"kind": "eval", "step": 9, "epoch": 1, "top1": 0.5}], "top‑1 at step 9"),
    ],
)
def test_a_run_in_progress_gives_a_shorter_page(
    tmp_path: Path, records: list[dict[str, Any]], says: str
) -> None:
    log(make_run(tmp_path), *records)
    page = page_of(tmp_path)
    assert says in page.text
    assert "Evaluations" not in page.text


def test_what_could_not_be_read_is_said_not_hidden(tmp_path: Path) -> None:
    full_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    (tmp_path / "eval" / "half.json").write_text('{"top1": 0.')
    (tmp_path / "eval" / "other.json").write_text('{"score": 1}')
    (tmp_path / "examples" / "example_00.jpg").unlink()
    text = page_of(tmp_path).text
    assert "metrics.jsonl, line 22: not JSON" in text
    assert "half.json" in text
    assert (
        "other.json: it has none of the figures video_to_text_top1, mean_map, accuracy, top1"
        in text
    )
    assert "example_00.jpg: missing" in text


def test_an_evaluation_with_little_in_it_shows_dashes(tmp_path: Path) -> None:
    add_evaluation(make_run(tmp_path), "val", {"top1": 0.5})
    page = page_of(tmp_path)
    assert 0.5 in exact_values(page)
    assert "–" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("there is no config.json in it")):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_quarantine_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    lines = "".join(f"video_{number}.mp4,empty\n" for number in range(QUARANTINE_ROWS + 5))
    (make_run(tmp_path) / "quarantine.csv").write_text("path,reason\n" + lines)
    text = page_of(tmp_path).text
    assert f"{QUARANTINE_ROWS + 5} in all; the first {QUARANTINE_ROWS} are shown" in text
    assert f"video_{QUARANTINE_ROWS}.mp4" not in text


def test_many_classes_are_shown_as_their_errors(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(MATRIX_CLASSES + 1)]
    many = evaluation(class_names=names, confusion=[[0, 0, 3], [0, 1, 2], [2, 3, 7], [2, 2, 1]])
    found = confusion(Evaluation("val", many, TOP1))
    assert found.rows == []
    assert found.errors == [("class 2", "class 3", 7, 8), ("class 0", "class 1", 2, 5)]
    add_evaluation(make_run(tmp_path), "val", many)
    assert "the most frequent errors (25 classes)" in page_of(tmp_path).text


def test_the_matrix_has_every_count_and_rows_of_shares_that_sum_to_one() -> None:
    found = confusion(Evaluation("val", evaluation(), TOP1))
    assert [[count for count, _ in cells] for _, cells in found.rows] == [
        [1, 0, 1],
        [2, 2, 0],
        [0, 0, 0],
    ]
    assert [sum(share for _, share in cells) for _, cells in found.rows] == [1, 1, 0]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_the_literature(
    correct: int, total: int, low: float, high: float
) -> None:
    values = {"top1": correct / total, "num_videos": total}
    interval = Evaluation("val", values, TOP1).interval
    assert interval == pytest.approx((low, high), abs=5e-5)


RECALL = CaptionRetrieval(
    Recall(30, {1: 0.3, 5: 0.6}, 3.0, 4.0), Recall(10, {1: 0.4, 5: 0.7}, 2.0, 3.0)
)


@pytest.mark.parametrize(
    ("found", "headline", "columns", "interval"),
    [
        (
            RECALL,
            "30.0 % recall at 1 from text to video on 30 captions with 50.0 % of the tokens.",
            ["R@1, text to video", "R@5, text to video", "R@1, video to text"],
            (0.1666, 0.4788),
        ),
        (
            MultiInstanceRetrieval(0.2, 0.3, 0.4, 0.5),
            "25.0 % mAP with 50.0 % of the tokens.",
            ["mAP", "nDCG"],
            None,
        ),
        (
            MultipleChoice(30, 0.3, {"inter": 0.2}),
            "30.0 % right answers on 30 questions with 50.0 % of the tokens.",
            ["Right answers"],
            (0.1666, 0.4788),
        ),
        (ZeroShot(10, 3, 0.5, 0.9, 0.4), "50.0 % top‑1 on 10 test samples", ["Top-1", "Top-5"], ()),
    ],
)
def test_every_test_of_video_and_language_is_shown_as_what_it_is(
    found: Figures,
    headline: str,
    columns: list[str],
    interval: tuple[float, float] | None,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = RunConfig(recipe="pairs", objective=ObjectiveConfig(kind="contrastive"))
    (run / "config.json").write_text(to_json(config))
    PairResult(found, 10, 30, 1, Cost(2.0, 5.0, 0.5, 1e9)).save(run / "eval" / "val.json")
    (one,) = read_run(run).evaluations
    assert one.interval == (interval and pytest.approx(interval, abs=5e-5)) or interval == ()
    page = page_of(run)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert headline in text
    assert all(title in text for title in columns)
    assert "Not everything could be read" not in text
    assert "onereel predict" not in text
    assert f"onereel embed {run} VIDEOS --window-seconds 5" in text
    assert exact_values(page) >= {one.values[key] for key in one.measure.columns.values()}


def test_writing_again_replaces_the_page_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    before = set(run.rglob("*"))
    first = write_report(run).read_text()
    assert write_report(str(run)).read_text() == first
    assert set(run.rglob("*")) == before | {run / "report.html"}
