"""Work that keeps a GPU's streams busy, so that whatever relies on their being idle goes wrong."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from tools.gpu_check.clock import windows_sec

SIDE = 4096  # of the matrices that are multiplied
WINDOW, WINDOWS = 3, 10  # products, and how often they are timed, to find out how long one takes
SHARE = 8  # one batch of so many is late


class Burden:
    """Two streams, one that takes batches and one that looks at them, with work between batches; none on a CPU."""

    def __init__(self, device: torch.device, burst_sec: float) -> None:
        """Each piece of work takes some `burst_sec`; long ones that are rare let the host run far ahead."""
        self._on_gpu = device.type == "cuda"
        self._generator = np.random.default_rng(2)
        if self._on_gpu:
            self._taking, self._looking = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
            self._matrix = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
            self._products = {stream: torch.empty_like(self._matrix) for stream in (self._taking, self._looking)}
            once_sec = min(windows_sec(device, lambda: self._multiply(self._taking), WINDOW, WINDOWS)) / WINDOW
            self._repeats = max(1, round(burst_sec / once_sec))

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Within it batches are taken, on the first stream; before it and after it the device is idle."""
        if not self._on_gpu:
            yield
            return
        torch.cuda.synchronize()
        with torch.cuda.stream(self._taking):
            yield
        torch.cuda.synchronize()

    @contextmanager
    def looking(self, tensors: Collection[torch.Tensor]) -> Iterator[None]:
        """Within it the tensors just taken are looked at, late, on the second stream; what is taken next is late, too.

        The host waits for none of it.
        """
        if not self._on_gpu:
            yield
            return
        taken = self._taking.record_event()
        self._work(self._taking)  # the copies of the next batch are queued behind it
        self._looking.wait_event(taken)
        with torch.cuda.stream(self._looking):
            self._work(self._looking)
            for tensor in tensors:
                tensor.record_stream(self._looking)
            yield

    def event(self) -> torch.cuda.Event | None:
        """Happens when all has been looked at that was so far."""
        return self._looking.record_event() if self._on_gpu else None

    def _work(self, stream: torch.cuda.Stream) -> None:
        if self._generator.integers(0, SHARE) == 0:
            with torch.cuda.stream(stream):
                for _ in range(self._repeats):
                    self._multiply(stream)

    def _multiply(self, stream: torch.cuda.Stream) -> None:
        torch.mm(self._matrix, self._matrix, out=self._products[stream])
