"""Gathering in host memory: the rows asked for, in memory that nobody else holds."""

import gc
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.buffers import IDLE_BUFFERS, BufferPool, Gatherer

SHAPES = st.sampled_from([(1, 4, 4), (1, 3, 3), (5,)])


def sources(count: int, rows: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=generator) for _ in range(count)]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.integers(0, 400), SHAPES)
def test_threads_gather_what_one_by_one_gives(threads: int, parts: int, rows: int, n: int, shape: tuple[int]) -> None:
    tensors = sources(parts, rows, shape)
    asked = np.random.default_rng(n).integers(0, rows, n)
    gathered = Gatherer(threads).gather(tensors, asked)
    assert gathered.shape == (parts, n, *shape)
    assert gathered.is_contiguous()
    for part, tensor in zip(gathered, tensors, strict=True):
        for picture, row in zip(part, asked.tolist(), strict=True):
            assert torch.equal(picture, tensor[row])


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_are_not_there_are_no_others(row: int) -> None:
    with pytest.raises(AssertionError, match="not there"):
        Gatherer().gather(sources(2, 5, (4,)), np.array([0, row]))


def test_what_a_thread_raises_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(_: object, rows: np.ndarray, **__: object) -> None:
        if rows[0]:
            raise MemoryError

    monkeypatch.setattr(np, "take", take)
    with pytest.raises(MemoryError):
        Gatherer(2).gather(sources(1, 200, (4,)), np.arange(200))


def test_threads_end_when_it_is_closed_or_dropped() -> None:
    before = set(threading.enumerate())
    closed, dropped = Gatherer(3), Gatherer(3)
    for gatherer in (closed, dropped):
        gatherer.gather(sources(1, 500, (4,)), np.arange(500))
    workers = set(threading.enumerate()) - before
    assert workers
    closed.close()
    del gatherer, dropped
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_memory_is_used_again_only_when_nobody_holds_a_view_of_it() -> None:
    pool = BufferPool()
    first = pool.empty((4, 2, 2))
    address, row, array = first.data_ptr(), first[3], first.numpy()[1:]
    del first
    assert pool.empty((4, 2, 2)).data_ptr() != address
    del row
    assert pool.empty((4, 2, 2)).data_ptr() != address
    del array
    assert pool.empty((3, 2, 2)).data_ptr() == address  # smaller, too: an epoch's last batch


def test_larger_batches_get_larger_memory() -> None:
    pool = BufferPool()
    small = pool.empty((2, 3)).fill_(1)
    large = pool.empty((200, 3)).fill_(2)
    assert small.tolist() == [[1] * 3] * 2
    address = large.data_ptr()
    del small, large
    again = pool.empty((200, 3))
    assert again.data_ptr() == address
    assert again.numel() == 600


def test_idle_memory_is_bounded() -> None:
    pool = BufferPool()
    hoard = [pool.empty((100,)) for _ in range(3 * IDLE_BUFFERS)]
    assert len({tensor.data_ptr() for tensor in hoard}) == 3 * IDLE_BUFFERS
    hoard.clear()
    assert len(pool._idle) == IDLE_BUFFERS


def test_memory_outlives_its_pool() -> None:
    pool = BufferPool()
    tensor = pool.empty((1000,)).fill_(7)
    del pool
    gc.collect()
    assert (tensor == 7).all()
