"""Ranks give one another the decoded sets that they cache, so that none of them decodes these again."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pipeline.loading.sample_cache import SampleCache

STAGING_BYTES = 16 << 20


def sync(cache: SampleCache, group: dist.ProcessGroup | None = None, staging_bytes: int = STAGING_BYTES) -> None:
    """Let every rank of a process group keep what any of them keeps, as far as it has room.

    A collective: all ranks call it, with the same settings, once they have kept what they decoded. How much each of
    them keeps, has room for, and where, may differ. What is kept then depends on what was, not on timing. No other
    collective of the group may run meanwhile: in a thread beside training steps that have their own, give a group of
    gloo for this alone. It takes about `staging_bytes` of memory: of the host under gloo, else of the device, through
    which sets pass that are kept on the host, since NCCL sends from there alone.

    Without it, shuffling gives a rank sets that others kept: 1 - (1 - 1/W)^k of the sets are kept after k epochs, and
    in the end each of W ranks has decoded all, 770 us of a core a set. Here a set takes 32 us of a core on each of 2
    ranks, 38 us on each of 3 (gloo on one host, 128 x 128).

    Ranks send in turn. Against all of them at once (all_gather) that halves the time under gloo, which copies what is
    gathered once more, and costs none under NCCL, whose ring carries every byte over each link once either way.
    """
    wire = torch.device("cpu") if dist.get_backend(group) == "gloo" else cache.device
    cache.settle()  # a rank that decoded nothing gets the others' sets all the same
    rows = cache.rows()
    counts = _gather(torch.tensor([len(rows), cache.capacity - cache.kept], device=wire), group).cpu().numpy()
    if not counts[:, 1].any():
        return
    padded = torch.zeros(counts[:, 0].max(), dtype=torch.int64, device=wire)
    padded[: len(rows)] = torch.from_numpy(rows)
    told = _gather(padded, group).cpu().numpy()
    shares = _shares([held[:count] for held, count in zip(told, counts[:, 0], strict=True)])
    at_once = max(1, staging_bytes // cache.set_bytes)
    inbox = torch.empty(at_once * cache.set_bytes, dtype=torch.uint8, device=wire)
    for owner, share in enumerate(shares):
        source = dist.get_global_rank(group or dist.group.WORLD, owner)  # type: ignore[arg-type]
        for start in range(0, len(share), at_once):
            chunk = share[start : start + at_once]
            if source == dist.get_rank():
                dist.broadcast(cache.gather(cache.slots(chunk)).to(wire), source, group)
                continue
            shape = cache.shape(len(chunk))
            pictures = inbox[: math.prod(shape)].view(shape)
            dist.broadcast(pictures, source, group)
            cache.keep(chunk, dict(zip(cache.parts, pictures, strict=True)))


def _gather(mine: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The tensors of all ranks, [W, ...]."""
    all_gather = mine.new_empty((dist.get_world_size(group), *mine.shape))
    dist.all_gather(list(all_gather), mine, group)
    return all_gather


def _shares(held: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Of the rows that each rank holds those that it sends: some rank lacks them, and no rank before it holds them."""
    rows, first, holders = np.unique(np.concatenate(held), return_index=True, return_counts=True)
    owners = np.repeat(np.arange(len(held)), [len(rows) for rows in held])[first]
    return [rows[(owners == rank) & (holders < len(held))] for rank in range(len(held))]
