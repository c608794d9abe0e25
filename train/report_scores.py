"""The scores of a run in its report: the result in a line, the table of each cell, the best and the worst sets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from train.bootstrap import RESAMPLES
from train.depth_metrics import METRICS, Score
from train.evaluate import Cell, Evaluation
from train.evaluation_table import DEPTH, MASK
from train.pictures import grid
from train.report_page import DASH, Html, element, group, paragraph, photograph, row, section, table
from train.scoring import NETWORK, TRIVIAL, Summary
from train.validation import predict

BEST, WORST = 4, 8  # sets that are shown


def result(evaluation: Evaluation) -> Html:
    """The headline's mask IoU and depth SSIM, with the baselines beside them."""
    cell = evaluation.cells[evaluation.headline]
    if not cell.sets:
        why = f"no validation set has a {cell.title} (more ids are needed)"
        return paragraph(f"No result: {why}. Other cells are below.", class_="warning")
    content = list[str]()
    for title, name in (("Mask IoU", "mask_iou"), (", depth SSIM", "depth_ssim")):
        if name in cell.scores[NETWORK]:
            baseline = cell.scores[TRIVIAL].get(name)
            beside = f" (baseline {decimals(baseline['mean'])})" if baseline else ""
            content += [f"{title} ", element("strong", with_interval(cell.scores[NETWORK][name])), beside]
    return paragraph(*content, f": validation, {cell.title}, {counted(cell)}.", class_="result")


def cells(evaluation: Evaluation) -> Html:
    """A table of the mask and one of the depth, all cells in each, the baselines beside the network."""
    config, size = evaluation.run.config, evaluation.run.config.size
    about = (
        f"Means over sets, at {size} x {size} pixels; below each its 95 % interval (backgrounds drawn {RESAMPLES:,} "
        "times; none of a single background). Seen and new are the ids of backgrounds and foregrounds; new with new is "
        "what counts."
    )
    filled = [cell for cell in evaluation.cells.values() if cell.sets]
    content = [paragraph(about, class_="note"), *reservations(evaluation), *mask_table(evaluation, filled)]
    if "depth_ssim" in filled[0].scores[NETWORK]:
        content += depth_table(evaluation, filled)
    else:
        content.append(paragraph(f"Depth is not scored: the {'sets have' if config.depth else 'network has'} none."))
    return section("Scores, cell by cell", *content, ceiling(evaluation))


def reservations(evaluation: Evaluation) -> Iterator[Html]:
    """What the numbers are not."""
    if evaluation.leaking:
        yield paragraph(
            "LEAKING: sets were parted at random, so that all backgrounds and foregrounds are in training. Nothing new "
            "is measured.",
            class_="warning",
        )
    elif not evaluation.same_shards:
        yield paragraph(
            "Trained on other shards than these: seen and new go by the ids of these, and hold where its ids are the "
            "same.",
            class_="warning",
        )
    if empty := [cell.title for cell in evaluation.cells.values() if not cell.sets]:
        yield paragraph(f"No set to be scored: {'; '.join(empty)}.", class_="warning")


def mask_table(evaluation: Evaluation, filled: Sequence[Cell]) -> list[Html]:
    """Network and baseline in each of the cells `filled`, and where the baseline's threshold is from."""
    rows = list[Html]()
    for cell in filled:
        rows.append(group(f"{cell.title}: {counted(cell)}", 2 + len(MASK)))
        for label, who in (("network", NETWORK), (f"|fg_bg - bg| > {evaluation.threshold}", TRIVIAL)):
            worst = decimals(cell.scores[who]["mask_dice"]["p5"])
            rows.append(row(label, *means(cell.scores[who], MASK.values()), worst))
    caption = "Mask, at 0.5; worst 5 %: 95 % of the sets have a better Dice"
    chosen = f"Threshold {evaluation.threshold} was chosen on {evaluation.threshold_from}."
    return [table(caption, ["", *MASK, "worst 5 %"], rows), paragraph(chosen, class_="note")]


def depth_table(evaluation: Evaluation, filled: Sequence[Cell]) -> list[Html]:
    """Network and baseline in each of the cells `filled`, raw and fitted, and what the baseline knows."""
    rows = list[Html]()
    for cell in filled:
        rows.append(group(f"{cell.title}: {counted(cell)}", 1 + len(DEPTH)))
        for label, who in (("network", NETWORK), ("mean depth", TRIVIAL)):
            for fitted in (False, True):
                names = [Score(metric, "all", fitted).name for metric in METRICS]
                if names[0] in cell.scores[who]:
                    rows.append(row(f"{label}{', fitted' if fitted else ''}", *means(cell.scores[who], names)))
    content = [table("Depth, nearness in 0..1; fitted: scale and shift of each picture", ["", *DEPTH], rows)]
    if sets := evaluation.mean_depth_sets:
        known = f"Mean depth: of {sets:,} training sets on the same background; on new backgrounds, of all of them."
        content.append(paragraph(known, class_="note"))
    return content


def ceiling(evaluation: Evaluation) -> Html:
    """What the labels themselves would score after one more JPEG round trip."""
    found = [
        f"quality {quality}: mask IoU {decimals(of['mask_iou']['mean'])}"
        + (f", depth SSIM {decimals(of['depth_ssim']['mean'])}" if "depth_ssim" in of else "")
        for quality, of in evaluation.ceiling.items()
    ]
    return paragraph(f"The labels after one more JPEG round trip, a ceiling: {'; '.join(found)}.", class_="note")


def means(of: Mapping[str, Summary], names: Iterable[str]) -> list[Html]:
    """Means, and their intervals below them."""
    found = list[Html]()
    for name in names:
        low, high = of[name]["low"], of[name]["high"]
        interval = "" if low is None or high is None else element("small", f"{short(low)}{DASH}{short(high)}")
        found.append(Html(decimals(of[name]["mean"]) + interval))
    return found


def counted(cell: Cell) -> str:
    """How many sets of a cell were scored, and on how many backgrounds."""
    of = f" of {cell.sets_in_cell:,}" if cell.sets < cell.sets_in_cell else ""
    return f"{cell.sets:,}{of} sets on {cell.backgrounds:,} backgrounds"


def with_interval(score: Summary) -> str:
    """0.915 [0.901, 0.930]."""
    mean, low, high = score["mean"], score["low"], score["high"]
    return decimals(mean) + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def short(value: float) -> str:
    """Three decimals, and no 0 before them: .915."""
    return f"{value:.3f}".removeprefix("0")


def decimals(value: float | None) -> str:
    """Three of them, or a dash."""
    return DASH if value is None else f"{value:.3f}"


def pictures(evaluation: Evaluation) -> Html:
    """The sets with the lowest and the highest mask IoU, each with what the network made of it."""
    order = evaluation.worst_first()
    worst, best = order[:WORST], order[WORST:][-BEST:][::-1]  # none twice
    content = [paragraph("By mask IoU; in depth, near is bright.", class_="note")]
    if not evaluation.cells[evaluation.headline].sets:
        why = "No validation set has a new background and a new foreground: these are of all that were scored."
        content.append(paragraph(why, class_="warning"))
    loader = evaluation.opened.loader
    for title, places in (("Worst", worst), ("Best", best)):
        if not len(places):
            continue
        content.append(element("h3", title))
        for place in places.tolist():
            number = int(evaluation.rows[place])
            batch = loader.pick([number])
            run = evaluation.run
            picture = grid(batch, predict(run.network, batch.bg, batch.fg_bg, run.config.precision))
            content.append(photograph(picture, f"{loader.key(number)}: mask IoU {evaluation.mask_iou[place]:.3f}"))
    return section("Worst and best validation sets", *content)
