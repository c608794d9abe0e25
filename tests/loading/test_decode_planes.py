"""Loading shards of the codec "planes": the invariants of the loader hold, and DALI is not needed."""

import logging
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.depth_estimation.shards import rewrite_with_depth
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.planes import encode_set
from pipeline.loading.batch import Batch
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.loading.test_loader import equal, load, rows
from tests.loading.test_shard_reader import flip_bit


@pytest.fixture
def copy(planes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planes, tmp_path / "shards"))


@pytest.fixture(scope="session")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sets without depth; read only."""
    shards = tmp_path_factory.mktemp("bare-planes") / "shards"
    pack(source, shards, PackOptions(sets_per_shard=16, workers=1, codec="planes", size=16, depth=False))
    return shards


def test_dali_is_not_needed(packed: Path, planes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match="DALI is missing"):
        load(packed)
    assert len(sum(rows(load(planes)), [])) == 64


def test_every_set_comes_once_an_epoch_in_another_order(planes: Path) -> None:
    loader = load(planes)
    first, second = rows(loader), rows(loader)
    assert [len(batch) for batch in first] == [10, 10, 10, 10, 10, 10, 4]
    flat = [sum(epoch, []) for epoch in (first, second)]
    assert sorted(flat[0]) == sorted(flat[1])
    assert len(set(flat[0])) == 64
    assert flat[0] != flat[1]
    assert rows(load(planes)) == first


@pytest.mark.parametrize("settings", [{"threads": 3}, {"prefetch": 1}, {"prefetch": 20, "threads": 2}])
def test_threads_and_prefetch_change_no_bit(settings: dict[str, Any], planes: Path) -> None:
    for one, other in zip(load(planes), load(planes, **settings), strict=True):
        assert equal(one, other)


@pytest.mark.parametrize("world", [1, 3])
def test_resuming_at_any_step_on_any_ranks_gives_the_same_bits(world: int, planes: Path) -> None:
    expected = list(load(planes))
    for step in range(len(expected)):
        left = load(planes)
        for _, _ in zip(range(step), left, strict=False):
            pass
        state = left.state_dict()
        shares = []
        for rank in range(world):
            loader = load(planes, rank=rank, world=world)
            loader.load_state_dict(state)
            shares.append(list(loader))
        for batch, *parts in zip(expected[step:], *shares, strict=True):
            for name in ("bg", "fg_bg", "mask", "depth", "index"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_ranks_without_a_share_get_an_empty_batch(planes: Path) -> None:
    last = [list(load(planes, rank=rank, world=9))[-1] for rank in range(9)]
    assert sorted(len(batch.index) for batch in last) == [0] * 5 + [1] * 4
    for batch in last:
        assert batch.depth is not None
        assert batch.bg.shape == batch.fg_bg.shape == batch.depth.shape == (len(batch.index), 1, 16, 16)


def test_parts_are_in_one_piece_and_in_memory_of_their_own(planes: Path) -> None:
    loader = load(planes)
    batches = list(loader)
    before = [batch.head(len(batch.index)) for batch in batches]
    for batch in batches:
        for part in batch.asdict().values():
            assert part.is_contiguous()
    next(iter(loader))
    assert all(equal(one, other) for one, other in zip(batches, before, strict=True))


def test_without_depth_all_else_is_the_same(planes: Path, bare: Path) -> None:
    for shards in (planes, bare):
        for one, other in zip(load(shards, depth=False, shuffle=False), load(planes, shuffle=False), strict=True):
            assert one.depth is None
            assert equal(one, other, depth=False)
    with pytest.raises(InputError, match="have no depth: add it"):
        load(bare)


def test_another_size_is_an_error_with_the_remedy(planes: Path) -> None:
    with pytest.raises(InputError) as error:
        load(planes, size=32)
    expected = (
        f"{planes} holds planes of 16 x 16 pixels, size 32 was asked for: ask for 16, or pack again with --size 32"
    )
    assert str(error.value) == expected


@pytest.mark.parametrize("depth", [True, False])
def test_picked_sets_are_those_of_the_batches_in_the_order_asked_for(depth: bool, planes: Path) -> None:
    loader = load(planes, depth=depth)
    everything = next(iter(load(planes, "all", batch_size=100, depth=depth, shuffle=False)))
    asked = [99, 3, 50, 3, *range(20)]
    picked = loader.pick(asked)
    expected: dict[str, Any] = {n: p[torch.tensor(asked)] for n, p in everything.asdict().items()}
    assert equal(picked, Batch(**{"depth": None, **expected}), depth=depth)


def test_picking_and_siblings_do_not_disturb_what_is_read_ahead(planes: Path) -> None:
    expected = list(load(planes))
    loader = load(planes, prefetch=3)
    for number, batch in enumerate(loader):
        assert equal(batch, expected[number])
        assert len(rows(loader.sibling("all", shuffle=False))) == 10
        assert loader.pick([number]).index.tolist() == [number]


def test_every_flipped_bit_leaves_the_set_out_by_name(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = load_index(copy, Manifest.load(copy))
    start, size = int(index["offset"][50][0]), int(index["size"][50][0])
    clean = next(iter(load(copy, "all", batch_size=100, shuffle=False)))
    expected = f"{index['key'][50].decode()}: planes in sets-000003.tar is damaged (CRC differs)"
    kept = [row for row in range(100) if row != 50]
    for offset in np.linspace(start, start + size - 1, 20).astype(int):
        flip_bit(copy / "sets-000003.tar", offset)
        loader = load(copy, "all", batch_size=100, shuffle=False)
        with caplog.at_level(logging.WARNING):
            [batch] = loader
        assert loader.quarantined == [expected]
        assert all(torch.equal(getattr(batch, name), part[kept]) for name, part in clean.asdict().items())
        flip_bit(copy / "sets-000003.tar", offset)
    with pytest.raises(InputError, match="copy it again"):
        flip_bit(copy / "sets-000003.tar", start)
        load(copy).pick([50])


def test_a_batch_that_is_all_damaged_is_empty(copy: Path) -> None:
    index = load_index(copy, Manifest.load(copy))
    for row in range(10, 20):
        flip_bit(copy / f"sets-{index['shard'][row]:06}.tar", int(index["offset"][row][0]) + 5)
    sizes = [len(batch.index) for batch in load(copy, "all", shuffle=False, max_bad_share=0.5)]
    assert sizes == [10, 0, *[10] * 8]


def test_too_much_damage_stops_the_run(copy: Path) -> None:
    os.truncate(copy / "sets-000002.tar", 3000)
    with pytest.raises(InputError, match=r"sets \(split all\) are damaged.*sets-000002\.tar"):
        rows(load(copy, "all"))


def test_a_damaged_background_is_an_error(copy: Path) -> None:
    flip_bit(copy / "backgrounds.tar", Manifest.load(copy).backgrounds[4].offset + 20)
    with pytest.raises(InputError, match=r"background 4 is damaged"):
        load(copy)


def test_a_frame_that_was_packed_wrong_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def wrong(*arguments: np.ndarray) -> bytes:
        nonlocal calls
        calls += 1
        return encode_set(*arguments)[:-2] if calls == 42 else encode_set(*arguments)

    monkeypatch.setattr("pipeline.packing.encode_planes.encode_set", wrong)
    monkeypatch.setattr("pipeline.packing.finalize.write_preview", lambda *_: None)
    pack(source, tmp_path / "shards", PackOptions(workers=1, codec="planes", size=16))
    loader = load(tmp_path / "shards", "all", max_bad_share=0.02)
    assert sorted(sum(rows(loader), [])) == [row for row in range(loader.sets) if row != 41]
    [found] = loader.quarantined
    assert re.fullmatch(rf"{loader.key(41)}: planes in sets-000000\.tar cannot be decoded \([^\n]+\)", found)
    with pytest.raises(InputError, match=f"{re.escape(found)}: pack again with --verify decode"):
        loader.pick([40, 41])
    loader.close()


def test_a_run_that_is_left_before_its_end_leaves_no_threads(planes: Path) -> None:
    before = threading.active_count()
    loader = load(planes, "all", batch_size=4, threads=2, prefetch=4)
    for _ in range(3):
        run = iter(loader)
        next(run)
        assert threading.active_count() > before
        run.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (2, 1)


def test_depth_by_a_teacher_needs_the_pictures(planes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds planes, which lack the pictures' colours"):
        rewrite_with_depth(planes, tmp_path / "new", None, None)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives(planes: Path) -> None:
    for one, other in zip(load(planes, device="gpu"), load(planes, device="cpu"), strict=True):
        for name, part in one.asdict().items():
            assert part.is_cuda
            assert torch.equal(part.cpu(), getattr(other, name))
