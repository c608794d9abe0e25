"""The report of a run: one HTML file that needs nothing but a browser, read back from the run's folder.

The content is collected here; the page, its tables and its sentences are in report.html.j2.
"""

import base64
import io
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.manifest import BLOCK, Manifest, load_index
from pipeline.format.sample import UNKNOWN
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, SPLITS, group
from pipeline.storage import Location, StrLocation, Url, is_there, storage_of
from pipeline.words import plural, printable
from pipeline.workers import available_cores
from train.checkpoint import BEST, Run, load_run
from train.config import Config
from train.curves import COLOURS, LOSSES, OPTIMIZATION, SCORES, SPEED, Chart, draw_svg
from train.evaluate import Cell, Evaluation, evaluate, open_split
from train.evaluation_table import DEPTH, MASK
from train.logging import METRICS, Line, describe_cache, read_metrics
from train.metrics import METRICS as DEPTH_METRICS
from train.metrics import Score
from train.pictures import columns
from train.scoring import RESAMPLES, Summary, predict

OF_A_STEP = {"sets_seen", "sets_per_sec", "stall_share"}  # what every line of training has
Place = TypeVar("Place", Path, Url, Location)

REPORT = "report.html"  # in the folder of a run
TEMPLATE = "report.html.j2"  # beside this file
SETS_PER_CELL = 256  # that are scored: the report of a long run shall not take long
BEST_SETS, WORST_SETS = 4, 8  # whose pictures are shown
MAX_EPOCHS = 30  # rows of the table of epochs
JPEG_QUALITY = 90
DASH = "\N{EN DASH}"  # where there is no value, and between two
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # packages, of which one is needed
NOT_INSTALLED = "not installed as a package"
NOT_KNOWN = "not known"
# Names of depth's scores, in the order of DEPTH's titles: as predicted, and after a fit.
DEPTH_SCORES = {
    title: [Score(metric, "all", fitted).name for metric in DEPTH_METRICS]
    for title, fitted in (("", False), (", fitted", True))
}


class ShownSet(NamedTuple):
    """A set's pictures and the network's predictions for it."""

    key: str
    mask_iou: float
    tiles: dict[str, str]
    """data: URLs by title."""


class Epoch(NamedTuple):
    """Sets and times of an epoch, as far as it was logged, or of several epochs together."""

    title: str
    sets: int
    sec: float
    waited_sec: float
    scores: Line
    """Of the validation after it; empty without."""


class SettingRow(NamedTuple):
    """A row of the table of settings."""

    name: str
    value: str
    default: str
    changed: bool
    """Whether it differs from the default."""


def write_report(
    folder: Place,
    shards: StrLocation,
    device: torch.device,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> Place:
    """Write `folder`/report.html about the run in `folder`, finished or not, on `shards`; return where it is.

    Scores at most SETS_PER_CELL validation sets of each cell with the best checkpoint, or the last; `watch` may count
    their batches. The same files give the same report on the same machine. What is missing (validation sets, depth,
    numbers, the shards themselves) is said in it. Raises `InputError` where no checkpoint of the run can be opened.
    """
    warnings = list[str]()
    run = _load_run(folder, shards, device, warnings)
    warnings += [f"The run went back once: {fallback}." for fallback in run.fallbacks]
    lines = _read_lines(folder, warnings)
    evaluation: Evaluation | None = None
    try:
        # However many sets are damaged: it is said how many.
        run = run._replace(config=replace(run.config, max_bad_share=1.0))
        scored = open_split(run, "val", device, peer=run.peer_protocol, most=SETS_PER_CELL)
        evaluation = evaluate(run, "val", scored, watch)
    except InputError as error:
        warnings.append(f"Nothing was scored: {error}")
    packed = data(shards, evaluation.data.loader if evaluation else None)
    warnings += [f"Warning of the packing: {line}." for line in packed.pop("packing_warnings")]
    page = render({
        "name": (folder.resolve() if isinstance(folder, Path) else folder).name,
        "state": training_state(run, lines),
        "warnings": warnings,
        "evaluation": evaluation,
        "shown_sets": shown_sets(evaluation) if evaluation else {},
        "size": run.config.size,
        **progress(lines),
        **packed,
        "settings": settings(run.config, device.type),
        "versions": versions(device),
    })  # fmt: skip
    storage_of(folder).put(REPORT, page.encode())
    return folder / REPORT


def _as_shown(value: object) -> object:
    """A text from data as it may stand in a page, line by line; anything else as it is."""
    if type(value) is not str:  # markup of our own is a subclass
        return value
    lines = value.encode(errors="replace").decode().split("\n")  # a folder's name may be no text
    return "\n".join(map(printable, lines))


def render(content: dict[str, Any]) -> str:
    """The page of `content`, whose names are those of the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # here: a run without a report does without it

    environment = Environment(
        loader=PackageLoader("train", ""),
        autoescape=True,
        finalize=_as_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"decimals": decimals, "interval": interval, "size": size, "thousands": "{:,}".format}
    constants = {
        "colours": COLOURS,
        "dash": DASH,
        "mask_scores": MASK,
        "depth_titles": list(DEPTH),
        "depth_scores": DEPTH_SCORES,
        "resamples": RESAMPLES,
    }
    return environment.get_template(TEMPLATE).render(content, **constants)


def _load_run(folder: Location, shards: StrLocation, device: torch.device, warnings: list[str]) -> Run:
    try:
        return load_run(folder, "best", device, shards)
    except InputError as error:
        run = load_run(folder, "last", device, shards)
        why = str(error) if is_there(folder / BEST) else "the run has had no validation."
        warnings.append(f"The last checkpoint was scored, for want of the best: {why}")
        return run


def _read_lines(folder: Location, warnings: list[str]) -> list[Line]:
    try:
        lines, damage = read_metrics(folder / METRICS)
    except (InputError, OSError) as error:
        lines, damage = [], f"{METRICS} cannot be read ({error}): no curves."
    warnings += [damage] if damage else []
    return [line for line in lines if line["kind"] != "train" or line.keys() >= OF_A_STEP]


def training_state(run: Run, lines: Sequence[Line]) -> str:
    """How far the run is, and which of its checkpoints was scored."""
    scored = f"{run.checkpoint.name} of step {run.step:,}."
    if not lines:
        return f"Scored: {scored}"
    last = max(lines, key=lambda line: int(line["step"]))
    sets = max(line.get("sets_seen", 0) for line in lines)
    return f"Trained to step {last['step']:,}, epoch {last['epoch']:,}, {plural(sets, 'set')}; scored: {scored}"


def decimals(value: float | None) -> str:
    """Three of them, or a dash."""
    return DASH if value is None else f"{value:.3f}"


def interval(score: Summary) -> str:
    """The 95 % interval of a score without zeros before the point, .901 to .930; "" where there is none."""
    low, high = score["low"], score["high"]
    return "" if low is None or high is None else DASH.join(f"{end:.3f}".removeprefix("0") for end in (low, high))


def size(cell: Cell) -> str:
    """How many sets of a cell were scored, and on how many backgrounds."""
    total = f" of {cell.sets_in_cell:,}" if cell.sets < cell.sets_in_cell else ""
    sets = f"{cell.sets:,}{total} sets" if total else plural(cell.sets, "set")
    return f"{sets} on {plural(cell.backgrounds, 'background')}"


def shown_sets(evaluation: Evaluation) -> dict[str, list[ShownSet]]:
    """The "Worst" sets, by mask IoU, worst first, and of the others the "Best", best first."""
    order = evaluation.worst_first()
    worst, best = order[:WORST_SETS].tolist(), order[WORST_SETS:][-BEST_SETS:][::-1].tolist()
    run, loader = evaluation.run, evaluation.data.loader
    rows = evaluation.rows[worst + best].tolist()
    batch = loader.pick(rows)
    tiles = columns(batch, predict(run.network, batch.bg, batch.fg_bg, run.config.precision))
    shown = [
        ShownSet(
            loader.key(row),
            float(evaluation.mask_iou[place]),
            {title: data_url(pictures[number]) for title, pictures in tiles.items()},
        )
        for number, (row, place) in enumerate(zip(rows, worst + best, strict=True))
    ]
    return {"Worst": shown[: len(worst)], "Best": shown[len(worst) :]}


def data_url(picture: NDArray[np.uint8]) -> str:
    """A gray picture [H,W] as the source of an `img`."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def progress(lines: Sequence[Line]) -> dict[str, Any]:
    """The course of the run, from the lines of metrics.jsonl: charts as `svg` elements, epochs, damaged sets."""

    def drawn(charts: Iterable[Chart]) -> list[str]:
        return [svg for chart in charts if (svg := draw_svg(chart, lines))]

    epochs = epochs_of(lines)
    first, later = epochs[:1], epochs[1:]
    every = -(-len(epochs) // MAX_EPOCHS)
    return {
        "validated": any(line["kind"] == "val" for line in lines),
        "curves": drawn((*LOSSES, *SCORES, *OPTIMIZATION)),
        "speed_curves": drawn(SPEED),
        "cache": describe_cache(lines),
        "damaged": max((line.get("sets_damaged", 0) for line in lines), default=0),
        "epochs": first + ([together("all later ones", later), *later[every - 1 :: every]] if later else []),
        "epochs_title": f"; every {every}. of {len(epochs):,}" if every > 1 else "",
    }


def epochs_of(lines: Sequence[Line]) -> list[Epoch]:
    """The epochs that have a line of training, in order. Each line speaks for the sets since the one before."""
    found = dict[int, Epoch]()
    seen = 0
    for line in lines:
        epoch = found.get(line["epoch"], Epoch(f"epoch {line['epoch']}", 0, 0.0, 0.0, {}))
        if line["kind"] == "train":
            sets, seen = line["sets_seen"] - seen, line["sets_seen"]
            sec = sets / line["sets_per_sec"] if line["sets_per_sec"] else 0.0
            waited_sec = epoch.waited_sec + sec * line["stall_share"]
            epoch = epoch._replace(sets=epoch.sets + sets, sec=epoch.sec + sec, waited_sec=waited_sec)
        elif line["kind"] == "val":
            epoch = epoch._replace(scores=line)
        found[line["epoch"]] = epoch
    return [epoch for epoch in found.values() if epoch.sets]


def together(title: str, epochs: Sequence[Epoch]) -> Epoch:
    """The sums of several epochs; the scores of one."""
    sets, sec = sum(epoch.sets for epoch in epochs), sum(epoch.sec for epoch in epochs)
    waited_sec = sum(epoch.waited_sec for epoch in epochs)
    return Epoch(title, sets, sec, waited_sec, epochs[0].scores if len(epochs) == 1 else {})


def data(shards: StrLocation, opened: Loader | None) -> dict[str, Any]:
    """What the manifest says, and the number of sets by the splits of background and foreground; or what is wrong.

    `opened` is a loader of these shards, if there is one.
    """
    try:
        manifest = opened.manifest if opened else Manifest.load(shards)
        index = opened.index if opened else load_index(shards, manifest)
    except InputError as error:
        return {"packed": {}, "data_error": str(error), "packing_warnings": []}
    stored_bytes = sum(shard.bytes for shard in manifest.shards)
    packed = {
        "shards": str(shards),
        "sets": f"{manifest.sets:,}",
        "backgrounds": f"{len(manifest.backgrounds):,}",
        "foregrounds": f"{manifest.foregrounds:,}",
        "sizes, pixels": "; ".join(f"{part} {pixels(found)}" for part, found in sorted(manifest.sizes.items())),
        "codec": manifest.codec,
        "depth": f"{manifest.depth_encoding}, near is {manifest.depth_near}" if "depth" in manifest.parts else "none",
        "bytes": f"{stored_bytes:,} in {plural(len(manifest.shards), 'shard')}, "
        f"{stored_bytes // max(1, manifest.sets):,} a set",
        "manifest": manifest.sha256[:12],
    }
    if manifest.conversions:
        packed["converted at packing"] = "; ".join(manifest.conversions)
    counts = split_cells(index)
    unknown = [NOT_KNOWN] if any((bg, NOT_KNOWN) in counts for bg in SPLITS) else []
    return {
        "packed": packed,
        "packing_warnings": manifest.warnings,
        "split_cells": counts,
        "bg_splits": SPLITS,
        "fg_splits": [*SPLITS, *unknown],
    }


def pixels(sizes: dict[str, list[int]]) -> str:
    """Smallest and largest [height, width]: 224 x 224, or 100 x 120 to 400 x 500."""
    low, high = (" x ".join(map(str, sizes[end])) for end in ("min", "max"))
    return low if low == high else f"{low} to {high}"


def split_cells(index: NDArray[np.void]) -> dict[tuple[str, str], int]:
    """How many rows of the index there are by the splits of background and foreground; none of an empty cell."""
    titles = *SPLITS, NOT_KNOWN
    counts = np.zeros((len(titles), len(titles)), np.int64)
    for first in range(0, len(index), BLOCK):
        block = index[first : first + BLOCK]
        of_bg, of_fg = _groups(BACKGROUND_SALT, block["bg"]), _groups(FOREGROUND_SALT, block["fg"])
        counts += np.bincount(of_bg * len(titles) + of_fg, minlength=counts.size).reshape(counts.shape)
    cells = product(titles, titles)
    return {cell: number for cell, number in zip(cells, counts.ravel().tolist(), strict=True) if number}


def _groups(salt: str, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Which of SPLITS each id belongs to, int64 [N]; behind them all that are not known."""
    distinct, places = np.unique(ids, return_inverse=True)
    groups = [len(SPLITS) if number == UNKNOWN else SPLITS.index(group(salt, number)) for number in distinct.tolist()]
    return np.array(groups, np.int64)[places]


def settings(config: Config, kind: str) -> list[SettingRow]:
    """The settings that decide the result of a run, beside the defaults of a type of device, cpu or cuda."""

    def shown(value: object) -> str:
        return DASH if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)

    found, defaults = list[SettingRow](), Config("", "").on_device(kind)
    for name, value in config.settings().items():
        default = getattr(defaults, name)
        found.append(SettingRow(name.replace("_", "-"), shown(value), shown(default), value != default))
    return found


def versions(device: torch.device) -> dict[str, str]:
    """Versions of programs, and the machine, that the report was made with."""
    dali = [f"{name} {found}" for name in DALI if (found := installed(name)) != NOT_INSTALLED]
    return {
        "fgbg": installed("fgbg"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "DALI": ", ".join(dali) or NOT_INSTALLED,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {processor()}",
        "cores": str(available_cores()),
    }


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
