"""Decoded sets that stay: what was kept comes back, bit for bit, from wherever there was room for it."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline.loading.sample_cache
from pipeline.errors import InputError
from pipeline.loading.buffers import Gatherer
from pipeline.loading.sample_cache import SampleCache

ROWS, PARTS = 40, ("fg_bg", "mask", "depth")
CPU = torch.device("cpu")


def pictures(rows: list[int], size: int, version: int = 0, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """What the sets at these rows look like: no two alike, nor two versions of one."""
    seeds = [[[row, version, part] for row in rows] for part in range(len(PARTS))]
    drawn = [[np.random.default_rng(seed).integers(0, 256, (1, size, size), np.uint8) for seed in s] for s in seeds]
    shape = (-1, 1, size, size)
    return {
        part: torch.from_numpy(np.array(values, dtype=np.uint8)).view(shape).to(device)
        for part, values in zip(PARTS, drawn, strict=True)
    }


def free(monkeypatch: pytest.MonkeyPatch, host: int, device: int | None = None) -> None:
    """Pretend that so many bytes are free; with `device`, also that the CPU is one with memory of its own."""
    left = {"host": host} if device is None else {"device": device, "host": host}
    monkeypatch.setattr(SampleCache, "_free_bytes", lambda _: left)


def row_lists(least: int = 0) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, ROWS - 1), min_size=least, max_size=12)


@given(st.lists(st.tuples(st.booleans(), row_lists()), max_size=12), st.integers(0, ROWS), st.sampled_from([4, 5]))
def test_any_sequence_gives_what_a_dictionary_gives(
    calls: list[tuple[bool, list[int]]], capacity: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        free(monkeypatch, capacity * 3 * size**2)
        resident = SampleCache(ROWS, ROWS, PARTS, size, CPU, share=1.0, gatherer=Gatherer(2))
        reference: dict[int, dict[str, torch.Tensor]] = {}
        for version, (keeps, rows) in enumerate(calls):
            new = pictures(rows, size, version)
            if keeps:
                resident.keep(np.array(rows, dtype=np.int64), new)
                for place, row in enumerate(rows):
                    if row not in reference and len(reference) < capacity:
                        reference[row] = {part: picture[place].clone() for part, picture in new.items()}
                assert resident.capacity == capacity
            else:
                slots = resident.slots(np.array(rows, dtype=np.int64))
                assert [slot >= 0 for slot in slots.tolist()] == [row in reference for row in rows]
                missing = [place for place, row in enumerate(rows) if row not in reference]
                decoded = {part: picture[missing] for part, picture in new.items()}
                taken = resident.take(slots, decoded)
                for part in PARTS:
                    want = [reference[row][part] if row in reference else new[part][i] for i, row in enumerate(rows)]
                    assert taken[part].shape == (len(rows), 1, size, size)
                    assert taken[part].is_contiguous()
                    assert all(torch.equal(a, b) for a, b in zip(taken[part], want, strict=True))
            assert resident.kept == len(reference)
            assert resident.rows().tolist() == sorted(reference)


def test_what_is_taken_is_memory_of_its_own() -> None:
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU)
    rows = np.arange(10)
    decoded = pictures(rows.tolist(), 4)
    resident.keep(rows, decoded)
    decoded["mask"].zero_()
    first = resident.take(resident.slots(rows), {})
    kept = {part: picture.clone() for part, picture in first.items()}
    resident.take(resident.slots(rows[::-1]), {})["mask"].fill_(9)
    for part, picture in first.items():
        assert torch.equal(picture, kept[part])
        assert torch.equal(picture, pictures(rows.tolist(), 4)[part])


def test_what_nothing_is_kept_of_is_handed_on_and_an_empty_share_is_empty() -> None:
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU)
    decoded = pictures([1, 2], 4)
    assert resident.take(resident.slots(np.array([1, 2])), decoded) is decoded
    empty = resident.take(resident.slots(np.arange(0)), {})
    assert {part: tuple(picture.shape) for part, picture in empty.items()} == dict.fromkeys(PARTS, (0, 1, 4, 4))


def test_what_fails_to_be_copied_is_not_kept() -> None:
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU)
    with pytest.raises(AssertionError, match="not there"):
        resident.keep(np.arange(3), pictures([0, 1], 4))
    assert (resident.kept, resident.slots(np.arange(3)).tolist()) == (0, [-1] * 3)


def test_memory_is_taken_at_the_first_keep_and_not_for_more_sets_than_there_are() -> None:
    resident = SampleCache(1000, 30, PARTS, 4, CPU)
    assert (resident.capacity, resident.holds_all) == (0, False)
    resident.keep(np.arange(0), pictures([], 4))
    assert (resident.capacity, resident.holds_all, resident.kept, resident.where) == (30, True, 0, "host")


SET = 3 * 4**2


@pytest.mark.parametrize(
    ("host", "device", "where", "capacity"),
    [
        (100, 100, "device", 40),  # all fit in both
        (100, 70, "host", 40),  # half of 70 is not enough
        (50, 60, "device", 30),  # neither holds all: the larger
        (60, 50, "host", 30),
        (0, 3, "device", 1),
        (3, 0, "host", 1),
    ],
)
def test_the_device_is_preferred_where_all_fit_else_what_holds_more(
    host: int, device: int, where: str, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, host * SET, device * SET)
    tried = trials(monkeypatch, lambda *_: True)
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU, share=0.5)
    resident.keep(np.arange(1), pictures([0], 4))
    assert tried == [(where, capacity)]
    assert resident.capacity == capacity


def trials(monkeypatch: pytest.MonkeyPatch, succeeds: Any) -> list[tuple[str, int]]:
    """Let allocations fail as told; what was tried."""
    tried: list[tuple[str, int]] = []
    real = torch.empty
    attempt = SampleCache._try

    def empty(shape: Any, **options: Any) -> torch.Tensor:
        if tried and not succeeds(*tried[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory") if tried[-1][0] == "device" else RuntimeError("no")
        return real(shape, **options)

    def noting(resident: SampleCache, place: str, sets: int) -> bool:
        tried.append((place, sets))
        monkeypatch.setattr(torch, "empty", empty)
        try:
            return attempt(resident, place, sets)
        finally:
            monkeypatch.setattr(torch, "empty", real)

    monkeypatch.setattr(SampleCache, "_try", noting)
    return tried


STAGES = [("device", 40), ("host", 30), ("device", 20), ("host", 15), ("device", 10), ("host", 7), ("device", 5)]
STAGES += [("host", 3), ("device", 2), ("host", 1), ("device", 1)]


@pytest.mark.parametrize("stage", range(len(STAGES) + 1))
def test_out_of_memory_falls_back_step_by_step_and_says_so(
    stage: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, 60 * SET, 90 * SET)
    tried = trials(monkeypatch, lambda *attempt: STAGES.index(attempt) >= stage)
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU, share=0.5)
    rows = np.arange(10)
    with caplog.at_level(logging.WARNING):
        resident.keep(rows, pictures(rows.tolist(), 4))
    assert tried == STAGES[: stage + 1]
    capacity = STAGES[stage][1] if stage < len(STAGES) else 0
    assert (resident.capacity, resident.kept) == (capacity, min(10, capacity))
    slots = resident.slots(rows)
    decoded = {part: picture[slots < 0] for part, picture in pictures(rows.tolist(), 4).items()}
    for part, picture in resident.take(slots, decoded).items():
        assert torch.equal(picture, pictures(rows.tolist(), 4)[part])
    if not stage:
        assert not caplog.messages
        return
    [message] = caplog.messages
    assert message.startswith(f"out of memory: {capacity} of 40 decoded sets (0.0 GiB in all) can stay on the host; ")
    assert "\n" not in message


def test_room_for_nothing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    free(monkeypatch, 1)
    SampleCache(ROWS, ROWS, PARTS, 4, CPU).keep(np.arange(1), pictures([0], 4))
    [message] = caplog.messages
    assert "0 of 40 decoded sets" in message


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 sets would fit in the memory of this host, and no other test's sets are on it."""
    monkeypatch.setattr(pipeline.loading.sample_cache, "available_host_memory", lambda: 100 * SET)
    monkeypatch.setattr(pipeline.loading.sample_cache, "_on_hosts", set())


@pytest.mark.usefixtures("available")
def test_ranks_on_one_host_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    resident = SampleCache(1000, 1000, PARTS, 4, CPU, share=0.8)
    resident.keep(np.arange(0), {})
    assert resident.capacity == 20


@pytest.mark.usefixtures("available")
def test_memory_that_another_is_still_to_fill_is_not_free() -> None:
    one, other = (SampleCache(1000, 1000, PARTS, 4, CPU, share=0.5) for _ in range(2))
    one.keep(np.arange(10), pictures(list(range(10)), 4))
    assert one.capacity == 50
    other.keep(np.arange(0), {})
    assert other.capacity == 30  # half of 100 - 40: the 10 that are filled already the kernel has counted


@pytest.mark.parametrize("where", ["auto", "host", "device"])
def test_without_a_gpu_every_place_is_the_host(where: str) -> None:
    resident = SampleCache(ROWS, ROWS, PARTS, 4, CPU, where)
    resident.keep(np.arange(2), pictures([0, 1], 4))
    assert (resident.where, resident.capacity) == ("host", ROWS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"where": "gpu"}, "decoded sets cannot stay in 'gpu': expected auto, device or host"),
        ({"share": 0.0}, "0.0 of the free memory cannot be taken: expected a share above 0, at most 1"),
        ({"share": 60.0}, "60.0 of the free memory cannot be taken: expected a share above 0, at most 1"),
    ],
)
def test_settings_out_of_range_are_errors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SampleCache(ROWS, ROWS, PARTS, 4, CPU, **wrong)
    assert str(error.value) == message


def test_sets_wait_in_memory_of_their_own_until_memory_may_be_taken() -> None:
    resident, decoded = SampleCache(ROWS, ROWS, PARTS, 4, CPU, deferred=True), pictures([1, 2], 4)
    resident.keep(np.array([1, 2]), decoded)
    decoded["mask"].zero_()
    assert (resident.capacity, resident.kept, resident.settled, resident.release()) == (0, 0, False, None)
    resident.allow()
    assert (resident.capacity, resident.settled) == (0, False)
    resident.keep(np.array([2, 3]), pictures([2, 3], 4, version=1))
    assert (resident.capacity, resident.kept, resident.settled) == (ROWS, 3, True)
    for part, picture in resident.take(resident.slots(np.array([1, 2])), {}).items():
        assert torch.equal(picture, pictures([1, 2], 4)[part])


def test_memory_is_given_back_once_for_half_the_share_and_then_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 100 * SET)
    resident, rows = SampleCache(1000, 1000, PARTS, 4, CPU, share=0.5), np.arange(10)
    for capacity in (50, 25, 0):
        resident.settle()
        resident.keep(rows, pictures(rows.tolist(), 4))
        slots = resident.slots(rows)
        assert (resident.capacity, resident.kept) == (capacity, min(10, capacity))
        told = resident.release()
        assert (told is None) == (capacity == 0)
        assert (resident.capacity, resident.kept, resident.slots(rows).tolist()) == (0, 0, [-1] * 10)
        if capacity:
            with pytest.raises(AssertionError, match="released"):
                resident.take(slots, {})
    resident.keep(rows, pictures(rows.tolist(), 4))
    assert (resident.capacity, resident.kept, resident.settled) == (0, 0, True)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["auto", "device", "host"])
@pytest.mark.parametrize("size", [16, 5])
def test_a_gpu_gives_what_the_cpu_gives_wherever_they_stay(where: str, size: int) -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    generator = np.random.default_rng(0)
    here, there = SampleCache(ROWS, ROWS, PARTS, size, CPU), SampleCache(ROWS, ROWS, PARTS, size, cuda, where)
    for version in range(20):
        rows = generator.integers(0, ROWS, 6)
        slots = there.slots(rows)
        assert slots.tolist() == here.slots(rows).tolist()
        new = rows[slots < 0]
        decoded = pictures(new.tolist(), size, version)
        on_gpu = pictures(new.tolist(), size, version, cuda)
        taken, expected = there.take(slots, on_gpu), here.take(slots, decoded)
        there.keep(new, on_gpu)
        for picture in on_gpu.values():
            picture.zero_()  # what was queued before it has to be done by then
        here.keep(new, decoded)
        for part in PARTS if len(new) < 6 else ():
            assert taken[part].is_cuda
            assert torch.equal(taken[part].cpu(), expected[part])
    assert there.where == ("host" if where == "host" else "device")
    everything = there.take(there.slots(there.rows()), {})
    for part, picture in here.take(here.slots(here.rows()), {}).items():
        assert torch.equal(everything[part].cpu(), picture)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["device", "host"])
def test_nothing_waits_for_the_gpu(where: str) -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    resident = SampleCache(ROWS, ROWS, PARTS, 16, cuda, where)
    rows = np.arange(20)
    resident.keep(rows[:10], pictures(list(range(10)), 16, device=cuda))
    decoded = pictures(list(range(10, 20)), 16, device=cuda)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        resident.take(resident.slots(rows), decoded)
        resident.keep(rows[10:], decoded)
        resident.take(resident.slots(rows[:5]), {})
    finally:
        torch.cuda.set_sync_debug_mode("default")
