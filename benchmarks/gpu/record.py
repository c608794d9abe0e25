"""What the parts find: a file each, saved after every row, and all of it as JSON and as Markdown."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.resume import atomic_file
from tools.measure import machine

Record = dict[str, Any]
"""As JSON has it: name, status, seconds, columns, rows, notes, failures, figures, and what `circumstances` gives."""
DONE, FAILED, PARTIAL, SKIPPED, POSTPONED = "done", "failed", "partial", "skipped", "postponed"
ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("pipeline", "train", "tools", "benchmarks")


class Findings:
    """What one part finds; every row is on disk as soon as it is known, and is not measured again."""

    def __init__(self, work: Path, name: str, now: Record) -> None:
        """`now` are the circumstances; rows of an earlier start under the same ones are taken over if they are good."""
        self._work, former = work, load_record(work, name) or {}
        self.columns: Sequence[str] = former.get("columns", ())
        """Titles of the table's columns, but for the first, that of the rows' names."""
        kept = former.get("rows", {}) if all(former.get(key) == now[key] for key in now if key != "asked") else {}
        self.rows: dict[str, Record] = {row: found for row, found in kept.items() if not found["failures"]}
        self.figures: Record = {}
        """Of the part as a whole."""
        self._late = list[str]()
        self._record: Record = {"name": name, "status": PARTIAL, "notes": [], "failures": [], **now}
        self.save()

    def row(self, name: str, figures: Record, cells: Sequence[str], failures: Sequence[str] = ()) -> None:
        """Keep a row of the table; `failures` say what of it is not as it has to be. Prints it, for the log."""
        self.rows[name] = {"cells": list(cells), "figures": figures, "failures": list(failures)}
        self.save()
        print(f"{name}: {' | '.join([*cells, *failures])}", flush=True)

    def note(self, text: str) -> None:
        """A sentence beneath the table: what follows from it, what was left out and why."""
        self._record["notes"].append(text)

    def fail(self, text: str) -> None:
        """The check then ends with exit code 1."""
        self._record["failures"].append(text)

    def late(self, name: str) -> None:
        """There is no time for a row: it comes at the next start."""
        self._late.append(name)

    def end(self) -> None:
        """The part has ended by itself."""
        if self._late:
            self.note(f"no time was left for {'; '.join(self._late)}: the same command goes on")
        failed = failures_of(self._record | {"rows": self.rows})
        self._record["status"] = FAILED if failed else PARTIAL if self._late else DONE
        self.save()

    def save(self) -> None:
        """Write the file."""
        save_record(self._work, {**self._record, "columns": self.columns, "rows": self.rows, "figures": self.figures})


def failures_of(record: Record) -> list[str]:
    """What is not as it has to be, of the part and of its rows."""
    of_rows = [f"{name}: {text}" for name, row in record.get("rows", {}).items() for text in row["failures"]]
    return [*record.get("failures", ()), *of_rows]


def circumstances(data: Mapping[str, str], asked: Sequence[object] = ()) -> Record:
    """What figures depend on: the machine, the program, the sha256 of the data's manifests, what was `asked` for."""
    return {"machine": machine(), "program": program(), "data": dict(data), "asked": list(asked)}


def program() -> dict[str, str]:
    """The version, and the first of the sha256 of all source files: it tells versions apart where there is no git."""
    found = hashlib.sha256()
    for file in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        found.update(f"{file.relative_to(ROOT)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    number = "not installed"
    with suppress(PackageNotFoundError):
        number = version("fgbg")
    return {"version": number, "source_sha256": found.hexdigest()[:16]}


def record_path(work: Path, name: str) -> Path:
    """The file for what a part found."""
    return work / "parts" / f"{name}.json"


def load_record(work: Path, name: str) -> Record | None:
    """What is known of a part."""
    path = record_path(work, name)
    return json.loads(path.read_text()) if path.exists() else None


def save_record(work: Path, record: Record) -> None:
    """Keep it under the name of its part."""
    _write(record_path(work, record["name"]), json.dumps(record, indent=1))


def require_alike(record: Record, gpu: object, data: Mapping[str, str]) -> None:
    """Raise `InputError` where a part was measured on another GPU or on other data than are there now."""
    differing = {kind: was for kind, was in record["data"].items() if data.get(kind, was) != was}
    for what, was, now in (
        ("on the GPU", record["machine"]["gpu"], gpu),
        ("on the data", differing, {kind: data[kind] for kind in differing}),
    ):
        if was != now:
            raise InputError(f"{record['name']} was measured {what} {was}, now it is {now}: give another WORK")


def save_report(work: Path, command: str, records: Sequence[Record]) -> str:
    """All records as WORK/gpu-report.json and as Markdown beside it, which is returned."""
    text = "\n\n".join(_section(record) for record in records)
    _write(work / "gpu-report.json", json.dumps({"command": command, "parts": records}, indent=1))
    _write(work / "gpu-report.md", f"{text}\n")
    return text


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())


def _section(record: Record) -> str:
    """A heading, a table and sentences."""
    rows, columns = record.get("rows", {}), record.get("columns", [])
    took = f", {record['seconds']:,.0f} s" if record.get("seconds") else ""
    blocks = [f"### {record['name']}: {record['status']}{took}"]
    if rows:
        lines = [["", *columns], ["---"] * (len(columns) + 1)]
        lines += [[name, *row["cells"]] + [""] * (len(columns) - len(row["cells"])) for name, row in rows.items()]
        blocks.append("\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines))
    sentences = [*(f"FAILED: {text}" for text in failures_of(record)), *record.get("notes", ())]
    if machine := record.get("machine"):
        told = ", ".join(f"{name} {machine[name]}" for name in ("driver", "cuda", "torch", "dali") if name in machine)
        no_gpu = machine["gpu"] == "none"
        where = "no GPU: a small form, of which no figure means anything" if no_gpu else machine["gpu"]
        sentences.append(f"{where}; {told}; source {record['program']['source_sha256']}")
    blocks += ["\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
    return "\n\n".join(blocks)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
