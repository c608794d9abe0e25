"""What the parts found: a file each as soon as it is known, and all of it as JSON and as Markdown."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.resume import atomic_file
from tools.benchmark.machine import machine

Record = dict[str, Any]
"""The fields of `context.Result`, and "name", "status", "seconds", and what `circumstances` gives."""
DONE, FAILED, UNFINISHED, SKIPPED, POSTPONED = "done", "failed", "unfinished", "skipped", "postponed"
ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("pipeline", "train", "tools")


def circumstances(shards: Path, planes: Path) -> Record:
    """What figures depend on: the machine, the program and the data."""
    data = {name: Manifest.load(folder).sha256 for name, folder in (("shards", shards), ("planes", planes))}
    return {"machine": machine(), "program": program(), "data": data}


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
    path = record_path(work, record["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(record, indent=1).encode()
    with atomic_file(path) as file:
        file.write(content)


def require_alike(record: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `InputError` where a part was measured on another GPU or on other data than are there now."""
    for what, was, found in (
        ("on the GPU", record["machine"]["gpu"], now["machine"]["gpu"]),
        ("on the data", record["data"], now["data"]),
    ):
        if was != found:
            raise InputError(f"{record['name']} was measured {what} {was}, now it is {found}: give another WORK")


def save_report(path: Path, command: str, records: Sequence[Record]) -> None:
    """All records as one JSON object."""
    with atomic_file(path) as file:
        file.write(json.dumps({"command": command, "parts": records}, indent=1).encode())


def markdown(records: Sequence[Record]) -> str:
    """The records for docs/benchmarks.md: a heading, a table and sentences each."""
    return "\n\n".join(_section(record) for record in records)


def _section(record: Record) -> str:
    took = f", {record['seconds']:,.0f} s" if record.get("seconds") else ""
    blocks = [f"### {record['name']}: {record['status']}{took}"]
    if record.get("rows"):
        lines = [["", *record["columns"]], ["---"] * (len(record["columns"]) + 1)]
        lines += [[name, *cells] for name, cells in record["rows"].items()]
        blocks.append(
            "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        )
    sentences = [*(f"FAILED: {line}" for line in record.get("failures", ())), *record.get("notes", ())]
    if machine := record.get("machine"):
        told = ", ".join(f"{name} {machine[name]}" for name in ("driver", "cuda", "torch", "dali") if name in machine)
        where = (
            "no GPU: a small form, of which no figure means anything" if machine["gpu"] == "none" else machine["gpu"]
        )
        sentences.append(f"{where}; {told}; source {record['program']['source_sha256']}")
    if sentences:
        blocks.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(blocks)
