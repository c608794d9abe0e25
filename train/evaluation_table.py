"""An evaluation as text for a terminal: the result in a line, then short tables, cells by scores."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from pipeline.words import plural, printable
from train.evaluate import Cell, Evaluation
from train.metrics import BAND_PIXELS, METRICS, REGIONS, RELATIVE_FROM, Score
from train.scoring import NETWORK, RESAMPLES, TRIVIAL, Summary

LABEL, NUMBER, NARROW = 20, 16, 10  # columns
WIDTH = LABEL + 5 * NUMBER
MASK = {
    "IoU": "mask_iou",
    "Dice": "mask_dice",
    "boundary F 1 px": "boundary_f_1px",
    "boundary F 2 px": "boundary_f_2px",
}
DEPTH = dict(zip(("SSIM", "RMSE", "MAE", "AbsRel", "delta < 1.25"), METRICS, strict=True))


def text(evaluation: Evaluation) -> str:
    """The result in one line, how far it can be trusted in another, then all tables: WIDTH columns, but for paths."""
    config, loader = evaluation.run.config, evaluation.data.loader
    split = f"split {evaluation.split}"
    tta = "; TTA: means over the pictures and their mirror" if evaluation.run.tta else ""
    headline = evaluation.cells[evaluation.headline]
    lines = [
        _result(evaluation),
        *([headline.reliability] if headline.sets else []),
        *textwrap.wrap(_reservations(evaluation), WIDTH),
        f"{evaluation.run.checkpoint} (step {evaluation.run.step:,}{tta}) on {config.shards}, {split}: "
        f"{_of(len(evaluation.rows), sum(evaluation.data.sizes.values()))} at {config.size} x {config.size}",
        f"means and 95 % intervals, backgrounds drawn {RESAMPLES:,} times; worst 5 %: 95 % of sets have a better Dice",
    ]
    for cell in evaluation.cells.values():
        kind = " (headline)" if cell is headline and not evaluation.leaking else ""
        lines.append(f"  {cell.title}{kind}: {_size(cell)}")
    filled = [cell for cell in evaluation.cells.values() if cell.sets]
    trivial = f"  |fg_bg - bg| > {evaluation.threshold}"
    lines += ["", _row("mask", [*MASK], "worst 5 %")]
    for cell in filled:
        lines += [cell.title]
        lines += [_scores(label, cell.scores[who], MASK.values(), "mask_dice")
                  for label, who in (("  network", NETWORK), (trivial, TRIVIAL))]  # fmt: skip
    if "depth_ssim" in filled[0].scores[NETWORK]:
        lines += ["", _row("depth, all pixels", [*DEPTH])]
        for cell in filled:
            lines += [cell.title, *_depth_rows(cell, "all")]
        lines += ["", _row("depth of a region", [*DEPTH]), filled[0].title]
        for region in REGIONS[1:]:
            name = f"within {BAND_PIXELS} px of the edge" if region == "boundary" else region
            counted = filled[0].scores[NETWORK][Score("rmse", region, fitted=False).name]["sets"]
            sets = plural(filled[0].sets, "set has", "sets have")
            lines += [f"{name}: {counted} of {sets} it", *_depth_rows(filled[0], region)]
        lines += [
            f"AbsRel and delta: pixels of nearness {RELATIVE_FROM} and more (0 far, 1 near)",
            "fitted: scale and shift of each picture",
        ]
    else:
        lines += ["", f"depth: not scored, the {'sets have' if config.depth else 'network has'} none"]
    lines += ["", "labels after one more JPEG round trip: the ceiling that they allow"]
    for quality, of in evaluation.ceiling.items():
        names = {"mask IoU": "mask_iou", "depth SSIM": "depth_ssim", "depth RMSE": "depth_rmse"}
        found = [f"{title} {_number(of[name], interval=False)}" for title, name in names.items() if name in of]
        lines.append(f"  quality {quality}: {', '.join(found)} ({plural(int(of['mask_iou']['sets'] or 0), 'set')})")
    lines += ["", f"threshold {evaluation.threshold}: chosen on {evaluation.threshold_from}"]
    if evaluation.mean_depth_sets:
        lines.append(f"mean depth: of {plural(evaluation.mean_depth_sets, 'training set')} on the same background; "
                     "on new backgrounds of all of them")  # fmt: skip
    if damaged := loader.quarantined:
        lines.append(f"sets left out as damaged: {len(damaged)}, such as {damaged[0]}")
    return "\n".join(printable(line.rstrip()) for line in lines)


def _result(evaluation: Evaluation) -> str:
    """The scores of the headline beside those of the baselines."""
    headline = evaluation.cells[evaluation.headline]
    if not headline.sets:
        if headline.sets_in_cell:
            return f"no result: all sets with {headline.title}, which count, are damaged"
        return f"no result: there are no sets with {headline.title}, which count"
    found = list[str]()
    for title, name in (("mask IoU", "mask_iou"), ("depth SSIM", "depth_ssim")):
        if score := headline.scores[NETWORK].get(name):
            low, high = score["low"], score["high"]
            interval = f" [{_short(low)} {_short(high)}]" if low is not None and high is not None else ""
            baseline = headline.scores[TRIVIAL].get(name)
            beside = f", baseline {_number(baseline, interval=False)}" if baseline else ""
            found.append(f"{title} {_number(score, interval=False)}{interval}{beside}")
    return f"{'LEAKING: ' if evaluation.leaking else ''}{'TTA: ' if evaluation.run.tta else ''}{'; '.join(found)}"


def _reservations(evaluation: Evaluation) -> str:
    """What the numbers are not."""
    known = "perhaps some" if evaluation.sets_trained_on is None else f"{evaluation.sets_trained_on:,}"
    if evaluation.parted_at_random:
        return (
            "LEAKING: a random split by set, as published numbers have it. Backgrounds and foregrounds are in training "
            f"too, and {known} of these very sets in that of this run. It measures nothing new."
        )
    if evaluation.leaking:
        return (
            "LEAKING: this run was trained on a random split by set (--peer-protocol), on backgrounds and foregrounds "
            f"of all cells, and on {known} of these very sets. Nothing here is new to it, whatever a cell is called."
        )
    if evaluation.same_shards:
        return ""
    if evaluation.run.peer_protocol:
        return "trained on other shards, on a random split by set: LEAKING where the ids of this data are the same"
    return "trained on other shards: seen and new go by this data's ids, and hold where its ids are the same"


def _of(sets: int, there: int) -> str:
    return plural(sets, "set") if sets == there else f"{sets:,} of {there:,} sets"


def _size(cell: Cell) -> str:
    if not cell.sets:
        return "EMPTY, its sets are damaged" if cell.sets_in_cell else "EMPTY, no set is in it"
    return f"{_of(cell.sets, cell.sets_in_cell)} on {plural(cell.backgrounds, 'background')}"


def _depth_rows(cell: Cell, region: str) -> list[str]:
    rows = []
    for label, who in (("network", NETWORK), ("mean depth", TRIVIAL)):
        for fitted in (False, True):
            names = [Score(metric, region, fitted).name for metric in METRICS]
            if names[0] in cell.scores[who]:
                rows.append(_scores(f"  {label}{', fitted' if fitted else ''}", cell.scores[who], names))
    return rows


def _scores(label: str, of: Mapping[str, Summary], names: Iterable[str], worst: str = "") -> str:
    narrow = f"{of[worst]['p5']:.3f}" if worst else ""
    return _row(label, [_number(of[name]) for name in names], narrow)


def _row(label: str, cells: Sequence[str], narrow: str = "") -> str:
    return f"{label:{LABEL}}" + "".join(f"{cell:>{NUMBER}}" for cell in cells) + f"{narrow:>{NARROW}}"


def _number(score: Summary, *, interval: bool = True) -> str:
    """0.892 .871-.910; a dash where there is no such score, or no interval."""
    mean, low, high = (score[what] for what in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if not interval:
        return _digits(mean, 5)
    between = " -       " if low is None or high is None else f"{_short(low)}-{_short(high)}"
    return f"{_digits(mean, 5)} {between}"


def _short(value: float) -> str:
    """At most 4 characters: .871, -.05, 1.23."""
    text = f"{value:.{3 if value >= 0 else 2}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else _digits(value, 4)


def _digits(value: float, width: int) -> str:
    """Three decimals, or as many as there is room for beside a sign."""
    decimals = max(0, min(3, width - len(f"{abs(value):.0f}") - 1))
    return f"{value:.{decimals}f}"
