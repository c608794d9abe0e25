"""Memory of resident sets: they take what steps leave, and give it back; no batch is another for it."""

import logging
from copy import copy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import pipeline.loading.loader
from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.loading.sample_cache import SampleCache
from tests.loading.test_loader import SIZE, equal, load, rows
from tests.loading.test_loader_resident import epochs

SET_BYTES = 3 * SIZE**2
GB = 4 * SET_BYTES  # of the pretended card: all 64 sets take 16


@pytest.fixture(params=["packed", "planes"])
def shards(request: pytest.FixtureRequest) -> Path:
    """The same sets, as pictures and as planes; read only."""
    return Path(request.getfixturevalue(request.param))


def no_memory() -> torch.OutOfMemoryError:
    """What PyTorch raises. A new one each: raised, it holds whatever was alive."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.6")


class Card:
    """A GPU of 15 GB and its allocator, for resident sets that are in truth on the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_bytes = 0
        """What PyTorch holds for steps: the most that one has needed."""
        self._resident: SampleCache | None = None
        free_bytes, attempt = SampleCache._free_bytes, SampleCache._try

        def free_as_on_a_gpu(resident: SampleCache) -> dict[str, int]:
            with patch.object(resident, "device", torch.device("cuda")):
                return free_bytes(resident)

        def try_on_the_card(resident: SampleCache, place: str, sets: int) -> bool:
            self._resident = resident
            return sets * SET_BYTES <= self.free_bytes and attempt(resident, place, sets)

        monkeypatch.setattr(SampleCache, "_free_bytes", free_as_on_a_gpu)
        monkeypatch.setattr(SampleCache, "_try", try_on_the_card)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (self.free_bytes, 15 * GB))

    @property
    def free_bytes(self) -> int:
        resident_bytes = self._resident.capacity * SET_BYTES if self._resident else 0
        return 15 * GB - self.step_bytes - resident_bytes

    def step(self, needed_bytes: int) -> None:
        """A step of the consumer."""
        if needed_bytes - self.step_bytes > self.free_bytes:
            raise no_memory()
        self.step_bytes = max(self.step_bytes, needed_bytes)


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"batch_size": 64}, {"batch_size": 10, "prefetch": 9}])
def test_resident_sets_take_a_share_of_what_steps_leave(
    settings: dict[str, Any], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch)
    loader = load(packed, resident="device", **settings)
    for _ in loader:
        card.step(9 * GB)  # of all that was free at first, they would have taken as much
    assert loader.residency == "14 of 64 decoded sets stay on the host (0.0 GiB)"
    assert card.free_bytes == 15 * GB - 9 * GB - 14 * SET_BYTES  # 60 % of 6 GB, in whole sets


def test_no_memory_is_taken_before_some_steps_are_done(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    loader = load(packed, batch_size=4, prefetch=6, resident="device")
    for number, _ in enumerate(loader, 1):
        if number in (1, 2, 3, 12, 13, 14):
            assert card.free_bytes == 15 * GB - card.step_bytes
            card.step((3 * number if number < 12 else 12) * GB)  # while a compiler tries and CUDA graphs are recorded
        elif number == 11:
            assert loader.release()
    assert loader.residency is not None
    assert loader.residency.startswith("3 of 64 ")


def test_steps_that_need_more_later_get_it_and_less_stays(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, needed_gb = Card(monkeypatch), (9, 12, 14.5, 14.5)
    loader, streamed = load(packed, batch_size=4, resident="device"), load(packed, batch_size=4)
    told = list[str | None]()
    for epoch in range(4):
        needed_bytes = int(needed_gb[epoch] * GB)
        for batch, expected in zip(loader, streamed, strict=True):
            try:
                card.step(needed_bytes)
            except torch.OutOfMemoryError:
                told.append(loader.release())
                card.step(needed_bytes)
            assert equal(batch, expected)
        assert loader.residency is not None
        assert loader.residency.startswith(("14 of", "3 of", "0 of", "0 of")[epoch])
    assert told == [
        "the memory of 14 decoded sets (0.0 GiB) is given back, and later up to 30% of what is free then taken anew",
        "the memory of 3 decoded sets (0.0 GiB) is given back, and no more stay",
    ]


@pytest.mark.parametrize("batch_size", [4, 10, 30, 64])
@pytest.mark.parametrize("prefetch", [1, 2, 9])
def test_no_set_is_read_twice_for_having_waited(
    batch_size: int, prefetch: int, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(packed, batch_size=batch_size, prefetch=prefetch, resident="auto")
    read, original = list[Any](), loader._opened.reader.read_records

    def read_records(records: Any) -> Any:
        read.extend(records)
        return original(records)

    monkeypatch.setattr(loader._opened.reader, "read_records", read_records)
    for _ in range(3):
        rows(loader)
    assert len(read) == 64


@pytest.mark.parametrize("releases", [[1], [4], [7], [8], [13], [9, 16], [5, 9, 15]])
def test_whenever_memory_is_given_back_the_batches_are_the_same(releases: list[int], shards: Path) -> None:
    streamed, loader = load(shards), load(shards, resident="auto")
    expected, got = epochs(streamed, 4), list[Batch]()
    for _ in range(4):
        for batch in loader:
            got.append(batch)
            if len(got) in releases:
                state = loader.state_dict()
                loader.release()
                assert loader.state_dict() == state
    assert all(equal(one, other) for one, other in zip(got, expected, strict=True))
    assert streamed.state_dict() == loader.state_dict()


def test_there_is_nothing_to_give_back_where_nothing_stays_on_the_device(packed: Path) -> None:
    streamed, early, elsewhere = load(packed), load(packed, resident="auto"), load(packed, resident="auto")
    for loader in (streamed, early):
        next(iter(loader))
        assert loader.release() is None
    rows(elsewhere)
    with patch.object(elsewhere._stages.cache, "device", torch.device("cuda")):
        assert elsewhere.release() is None
    assert elsewhere.residency == "64 of 64 decoded sets stay on the host (0.0 GiB)"


def fail(loader: Loader, errors: list[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let making a batch raise these, one after the other, once sets are resident."""
    original = loader._stages.collator.collate

    def batch(*arguments: Any) -> Batch:
        if errors and loader._stages.cache is not None and loader._stages.cache.kept:
            raise errors.pop(0)
        return original(*arguments)

    monkeypatch.setattr(loader._stages.collator, "collate", batch)


OF_DALI = RuntimeError("CUDA allocation failed Can't allocate 1048576 bytes on device 0.")


@pytest.mark.parametrize("error", [no_memory(), OF_DALI, MemoryError("std::bad_alloc")])
def test_a_batch_that_finds_no_memory_gets_that_of_resident_sets(
    error: Exception, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = load(shards, resident="auto")
    fail(loader, [copy(error), copy(error)], monkeypatch)
    with caplog.at_level(logging.WARNING):
        got = epochs(loader, 4)
    monkeypatch.undo()
    assert all(equal(one, other) for one, other in zip(got, epochs(load(shards), 4), strict=True))
    assert loader.residency == "0 of 64 decoded sets stay on the host (0.0 GiB)"
    assert [message.split("given back, ")[1] for message in caplog.messages] == [
        "and later up to 30% of what is free then taken anew", "and no more stay",
    ]  # fmt: skip
    assert caplog.messages[0].startswith("no memory for a batch of 10 sets of 16 pixels (")


def test_dali_that_finds_no_memory_is_not_taken_for_a_damaged_picture(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(packed)

    def decode(batches: Any) -> None:
        next(batches)
        raise copy(OF_DALI)

    monkeypatch.setattr(loader._stages.decoder.decoder, "decode", decode)
    with pytest.raises(InputError) as error:
        next(iter(loader))
    what = "CUDA allocation failed Can't allocate 1048576 bytes on device 0."
    assert str(error.value) == (
        f"no memory for a batch of 10 sets of 16 pixels ({what}): ask for fewer sets a batch, or smaller pictures"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("releases", [[2], [10], [9, 16]])
def test_a_gpu_gets_its_memory_back_and_the_batches_are_the_same(releases: list[int], shards: Path) -> None:
    settings: dict[str, Any] = {"device": "gpu", "hw_decoder_load": 0.0}
    loader = load(shards, resident="device", **settings)
    got = list[Batch]()
    for _ in range(4):
        for batch in loader:
            got.append(batch)
            if len(got) in releases:
                assert loader._stages.cache is not None
                before_bytes = torch.cuda.memory_allocated()
                resident_bytes = loader._stages.cache.capacity * loader._stages.cache.set_bytes
                told = loader.release()
                assert (told is None) == (len(got) <= pipeline.loading.loader.FIRST_STEPS)
                assert told is None or torch.cuda.memory_allocated() <= before_bytes - resident_bytes
    assert all(equal(one, other) for one, other in zip(got, epochs(load(shards, **settings), 4), strict=True))


@pytest.mark.parametrize("batch_size", [64, 30])
def test_whoever_takes_batches_one_by_one_meets_no_end_of_a_short_epoch(batch_size: int, packed: Path) -> None:
    loader, expected = load(packed, batch_size=batch_size, resident="auto"), load(packed, batch_size=batch_size)
    got = list[Batch]()
    iterators = []  # held on to, as loops do that call `next` themselves
    for _ in range(3):
        iterators.append(iter(loader))
        got += [next(iterators[-1]) for _ in range(len(loader))]
    assert all(equal(one, other) for one, other in zip(got, epochs(expected, 3), strict=True))


def test_memory_given_back_at_the_end_of_an_epoch_is_not_taken_at_once(shards: Path) -> None:
    loader, expected = load(shards, resident="auto"), epochs(load(shards), 4)
    got, residencies = list[Batch](), list[str | None]()
    for epoch in range(4):
        for number, batch in enumerate(loader):
            got.append(batch)
            if (epoch, number) == (1, len(loader) - 1):
                assert loader.release()
        residencies.append(loader.residency)
    assert [text and text.split(" of ")[0] for text in residencies] == ["64", "0", "64", "64"]
    assert all(equal(one, other) for one, other in zip(got, expected, strict=True))
