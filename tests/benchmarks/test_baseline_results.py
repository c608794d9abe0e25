import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.baseline_results import (
    COLOURS,
    DATA,
    BaselineResult,
    describe_budget,
    draw_chart,
    places,
    save_results,
    tables,
    training_time,
)

RESULT = BaselineResult(
    data="synthetic", network="unet-4", loss="bce", budget="sets", amount=320, lr=0.003, depth=True, parameters=41_234,
    gmac=0.0316, sets_seen=320, minutes=0.5, sets_per_sec=10.7, stall_share=0.01, test_sets=200, test_backgrounds=28,
    threshold=5, scores={
        "network": {
            "mask_iou": {"mean": 0.8, "low": 0.75, "high": 0.85}, "mask_dice": {"mean": 0.88},
            "boundary_f_1px": {"mean": 0.7}, "depth_ssim": {"mean": 0.9, "low": 0.88, "high": 0.91},
            "depth_rmse": {"mean": 0.06},
        },
        "trivial": {
            "mask_iou": {"mean": 0.6, "low": None, "high": None}, "mask_dice": {"mean": 0.7},
            "boundary_f_1px": {"mean": 0.5}, "depth_ssim": {"mean": 0.55}, "depth_rmse": {"mean": 0.12},
        },
    },
)  # fmt: skip


def with_means(**means: float) -> dict[str, dict[str, Any]]:
    network = {name: {"mean": mean, "low": None, "high": None} for name, mean in means.items()}
    return {**RESULT.scores, "network": {**RESULT.scores["network"], **network}}


def test_training_time_is_that_of_the_lines() -> None:
    lines = [
        {"kind": "train", "sets_seen": 100, "sets_per_sec": 10.0, "stall_share": 0.5},
        {"kind": "val", "mask_iou": 0.5},
        {"kind": "train", "sets_seen": 160, "sets_per_sec": 20.0, "stall_share": 0.0},
    ]
    assert training_time(lines) == (160, 13.0, 5.0)
    assert training_time([]) == (0, 0.0, 0.0)


def test_a_budget_is_told_with_its_unit() -> None:
    told = [describe_budget(amount, budget) for amount, budget in ((1280, "sets"), (1, "minutes"), (1.5, "minutes"))]
    assert told == ["1,280 sets", "1 minute", "1.5 minutes"]


def test_a_table_from_a_file_written_by_hand(tmp_path: Path) -> None:
    better = replace(RESULT, network="net", gmac=45.08, parameters=2_752_064, sets_per_sec=0.68, lr=1e-3,
                     scores=with_means(mask_iou=0.81, depth_rmse=0.07))  # fmt: skip
    scores: Any = {"network": {"mask_iou": {"mean": None}}, "trivial": {}}
    alone = replace(RESULT, data="photos", budget="minutes", amount=1.5, depth=False, test_backgrounds=1, test_sets=1,
                    scores=scores)  # fmt: skip
    save_results(tmp_path / "a.json", [alone, RESULT, better], {})
    assert tables(
        [BaselineResult(**run) for run in json.loads((tmp_path / "a.json").read_text())["runs"]]
    ).splitlines() == [
        "### synthetic, 320 sets of training each",
        "",
        "New foregrounds on 28 new backgrounds: 200 test sets.",
        "",
        "| network | loss | parameters | GMAC | lr | sets seen | minutes | sets/s | mask IoU [95 %] | Dice | "
        "boundary F 1 px | depth SSIM [95 %] | RMSE |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| unet-4 | bce | 0.04 M | 0.0316 | 0.003 | 320 | 0.5 | 11 | 0.800 [0.750, 0.850] | **0.880** | **0.700** | "
        "**0.900** [0.880, 0.910] | **0.060** |",
        "| net | bce | 2.75 M | 45.1 | 0.001 | 320 | 0.5 | 0.7 | **0.810** | **0.880** | **0.700** | "
        "**0.900** [0.880, 0.910] | 0.070 |",
        "| \\|fg_bg - bg\\| > 5, mean depth | - | - | - | - | - | - | - | 0.600 | 0.700 | 0.500 | 0.550 | 0.120 |",
        "",
        "### photos, 1.5 minutes of training each",
        "",
        "New foregrounds on 1 new background: 1 test set, the mask alone.",
        "",
        "| network | loss | parameters | GMAC | lr | sets seen | minutes | sets/s | mask IoU [95 %] | Dice | "
        "boundary F 1 px |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| unet-4 | bce | 0.04 M | 0.0316 | 0.003 | 320 | 0.5 | 11 | - | - | - |",
        "| \\|fg_bg - bg\\| > 5 | - | - | - | - | - | - | - | - | - | - |",
    ]


def test_bars_are_as_long_as_the_scores(tmp_path: Path) -> None:
    half = replace(RESULT, budget="minutes", amount=1, scores=with_means(mask_iou=0.4, depth_ssim=0.45))
    draw_chart([RESULT, half], "machine", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    drawn = drawn[len(drawn) // 3 :]  # without the legend
    of_sets, of_minutes = (
        int((np.abs(drawn - [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).max(axis=2) < 3).sum())
        for colour in (COLOURS["sets"], COLOURS["minutes"])
    )
    assert 1.8 < of_sets / of_minutes < 2.2
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_networks_stand_apart_in_the_chart() -> None:
    rows = [
        replace(RESULT, network=network, loss=loss) for network in ("net", "unet-s") for loss in ("bce", "combined")
    ]
    at = places([*rows, *rows])
    assert list(at) == [(row.network, row.loss) for row in rows]
    first, second, third, fourth = at.values()
    assert second - first == fourth - third == 1
    assert third - second > 1


def test_every_data_set_has_its_panels(tmp_path: Path) -> None:
    heights = []
    for count in (1, len(DATA)):
        draw_chart([replace(RESULT, data=name) for name in DATA[:count]], "machine", tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0]
