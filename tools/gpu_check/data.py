"""The sets that the check runs on, where none are given: composed once, and packed as pictures and as planes."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.baselines.process import done, run

SIZES = {"gpu": 128, "cpu": 32}  # pixels; nothing that a CPU gives is a figure, so that it shall be quick


def compose(folder: Path, sets: int, device: str, say: Callable[[str], None]) -> tuple[Path, Path]:
    """Make shards of so many synthetic sets in `folder`, unless they are there: of JPEG, and of planes.

    A run that was stopped goes on. Raises `InputError` where they were made with other settings.
    """
    loose, shards, planes = folder / "sets", folder / "jpeg", folder / "planes"
    source, size = str(loose), str(SIZES[device])
    steps: tuple[tuple[str, Path, list[str], list[str]], ...] = (
        ("tools.compose", loose, ["--synthetic", "--sets", str(sets), "--seed", "0"], [source]),
        ("tools.pack", shards, [], [source, "--shards", str(shards)]),
        ("tools.pack", planes, ["--codec", "planes", "--size", size], [source, "--shards", str(planes)]),
    )
    for module, result, flags, places in steps:
        note = result.with_suffix(".json")
        if done(note, module, flags) is None:
            seconds = run(module, flags, places, note, result.with_suffix(".log"))
            say(f"data: {result.name}, {sets:,} sets, {seconds:,.0f} s")
    return shards, planes
