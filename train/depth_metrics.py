"""Scores of depth, each set by itself: as predicted and after a fit, over all pixels and over parts of a picture.

Depth is nearness (disparity) in 0..1, 1 near, of each picture's own scale. NaN stands where a score is not defined:
a region without pixels. The fit is that of MiDaS (Ranftl et al. 2022, section 5), scale and shift by least squares over
all pixels of a picture; what it gives is not clamped to 0..1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from train.metrics import within
from train.ssim import Ssim

BAND_PIXELS = 2  # on both sides of the mask's edge
# AbsRel and delta divide by the truth, which is 0 at the farthest point: one gray level of the label (1/255) would
# weigh as much as the whole picture there. Pixels farther than this are left out; 1/255 of it is an error of 8 %.
RELATIVE_FROM = 0.05
DELTA = 1.25
FIT_EPSILON = 1e-6  # added to the variance of the prediction: a flat one gets scale 0 and the mean of the truth
SSIM_MARGIN = 5  # pixels: the window of 11 x 11 lies wholly in the picture

METRICS = ("ssim", "rmse", "mae", "abs_rel", "delta_1.25")
REGIONS = ("all", "foreground", "boundary")


def regions(mask: Tensor) -> dict[str, Tensor]:
    """The parts of pictures whose depth is scored: bool [N,1,H,W] each, of uint8 [N,1,H,W] `mask`.

    `boundary` is the band of pixels that have both a pixel of the foreground and one of the background at most
    BAND_PIXELS away; of an empty mask it is empty, as is `foreground`.
    """
    truth = mask >= 128
    band = within(truth, BAND_PIXELS) & within(~truth, BAND_PIXELS)
    return {"all": torch.ones_like(truth), "foreground": truth, "boundary": band}


class Score(NamedTuple):
    """What a score of depth says."""

    metric: str
    region: str
    fitted: bool

    @property
    def name(self) -> str:
        """Its name in tables and JSON: depth_rmse, fitted_rmse, depth_rmse_boundary."""
        where = "" if self.region == "all" else f"_{self.region}"
        return f"{'fitted' if self.fitted else 'depth'}_{self.metric}{where}"


def depth_scores(depth: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """All scores of float32 `depth` against `truth`, both [N,1,H,W] in 0..1, H and W 11 or more; float32 [N] by name.

    `mask`, uint8 [N,1,H,W], decides the regions. The SSIM of a region is the mean of the SSIM map at its pixels, but
    for the outer SSIM_MARGIN of the picture, where there is none.
    """
    inner = (..., slice(SSIM_MARGIN, -SSIM_MARGIN), slice(SSIM_MARGIN, -SSIM_MARGIN))
    parts = torch.cat(list(regions(mask).values()), dim=1)  # bool [N,regions,H,W]
    comparable = truth >= RELATIVE_FROM
    divisor = truth.clamp(min=RELATIVE_FROM)
    with depth.device:  # its window is made there: for a copy of it, the host would wait
        ssim = Ssim()
    scores = dict[str, Tensor]()
    for fitted in (False, True):
        ours = fit(depth, truth) if fitted else depth
        error = (ours - truth).abs()
        near = (ours * DELTA > divisor) & (ours < divisor * DELTA)
        square, mae = means(torch.cat([error.square(), error], dim=1), parts).unbind(1)
        relative = means(torch.cat([error / divisor, near], dim=1), parts & comparable)
        similarity = means(ssim.map(ours, truth), parts[inner])
        found = dict(zip(METRICS, (similarity[:, 0], square.sqrt(), mae, *relative.unbind(1)), strict=True))
        for metric, of_regions in found.items():
            for region, of_sets in zip(REGIONS, of_regions.unbind(1), strict=True):
                scores[Score(metric, region, fitted).name] = of_sets
    return scores


def fit(depth: Tensor, truth: Tensor) -> Tensor:
    """`depth` times the scale plus the shift, of each set, that bring it nearest to `truth`: float32 [N,1,H,W]."""
    x, y = depth.flatten(1), truth.flatten(1)
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    covariance = ((x - x_mean) * (y - y_mean)).mean(1, keepdim=True)
    scale = covariance / ((x - x_mean).square().mean(1, keepdim=True) + FIT_EPSILON)
    return (scale * (x - x_mean) + y_mean).view_as(depth)


def means(maps: Tensor, parts: Tensor) -> Tensor:
    """The mean of each map over each part, float32 [N,maps,parts]; NaN over a part without pixels.

    `maps` is float32 [N,maps,H,W], finite everywhere; `parts` is bool [N,parts,H,W].
    """
    weights = parts.flatten(2).float()
    return maps.flatten(2) @ weights.transpose(1, 2) / weights.sum(2)[:, None]
