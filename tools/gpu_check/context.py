"""What a part of the check is given, and what it gives back."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest

GRACE_SEC = 10.0  # between the wish that a process stops, in which it may save its work, and its end


@dataclass(frozen=True)
class Context:
    """One part's place, data and device."""

    work: Path
    """A folder of its own, which is there; what a part leaves in it, it finds again at the next start."""
    shards: Path
    """JPEG sets with depth."""
    planes: Path
    """The same sets, packed with --codec planes."""
    device: torch.device
    seconds: float
    """What it may take; then it is stopped by SIGINT, and killed after GRACE_SEC."""
    say: Callable[[str], None]
    """For a line about its progress, which its log keeps."""

    @property
    def on_gpu(self) -> bool:
        """Whether the real thing is measured; else its small form, which shows that the code works."""
        return self.device.type == "cuda"

    @property
    def flag(self) -> str:
        """The device as our commands and `pipeline` take it: "gpu" or "cpu"."""
        return "gpu" if self.on_gpu else "cpu"

    @property
    def size(self) -> int:
        """Height and width of batches, pixels: those of the planes."""
        return Manifest.load(self.planes).plane_size

    def command(self, *words: object, environment: Mapping[str, str] | None = None) -> str:
        """Run `python -m` with these words, the first a module, and return its standard output.

        All that it prints is kept in WORK/commands.log. Raises `InputError`, its last line, where it ends with another
        exit code than 0. When we are interrupted, so is it, by whoever interrupts us; it is then waited for, and killed
        after half of GRACE_SEC.
        """
        command = [sys.executable, "-m", *map(str, words)]
        path = self.work / "commands.log"
        with path.open("ab") as log, tempfile.TemporaryFile() as output:
            log.write(f"$ python {' '.join(command[1:])}\n".encode())
            log.flush()
            begun = log.tell()
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=environment)
            try:
                code = child.wait()
            except BaseException:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_SEC / 2)
                child.kill()
                child.wait()
                raise
            output.seek(0)
            said = output.read()
            errors = path.read_bytes()[begun:]
            log.write(said)
        if code:
            lines = (errors.strip() or said.strip() or b"no output").decode(errors="replace").splitlines()
            raise InputError(f"{words[0]}: {lines[-1]} (exit code {code}; all of its output: {path})")
        return said.decode(errors="replace")


class Result(NamedTuple):
    """What a part found. JSON takes all of it."""

    figures: dict[str, Any]
    columns: Sequence[str]
    """Titles of its table, for docs/benchmarks.md, without the first column, that of the names."""
    rows: Mapping[str, Sequence[str]]
    """The table: name -> one cell a column."""
    notes: Sequence[str] = ()
    """Sentences beneath the table: what follows from it, what was left out and why."""
    failures: Sequence[str] = ()
    """What is not as it has to be, a line each; the check then ends with exit code 1."""
