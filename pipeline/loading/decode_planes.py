"""Stored planes -> uint8 [N, 1, S, S] on the device, without DALI; stands where `decode.Decoder` does."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import torch_device
from pipeline.format.planes import DEPTH, BadFrame, decode_sets, undo_rows
from pipeline.loading.buffers import BufferPool
from pipeline.loading.decode import DecodeOptions, Encoded, Undecodable
from pipeline.workers import drawn_ahead

Begun = tuple[torch.Tensor, list[Future[None]]]
"""A batch, uint8 [P, N, size, size], and the shares of the work that fills it."""


class PlaneDecoder:
    """Decompresses runs of batches in threads, `prefetch` of them ahead of whoever takes the results."""

    def __init__(self, parts: Sequence[str], stored: int, options: DecodeOptions) -> None:
        """`parts` are the first of the `stored` planes of a set; `options.size` is the size that they have."""
        self._parts, self._stored, self._options = parts, stored, options
        self._device = torch_device(options.device)
        self._memory = BufferPool()

    def decode(self, batches: Iterator[Encoded]) -> Generator[dict[str, torch.Tensor], None, None]:
        """Yield each batch of frames: for each part a tensor of its own, uint8 [N, 1, size, size] on the device.

        The overlay still lacks its background. What `batches` raises comes through. Raises `Undecodable` for a frame
        that is none.
        """
        workers = ThreadPoolExecutor(self._options.threads, "fgbg-unpack")
        try:
            begun = (self._begin(frames, workers) for [frames] in batches)
            for planes, shares in drawn_ahead(begun, self._options.prefetch - 1):
                yield self._finish(planes, shares)
        finally:
            workers.shutdown(cancel_futures=True)

    def _begin(self, frames: Sequence[NDArray[np.uint8]], workers: ThreadPoolExecutor) -> Begun:
        """Let the workers fill memory with a batch; every part of it is one piece.

        Pinned for a GPU: torch hands such memory out again, without a wait, once the copy from it is done.
        """
        shape = (len(self._parts), len(frames), self._options.size, self._options.size)
        on_gpu = self._device.type == "cuda"
        planes = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if on_gpu else self._memory.empty(shape)
        share = -(-len(frames) // self._options.threads) or 1
        starts = range(0, len(frames), share)
        return planes, [
            workers.submit(self._fill, planes[:, start : start + share].numpy(), frames[start : start + share])
            for start in starts
        ]

    def _fill(self, planes: NDArray[np.uint8], frames: Sequence[NDArray[np.uint8]]) -> None:
        try:
            decode_sets([frame.data for frame in frames], planes, self._stored)
        except BadFrame as error:
            raise Undecodable(str(error)) from error
        if self._device.type == "cpu":
            undo_rows(planes[DEPTH:])

    def _finish(self, planes: torch.Tensor, shares: Sequence[Future[None]]) -> dict[str, torch.Tensor]:
        for share in shares:
            share.result()
        parts = [part.unsqueeze(1).to(self._device, non_blocking=True) for part in planes]
        if self._device.type == "cuda":
            parts[DEPTH:] = [depth.cumsum(2, dtype=torch.uint8) for depth in parts[DEPTH:]]  # wraps as it has to
        return dict(zip(self._parts, parts, strict=True))
