"""The sweep: our loader under many settings, in turn, and which of them to use."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.workers import available_cores
from tools.benchmark.table import print_table, quartiles
from tools.cli import progress_bar
from tools.measure import DRAINS, Pass, in_turn, spread, waits_ms, warm_pass
from tools.peers.loaders import our_loader
from tools.peers.options import Loaded, LoadOptions

AXES = ("threads", "prefetch", "batch-size", "hw-decoder-load")
RUN_IN_BATCHES = 2  # before the clock starts, beyond what may be ready


class Setting(NamedTuple):
    """One point of the grid."""

    threads: int
    prefetch: int
    batch_size: int
    hw_decoder_load: float

    def flags(self, device: str) -> str:
        """As fgbg-bench takes it."""
        host = f"--threads {self.threads} --prefetch {self.prefetch} --batch-size {self.batch_size}"
        return f"{host} --hw-decoder-load {self.hw_decoder_load:g}" if device == "gpu" else host

    def of(self, options: LoadOptions) -> LoadOptions:
        """The other options with this setting."""
        return replace(options, workers=self.threads, prefetch=self.prefetch, batch_size=self.batch_size,
                       hw_decoder_load=self.hw_decoder_load)  # fmt: skip

    @property
    def cost(self) -> tuple[float, ...]:
        """What it takes: threads, sets in memory, sets a batch."""
        return self.threads, self.prefetch * self.batch_size, self.batch_size, self.hw_decoder_load


def parse_grid(texts: Sequence[str], device: str) -> list[Setting]:
    """The settings of `AXIS=VALUE,VALUE` texts, with defaults for the axes that are not named.

    Raises `ValueError`, one line, for an unknown axis and for what is no number.
    """
    cores = available_cores()
    axes: dict[str, list[str]] = {
        "threads": [str(threads) for threads in sorted({1, max(1, cores // 2), cores})],
        "prefetch": ["1", "2", "4"],
        "batch-size": ["64", "256", "512"],
        "hw-decoder-load": ["0.5", "0.65", "0.8"] if device == "gpu" else ["0.65"],
    }
    for text in texts:
        axis, _, values = text.partition("=")
        if axis not in axes:
            raise ValueError(f"no axis called {axis!r}: expected some of {', '.join(AXES)}, as in threads=1,2")
        axes[axis] = values.split(",")
    try:
        settings = [Setting(int(t), int(p), int(b), float(h)) for t, p, b, h in itertools.product(*axes.values())]
    except ValueError as error:
        raise ValueError(f"{' '.join(texts)}: expected numbers with commas, as in threads=1,2 ({error})") from None
    if min(min(setting[:3]) for setting in settings) < 1:
        raise ValueError(f"{' '.join(texts)}: threads, prefetch and batch size are 1 or more")
    if not all(0 <= setting.hw_decoder_load <= 1 for setting in settings):
        raise ValueError(f"{' '.join(texts)}: hw-decoder-load is from 0 to 1")
    return settings


def bench_sweep(
    shards: Path, options: LoadOptions, settings: Sequence[Setting], sets: int, rounds: int
) -> dict[str, Any]:
    """Time our loader under each setting, in turn; print a table and what to use; return the report."""
    manifest = Manifest.load(shards)
    if (largest := max(setting.batch_size for setting in settings)) > manifest.sets:
        raise InputError(f"batch size {largest}: {shards} has {manifest.sets:,} sets; see --grid")
    with progress_bar("measuring", len(settings) * (rounds + 1)) as bar:
        names = {setting: setting.flags(options.device) for setting in settings}
        runs = {name: functools.partial(_pass, shards, s, options, sets) for s, name in names.items()}
        in_turn(runs, 1, lambda: bar.update(1))
        passes = in_turn(runs, rounds, lambda: bar.update(1))
    rates = {s: spread([run.sets_per_sec for run in passes[name]]) for s, name in names.items()}
    waits = {s: waits_ms(passes[name]) for s, name in names.items()}
    click.echo(f"{rounds} passes of {sets:,} sets under each setting, in turn, {options.size} px on {options.device}")
    print_table(
        ["sets/s (quartiles)", "wait ms p50 / p99"],
        {names[s]: [quartiles(rates[s]), f"{waits[s]['p50']:.1f} / {waits[s]['p99']:.1f}"] for s in settings},
    )
    chosen = recommended(rates)
    click.echo(f"recommended, the cheapest of the fastest within their spread: {names[chosen]}")
    rows = [{**s._asdict(), "sets_per_sec": rates[s], "wait_ms": waits[s]} for s in settings]
    data = {"manifest_sha256": manifest.sha256, "sets": sets}
    return {"data": data, "rounds": rounds, **options.plain(), "sweep": rows, "recommended": chosen._asdict()}


def recommended(rates: Mapping[Setting, Mapping[str, float]]) -> Setting:
    """The cheapest setting whose median is within the spread of the fastest: not below its lower quartile."""
    fastest = max(rates.values(), key=lambda rate: rate["median"])
    return min((s for s, rate in rates.items() if rate["median"] >= fastest["q1"]), key=lambda s: s.cost)


def _pass(shards: Path, setting: Setting, options: LoadOptions, sets: int) -> Pass:
    """Time `sets` sets of a new loader, when it has read ahead; it goes through as many epochs as that takes."""
    with closing(our_loader(shards, "all", setting.of(options))) as loader:
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        batches = (Loaded(len(batch.index), list, {}) for batch in epochs)
        return warm_pass(batches, setting.batch_size * (DRAINS * setting.prefetch + RUN_IN_BATCHES), sets)
