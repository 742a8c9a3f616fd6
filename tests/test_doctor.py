"""The doctor: its arithmetic exactly, its measurements on tiny inputs, its words for broken decoders."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onereel import build
from onereel.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.doctor import measure, plan_run, run_doctor
from onereel.doctor.advising import advice
from onereel.doctor.arithmetic import Phase, Rates, Workload, forecast, longest_chunk_seconds
from onereel.doctor.measure import DiskRate, measure_decode, measure_disk
from onereel.doctor.planning import duration
from onereel.doctor.steps import choices_of_budgets
from onereel.doctor.system import describe_disk, explain, probe
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.types import Batch, SampleKey
from onereel.video.prepare import prepare

RATES = Rates(
    decode_clips_per_second=100,
    num_worker_cores=8,
    bytes_per_clip=100e3,
    disk_bytes_per_second=500e6,
    model_clips_per_second=50,
    model_cores=0,
    num_cores=16,
)
WORK = Workload(clips_per_epoch=40_000, epochs=10, global_batch_size=256, num_devices=8)
positive = st.floats(0.01, 1e6)


@pytest.fixture(autouse=True)
def _tiny_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' videos are far too small to measure a disk by."""
    monkeypatch.setattr(measure, "MIN_BYTES", 1)


def rates(**changes: float | None) -> Rates:
    return Rates(**{**RATES.__dict__, **changes})


def test_the_longest_chunk_of_avion() -> None:
    """Eq. 3 with the paper's numbers: B = 1024, rho = 1 Mb/s, Delta = 4 s, S_r = 500 MB/s give T <= 15.6 s."""
    assert longest_chunk_seconds(1024, 1e6, 4.0, 500e6) == pytest.approx(15.625)


@given(batch=st.integers(1, 10_000), rate=positive, step=positive, disk=positive)
def test_a_longest_chunk_fills_the_step_exactly(
    batch: int, rate: float, step: float, disk: float
) -> None:
    chunk = longest_chunk_seconds(batch, rate, step, disk)
    assert batch * rate / 8 * chunk == pytest.approx(disk * step)


def test_each_part_can_limit() -> None:
    result = forecast(RATES, WORK)
    assert (result.io, result.cpu, result.device) == (5000, 800, 400)
    assert (result.limit, result.clips_per_second, result.data_wait) == ("device", 400, 0)
    assert (result.step_seconds, result.epoch_seconds, result.run_seconds) == (0.64, 100, 1000)
    slow_cpu = forecast(rates(num_worker_cores=2), WORK)
    assert (slow_cpu.limit, slow_cpu.clips_per_second, slow_cpu.data_wait) == ("cpu", 200, 0.5)
    slow_disk = forecast(rates(disk_bytes_per_second=10e6), WORK)
    assert (slow_disk.limit, slow_disk.clips_per_second) == ("io", 100)


def test_an_unknown_disk_never_limits() -> None:
    for unknown in (rates(disk_bytes_per_second=None), rates(bytes_per_clip=0.0)):
        assert forecast(unknown, WORK).io == math.inf


def test_decoding_in_the_training_process_takes_turns_with_the_model() -> None:
    one = Workload(clips_per_epoch=1000, epochs=1, global_batch_size=8, num_devices=1)
    result = forecast(rates(num_worker_cores=0), one)
    assert result.clips_per_second == pytest.approx(1 / (1 / 100 + 1 / 50))
    assert result.data_wait == pytest.approx(1 / 3)
    assert result.limit == "device"


def test_on_the_cpu_workers_and_model_share_the_cores() -> None:
    one = Workload(clips_per_epoch=1000, epochs=1, global_batch_size=8, num_devices=1)
    shared = rates(num_worker_cores=1, model_cores=2, num_cores=2)
    assert forecast(shared, one).clips_per_second == pytest.approx(2 / (1 / 100 + 2 / 50))
    plenty = rates(num_worker_cores=4, model_cores=2, num_cores=64)
    assert forecast(plenty, one).clips_per_second == 50


@given(
    decode=positive,
    workers=st.integers(0, 64),
    size=positive,
    disk=positive,
    model=positive,
    model_cores=st.integers(0, 8),
)
def test_together_is_never_faster_than_a_part(
    decode: float, workers: int, size: float, disk: float, model: float, model_cores: int
) -> None:
    made = Rates(decode, workers, size, disk, model, model_cores, num_cores=64)
    result = forecast(made, WORK)
    parts = {"io": result.io, "cpu": result.cpu, "device": result.device}
    assert 0 < result.clips_per_second <= min(parts.values()) * (1 + 1e-9)
    assert parts[result.limit] == min(parts.values())
    assert 0 <= result.data_wait < 1
    assert result.run_seconds == pytest.approx(WORK.epochs * result.epoch_seconds)
    said = advice(RunConfig(), Phase(made, WORK))
    word = {"io": "disk", "cpu": "decoding", "device": "model"}[result.limit]
    assert said.startswith(("the " + word, word))


def test_advice_says_to_prepare_raw_files_first() -> None:
    slow_cpu = Phase(rates(num_worker_cores=2), WORK)
    stored = RunConfig(data=DataConfig(store="store"))
    assert "onereel prepare" in advice(RunConfig(), slow_cpu)
    assert "onereel prepare" not in advice(stored, slow_cpu)
    assert "4 decoding cores" in advice(stored, slow_cpu)


def test_advice_names_scaling_on_the_device_where_that_can_be_had() -> None:
    slow_cpu = Phase(rates(num_worker_cores=2), WORK)
    picked = RunConfig(tokens=TokensConfig(kind="random", where="loader"))
    said = [advice(config, slow_cpu) for config in (RunConfig(), picked)]
    assert ["--data.scaling device" in one for one in said] == [True, False]
    on_cpu = Phase(rates(num_worker_cores=2, model_cores=1), WORK)
    assert "--data.scaling device" not in advice(RunConfig(), on_cpu)


def test_advice_names_nothing_that_the_run_would_refuse() -> None:
    """More repeats with a cache, or that don't divide the batch; other tokens than a backbone's, or a tube's."""
    slow_cpu, slow_disk = (
        Phase(rates(num_worker_cores=2), WORK),
        Phase(rates(disk_bytes_per_second=10e6), WORK),
    )
    cached = RunConfig(
        data=DataConfig(cache_views=2), model=ModelConfig(temporal_depth=2, frozen="spatial")
    )
    odd = RunConfig(train=TrainConfig(batch_size_per_device=3))
    for config, repeats in ((RunConfig(), True), (cached, False), (odd, False)):
        for slow in (slow_cpu, slow_disk):
            assert ("--data.repeats" in advice(config, slow)) == repeats
    slow_model = Phase(RATES, WORK)
    backbone = replace(cached, model=replace(cached.model, backbone="a", tubelet_size=1))
    tubes = RunConfig(objective=ObjectiveConfig(kind="masked", mask="tube"))
    budgets = RunConfig(objective=ObjectiveConfig(budgets=(8, 4)))
    for config, kinds in (
        (RunConfig(), ["run-length", "random"]),
        (backbone, []),
        (tubes, ["run-length"]),
        (budgets, []),
    ):
        said = advice(config, slow_model)
        assert [
            kind for kind in ("run-length", "random") if f"--tokens.kind {kind}" in said
        ] == kinds
    assert "--objective.budgets" in advice(budgets, slow_model)


def test_disk_rate_counts_what_it_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    sizes = {"a.mp4": 5_000_001, "sub/b.mp4": 300_000, "empty": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    rate = measure_disk(tmp_path)
    assert rate.num_bytes == sum(sizes.values())
    assert rate.bytes_per_second is not None
    assert rate.bytes_per_second > 0
    assert any(word in rate.how for word in ("O_DIRECT", "fadvise", "warm"))
    assert "MB/s over 5.3 MB" in describe_disk(rate)
    assert measure_disk(tmp_path, max_bytes=1).num_bytes == sizes["a.mp4"]


def test_disk_rate_of_nothing(tmp_path: Path) -> None:
    rate = measure_disk(tmp_path)
    assert rate == DiskRate(str(tmp_path), None, 0, "no readable file in it")
    assert "nothing was measured" in describe_disk(rate)
    with pytest.raises(DataError, match="not a folder"):
        measure_disk(tmp_path / "absent")


def test_too_little_to_read_says_nothing_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MIN_BYTES", 1000)
    (tmp_path / "a.mp4").write_bytes(bytes(999))
    rate = measure_disk(tmp_path)
    assert (rate.bytes_per_second, rate.num_bytes) == (None, 999)
    assert describe_disk(rate) == f"{tmp_path}: only 0.001 MB in it, so nothing was measured"
    (tmp_path / "b.mp4").write_bytes(bytes(1))
    assert measure_disk(tmp_path).bytes_per_second is not None


class FakeDataset:
    """Ten clips, of which those with an index in `broken` cannot be read."""

    def __init__(self, broken: set[int], file: Path) -> None:
        self.broken, self.file = broken, file

    def __len__(self) -> int:
        return 10

    def spec(self, key: SampleKey) -> None:
        if key.index in self.broken:
            raise DecodeError(f"{key.index}.mp4", "truncated")

    def read_views(self, index: int, epoch: int, views: range) -> list[SimpleNamespace]:
        self.file.read_bytes()
        return [SimpleNamespace(clip=torch.zeros(1)) for _ in views]


def test_decode_rate_counts_clips_bytes_and_failures(tmp_path: Path) -> None:
    file = tmp_path / "clip"
    file.write_bytes(bytes(100_000))
    rate = measure_decode(FakeDataset({3}, file), repeats=2, max_clips=30)
    assert rate.num_clips % 2 == 0
    assert 0 < rate.num_failed < 15
    assert rate.num_clips / 2 + rate.num_failed in (30, 31)
    assert rate.clips_per_second > 0
    if rate.bytes_per_clip is not None:
        assert rate.bytes_per_clip == pytest.approx(50_000, rel=0.1)
    with pytest.raises(DataError, match=r"none of 31 clips could be read; the first: .*truncated"):
        measure_decode(FakeDataset(set(range(10)), file), max_clips=30)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("OSError: libavutil.so.60: cannot open shared object file: No such file", "FFmpeg"),
        ("OSError: libnvrtc.so.13: cannot open shared object file: No such file", "ABI mismatch"),
        ("OSError: libtorch_cuda.so: cannot open shared object file: No such file", "ABI mismatch"),
        ("ImportError: /x/libtorchcodec_core5.so: undefined symbol: _ZN3c104cuda", "ABI mismatch"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "NVIDIA driver"),
        (
            "RuntimeError: no: libnvidia-encode.so.1: cannot open shared object file",
            "NVIDIA driver",
        ),
        ("ImportError: something else", "something else"),
    ],
)
def test_broken_decoders_are_explained(message: str, cause: str) -> None:
    text = explain(f"Traceback (most recent call last):\n  File x\n{message}\n")
    assert cause in text
    assert "Traceback" not in text
    assert "\n" not in text


def test_a_decoder_that_fits_one_of_several_libraries_is_judged_by_that_one() -> None:
    """torchcodec tries FFmpeg 8 to 4; here FFmpeg 5 is installed, and PyTorch is the wrong one."""
    message = (
        "OSError: libavutil.so.60: cannot open shared object file: No such file or directory\n"
        "OSError: /x/libtorchcodec_core5.so: undefined symbol: _ZN3c106detail\n"
        "RuntimeError: Could not load libtorchcodec. Likely causes: FFmpeg is not installed\n"
    )
    assert "ABI mismatch" in explain(message)


def test_crashes_and_silence_are_explained() -> None:
    assert "crashes (signal 11)" in explain("", -11)
    assert "exit code 3" in explain("", 3)


def test_probe_reports_an_installed_decoder_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probe("PyNvVideoCodec") == "not installed (optional)"
    module = tmp_path / "PyNvVideoCodec.py"
    module.write_text("__version__ = '2.2'\n")
    assert probe("PyNvVideoCodec") == "2.2, works"
    module.write_text("raise ImportError('libnvcuvid.so.1: cannot open shared object file')\n")
    assert "NVIDIA driver" in probe("PyNvVideoCodec")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A list of two videos of 2 s with a label each, and a third that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, num_frames=60)
    (folder / "broken.mp4").write_bytes(b"no video")
    path = folder / "train.csv"
    path.write_text("path,label\na.mp4,clap\nb.mp4,wave\nbroken.mp4,clap\n")
    return path


@pytest.fixture
def config(listing: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("ONEREEL_CACHE", str(listing.parent / "cache"))
    return RunConfig(
        data=DataConfig(train=str(listing), num_frames=4, size=32, num_workers=1, repeats=2),
        tokens=TokensConfig(kind="random", keep_ratio=0.5),
        model=ModelConfig(name="vit_tiny_patch16_224"),
        train=TrainConfig(epochs=7, batch_size_per_device=2, accum_steps=2, device="cpu"),
    )


def printed(what: object) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()


def test_a_plan_of_raw_files(config: RunConfig) -> None:
    plan = plan_run(config)
    work, result = plan.training.workload, plan.training.forecast
    assert work == Workload(4, 7, 4, 1), "the third batch of two fills no step"
    assert plan.model.kept_ratio == 0.5
    assert plan.model.batch_size <= 2
    assert plan.decode.num_failed > 0
    assert plan.bits_per_second is not None
    video = config.data.train.replace("train.csv", "a.mp4")
    assert plan.bits_per_second == pytest.approx(8 * Path(video).stat().st_size / 2, rel=0.2)
    assert plan.run_seconds == result.run_seconds
    text = printed(replace(plan, config=replace(config, recipe="avion_ek100_cls_vitb")))
    assert "note: avion_ek100_cls_vitb is a recipe for fine-tuning" in text
    text = printed(plan)
    assert "fine-tuning" not in text
    for words in ("clips/s", "together", "for 7 epochs", "advice:", "Eq. 3", "could not be read"):
        assert words in text


def test_a_plan_of_masked_pre_training_times_the_autoencoder(config: RunConfig) -> None:
    objective = ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.5)
    plan = plan_run(replace(config, objective=objective))
    supervised = plan_run(config)
    assert plan.model.kept_ratio == supervised.model.kept_ratio == 0.5
    assert plan.model.flops_per_clip != supervised.model.flops_per_clip


def test_a_plan_of_pairs_times_both_towers_and_says_what_runs_twice(
    config: RunConfig, listing: Path
) -> None:
    captions = listing.with_name("captions.csv")
    captions.write_text("path,caption\n" + 2 * "a.mp4,a clap\nb.mp4,a wave of a hand\n")
    config = replace(
        config,
        data=replace(config.data, train=str(captions), repeats=1),
        text=TextConfig(size="micro", context_length=12, vocab_size=300, embed_dim=16),
        objective=ObjectiveConfig(kind="contrastive"),
    )
    tokenizer = build.build_tokenizer(config, build.build_annotations(config, str(captions)))
    towers = build.build_dual_encoder(config, tokenizer)
    text_macs = towers.text.macs(1, tokenizer(["a wave of a hand"]).shape[1])
    plan = plan_run(config)
    assert plan.model.flops_per_clip == 6 * (towers.video.macs((4,)) + text_macs)
    parameters = [sum(p.numel() for p in part.parameters()) for part in (towers.video, towers.text)]
    assert "video {:.3g} M and text {:.3g} M".format(*(n / 1e6 for n in parameters)) in plan.pairs
    assert "forward twice" in plan.pairs
    assert plan.pairs in " ".join(printed(plan).split())
    at_once = plan_run(replace(config, train=replace(config.train, accum_steps=1)))
    assert "both towers" in at_once.pairs
    assert "twice" not in at_once.pairs


def test_a_plan_of_flexible_clips_and_drawn_budgets_measures_what_training_meets_on_average(
    config: RunConfig,
) -> None:
    data = replace(config.data, num_frames_choices=(2, 4, 8), size_choices=(32, 48))
    learned = ObjectiveConfig(budgets=(8, 4, 2), budgets_per_step=2)
    flexible = replace(config, data=data, objective=learned)
    plan = plan_run(flexible)
    assert "clips of 8 frames of 32 px" in printed(plan)  # 16 of 4, 8, 9, 16, 18 and 36 tokens
    assert plan.model.kept_ratio == pytest.approx(28 / 3 / 32)


def test_every_choice_of_budgets_is_timed_once(config: RunConfig) -> None:
    batch = Batch(torch.zeros(1), [SampleKey(0, 0)], num_clips=1)
    counts = []
    for kind, per_step in (("classification", 0), ("classification", 2), ("masked", 0)):
        learned = ObjectiveConfig(
            kind=kind, budgets=(8, 4, 2), budgets_per_step=per_step, mask="random"
        )
        chosen = choices_of_budgets(replace(config, objective=learned), batch)
        counts.append(len({one.number for one in chosen}))
    assert counts == [1, 3, 3]
    assert choices_of_budgets(config, batch) == [batch]


def test_a_plan_and_a_checkup_of_a_store(config: RunConfig, listing: Path, tmp_path: Path) -> None:
    prepare(str(listing), str(tmp_path / "store"), short_side=64, num_workers=1)
    store = str(tmp_path / "store")
    rows = pq.read_table(tmp_path / "store" / "manifest.parquet")
    plan = plan_run(replace(config, data=replace(config.data, store=store)))
    assert plan.disk.folder == store
    assert plan.bits_per_second == pytest.approx(8 * sum(rows["bytes"].to_pylist()) / 4)
    assert plan.longest_chunk_seconds is not None
    report = run_doctor(store=store, config=config)
    assert report.decode is not None
    assert report.decode.num_failed == 0
    text = printed(report)
    for words in ("PyAV", "libx264", "torch", "TFLOP/s bf16", "MB/s", "clips/s per core"):
        assert words in text
    moved = tmp_path / "list.csv"
    moved.write_text("path,label\na.mp4,clap\n")
    report = run_doctor(list=str(moved), root=str(listing.parent), config=config)
    assert " random clips of 1 records" in printed(report)


def test_a_plan_needs_videos(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"--data\.train"):
        plan_run(RunConfig())
    listing = Path(config.data.train)
    only = listing.with_name("only_broken.csv")
    only.write_text("path,label\n" + 2 * "broken.mp4,clap\n")
    with pytest.raises(DataError, match="none of"):
        plan_run(replace(config, data=replace(config.data, train=str(only))))
    with pytest.raises(DataError):
        run_doctor(store=str(listing.parent / "absent"))


def test_a_plan_is_of_what_the_run_trains_on(config: RunConfig) -> None:
    """Whole steps, of what is not held out; and what the run would refuse is refused."""
    held = replace(config, data=replace(config.data, hold_out_ratio=0.3))
    with pytest.raises(ConfigError, match=r"an epoch has 2 batches .*accum_steps=3"):
        plan_run(replace(held, train=replace(held.train, accum_steps=3)))
    plan = plan_run(replace(held, train=replace(held.train, accum_steps=1)))
    assert plan.training.workload == Workload(4, 7, 2, 1)
    with pytest.raises(ConfigError, match="that repeats divides"):
        plan_run(replace(config, train=replace(config.train, batch_size_per_device=3)))
    with pytest.raises(ConfigError, match=r"tokens\.where is 'device'"):
        plan_run(replace(config, train=replace(config.train, max_tokens_per_device=64)))
    unlabelled = Path(config.data.train).with_name("unlabelled.csv")
    unlabelled.write_text("path\na.mp4\nb.mp4\n")
    with pytest.raises(DataError, match="has no labels"):
        plan_run(replace(config, data=replace(config.data, train=str(unlabelled))))


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (310, "5 min 10 s"), (3900.0, "1 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
