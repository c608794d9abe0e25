import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_msssim import ssim
from torch import Tensor

from tests.train.test_metrics import blobs
from train.losses import Ssim
from train.metrics import BAND_PIXELS, FIT_EPSILON, METRICS, REGIONS, Score, depth_scores, fit, regions

RANDOM = torch.Generator().manual_seed(1)
SETS, HEIGHT, WIDTH = 5, 17, 22

Pixels = NDArray[np.float64]


def planes() -> Tensor:
    return torch.rand(SETS, 1, HEIGHT, WIDTH, generator=RANDOM)


def plain_ssim(a: Pixels, b: Pixels) -> Pixels:
    """At every place of the window, by the formula of Wang et al. 2004."""
    along = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(along, along) / np.outer(along, along).sum()
    found = np.full(a.shape, np.nan)
    for y in range(5, a.shape[0] - 5):
        for x in range(5, a.shape[1] - 5):
            p, q = (of[y - 5 : y + 6, x - 5 : x + 6] for of in (a, b))
            m, n = (window * p).sum(), (window * q).sum()
            v, w = (window * (p - m) ** 2).sum(), (window * (q - n) ** 2).sum()
            c = (window * (p - m) * (q - n)).sum()
            found[y, x] = (2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4))
    return found


def plain_region(mask: Pixels, region: str) -> NDArray[np.bool_]:
    truth = mask >= 128
    if region == "all":
        return np.full(mask.shape, True)
    if region == "foreground":
        return truth
    where = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1])]
    near = {at: {bool(truth[other]) for other in where if math.dist(at, other) <= BAND_PIXELS} for at in where}
    return np.array([len(near[at]) == 2 for at in where]).reshape(mask.shape)


def plain_scores(depth: Pixels, truth: Pixels, mask: Pixels, region: str) -> dict[str, float]:
    part = plain_region(mask, region)
    p, t = depth[part], truth[part]
    far = t < 0.05
    relative = [abs(x - y) / y for x, y in zip(p[~far], t[~far], strict=True)]
    near = [x > 0 and max(x / y, y / x) < 1.25 for x, y in zip(p[~far], t[~far], strict=True)]
    similarity = plain_ssim(depth, truth)[part]
    similarity = similarity[~np.isnan(similarity)]

    def mean(values: object) -> float:
        found = np.asarray(values, np.float64)
        return float(found.mean()) if len(found) else math.nan

    return {
        "ssim": mean(similarity), "rmse": math.sqrt(mean((p - t) ** 2)), "mae": mean(abs(p - t)),
        "abs_rel": mean(relative), "delta_1.25": mean(near),
    }  # fmt: skip


@pytest.mark.parametrize("fitted", [False, True])
def test_scores_are_those_of_plain_loops(fitted: bool) -> None:
    depth, truth, mask = planes(), planes(), blobs(SETS, HEIGHT, WIDTH)
    truth[0, :, :9] = 0  # far, and what cannot be divided by
    depth = 0.5 * depth + 0.5 * truth
    mask[..., 4:7, 5:9] = 255  # none is empty but this:
    mask[1] = 0
    scores = depth_scores(depth, truth, mask)
    for place in range(SETS):
        p, t, m = (of[place, 0].double().numpy() for of in (depth, truth, mask))
        if fitted:
            (scale, shift), *_ = np.linalg.lstsq(np.stack([p.ravel(), np.ones(p.size)], 1), t.ravel(), rcond=None)
            p = scale * p + shift
        for region in REGIONS:
            expected = plain_scores(p, t, m, region)
            found = {metric: scores[Score(metric, region, fitted).name][place].item() for metric in METRICS}
            assert found == pytest.approx(expected, abs=2e-4, nan_ok=True)
            assert (region != "all" and place == 1) == math.isnan(found["rmse"])


def test_the_mean_of_the_map_is_the_ssim_that_is_trained() -> None:
    a, b = planes(), planes()
    expected = ssim(a, b, data_range=1.0, size_average=False)
    torch.testing.assert_close(Ssim().map(a, b).flatten(1).mean(1), expected, atol=1e-5, rtol=1e-4)


def test_the_ssim_that_is_reported_is_pytorch_msssims_and_within_1e_5_of_the_trained_one() -> None:
    a, b = planes(), planes()
    b = 0.6 * a + 0.4 * b
    mask = torch.zeros(SETS, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    scores = depth_scores(a, b, mask)
    for name, depth in (("depth_ssim", a), ("fitted_ssim", fit(a, b))):
        expected = ssim(depth, b, data_range=1.0, size_average=False)
        torch.testing.assert_close(scores[name], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(Ssim()(depth, b), scores[name], atol=1e-5, rtol=0)
    few = depth_scores(a, b, mask, detailed=False)
    assert few.keys() == {"depth_ssim", "depth_rmse"}
    assert torch.equal(few["depth_ssim"], scores["depth_ssim"])


def test_the_fit_undoes_scale_and_shift() -> None:
    truth = planes()
    torch.testing.assert_close(fit(0.3 * truth + 0.2, truth), truth, atol=1e-3, rtol=0)
    scores = depth_scores(0.3 * truth + 0.2, truth, blobs(SETS, HEIGHT, WIDTH))
    assert (scores["fitted_rmse"] < 1e-3).all()
    assert (scores["depth_rmse"] > 0.1).all()


def test_a_flat_prediction_becomes_the_mean_of_the_truth() -> None:
    truth = planes()
    found = fit(torch.full_like(truth, 0.4), truth)
    torch.testing.assert_close(found, truth.flatten(1).mean(1).view(-1, 1, 1, 1).expand_as(truth))
    assert FIT_EPSILON > 0


def test_an_empty_and_a_full_mask_have_no_boundary() -> None:
    mask = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 12, 12)
    parts = regions(mask)
    assert parts["foreground"].flatten(1).any(1).tolist() == [False, True]
    assert not parts["boundary"].any()
    assert parts["all"].all()


def test_of_depth_with_holes_what_was_measured_alone_is_scored() -> None:
    depth, truth, mask = planes(), planes(), blobs(SETS, HEIGHT, WIDTH)
    valid = torch.ones_like(truth, dtype=torch.bool)
    valid[:, :, :3, :4], valid[1, :, 9, 20], valid[-1] = False, False, False  # of the last set nothing was measured
    scores = depth_scores(depth, truth, mask, valid)
    changed = torch.where(valid, depth, 1 - depth), torch.where(valid, truth, 0)
    for name, of_sets in depth_scores(*changed, mask, valid).items():
        torch.testing.assert_close(of_sets, scores[name], equal_nan=True, msg=name)
    assert all(of_sets[-1].isnan() for of_sets in scores.values())
    error = (depth - truth).double().numpy()
    for place in range(SETS - 1):
        measured = valid[place].numpy()
        rmse = math.sqrt(np.square(error[place][measured]).mean())
        assert scores["depth_rmse"][place].item() == pytest.approx(rmse, rel=1e-5)
        x, y = (of[place].double().numpy()[measured] for of in (depth, truth))
        scale, shift = np.polyfit(x, y, 1)
        fitted = math.sqrt(np.square(scale * x + shift - y).mean())
        assert scores["fitted_rmse"][place].item() == pytest.approx(fitted, rel=1e-3)
        similarity = plain_ssim(depth[place, 0].double().numpy(), truth[place, 0].double().numpy())
        whole = [
            similarity[y, x]
            for y in range(5, HEIGHT - 5)
            for x in range(5, WIDTH - 5)
            if valid[place, 0, y - 5 : y + 6, x - 5 : x + 6].all()
        ]
        assert scores["depth_ssim"][place].item() == pytest.approx(np.mean(whole), rel=1e-4)
    everywhere = depth_scores(depth, truth, mask, torch.ones_like(valid))
    for name, of_sets in depth_scores(depth, truth, mask).items():
        torch.testing.assert_close(everywhere[name], of_sets, equal_nan=True, rtol=1e-4, atol=1e-5, msg=name)
