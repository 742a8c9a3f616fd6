"""Video-language runs through the Python API: train, resume, test, load, and start other runs from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

import onereel
from onereel import api, moments
from onereel.cli import main
from onereel.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError, DataError
from onereel.evaluation.scores import ViewSums
from onereel.loading import _facts_of_run, load_dual_encoder
from onereel.moments import embedding, journal
from onereel.moments.index import MomentIndex
from onereel.training import checkpoint, list_checkpoints
from onereel.types import SampleKey

TINY = RunConfig(
    recipe="tiny",
    data=DataConfig(num_frames=2, size=32, num_workers=0),
    augment=AugmentConfig(hflip_prob=0.0),
    model=ModelConfig(
        name="vit_micro_patch16_32",
        tubelet_size=1,
        pool="cls",
        positions="space-time",
        style="clip",
    ),
    text=TextConfig(size="micro", context_length=12, vocab_size=300, embed_dim=16),
    objective=ObjectiveConfig(kind="contrastive"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=2, batch_size_per_device=2, accum_steps=2, log_every=1, save_every=1),
)
WORDS = ("red square", "blue disc", "green ring", "white cross")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Two videos of four narrated seconds each, one of two captions drawn for half of them."""
    folder = tmp_path_factory.mktemp("narrated")
    rows = ["path,label,caption,start,end"]
    for i in range(2):
        make_video(folder / f"{i}.mp4", num_frames=60, height=48, width=64, fps=15)
        rows += [f"{i}.mp4,{w.split()[1]},a {w} {i},{s},{s + 1}" for s, w in enumerate(WORDS)]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "val.csv").write_text("\n".join(rows[:5]) + "\n")
    return folder


def train(videos: Path, out: Path, config: RunConfig = TINY) -> api.TrainResult:
    return onereel.train(
        config, data=str(videos / "train.csv"), val=str(videos / "val.csv"), out=out
    )


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(videos, run)
    return run


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_run_trains_tests_itself_and_keeps_its_tokenizer(trained: Path) -> None:
    assert len(losses(trained)) == 4
    result = json.loads((trained / "eval" / "val.json").read_text())
    assert result["num_videos"] == result["num_texts"] == 4
    assert 0 <= result["top1"] <= 1
    assert result["details"]["text_to_video"]["num_queries"] == 4
    assert (trained / "tokenizer.json").is_file()
    page = (trained / "report.html").read_text()
    assert "recall at 1 from text to video on" in page
    assert "None:" not in page


def test_a_resumed_run_goes_on_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "broken"
    shutil.copytree(trained, run)
    oldest, *newer = sorted(list_checkpoints(run))
    for path in newer:
        path.unlink()
    step = torch.load(oldest, weights_only=True)["step"]
    assert step < 4
    api.resume(run)
    assert losses(run)[-(4 - step) :] == losses(trained)[step:]
    first, second = (checkpoint.latest_valid(r)[1]["model"] for r in (trained, run))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_lost_its_tokenizer_does_not_go_on_with_another(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"lost its tokenizer\.json"):
        api.resume(run)


def test_entries_that_a_list_leaves_out_are_said(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"path": "0.mp4", "caption": f"a red square {i}"} for i in range(4)]
    path = videos / "with_gaps.json"
    path.write_text(json.dumps([*entries, {"path": "1.mp4", "caption": " "}]))
    config = replace(TINY, train=replace(TINY.train, epochs=1))
    onereel.train(config, data=str(path), out=tmp_path / "run")
    assert "entries left out: 1 without text" in caplog.text


def test_entries_that_a_list_leaves_out_are_said_in_a_test_and_an_index_too(
    videos: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = videos / "test_with_gaps.json"
    entries = [{"path": "0.mp4", "caption": text} for text in ("a red square", " ")]
    path.write_text(json.dumps(entries))
    api.evaluate(trained, name="gaps", val=str(path))
    assert caplog.text.count("test_with_gaps.json: entries left out: 1 without text") == 1
    moments.embed(trained, path, out=tmp_path / "f.parquet")
    assert caplog.text.count("test_with_gaps.json: entries left out: 1 without text") == 2


def test_a_trained_run_is_loaded_with_other_tokens_and_tested_again(trained: Path) -> None:
    config = replace(api.run_config(trained), tokens=TokensConfig(kind="tube", keep_ratio=0.5))
    result = api.evaluate(trained, name="half", config=config)
    assert result.cost.kept_ratio == 0.5
    model = load_dual_encoder(trained).model
    assert not model.training
    with torch.no_grad():
        assert model.encode_text(["a red square"]).shape == (1, 16)
    with pytest.raises(ConfigError, match="load_dual_encoder"):
        onereel.load(trained)


def test_labels_alone_are_a_zero_shot_test_and_questions_a_choice(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    rows = ["path,label,start,end", *(f"{i}.mp4,{w},{i},{i + 1}" for i, w in enumerate(["a", "b"]))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    data = replace(api.run_config(trained).data, root=str(videos))
    config = replace(api.run_config(trained), data=data)
    result = api.evaluate(trained, name="names", config=config, val=str(tmp_path / "labels.csv"))
    assert result.figures()["top1"] in (0, 0.5, 1)
    assert json.loads((trained / "eval" / "names.json").read_text())["num_classes"] == 2
    (tmp_path / "numbers.txt").write_text("0.mp4 0\n1.mp4 1\n")
    with pytest.raises(DataError, match=r"numbers\.txt: the classes are 0, 1, and"):
        api.evaluate(trained, name="no", config=config, val=str(tmp_path / "numbers.txt"))
    own = replace(config, eval=EvalConfig(templates=("#C C {}",)))
    result = api.evaluate(trained, name="own", config=own, val=str(tmp_path / "labels.csv"))
    assert result.num_texts == 2
    clip = {"clip_start": 0, "clip_end": 1, "clip_text": "x"}
    question = {
        "answer": 1,
        "query": {"clip_text": "a red square"},
        "choices": {str(i): {**clip, "video_uid": str(i)} for i in range(2)},
    }
    (tmp_path / "egomcq.json").write_text(json.dumps({"0": question}))
    result = api.evaluate(trained, name="choice", config=config, val=str(tmp_path / "egomcq.json"))
    assert result.figures()["accuracy_inter"] in (0, 1)


def test_a_run_starts_from_another_with_more_frames(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    """AVION's 4 to 16 frames: times are interpolated, everything else is taken over, the tokenizer too."""
    config = replace(
        TINY,
        data=replace(TINY.data, num_frames=4),
        model=replace(TINY.model, pretrained=str(trained)),
        objective=ObjectiveConfig(kind="max-margin"),
    )
    train(videos, tmp_path / "longer", config)
    tokenizers = [(run / "tokenizer.json").read_text() for run in (trained, tmp_path / "longer")]
    assert tokenizers[0] == tokenizers[1]


def test_a_classifier_starts_from_a_video_tower(
    videos: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = replace(TINY.model, pretrained=str(trained))
    config = replace(TINY, model=model, objective=ObjectiveConfig())
    result = train(videos, tmp_path / "actions", config)
    assert "top1" in result.metrics
    assert "trained on pixels" not in caplog.text
    config = replace(config, augment=AugmentConfig(mean=(0.5, 0.5, 0.5)))
    report = api.load_encoder(api.build.build_model(config, 3), config)
    assert report.new == ("head.fc.weight", "head.fc.bias")
    assert "into the space of captions" in report.left_out.values()
    assert "trained on pixels of mean (0.485, 0.456, 0.406)" in caplog.text


def test_the_sigmoid_loss_trains_without_a_validation_list(videos: Path, tmp_path: Path) -> None:
    config = replace(TINY, objective=ObjectiveConfig(kind="sigmoid"))
    onereel.train(config, data=str(videos / "train.csv"), out=tmp_path / "sigmoid")
    assert len(losses(tmp_path / "sigmoid")) == 4


def test_a_list_without_captions_is_refused_before_anything_is_written(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    bare = videos / "bare.csv"
    bare.write_text("path,label\n0.mp4,a\n1.mp4,b\n")
    with pytest.raises(DataError, match="caption"):
        onereel.train(TINY, data=str(bare), out=tmp_path / "no")
    # Weights that bring a tokenizer need no captions to make one, but the loss does.
    other = replace(TINY, model=replace(TINY.model, pretrained=str(trained)))
    with pytest.raises(DataError, match="caption"):
        onereel.train(other, data=str(bare), out=tmp_path / "no")
    silent = videos / "silent.csv"
    silent.write_text("narration_id,video_id,start_timestamp,stop_timestamp\na,0,0,1\nb,1,0,1\n")
    with pytest.raises(DataError, match="no captions; add a column 'caption', or 'label'"):
        onereel.train(TINY, data=str(videos / "train.csv"), val=str(silent), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_captions24_run_end_to_end(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "captions24" / "captions.csv"
    config = replace(TINY, train=replace(TINY.train, batch_size_per_device=8, accum_steps=3))
    result = onereel.train(config, data=str(data), val=str(data), out=tmp_path / "captions24")
    assert result.step == 2
    assert result.metrics["median_rank"] >= 1


def test_moments_of_a_list_are_embedded_and_found_by_their_caption(
    videos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, page = str(tmp_path / "features.parquet"), tmp_path / "found.html"
    assert main(["embed", str(trained), str(videos / "train.csv"), "--out", features]) == 0
    assert "8 moments of 2 videos" in capsys.readouterr().out
    index = MomentIndex.read(features)
    torch.testing.assert_close(
        torch.tensor(index.embeddings).norm(dim=1), torch.ones(8), rtol=0, atol=1e-5
    )
    search = ["search", str(trained), "a red square", "--index", features]
    assert main([*search, "--top-k", "3", "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    found = moments.search(trained, "a red square", index=features, top_k=3)
    assert [f"{one.score:.3f}" in printed for one in found] == [True] * 3
    assert found == sorted(found, key=lambda one: -one.score)
    assert page.read_text().count("data:image/jpeg") == 9


def test_whole_videos_are_cut_into_windows_and_bad_ones_named(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(videos / "0.mp4", folder)
    (folder / "bad.mp4").write_bytes(b"no video")
    report = moments.embed(trained, folder, out=tmp_path / "f.parquet", window_seconds=1.5)
    index = MomentIndex.read(report.path)
    spans = [(index.moment(i).start, index.moment(i).end) for i in range(len(index))]
    assert spans == [(0.0, 1.5), (1.5, 3.0), (3.0, 4.0)]
    assert [one.path for one in report.broken] == ["bad.mp4"]
    with pytest.raises(ConfigError, match="window-seconds"):
        moments.embed(trained, out=tmp_path / "f.parquet")


def test_a_run_of_paragraphs_embeds_moments_too(
    videos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_dual_encoder(trained).config
    config = replace(config, data=replace(config.data, captions="paragraph"))
    towers = load_dual_encoder(trained, config)
    monkeypatch.setattr(embedding, "load_dual_encoder", lambda run: towers)
    report = moments.embed(trained, videos / "val.csv", out=tmp_path / "f.parquet")
    assert report.num_moments == 4


def test_moments_that_cannot_be_read_are_left_out_and_listed(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    rows = f"path,caption\n{videos}/0.mp4,a\n{tmp_path}/gone.mp4,b\n{videos}/1.mp4,c\n"
    (tmp_path / "list.csv").write_text(rows)
    report = moments.embed(trained, tmp_path / "list.csv", out=tmp_path / "f.parquet")
    assert (report.num_moments, report.num_failed) == (2, 1)
    assert "gone.mp4" in report.quarantine.read_text()
    index = MomentIndex.read(report.path)
    assert [index.moment(i).caption for i in range(2)] == ["a", "c"]


def test_a_list_in_another_folder_than_its_videos(
    videos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Moments by path and by id; thumbnails are found again."""
    (tmp_path / "list.csv").write_text("path,start,end\n0.mp4,0,1\n")
    (tmp_path / "egoclip.csv").write_text(
        "video_uid\tclip_start\tclip_end\tclip_text\n1\t1\t2\t#C C opens a drawer\n"
    )
    features, page = str(tmp_path / "f.parquet"), tmp_path / "found.html"
    for name in ("list.csv", "egoclip.csv"):
        embed = ["embed", str(trained), str(tmp_path / name), "--out", features]
        assert main(embed) != 0
        problem = " ".join(capsys.readouterr().err.split())
        assert "none of the 1 moments could be read" in problem
        assert "f_quarantine.csv says why" in problem
        assert main([*embed, "--root", str(videos)]) == 0
    search = ["search", str(trained), "a", "--index", features, "--html", str(page)]
    assert main(search) == 0
    assert page.read_text().count("data:image/jpeg") == 3


def test_embedding_goes_on_where_it_was_interrupted(
    videos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment's views lie in different batches, and a moment that cannot be read is listed once."""
    lines = (videos / "train.csv").read_text().splitlines()
    lines.insert(2, f"{tmp_path}/gone.mp4,square,a red square,0,1")
    (videos / "gaps.csv").write_text("\n".join(lines) + "\n")
    towers = load_dual_encoder(trained)
    config = replace(
        towers.config,
        eval=EvalConfig(num_clips=2, batch_size_per_device=3),
        tokens=TokensConfig(kind="random", keep_ratio=0.5),
    )
    random = load_dual_encoder(trained, config)
    monkeypatch.setattr(embedding, "load_dual_encoder", lambda run: random)
    whole = moments.embed(trained, videos / "gaps.csv", out=tmp_path / "whole.parquet")
    assert not (tmp_path / ".whole.parquet.unfinished").exists()

    monkeypatch.setattr(journal, "SECONDS_BETWEEN", -1.0)
    monkeypatch.setattr(journal, "SHARE", 1e9)
    told: list[tuple[int, int]] = []

    def until_second(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "f.parquet"
    with pytest.raises(KeyboardInterrupt):
        moments.embed(trained, videos / "gaps.csv", out=out, on_batch=until_second)
    assert (out.exists(), (tmp_path / ".f.parquet.unfinished").exists()) == (False, True)
    report = moments.embed(trained, videos / "gaps.csv", out=out, on_batch=until_second)
    assert told == [(number, 6) for number in range(1, 7)]
    assert (
        (report.num_moments, report.num_failed) == (whole.num_moments, whole.num_failed) == (8, 1)
    )
    assert report.quarantine.read_text() == whole.quarantine.read_text()
    assert not (tmp_path / ".f.parquet.unfinished").exists()
    one, other = (MomentIndex.read(path) for path in (out, whole.path))
    assert one.table == other.table
    assert (one.embeddings == other.embeddings).all()


def test_what_was_begun_with_other_settings_is_begun_anew(tmp_path: Path) -> None:
    first = journal.Journal(tmp_path / "f.parquet", "one")
    first._due = 0.0
    sums = ViewSums()
    sums.add([SampleKey(0, 3)], torch.ones(1, 2))
    first.keep(sums, 4, 1, tmp_path / "none.csv")
    assert first.read()[1] == 4
    assert first.read()[0].mean(1).indices.tolist() == [3]
    assert journal.Journal(tmp_path / "f.parquet", "other").read()[1:] == (0, 0)
    first.path.write_bytes(b"damaged")
    assert first.read()[1:] == (0, 0)


def test_a_test_tells_how_far_it_is(trained: Path) -> None:
    told: list[tuple[int, int]] = []
    api.evaluate(trained, name="told", on_batch=lambda *one: told.append(one))
    assert told == [(1, 1)]


def test_an_index_of_another_model_is_refused(videos: Path, trained: Path, tmp_path: Path) -> None:
    report = moments.embed(trained, videos / "val.csv", out=tmp_path / "f.parquet")
    index = MomentIndex.read(report.path)
    replace(index, facts=replace(index.facts, model="other")).write(report.path)
    with pytest.raises(DataError, match="embed again"):
        moments.search(trained, "a", index=report.path)
    for text, options in (("a", {"top_k": 0}), ("  ", {})):
        with pytest.raises(ConfigError):
            moments.search(trained, text, index=report.path, **options)


def test_both_towers_are_saved_and_come_back_to_the_bit(
    videos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    assert main(["convert", str(trained), "--to", "onereel", "--out", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    saved, source = load_dual_encoder(folder), load_dual_encoder(trained)
    clips, captions = torch.randn(2, 2, 3, 32, 32), ["a red square", "a blue disc"]
    with torch.no_grad():
        assert torch.equal(*(towers.model.encode_video(clips)[0] for towers in (saved, source)))
        assert torch.equal(*(towers.model.encode_text(captions) for towers in (saved, source)))
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert "- trained on `train.csv`" in card
    assert "| text | micro tower, " in card
    assert "## Classes" not in card
    assert str(videos) not in card + (folder / "config.json").read_text()
    # The folder alone does what the run does.
    report = moments.embed(folder, videos / "val.csv", out=tmp_path / "f.parquet")
    assert len(moments.search(folder, "a red square", index=report.path, top_k=2)) == 2
    for name in ("config.json", "README.md", "model.safetensors", "tokenizer.json"):
        again = saved.save_pretrained(tmp_path / "again") / name
        assert again.read_bytes() == (folder / name).read_bytes()


def test_the_card_has_the_figures_of_every_kind_of_test(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"data": {"train": "a/train.csv", "val": ""}}')
    (tmp_path / "eval").mkdir()
    for figures in (
        {"mean_map": 0.5, "mean_ndcg": 0.625},
        {"accuracy": 0.5, "accuracy_intra": 0.25, "accuracy_inter": 0.75},
        {"top1": 0.5, "verb_top1": 0.625, "noun_top1": 0.75},
    ):
        (tmp_path / "eval" / "val.json").write_text(json.dumps({**figures, "seconds": 3.0}))
        assert _facts_of_run(tmp_path)["metrics"] == figures


def test_saved_towers_are_taken_for_what_they_are(trained: Path, tmp_path: Path) -> None:
    folder = load_dual_encoder(trained).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="load_dual_encoder"):
        onereel.load(folder)
    lists = api.run_config(trained).data.val
    saved, own = (onereel.evaluate(of, val=lists, name="x").figures() for of in (folder, trained))
    assert all(saved[name] == own[name] for name in ("top1", "median_rank", "kept_ratio"))
    assert main(["convert", str(folder), "--to", "videomae", "--out", str(tmp_path / "no")]) != 0
    with pytest.raises(ConfigError, match="save the dual encoder"):
        load_dual_encoder(folder).model.video.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"lost its tokenizer\.json"):
        load_dual_encoder(folder)


def test_pushing_towers_uploads_the_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HfApi` is replaced by one that copies to this disk: what the Hub does with it is not tested."""

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("someone/towers", True, True)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return f"https://example.org/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert load_dual_encoder(trained).push_to_hub("someone/towers").endswith("/commit/1")
    assert load_dual_encoder(tmp_path / "uploaded").config.recipe == "tiny"
