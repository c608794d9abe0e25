"""Resident loaders: whatever is kept, and wherever, batches are those of a loader that streams, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import pipeline.loading.sample_cache
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.augment import Augmentation
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from tests.loading.test_loader import SIZE, equal, load, rows
from tests.loading.test_shard_reader import flip_bit
from tests.ranks import in_ranks

SET_BYTES = 3 * SIZE**2


@pytest.fixture(params=["packed", "planes"])
def shards(request: pytest.FixtureRequest) -> Path:
    """The same sets, as pictures and as planes; read only."""
    return Path(request.getfixturevalue(request.param))


def room_for(sets: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.loading.sample_cache, "available_host_memory", lambda: int(sets * SET_BYTES))


def epochs(loader: Loader, count: int) -> list[Batch]:
    return [batch for _ in range(count) for batch in loader]


@pytest.mark.parametrize("place", ["auto", "device", "host"])
def test_later_epochs_are_those_of_streaming(place: str, shards: Path) -> None:
    streamed, resident = load(shards), load(shards, resident=place)
    for one, other in zip(epochs(streamed, 4), epochs(resident, 4), strict=True):
        assert equal(one, other)
        assert all(part.is_contiguous() for part in other.asdict().values())
    assert streamed.state_dict() == resident.state_dict()


@pytest.mark.parametrize("room", [0, 1, 20, 63, 64])
def test_what_finds_no_room_is_streamed(room: int, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(room + 0.5, monkeypatch)
    resident = load(shards, resident="auto", resident_share=1.0)
    for one, other in zip(epochs(load(shards), 4), epochs(resident, 4), strict=True):
        assert equal(one, other)


@pytest.mark.parametrize(
    "settings", [{"prefetch": 9}, {"prefetch": 1, "readers": 1}, {"batch_size": 64}, {"window": 2}]
)
def test_no_setting_changes_a_bit(settings: dict[str, Any], shards: Path) -> None:
    for one, other in zip(
        epochs(load(shards, **settings), 3), epochs(load(shards, resident="auto", **settings), 3), strict=True
    ):
        assert equal(one, other)


def test_augmentation_is_that_of_streaming(shards: Path) -> None:
    mild = Augmentation()
    plain, streamed = load(shards), load(shards, augmentation=mild)
    resident = load(shards, augmentation=mild, resident="auto")
    same = 0
    for original, one, other in zip(epochs(plain, 3), epochs(streamed, 3), epochs(resident, 3), strict=True):
        assert equal(one, other)
        assert torch.equal(original.index, one.index)
        same += equal(original, one)
    assert same == 0


def test_evaluation_is_not_augmented(packed: Path) -> None:
    sibling = load(packed, augmentation=Augmentation()).sibling("train")
    assert all(equal(one, other) for one, other in zip(sibling, load(packed), strict=True))


def test_later_epochs_touch_neither_storage_nor_decoder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, expected = load(shards, resident="auto"), epochs(load(shards), 4)
    first = epochs(loader, 1)
    monkeypatch.setattr(ShardReader, "read_records", None)
    monkeypatch.setattr(loader._stages.decoder.decoder, "decode", None)
    assert all(equal(one, other) for one, other in zip(first + epochs(loader, 3), expected, strict=True))


@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_resume_in_a_later_epoch_fills_as_it_goes(position: int, shards: Path) -> None:
    expected = epochs(load(shards), 5)
    loader = load(shards, resident="auto")
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": position})
    left = [batch for _ in range(4) for batch in loader]
    assert len(left) == 4 * 7 - position
    assert all(equal(one, other) for one, other in zip(left, expected[7 + position :], strict=True))


def test_leaving_an_epoch_and_coming_back_keeps_what_is_kept(shards: Path) -> None:
    expected, loader = epochs(load(shards), 3), load(shards, resident="auto")
    got = list[Batch]()
    while len(got) < len(expected):
        for batch in loader:
            got.append(batch)
            if len(got) % 3 == 0:
                break
        loader.load_state_dict(loader.state_dict())
    assert all(equal(one, other) for one, other in zip(got, expected, strict=True))


def test_each_rank_keeps_what_it_decoded_and_streams_the_rest(shards: Path) -> None:
    expected = epochs(load(shards), 3)
    ranks = [epochs(load(shards, rank=rank, world=3, resident="auto"), 3) for rank in range(3)]
    for whole, *parts in zip(expected, *ranks, strict=True):
        for name, part in whole.asdict().items():
            assert torch.equal(torch.cat([getattr(share, name) for share in parts]), part)


def on_rank(shards: Path, out: Path) -> None:
    """What a process does: stream an epoch, exchange, and go on without storage and decoder."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loader = load(shards, rank=rank, world=2, resident="auto")
    batches = epochs(loader, 1)
    loader.sync_cache()
    ShardReader.read_records = None  # type: ignore[assignment,method-assign]
    loader._stages.decoder.decoder.decode = None  # type: ignore[assignment,method-assign]
    torch.save([batch.asdict() for batch in batches + epochs(loader, 2)], out / f"{rank}.pt")
    dist.destroy_process_group()


def test_after_an_exchange_no_rank_reads_or_decodes(packed: Path, tmp_path: Path) -> None:
    in_ranks(2, on_rank, packed, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for whole, *parts in zip(epochs(load(packed), 3), *ranks, strict=True):
        for name, part in whole.asdict().items():
            assert torch.equal(torch.cat([share[name] for share in parts]), part)


def test_damaged_sets_stay_out_and_are_not_read_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    index = load_index(copy, Manifest.load(copy))
    flip_bit(copy / "sets-000003.tar", int(index["offset"][50][0]) + 30)
    loader = load(copy, "all", resident="auto", shuffle=False)
    good = [row for row in range(100) if row != 50]
    assert sum(rows(loader), []) == good
    monkeypatch.setattr(ShardReader, "read_records", None)
    assert sum(rows(loader), []) == good
    monkeypatch.undo()
    streamed = load(copy, "all", shuffle=False)
    assert all(equal(one, other) for one, other in zip(epochs(streamed, 2)[10:], epochs(loader, 1), strict=True))
    assert len(loader.quarantined) == 1


def test_a_sibling_keeps_its_own_split(shards: Path) -> None:
    loader = load(shards, resident="auto")
    sibling = loader.sibling("all", shuffle=False, resident="auto")
    for _ in range(3):
        assert sum(rows(sibling), []) == list(range(100))
        assert len(sum(rows(loader), [])) == 64


def test_without_depth_none_is_kept(packed: Path) -> None:
    loader = load(packed, depth=False, resident="auto")
    for one, other in zip(epochs(load(packed, depth=False), 3), epochs(loader, 3), strict=True):
        assert one.depth is None is other.depth
        assert equal(one, other, depth=False)


def test_where_and_how_much_is_checked(packed: Path) -> None:
    for settings in ({"resident": "disk"}, {"resident": "auto", "resident_share": 0}):
        with pytest.raises(InputError, match="expected"):
            load(packed, **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["device", "host"])
def test_on_a_gpu_later_epochs_are_those_of_streaming(place: str, shards: Path) -> None:
    cuda_alone = 0.0  # which pictures the hardware engine would take depends on the batch
    streamed = load(shards, device="gpu", hw_decoder_load=cuda_alone)
    resident = load(shards, device="gpu", hw_decoder_load=cuda_alone, resident=place)
    for one, other in zip(epochs(streamed, 3), epochs(resident, 3), strict=True):
        assert equal(one, other)
    assert np.all(rows(streamed) == rows(resident))
