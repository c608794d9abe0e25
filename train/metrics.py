"""Scores of masks and depth, every one of each set by itself, so that means over sets are means over sets.

Depth is scored as predicted and after a fit, over all pixels and over parts of a picture. It is nearness (disparity) in
0..1, 1 near, of each picture's own scale. NaN stands where a score is not defined: a region without pixels. The fit is
that of MiDaS (Ranftl et al. 2022, section 5), scale and shift by least squares over all pixels of a picture; what it
gives is not clamped to 0..1.

Of depth with holes only what was measured counts: those pixels, and of SSIM the windows that touch no hole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pytorch_msssim import ssim
from torch import Tensor

from train.losses import Ssim, mean_of, whole_windows

BOUNDARY_PIXELS = (1, 2)  # how far apart two outlines may be and still agree
BAND_PIXELS = 2  # on both sides of the mask's edge
# AbsRel and delta divide by the truth, which is 0 at the farthest point: one gray level of the label (1/255) would
# weigh as much as the whole picture there. Pixels farther than this are left out; 1/255 of it is an error of 8 %.
RELATIVE_FROM = 0.05
DELTA = 1.25
FIT_EPSILON = 1e-6  # added to the variance of the prediction: a flat one gets scale 0 and the mean of the truth
SSIM_MARGIN = 5  # pixels: the window of 11 x 11 lies wholly in the picture

METRICS = ("ssim", "rmse", "mae", "abs_rel", "delta_1.25")
REGIONS = ("all", "foreground", "boundary")


def iou(found: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of bool [N,1,H,W] `found` and uint8 [N,1,H,W] `mask` (128 or more is foreground).

    float32 [N]. A set with an empty mask scores 1 if nothing was found and 0 if anything was.
    """
    truth = mask >= 128
    both = (found & truth).flatten(1).sum(1)
    either = (found | truth).flatten(1).sum(1)
    return torch.where(either == 0, 1.0, both / either.clamp(min=1))


def dice(iou: Tensor) -> Tensor:
    """The Dice coefficient 2 |A and B| / (|A| + |B|) of the same two masks as an intersection over union."""
    return 2 * iou / (1 + iou)


def difference(bg: Tensor, fg_bg: Tensor) -> Tensor:
    """|fg_bg - bg| of two uint8 [N,1,H,W], in 0..255."""
    return torch.maximum(bg, fg_bg) - torch.minimum(bg, fg_bg)


def mask_scores(found: Tensor, mask: Tensor, *, boundaries: bool = True) -> dict[str, Tensor]:
    """IoU, Dice and, with `boundaries`, the F-measures of outlines, by name, float32 [N].

    Those of bool [N,1,H,W] `found` against uint8 [N,1,H,W] `mask`.
    """
    of_sets = iou(found, mask)
    scores = {"mask_iou": of_sets, "mask_dice": dice(of_sets)}
    if boundaries:
        scores |= {f"boundary_f_{pixels}px": boundary_f(found, mask, pixels) for pixels in BOUNDARY_PIXELS}
    return scores


def boundary_f(found: Tensor, mask: Tensor, pixels: int) -> Tensor:
    """F-measure of the outlines of bool [N,1,H,W] `found` and uint8 [N,1,H,W] `mask`, float32 [N].

    Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?", section 3: precision is the
    share of the outline found that is within `pixels` (Euclidean) of the true one, recall the reverse,
    F = 2 P R / (P + R). 1 where neither mask has an outline, 0 where one has none.
    """
    ours, true = outline(found), outline(mask >= 128)
    precision, recall = _share(ours, within(true, pixels)), _share(true, within(ours, pixels))
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    neither = ~(ours | true).flatten(1).any(1)
    return torch.where(neither, 1.0, f)


def outline(mask: Tensor) -> Tensor:
    """The pixels of bool [N,1,H,W] that have one of their four neighbours outside the mask; the frame is no edge."""
    return mask & within(~mask, 1)


def within(mask: Tensor, pixels: int) -> Tensor:
    """Where a pixel of bool [N,1,H,W] is at most `pixels` away (Euclidean, between centres): bool [N,1,H,W]."""
    height, width = mask.shape[-2:]
    near = mask.clone()
    for down, right in _disk(pixels):
        if abs(down) < height and abs(right) < width:
            to = near[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
            to |= mask[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    return near


def _disk(pixels: int) -> Iterator[tuple[int, int]]:
    reach = range(-pixels, pixels + 1)
    return ((y, x) for y in reach for x in reach if 0 < y * y + x * x <= pixels * pixels)


def _share(of: Tensor, inside: Tensor) -> Tensor:
    """The share of the pixels `of` that are `inside`, float32 [N]; 0 where there are none."""
    return (of & inside).flatten(1).sum(1) / of.flatten(1).sum(1).clamp(min=1)


def regions(mask: Tensor) -> dict[str, Tensor]:
    """The parts of pictures whose depth is scored: bool [N,1,H,W] each, of uint8 [N,1,H,W] `mask`.

    `boundary` is the band of pixels that have both a pixel of the foreground and one of the background at most
    BAND_PIXELS away; of an empty mask it is empty, as is `foreground`.
    """
    truth = mask >= 128
    band = within(truth, BAND_PIXELS) & within(~truth, BAND_PIXELS)
    return {"all": torch.ones_like(truth), "foreground": truth, "boundary": band}


class Score(NamedTuple):
    """Which score of depth it is."""

    metric: str
    region: str
    fitted: bool

    @property
    def name(self) -> str:
        """Its name in tables and JSON: depth_rmse, fitted_rmse, depth_rmse_boundary."""
        where = "" if self.region == "all" else f"_{self.region}"
        return f"{'fitted' if self.fitted else 'depth'}_{self.metric}{where}"


def depth_scores(
    depth: Tensor, truth: Tensor, mask: Tensor, valid: Tensor | None = None, *, detailed: bool = True
) -> dict[str, Tensor]:
    """Scores of float32 `depth` against `truth`, both [N,1,H,W] in 0..1, H and W 11 or more; float32 [N] by name.

    SSIM and RMSE over all pixels; if `detailed`, all METRICS over all REGIONS, as predicted and fitted. `mask`, uint8
    [N,1,H,W], decides the regions; `valid`, bool [N,1,H,W], is False in the holes of `truth`, if it has any.
    """
    named = regions(mask) if detailed else {"all": torch.ones_like(mask, dtype=torch.bool)}
    parts = torch.cat(list(named.values()), dim=1)  # bool [N,regions,H,W], that of all pixels first
    if valid is not None:
        parts = parts & valid
    comparable = truth >= RELATIVE_FROM
    divisor = truth.clamp(min=RELATIVE_FROM)
    scores = dict[str, Tensor]()
    for fitted in (False, True) if detailed else (False,):
        ours = fit(depth, truth, valid) if fitted else depth
        error = (ours - truth).abs()
        found = {"ssim": _similarity(ours, truth, parts, valid), "rmse": means(error.square(), parts).sqrt()}
        if detailed:
            near = (ours * DELTA > divisor) & (ours < divisor * DELTA)
            relative = means(torch.cat([error / divisor, near], dim=1), parts & comparable)
            found |= {"mae": means(error, parts), "abs_rel": relative[:, :1], "delta_1.25": relative[:, 1:]}
        for metric, of_regions in found.items():
            for region, of_sets in zip(named, of_regions[:, 0].unbind(1), strict=True):
                scores[Score(metric, region, fitted).name] = of_sets
    return scores


def _similarity(depth: Tensor, truth: Tensor, parts: Tensor, valid: Tensor | None) -> Tensor:
    """SSIM over all pixels, of which the first part consists, by pytorch_msssim, and over the others: [N,1,parts].

    Of a region it is the mean of the SSIM map at its pixels, but for the outer SSIM_MARGIN of the picture, where there
    is none. So it is of all parts of depth with holes, but for the pixels around which the window touches one.
    """
    with depth.device:  # its window is made there: for a copy of it, the host would wait
        ours = Ssim()
    if valid is not None:
        inner = parts[..., SSIM_MARGIN:-SSIM_MARGIN, SSIM_MARGIN:-SSIM_MARGIN]
        return means(ours.map(depth, truth), inner & whole_windows(valid))
    whole = ssim_per_sample(depth, truth, ours.window)[:, None, None]
    if parts.shape[1] == 1:
        return whole
    inner = parts[:, 1:, SSIM_MARGIN:-SSIM_MARGIN, SSIM_MARGIN:-SSIM_MARGIN]
    return torch.cat([whole, means(ours.map(depth, truth), inner)], dim=2)


def ssim_per_sample(depth: Tensor, truth: Tensor, window: Tensor) -> Tensor:
    """The SSIM of two float32 [N,1,H,W] in 0..1 as pytorch_msssim computes it, float32 [N]; `window` is float32 [11].

    By vmap the sets become channels of one picture: a grouped convolution is ten times as fast on a CPU as one of a
    single channel.
    """

    def similarity(a: Tensor, b: Tensor, window: Tensor) -> Tensor:
        found: Tensor = ssim(a[None], b[None], data_range=1.0, size_average=False, win=window)
        return found[0]

    windows = window.view(1, 1, 1, -1).expand(len(depth), -1, -1, -1, -1)
    return torch.vmap(similarity)(depth, truth, windows)


def fit(depth: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """`depth` times the scale plus the shift, of each set, that bring it nearest to `truth`: float32 [N,1,H,W].

    Where `valid`, bool [N,1,H,W], is True: all over if it is None, and nothing but 0 where it is so nowhere.
    """
    x, y = depth.flatten(1), truth.flatten(1)
    x_mean, y_mean = (mean_of(of, valid)[:, None] for of in (x, y))
    covariance = mean_of((x - x_mean) * (y - y_mean), valid)[:, None]
    scale = covariance / (mean_of((x - x_mean).square(), valid)[:, None] + FIT_EPSILON)
    return (scale * (x - x_mean) + y_mean).view_as(depth)


def means(maps: Tensor, parts: Tensor) -> Tensor:
    """The mean of each map over each part, float32 [N,maps,parts]; NaN over a part without pixels.

    `maps` is float32 [N,maps,H,W], finite everywhere; `parts` is bool [N,parts,H,W].
    """
    weights = parts.flatten(2).float()
    return maps.flatten(2) @ weights.transpose(1, 2) / weights.sum(2)[:, None]
