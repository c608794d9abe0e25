"""The course of a run in its report: curves over its steps, and how fast its epochs were, from metrics.jsonl."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from train.curves import LOSSES, OPTIMIZATION, SCORES, SPEED, draw_svg
from train.logging import Line
from train.report_page import DASH, Html, element, paragraph, row, section, table

MOST_EPOCHS = 30  # rows of the table


def curves(lines: Sequence[Line]) -> Html:
    """Losses, scores in validation, learning rate and gradient norm."""
    drawn = [Html(draw_svg(chart, lines)) for chart in (*LOSSES, *SCORES, *OPTIMIZATION)]
    if not any(drawn):
        return section("Curves", paragraph("No numbers were logged."))
    notes = [] if any(line["kind"] == "val" for line in lines) else [paragraph("The run has had no validation.")]
    return section("Curves", *notes, charts(drawn))


def throughput(lines: Sequence[Line]) -> Html:
    """Sets a second and the share of the time that training waited for data."""
    epochs = epochs_of(lines)
    if not epochs:
        return section("Throughput and stalls", paragraph("No numbers were logged."))
    drawn = charts(Html(draw_svg(chart, lines)) for chart in SPEED)
    every = -(-len(epochs) // MOST_EPOCHS)
    first, *later = epochs
    rows = [epoch_row(f"epoch {first.name}", [first])]
    if later:
        rows += [epoch_row("all later ones", later)]
        rows += [epoch_row(f"epoch {epoch.name}", [epoch]) for epoch in later[every - 1 :: every]]
    head = ["", "sets", "sets/s", "waited for data", "mask IoU", "depth SSIM"]
    spaced = f"; every {every}. of {len(epochs):,}" if every > 1 else ""
    caption = f"Epochs: training, without validation; scores are of the validation after it{spaced}"
    damaged = max((line.get("sets_damaged", 0) for line in lines), default=0)
    note = [paragraph(f"Sets left out of training as damaged: {damaged:,}.", class_="warning")] if damaged else []
    return section("Throughput and stalls", *note, drawn, table(caption, head, rows))


def charts(drawn: Iterable[Html]) -> Html:
    """Those that there are, side by side where there is room."""
    return element("div", *(element("figure", one) for one in drawn if one), class_="charts")


class Epoch(NamedTuple):
    """What one epoch took, or the part of it that was logged."""

    name: int
    sets: int
    sec: float
    waited_sec: float
    scores: dict[str, float]
    """Of the validation after it; none without."""


def epochs_of(lines: Sequence[Line]) -> list[Epoch]:
    """The epochs that have a line of training, in order. Each line speaks for the sets since the one before."""
    found = dict[int, Epoch]()
    seen = 0
    for line in lines:
        epoch = found.get(line["epoch"], Epoch(line["epoch"], 0, 0.0, 0.0, {}))
        if line["kind"] == "train":
            sets, seen = line["sets_seen"] - seen, line["sets_seen"]
            sec = sets / line["sets_per_sec"] if line["sets_per_sec"] else 0.0
            waited_sec = epoch.waited_sec + sec * line["stall_share"]
            epoch = epoch._replace(sets=epoch.sets + sets, sec=epoch.sec + sec, waited_sec=waited_sec)
        elif line["kind"] == "val":
            epoch = epoch._replace(scores=line)
        found[line["epoch"]] = epoch
    return [epoch for epoch in found.values() if epoch.sets]


def epoch_row(title: str, epochs: Sequence[Epoch]) -> Html:
    """Several epochs together; the scores of a single one."""
    sets, sec = sum(epoch.sets for epoch in epochs), sum(epoch.sec for epoch in epochs)
    waited_sec = sum(epoch.waited_sec for epoch in epochs)
    speed = [f"{sets / sec:,.0f}", f"{waited_sec / sec:.1%}"] if sec else [DASH, DASH]
    of = epochs[0].scores if len(epochs) == 1 else {}
    scores = [f"{of[name]:.3f}" if name in of else DASH for name in ("mask_iou", "depth_ssim")]
    return row(title, f"{sets:,}", *speed, *scores)
