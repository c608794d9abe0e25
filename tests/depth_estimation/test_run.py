import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import (
    DepthMap,
    EstimateError,
    EstimateOptions,
    EstimateResult,
    decode_colour,
    draw_depth_map,
    estimate,
)
from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage, decode_gray, decode_rgb
from tests.networks import WEIGHTS, save_network, weighted_sum
from tests.samples import jpeg, png, smooth_picture

OVERLAYS = [jpeg(smooth_picture(seed)) for seed in range(11)]


class Overlays:
    """A job in memory."""

    def __init__(self, overlays: list[bytes], fail_at: int = -1) -> None:
        self.overlays, self.fail_at = overlays, fail_at
        self.saved = dict[int, EstimateResult]()
        self.saving_threads = set[int]()

    def name(self, item: int) -> str:
        return f"overlay-{item}"

    def read(self, item: int) -> bytes:
        return self.overlays[item]

    def save(self, batch: list[tuple[int, EstimateResult]]) -> None:
        self.saving_threads.add(threading.get_ident())
        if self.fail_at in dict(batch):
            raise OSError(28, "No space left on device")
        assert not set(self.saved) & set(dict(batch))
        self.saved |= batch

    def batches(self, size: int) -> Iterator[range]:
        return (range(first, min(first + size, len(self.overlays))) for first in range(0, len(self.overlays), size))


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> DepthModel:
    return DepthModel(weighted_sum(tmp_path_factory.mktemp("depth_model") / "net.onnx"), DepthModelSettings(), 4)


def nearness(overlay: bytes, sign: int = 1) -> NDArray[np.float64]:
    """What `weighted_sum` sees in a picture as a depth map in 0..255, each picture by its own extremes."""
    output = sign * (decode_rgb(overlay) / 255 @ WEIGHTS.astype(np.float64))
    scaled: NDArray[np.float64] = 255 * (output - output.min()) / np.ptp(output)
    return scaled


@pytest.mark.parametrize("near", ["high", "low"])
def test_depth_maps_are_what_the_network_says(near: str, depth_model: DepthModel, tmp_path: Path) -> None:
    depth_model = DepthModel(depth_model.path, DepthModelSettings(near=near), 4)
    job, ticks = Overlays(OVERLAYS), list[int]()
    report = estimate(depth_model, job, job.batches(4), EstimateOptions(quality=100, workers=2), ticks.append)
    assert (report.sets, report.problems, ticks) == (11, [], [4, 4, 3])
    assert 0 < report.model_sec < report.seconds
    assert list(job.saved) == list(range(11))
    assert len(job.saving_threads) == 1
    for item, depth in job.saved.items():
        assert isinstance(depth, DepthMap)
        expected = nearness(OVERLAYS[item], 1 if near == "high" else -1)
        assert np.abs(decode_gray(depth.picture.content) - expected).max() < 3
        outputs = decode_rgb(OVERLAYS[item]) / 255 @ WEIGHTS
        extremes = [outputs.min(), outputs.max()]
        assert np.allclose([depth.far, depth.near], extremes if near == "high" else extremes[::-1], atol=0.01)


def test_the_result_does_not_depend_on_workers(depth_model: DepthModel) -> None:
    results = []
    for workers in (1, 4):
        job = Overlays(OVERLAYS)
        estimate(depth_model, job, job.batches(4), EstimateOptions(workers=workers))
        results.append(job.saved)
    assert results[0] == results[1]


def test_a_bad_overlay_stops_the_run_after_what_was_before_it(depth_model: DepthModel) -> None:
    job = Overlays([*OVERLAYS[:6], OVERLAYS[6][:-300], *OVERLAYS[7:]])
    message = "^overlay-6: JPEG does not decode: .*: repair it, or leave such sets out with --skip-bad$"
    with pytest.raises(EstimateError, match=message):
        estimate(depth_model, job, job.batches(2), EstimateOptions())
    assert list(job.saved) == list(range(6))


def test_bad_overlays_can_be_left_out(depth_model: DepthModel) -> None:
    bad = {1: b"", 4: b"GIF89a", 5: OVERLAYS[5][:-300], 6: b"x", 7: b"y"}
    job, good = Overlays([bad.get(item, overlay) for item, overlay in enumerate(OVERLAYS)]), Overlays(OVERLAYS)
    report = estimate(depth_model, job, job.batches(4), EstimateOptions(skip_bad=True))
    estimate(depth_model, good, good.batches(4), EstimateOptions())
    assert report.sets == 6
    assert [problem.path for problem in report.problems] == [f"overlay-{item}" for item in bad]
    assert list(job.saved) == list(range(11))
    for item, result in job.saved.items():
        assert isinstance(result, Problem) if item in bad else result == good.saved[item]


def test_a_network_that_fails_in_the_middle_stops_the_run(
    depth_model: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls, call = Overlays(OVERLAYS), list[int](), DepthModel.__call__

    def out_of_memory(self: DepthModel, images: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(len(images))
        if len(calls) == 3:
            raise InputError("net.onnx fails on a batch of [2, 3, 48, 48] (out of memory)")
        return call(self, images)

    monkeypatch.setattr(DepthModel, "__call__", out_of_memory)
    with pytest.raises(EstimateError, match="out of memory"):
        estimate(depth_model, job, job.batches(2), EstimateOptions())
    assert list(job.saved) == [0, 1, 2, 3]


@pytest.mark.parametrize("fail_at", range(0, 11, 2))
def test_a_batch_that_cannot_be_saved_is_the_last(fail_at: int, depth_model: DepthModel) -> None:
    job = Overlays(OVERLAYS, fail_at)
    with pytest.raises(OSError, match="No space left on device"):
        estimate(depth_model, job, job.batches(2), EstimateOptions())
    assert list(job.saved) == list(range(fail_at))


def test_an_output_that_is_no_number_names_its_picture(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1]),
        helper.make_node("Sub", ["limit", "mean"], ["rest"]),
        helper.make_node("Sqrt", ["rest"], ["depth"]),  # NaN where a picture is brighter than 0.98
    ]
    image, depth = (TensorProto.FLOAT, ("batch", 3, 48, 48)), (TensorProto.FLOAT, ("batch", 1, 48, 48))
    constants = {"limit": np.array(0.98, np.float32)}
    model = save_network(tmp_path / "net.onnx", nodes, {"image": image}, {"depth": depth}, constants)
    white = np.full((48, 48, 3), 255, np.uint8)
    job = Overlays([*OVERLAYS[:5], jpeg(white), *OVERLAYS[6:]])
    with pytest.raises(EstimateError, match=r"^overlay-5: 2304 of the network's 2304 outputs are not finite: are size"):
        estimate(DepthModel(model, DepthModelSettings(), 3), job, job.batches(3), EstimateOptions())
    assert list(job.saved) == [0, 1, 2]


def test_a_fixed_range_saturates() -> None:
    output = np.linspace(-1, 3, 64, dtype=np.float32).reshape(8, 8)
    for near, expected in (("high", output / 2), ("low", 1 - output / 2)):
        depth = draw_depth_map(output, (8, 8), DepthModelSettings(near=near, range=(0, 2)), 100, "")
        assert (depth.far, depth.near) == ((0, 2) if near == "high" else (2, 0))
        assert np.abs(decode_gray(depth.picture.content) - 255 * np.clip(expected, 0, 1)).max() < 3


@pytest.mark.parametrize("value", [0.0, 7.0, -3e38])
def test_a_picture_without_any_difference_is_0(value: float) -> None:
    depth = draw_depth_map(np.full((8, 8), value, np.float32), (16, 16), DepthModelSettings(), 90, "")
    assert not decode_gray(depth.picture.content).any()
    assert depth.far == depth.near == float(np.float32(value))


def test_extreme_outputs_do_not_overflow() -> None:
    for low, high in ((-3e38, 3e38), (0.0, 1e-44)):
        output = np.array([[low, high]] * 2, np.float32).repeat(8, 0).repeat(8, 1)
        levels = decode_gray(draw_depth_map(output, (16, 16), DepthModelSettings(), 100, "").picture.content)
        assert levels[:, :8].max() == 0
        assert levels[:, 8:].min() == 255


def test_depth_maps_have_the_overlays_size() -> None:
    output = smooth_picture(0, 1, 24)[..., 0].astype(np.float32)
    depth = draw_depth_map(output, (36, 60), DepthModelSettings(), 100, "")
    assert (depth.picture.extension, depth.picture.size) == ("jpg", (36, 60))
    larger = torch.nn.functional.interpolate(torch.from_numpy(output)[None, None], (36, 60), mode="bilinear")[0, 0]
    expected = 255 * (larger - larger.min()) / (larger.max() - larger.min())
    assert np.abs(decode_gray(depth.picture.content) - expected.numpy()).max() < 3


def test_pictures_are_decoded_in_colour() -> None:
    picture = smooth_picture(3)
    assert np.array_equal(decode_colour(png(picture)), picture)
    assert np.abs(decode_colour(jpeg(picture)).astype(int) - decode_rgb(jpeg(picture))).max() <= 2
    gray = decode_colour(jpeg(smooth_picture(3, 1)))
    assert gray.shape == (48, 48, 3)
    for content in (b"", b"GIF89a", jpeg(picture)[:-300], png(picture)[:-40]):
        with pytest.raises(BadImage):
            decode_colour(content)


def test_options_out_of_range() -> None:
    for quality, workers in ((0, 1), (101, 1), (90, 0)):
        with pytest.raises(InputError, match="expected 1 to 100, and 1 or more"):
            EstimateOptions(quality, workers=workers)
