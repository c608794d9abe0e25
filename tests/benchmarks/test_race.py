from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import Difference, Verified
from benchmarks.peers import LOADERS
from benchmarks.race import COLOURS, PEER_COLOURS, decoded_pixels, device_bytes, draw_chart
from pipeline.format.manifest import Manifest, load_index
from tools.bench_loader import LoadOptions


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
    other_warm = pixels(drawn, PEER_COLOURS["warm"])
    assert 1.8 < warm / cold < 2.2
    assert 3.2 < warm / other_warm < 4.8  # whiskers hide a little
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_rates_far_apart_are_drawn_so_that_the_short_ones_differ(tmp_path: Path) -> None:
    loaders = {"warm": {"ours": entry(100_000), "seed": entry(500), "other": entry(1000)}}
    draw_chart(loaders, "title", "machine", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    wanted = [int(PEER_COLOURS["warm"][place : place + 2], 16) for place in (1, 3, 5)]
    lengths = (np.abs(drawn - wanted).max(axis=2) < 3).sum(axis=1)
    middle = len(lengths) // 2
    seed, other = lengths[:middle].max(), lengths[middle:].max()
    assert seed > 50
    assert other > 1.3 * seed


def test_bytes_to_the_device_are_those_that_cross(packed: Path) -> None:
    options = LoadOptions(32, 16, "gpu", 1)
    verified = Verified(Difference(0, 0, 0), 100, 48.0 * 48, 3 * 48.0 * 48, 1234.0)
    crossing = {name: device_bytes(name, packed, verified, options) for name in LOADERS}
    encoded = float(np.mean(load_index(packed, Manifest.load(packed))["size"].sum(axis=1)))
    assert crossing["dali-reader"] == encoded
    assert crossing["ours"] == encoded + 16
    assert crossing["ours-resident"] == 16
    assert crossing["seed"] == crossing["webdataset"] == 1234
    assert device_bytes("ours-planes", packed, verified, options) == 3 * 16 * 16 + 16
    assert device_bytes("ours", packed, verified, replace(options, device="cpu")) is None


def test_pixels_are_counted_as_stored_where_they_are_decoded() -> None:
    verified = Verified(Difference(0, 0, 0), 100, 10.0, 30.0, 0.0)
    pixels = {name: decoded_pixels(name, verified, 4) for name in LOADERS}
    assert pixels["ours-resident"] is None
    assert pixels["ours-planes"] == 3 * 4 * 4
    assert pixels["seed"] == 40
    assert {pixels[name] for name in ("ours", "dali-reader", "webdataset", "streaming", "litdata")} == {30}
