"""The trivial baseline of depth: the mean depth of the training sets on the same background."""

import math
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loading.loader import Loader

SETS = 16_384  # training sets looked at, in random order; sums of so many bytes are exact in float32
BACKGROUNDS = 1024  # that have a mean of their own, 64 kB each at 128 x 128; further ones get that of all


class MeanDepth:
    """Mean depth, pixel by pixel, of the training sets of each background, and of all training sets together.

    The latter is what a background gets that is in no training set: nothing is known of it that this baseline could
    use, and anything else would be taken from the sets that are scored. Where training sets are scored, theirs is part
    of the mean.
    """

    def __init__(self, training: Loader, backgrounds: NDArray[np.int32]) -> None:
        """Looks at SETS sets of `training`, at none without depth; `backgrounds` is the index's column, [sets]."""
        self._places = dict[int, int]()  # of a background in the sums
        self._sums: Tensor | None = None  # float32 [backgrounds + 1, H, W]; the last is that of all
        counts = np.zeros(BACKGROUNDS + 1, np.int64)
        for batch in islice(training, math.ceil(SETS / training.batch_size)):
            if batch.depth is None:
                break
            if self._sums is None:
                height, width = batch.depth.shape[-2:]
                self._sums = torch.zeros(BACKGROUNDS + 1, height, width, device=batch.depth.device)
            depth = batch.depth[:, 0].float()
            places = [self._place(number) for number in backgrounds[batch.index.numpy(force=True)].tolist()]
            self._sums[-1] += depth.sum(0)
            known = [at for at, place in enumerate(places) if place < BACKGROUNDS]
            held = torch.tensor([places[at] for at in known], device=depth.device)
            self._sums.index_add_(0, held.long(), depth[known])
            counts[-1] += len(places)
            np.add.at(counts, held.cpu().numpy(), 1)
        if self._sums is not None:
            self._sums /= torch.from_numpy(counts).clamp(min=1).to(self._sums.device)[:, None, None]
            numbers, of_rows = np.unique(backgrounds, return_inverse=True)
            known_as = np.array([self._places.get(number, BACKGROUNDS) for number in numbers.tolist()], np.int64)
            # int64 [rows]; on the device, so that it need not be asked which rows are scored.
            self._place_of = torch.from_numpy(known_as[of_rows]).to(self._sums.device)
        self.sets = int(counts[-1])
        """Training sets that were looked at."""

    def _place(self, background: int) -> int:
        if background not in self._places and len(self._places) < BACKGROUNDS:
            self._places[background] = len(self._places)
        return self._places.get(background, BACKGROUNDS)

    def __call__(self, rows: Tensor) -> Tensor | None:
        """The depth of the sets at int64 [N] rows of the index, float32 [N,1,H,W] in 0..1; None without training."""
        if self._sums is None:
            return None
        return self._sums[self._place_of[rows], None] / 255
