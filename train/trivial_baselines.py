"""Trivial baselines, without a network: |fg_bg - bg| > t for the mask, the background's mean depth for the depth."""

import math
from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from train.distributed import SINGLE, Distributed
from train.metrics import difference, iou

THRESHOLDS = (*range(1, 16), *range(16, 64, 4), *range(64, 129, 8))
THRESHOLD_SETS = 512  # training sets on which the threshold is chosen
SETS = 16_384  # training sets looked at, in random order; sums of so many bytes are exact in float32
BACKGROUNDS = 1024  # that have a mean of their own, 64 kB each at 128 x 128; further ones get that of all


class MeanDepth:
    """Mean depth, pixel by pixel, of the training sets of each background, and of all training sets together.

    The latter is what a background gets that is in no training set: nothing is known of it that this baseline could
    use, and anything else would be taken from the sets that are scored. Where training sets are scored, theirs is part
    of the mean. Of depth with holes it is the mean of what was measured at a pixel: on the same background, else in any
    training set, else at any pixel.
    """

    def __init__(self, training: Loader, backgrounds: NDArray[np.int32]) -> None:
        """Average SETS sets of `training`, none if they have no depth; `backgrounds` is the index's column, [sets]."""
        self._places = dict[int, int]()  # of a background in the sums
        self._sums: Tensor | None = None  # float32 [backgrounds + 1, H, W]; the last is that of all
        measured: Tensor | None = None  # the same, of the sets that a pixel was measured in, if there are holes
        counts = np.zeros(BACKGROUNDS + 1, np.int64)
        for batch in islice(training, math.ceil(SETS / training.batch_size)):
            if batch.depth is None:
                break
            if self._sums is None:
                height, width = batch.depth.shape[-2:]
                self._sums = torch.zeros(BACKGROUNDS + 1, height, width, device=batch.depth.device)
            if measured is None and batch.depth_valid is not None:
                measured = torch.zeros_like(self._sums)
            depth = batch.depth[:, 0].float()  # 0 in holes
            places = [self._place(number) for number in backgrounds[batch.index.numpy(force=True)].tolist()]
            self._sums[-1] += depth.sum(0)
            known = [at for at, place in enumerate(places) if place < BACKGROUNDS]
            held = torch.tensor([places[at] for at in known], device=depth.device)
            self._sums.index_add_(0, held.long(), depth[known])
            if measured is not None and batch.depth_valid is not None:
                valid = batch.depth_valid[:, 0].float()
                measured[-1] += valid.sum(0)
                measured.index_add_(0, held.long(), valid[known])
            counts[-1] += len(places)
            np.add.at(counts, held.cpu().numpy(), 1)
        if self._sums is not None:
            if measured is None:
                self._sums /= torch.from_numpy(counts).clamp(min=1).to(self._sums.device)[:, None, None]
            else:
                self._sums = _measured_means(self._sums, measured)
            numbers, of_rows = np.unique(backgrounds, return_inverse=True)
            known_as = np.array([self._places.get(number, BACKGROUNDS) for number in numbers.tolist()], np.int64)
            # int64 [rows]; on the device, so that it need not be asked which rows are scored.
            self._place_of = torch.from_numpy(known_as[of_rows]).to(self._sums.device)
        self.sets = int(counts[-1])
        """Training sets in the mean."""

    def _place(self, background: int) -> int:
        if background not in self._places and len(self._places) < BACKGROUNDS:
            self._places[background] = len(self._places)
        return self._places.get(background, BACKGROUNDS)

    def __call__(self, rows: Tensor) -> Tensor | None:
        """The depth of the sets at int64 [N] rows of the index, float32 [N,1,H,W] in 0..1; None without training."""
        if self._sums is None:
            return None
        return self._sums[self._place_of[rows], None] / 255


def _measured_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Means of float32 [backgrounds + 1, H, W], the last of all sets, which stands in where there is no count."""
    anywhere = sums[-1].sum() / counts[-1].sum().clamp(min=1)
    of_all = torch.where(counts[-1] > 0, sums[-1] / counts[-1].clamp(min=1), anywhere)
    return torch.where(counts > 0, sums / counts.clamp(min=1), of_all)


def training_threshold(loader: Loader, ranks: Distributed = SINGLE) -> int:
    """The mask baseline's threshold, by the first THRESHOLD_SETS sets of an epoch of `loader`, of all its ranks."""
    return best_threshold(islice(loader, math.ceil(THRESHOLD_SETS / loader.batch_size)), ranks=ranks)


@torch.no_grad()
def best_threshold(
    batches: Iterable[Batch], thresholds: Iterable[int] = THRESHOLDS, *, ranks: Distributed = SINGLE
) -> int:
    """The t of |fg_bg - bg| > t with the best mean IoU over `batches`, those of all `ranks`."""
    grid = list(thresholds)
    sums = torch.zeros(len(grid), dtype=torch.float64)
    for batch in batches:
        change = difference(batch.bg, batch.fg_bg)
        sums = sums + torch.stack([iou(change > t, batch.mask).sum() for t in grid]).cpu()  # waits: before training
    return grid[int(np.argmax(ranks.sums(sums.tolist())))]
