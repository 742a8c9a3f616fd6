"""What has been embedded so far, beside the file to write: an interrupted `onereel embed` goes on from there."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from onereel.evaluation.scores import ViewSums
from onereel.files import written_aside

SECONDS_BETWEEN = 30.0
SHARE = 0.05
"""Of the time, at most, that writing takes: all that is there is written each time."""


class Journal:
    """Sums of embeddings, and how many batches they are of, in `.NAME.unfinished` beside the file `out`.

    Args:
        key: tells the model, the moments and the settings from others, whose journal is of no use.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.path, self.key = out.with_name(f".{out.name}.unfinished"), key
        self._due = time.monotonic() + SECONDS_BETWEEN

    def read(self) -> tuple[ViewSums, int, int]:
        """The sums, the batches that are done, and the bytes of the list of what could not be read by then."""
        # Absent or damaged: from the beginning.
        with suppress(OSError, SafetensorError), safe_open(self.path, "pt") as file:
            facts = file.metadata()
            if facts["key"] == self.key:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return ViewSums.of_state(state), int(facts["batches"]), int(facts["quarantine"])
        return ViewSums(), 0, 0

    def keep(self, sums: ViewSums, batches: int, num_views: int, quarantine: Path) -> None:
        """Write what is there, where the last time is long enough ago."""
        start = time.monotonic()
        if start < self._due:
            return
        size = quarantine.stat().st_size if quarantine.exists() else 0
        facts = {"key": self.key, "batches": str(batches), "quarantine": str(size)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path, durable=False) as partial:
            safetensors.torch.save_file(sums.state(num_views), partial, facts)
        end = time.monotonic()
        self._due = end + max(SECONDS_BETWEEN, (end - start) / SHARE)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
