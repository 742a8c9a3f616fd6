"""What this machine has: versions, devices, decoders, cores, memory, arithmetic peak, disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from rich.table import Table

import onereel
from onereel.doctor.measure import NUM_READERS, DiskRate, measure_disk
from onereel.training.peak import measure_peak_flops
from onereel.video.schedule import num_cores

PROBE_SECONDS = 60
# What each optional decoder is asked for: importing its decoder loads the shared libraries that may be missing.
OPTIONAL_DECODERS = {
    "torchcodec": "import torchcodec, torchcodec.decoders",
    "PyNvVideoCodec": "import PyNvVideoCodec",
}
# What the dynamic loader says when it fails; torchcodec quotes it once for each FFmpeg that it tries.
LOADER = re.compile(r"\S+: (?:undefined symbol: \S+|cannot open shared object file)")
# The cause behind such a line, most telling first: a missing FFmpeg 8 says nothing where FFmpeg 5 was found.
CAUSES = (
    (
        r"undefined symbol|libtorch(_\w+)?\.so|libc10|libcudart|libnvrtc",
        "it was built for another PyTorch (ABI mismatch); install the release that pairs with this one",
    ),
    (r"libcuda\.so|libnvcuvid|libnvidia", "the NVIDIA driver's libraries are not installed"),
    (r"libav|libsw", "FFmpeg's shared libraries are not installed"),
)


@dataclass(frozen=True)
class Device:
    """One device and its measured matrix multiplication, in FLOP per second by precision."""

    name: str
    memory_bytes: int
    peak_flops: dict[str, float]


@dataclass(frozen=True)
class SystemReport:
    """Facts about this machine; `rich` prints it."""

    versions: dict[str, str]
    num_cores: int
    devices: tuple[Device, ...]
    decoders: dict[str, str]
    disk: DiskRate

    def __rich__(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("versions", ", ".join(f"{k} {v}" for k, v in self.versions.items()))
        table.add_row("CPU cores", str(self.num_cores))
        for device in self.devices:
            peaks = ", ".join(f"{v / 1e12:.3g} TFLOP/s {k}" for k, v in device.peak_flops.items())
            table.add_row(
                "device", f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB; {peaks}"
            )
        for name, state in self.decoders.items():
            table.add_row("decoder", f"{name}: {state}")
        table.add_row("disk", describe_disk(self.disk))
        return table


def system_report(folder: str | Path = ".") -> SystemReport:
    """Look around and measure; a few seconds. `folder` is where the videos lie: its disk is read.

    Raises DataError where `folder` is no folder.
    """
    disk = measure_disk(folder)
    return SystemReport(
        versions={
            "onereel": onereel.__version__,
            "Python": platform.python_version(),
            "torch": torch.__version__,
        },
        num_cores=num_cores(),
        devices=tuple(_devices()),
        decoders={"PyAV": _describe_pyav()} | {name: probe(name) for name in OPTIONAL_DECODERS},
        disk=disk,
    )


def _devices() -> Iterator[Device]:
    """The CPU, then each CUDA device."""
    for device in [torch.device("cpu"), *cuda_devices()]:
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            name, memory = f"{device}: {facts.name}", facts.total_memory
        else:
            name, memory = f"CPU, {torch.get_num_threads()} threads", memory_bytes()
        dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
        peaks = {word: measure_peak_flops(device, dtype) for word, dtype in dtypes.items()}
        yield Device(name, memory, peaks)


def cuda_devices() -> list[torch.device]:
    """The CUDA devices that PyTorch sees."""
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_disk(disk: DiskRate) -> str:
    if disk.bytes_per_second is None:
        return f"{disk.folder}: {disk.how}, so nothing was measured"
    return (
        f"{disk.folder}: {disk.bytes_per_second / 1e6:.0f} MB/s over {disk.num_bytes / 1e6:.1f} MB, "
        f"{NUM_READERS} readers; {disk.how}"
    )


def _describe_pyav() -> str:
    codec = ".".join(str(n) for n in av.library_versions["libavcodec"])
    version = getattr(av, "ffmpeg_version_info", f"libavcodec {codec}")
    x264 = "with" if "libx264" in av.codecs_available else "without"
    return f"{av.__version__}, FFmpeg {version}, {x264} the libx264 encoder"


def probe(name: str) -> str:
    """Whether an optional decoder works here, in words.

    It is imported in a process of its own, so that nothing it does at import, crashes included, can hurt this one.
    """
    if importlib.util.find_spec(name) is None:
        return "not installed (optional)"
    code = f"{OPTIONAL_DECODERS[name]}; print(getattr({name}, '__version__', 'unknown version'))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    except subprocess.TimeoutExpired:
        return f"installed, but its import did not end within {PROBE_SECONDS} s"
    if done.returncode == 0:
        return f"{done.stdout.strip().splitlines()[-1]}, works"
    return f"installed, but does not work: {explain(done.stderr, done.returncode)}"


def explain(message: str, returncode: int = 1) -> str:
    """The cause of a failed import from what it printed: one clause, then the line that shows it."""
    if returncode < 0:
        return f"importing it crashes (signal {-returncode})"
    said = [match[0] for match in LOADER.finditer(message)]
    for pattern, cause in CAUSES:
        for line in said:
            if re.search(pattern, line):
                return f"{cause} ({line[-200:]})"
    lines = [line for line in message.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return lines[-1][:200] if lines else f"its import ends with exit code {returncode}"
