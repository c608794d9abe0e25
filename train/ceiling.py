"""The ceiling: what the labels themselves would score after one more JPEG round trip.

Labels are stored as JPEG, so that no network can be told from a perfect one above about this score.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.format.images import decode_jpeg_gray, encode_gray
from pipeline.loading.batch import Batch
from train.depth_metrics import depth_scores
from train.losses import to_float
from train.metrics import mask_scores

QUALITIES = (75, 90)
SETS = 1024  # sets that are looked at


def round_trip(pictures: Tensor, quality: int) -> Tensor:
    """uint8 [N,1,H,W] -> the same as gray JPEGs of a quality, decoded; on the device it came from. On the CPU."""
    planes = np.ascontiguousarray(pictures[:, 0].cpu().numpy())  # waits for the device
    decoded = np.stack([decode_jpeg_gray(encode_gray(plane, quality)) for plane in planes])
    return torch.from_numpy(decoded)[:, None].to(pictures.device)


def jpeg_ceiling(batch: Batch, quality: int) -> dict[str, Tensor]:
    """The scores of the labels of a batch after the round trip, as if they were predictions, float32 [N]."""
    scores = mask_scores(round_trip(batch.mask, quality) >= 128, batch.mask)
    if batch.depth is not None:
        scores |= depth_scores(to_float(round_trip(batch.depth, quality)), to_float(batch.depth), batch.mask)
    return scores
