"""How busy the engines of a GPU are, as its driver tells: the cores, and the JPEG decoder beside them."""

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch

FIELDS, EVERY_MS = "utilization.gpu,utilization.jpeg", 100


class Busy(NamedTuple):
    """Medians of the samples; None where the driver tells nothing."""

    cores_pct: float | None
    """Share of the time in which any kernel ran, percent."""
    jpeg_pct: float | None
    """The same of the hardware JPEG engine."""

    def describe(self) -> str:
        """In a few words."""
        return f"GPU busy {_percent(self.cores_pct)}, its JPEG engine {_percent(self.jpeg_pct)} (nvidia-smi)"


class Watch:
    """What nvidia-smi prints while it runs."""

    def __init__(self) -> None:
        self.text = ""

    def read(self) -> Busy:
        """The medians of its lines, of two numbers each."""
        columns: tuple[list[float], list[float]] = ([], [])
        for line in self.text.splitlines():
            for column, cell in zip(columns, line.split(","), strict=False):
                with suppress(ValueError):  # "[N/A]", or an error in words
                    column.append(float(cell))
        cores, jpeg = (statistics.median(column) if column else None for column in columns)
        return Busy(cores, jpeg)


@contextmanager
def watched() -> Iterator[Watch]:
    """Ask the driver while something runs; read the result after it."""
    watch, command = Watch(), ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    device = torch.cuda.get_device_properties(torch.cuda.current_device()) if torch.cuda.is_available() else None
    if identity := getattr(device, "uuid", None):  # of several, ours; older versions of torch do not tell it
        command.append(f"--id=GPU-{identity}")
    try:
        child = subprocess.Popen(
            [*command, f"--loop-ms={EVERY_MS}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
    except OSError:  # there is none
        yield watch
        return
    try:
        yield watch
    finally:
        child.terminate()
        watch.text, _ = child.communicate()


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} %"
