from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.benchmark.chart import COLOURS, OTHERS, draw_chart


def entry(median: float) -> dict[str, Any]:
    rate = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median}
    return {"sets_per_sec": rate, "ratio": rate, "ratio_to": "seed"}


def pixels(picture: np.ndarray, colour: str) -> int:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - wanted).max(axis=2) < 3).sum())


def test_bars_are_as_long_as_the_rates(tmp_path: Path) -> None:
    loaders = {"warm": {"ours": entry(400), "seed": entry(100)}, "cold": {"ours": entry(200), "seed": entry(50)}}
    draw_chart(loaders, "title", "machine", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    warm, cold = (pixels(drawn, COLOURS[cache]) for cache in ("warm", "cold"))
    other_warm = pixels(drawn, OTHERS["warm"])
    assert 1.8 < warm / cold < 2.2
    assert 3.2 < warm / other_warm < 4.8  # whiskers hide a little
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_rates_far_apart_are_drawn_so_that_the_short_ones_differ(tmp_path: Path) -> None:
    loaders = {"warm": {"ours": entry(100_000), "seed": entry(500), "other": entry(1000)}}
    draw_chart(loaders, "title", "machine", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    wanted = [int(OTHERS["warm"][place : place + 2], 16) for place in (1, 3, 5)]
    lengths = (np.abs(drawn - wanted).max(axis=2) < 3).sum(axis=1)
    middle = len(lengths) // 2
    seed, other = lengths[:middle].max(), lengths[middle:].max()
    assert seed > 50
    assert other > 1.3 * seed
