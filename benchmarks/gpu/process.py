"""Parts one after the other, each in a process of its own: what crashes or hangs there takes nothing else along."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.plan import DATA, PARTS, PLANES, Part, in_order, limit_sec
from benchmarks.gpu.record import (
    DONE,
    FAILED,
    POSTPONED,
    SKIPPED,
    Findings,
    Record,
    circumstances,
    failures_of,
    load_record,
    require_alike,
    save_record,
)
from benchmarks.processes import last_line, run_command
from pipeline.devices import torch_device
from pipeline.format.manifest import MANIFEST, Manifest
from tools.measure import machine

SIZES = {"gpu": 128, "cpu": 32}  # pixels; nothing that a CPU gives is a figure, so that it shall be quick


@dataclass(frozen=True)
class Context:
    """What the command was asked for, and for a part its own place and time. JSON takes all of it."""

    root: str
    """The folder WORK."""
    flag: str
    """The device as our commands and `pipeline` take it: "gpu" or "cpu"."""
    sets: int
    """To be composed, for all parts but `end_to_end`."""
    given: dict[str, str]
    """Folders of shards, by "jpeg" and "planes", in place of those that would be made."""
    cases: list[str]
    """Of the part `throughput`: MODEL,SETS,COMPILE; none: its own."""
    end_to_end: list[int]
    """Sets and epochs of the part `end_to_end`."""
    work: str = ""
    """The part's folder, which is there; what it leaves in it, it finds again at the next start."""
    ends_sec: float = float("inf")
    """When the part is stopped, by `time.perf_counter`: see `processes.run_command`."""

    @property
    def left_sec(self) -> float:
        """The part's time that is left."""
        return self.ends_sec - time.perf_counter()

    @property
    def on_gpu(self) -> bool:
        """Whether the real thing is measured; else its small form, which shows that the code works."""
        return self.flag == "gpu"

    @property
    def device(self) -> torch.device:
        """The device for torch."""
        return torch_device(self.flag)

    @property
    def size(self) -> int:
        """Height and width of batches, pixels: those of the planes, once there are some."""
        return Manifest.load(self.folder(PLANES)).plane_size if self.has_made(PLANES) else SIZES[self.flag]

    @property
    def load(self) -> float:
        """The `hw_decoder_load` to be used: what the part `soak` recommends, 0 where it has failed or not run."""
        found = load_record(Path(self.root), "soak")
        return float(found["figures"].get("recommended", 0)) if found and found["status"] != FAILED else 0.0

    def folder(self, kind: str) -> Path:
        """Where the shards of a kind are, or will be."""
        return Path(self.given.get(kind, Path(self.root, "data", kind))).absolute()

    def has_made(self, name: str) -> bool:
        """Whether what a part of this name makes is there; of a part that makes nothing, too."""
        return name not in DATA or (self.folder(name) / MANIFEST).exists()

    def there(self) -> dict[str, str]:
        """The sha256 of the manifests of all data that are there, by their kind."""
        return {kind: Manifest.load(self.folder(kind)).sha256 for kind in DATA if self.has_made(kind)}

    def asked(self, name: str) -> Sequence[object]:
        """What decides how much a part of this name measures."""
        return self.cases if name == "throughput" else self.end_to_end if name == "end_to_end" else []

    def circumstances(self, part: Part) -> Record:
        """What the figures of a part depend on."""
        data = {kind: sha256 for kind, sha256 in self.there().items() if kind in part.needs}
        return circumstances(data, self.asked(part.name))


def run_parts(
    wanted: Sequence[str],
    context: Context,
    asked_sec: Mapping[str, float],
    ends_sec: float,
    say: Callable[[str], None],
) -> Iterator[Record]:
    """What is known of each part, in order. Those that are not done are run, until `time.perf_counter` says so.

    Raises `InputError` where a part was measured on another GPU or on other data.
    """
    known = dict[str, Record]()
    for name in wanted:
        if record := load_record(Path(context.root), name):
            require_alike(record, machine()["gpu"], context.there())
            if record["status"] == DONE and record["asked"] == context.asked(name) and context.has_made(name):
                known[name] = record
    unknown = [name for name in wanted if name not in known]
    parts = {part.name: part for part in in_order(unknown, context.there(), asked_sec)}
    for name in (part.name for part in PARTS if part.name in known or part.name in parts):
        if name in known:
            say(f"{name}: done before")
        yield known.get(name) or _one(parts[name], context, ends_sec - time.perf_counter(), say)


def _one(part: Part, context: Context, left_sec: float, say: Callable[[str], None]) -> Record:
    limit, missing = limit_sec(part, left_sec), [kind for kind in part.needs if not context.has_made(kind)]
    status, why = POSTPONED, ""
    if part.needs_gpu and not context.on_gpu:
        status, why = SKIPPED, "no GPU"
    elif missing:
        why = f"it needs {' and '.join(missing)}, not made yet"
    elif limit is None:
        least = f"it takes {part.least_sec:,.0f} s at least"
        why = f"{least}, {max(0, left_sec):,.0f} s are left: give the command again"
    if why or limit is None:
        say(f"{part.name}: {status}: {why}")
        kept = load_record(Path(context.root), part.name) or {"name": part.name, "status": status, "notes": []}
        return {**kept, "notes": [*kept["notes"], f"{status}: {why}"]}
    say(f"{part.name}: begun, {limit:,.0f} s at most")
    record = run_part(part, context, limit)
    failures = "".join(f"; {text}" for text in failures_of(record))
    say(f"{part.name}: {record['status']}, {record['seconds']:,.1f} s, {len(record['rows'])} rows{failures}")
    return record


def run_part(part: Part, context: Context, limit: float) -> Record:
    """Let a part run for so many seconds at most; return what it found, which is kept in WORK/parts.

    Its output goes to WORK/logs/NAME.log. A part that raises or crashes has failed; so has one that has found nothing
    new in all the time that it may ever take. Its rows are kept in any case. Whatever it has started ends with it, and
    when we are interrupted.
    """
    work = Path(context.root)
    before = len(Findings(work, part.name, context.circumstances(part)).rows)
    log = work / "logs" / f"{part.name}.log"
    log.unlink(missing_ok=True)
    started_sec = time.perf_counter()
    # What is compiled once serves all parts, and the next start.
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(work.absolute() / "compiled"))
    words = json.dumps({"part": part, "context": asdict(context), "seconds": limit})
    ended = run_command(
        [sys.executable, "-m", "benchmarks.gpu.process", words], log, limit, {"TORCHINDUCTOR_CACHE_DIR": compiled}
    )
    record = load_record(work, part.name) or {}
    record["seconds"] = round(time.perf_counter() - started_sec, 1)
    why = ""
    if ended.code and ended.in_time:
        why = f"{_ending(ended.code)}: {last_line(log)} (all of its output: {log})"
    elif ended.code:
        record["notes"].append(f"stopped after {limit:,.0f} s; the same command goes on")
        if limit >= part.most_sec and len(record["rows"]) <= before:
            why = f"nothing found in {limit:,.0f} s; the last line of its output: {last_line(log)}"
    if why:
        record |= {"status": FAILED, "failures": [*record["failures"], why]}
    save_record(work, record)
    return record


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def main() -> None:
    """One part, in the process that `run_part` has started."""
    # Of what a shell starts in the background this signal is ignored, and that is inherited: by parts, too, which it
    # shall stop, and by their commands, which it tells to save their work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = json.loads(sys.argv[1])
    part, context = Part(*asked["part"]), Context(**asked["context"])
    work = Path(context.root).absolute() / part.name
    work.mkdir(parents=True, exist_ok=True)
    context = replace(context, work=str(work), ends_sec=time.perf_counter() + asked["seconds"])
    found = Findings(Path(context.root), part.name, context.circumstances(part))
    try:
        getattr(import_module(part.module), part.name)(context, found)
    except (Exception, SystemExit) as error:  # a package that is missing may end the process
        traceback.print_exc()
        said = str(error).strip().splitlines()
        found.fail(f"{type(error).__name__}: {said[-1] if said else 'no message'}")
    found.end()


if __name__ == "__main__":
    main()
