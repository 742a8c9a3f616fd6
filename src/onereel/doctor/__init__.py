"""What this machine can do, what reading and training cost here, and what will limit a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Group

from onereel import build
from onereel.config import RunConfig
from onereel.data.annotations import Annotations
from onereel.doctor.caching import caching_advice
from onereel.doctor.measure import DecodeRate, measure_decode
from onereel.doctor.planning import Plan, plan_run, video_folder, with_typical_clips
from onereel.doctor.system import SystemReport, system_report

__all__ = ["DoctorReport", "Plan", "SystemReport", "plan_run", "run_doctor", "system_report"]


@dataclass(frozen=True)
class DoctorReport:
    """The machine; where videos were named, what reading them costs, and caching their features. `rich` prints it."""

    system: SystemReport
    decode: DecodeRate | None = None
    caching: str = ""

    def __rich__(self) -> Group:
        if self.decode is None:
            return Group(self.system)
        size = self.decode.bytes_per_clip
        return Group(
            self.system,
            f"decode     {self.decode.clips_per_second:.1f} clips/s per core over {self.decode.num_clips} random clips "
            f"of {self.decode.num_records} records"
            + (f", {size / 1e3:.1f} kB read per clip" if size else "")
            + (f"; {self.decode.num_failed} could not be read" if self.decode.num_failed else ""),
            *([self.caching] if self.caching else []),
        )


def run_doctor(
    store: str = "",
    list: str = "",
    config: RunConfig | None = None,
    folder: str = ".",
    root: str = "",
) -> DoctorReport:
    """Look at the machine, and decode some clips of a store or a list.

    Args:
        store: chunk store to read from.
        list: annotation list of the clips; default: every video of the store.
        config: whose clips are read (frames, size, crop; of flexible sampling the middle shape), and whose cache is
            judged where something is frozen; default: 16 frames of 224 x 224.
        folder: where the disk is measured if neither store nor list is given.
        root: folder that relative paths of the list start from; empty: the list's own.

    Raises DataError where the folder, the store or the list is not there, or no clip can be read.
    """
    if not store and not list:
        return DoctorReport(system_report(folder))
    config = config or RunConfig()
    config = replace(config, data=replace(config.data, store=store, train=list, root=root))
    annotations = build.build_annotations(config, list) if list else _all_videos(store)
    dataset = build.build_dataset(with_typical_clips(config), annotations, None, training=True)
    system = system_report(video_folder(config, annotations))
    decode = measure_decode(dataset, repeats=config.data.repeats)
    if config.model.frozen == "none":
        return DoctorReport(system, decode)
    caching = caching_advice(config, build.build_encoder(config), len(dataset))
    return DoctorReport(system, decode, caching)


def _all_videos(store: str) -> Annotations:
    from onereel.video.store import ChunkStore

    return Annotations.of_videos(ChunkStore(store).videos())
