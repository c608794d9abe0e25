"""The check: parts one after the other, what is done before left out, within the time that is given."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.gpu_check.parts import Part
from tools.gpu_check.process import run_part
from tools.gpu_check.report import DONE, POSTPONED, SKIPPED, Record, circumstances, load_record, require_alike

LEAST_SEC = 60.0  # for a part that goes on where it was stopped, so that it gets anywhere


class Check:
    """All parts in one folder: what they found in WORK/parts, their output in WORK/logs, their own in WORK/NAME."""

    def __init__(self, work: Path, shards: Path, planes: Path, device: str, say: Callable[[str], None]) -> None:
        """`device` is "gpu" or "cpu"; raises `InputError` for folders that are no shards."""
        self._work, self._shards, self._planes, self._device = work, shards, planes, device
        self._now, self._say = circumstances(shards, planes), say

    def run(self, parts: Sequence[Part], ends_sec: float) -> list[Record]:
        """What is known of each part, in order. Those that are not done are run, until `time.perf_counter` says so.

        Raises `InputError` where a part was measured on another GPU or on other data.
        """
        known = {part.name: self._known(part) for part in parts}
        return [known[part.name] or self._one(part, ends_sec) for part in parts]

    def _known(self, part: Part) -> Record | None:
        """What was found before, if that is final."""
        record = load_record(self._work, part.name)
        if record is None or record["status"] != DONE:
            return None
        require_alike(record, self._now)
        self._say(f"{part.name}: done before")
        return record

    def _one(self, part: Part, ends_sec: float) -> Record:
        if part.needs_gpu and self._device == "cpu":
            return self._left_out(part, SKIPPED, "no GPU")
        left_sec = ends_sec - time.perf_counter()
        if left_sec < (LEAST_SEC if part.resumable else part.seconds):
            why = f"it may take {part.seconds:,.0f} s, {max(0, left_sec):,.0f} s are left: give the command again"
            return self._left_out(part, POSTPONED, why)
        limit_sec = min(left_sec, part.seconds)
        self._say(f"{part.name}: begun, {limit_sec:,.0f} s at most")
        record = run_part(part, self._work, self._shards, self._planes, self._device, limit_sec)
        found = "".join(f"; {line}" for line in record["failures"])
        self._say(f"{part.name}: {record['status']}, {record['seconds']:,.1f} s{found}")
        return record

    def _left_out(self, part: Part, status: str, why: str) -> Record:
        self._say(f"{part.name}: {status}: {why}")
        return {"name": part.name, "status": status, "notes": [f"{status}: {why}"]}
