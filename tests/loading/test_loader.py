import copy as copying
import gc
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.batch import Batch
from pipeline.loading.config import LoaderConfig
from pipeline.loading.loader import Loader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.loading.test_decode import FailingGraph
from tests.loading.test_shard_reader import flip_bit
from tests.samples import set_paths

BATCH, SIZE = 10, 16


def load(shards: Path, split: str = "train", **settings: Any) -> Loader:
    values: dict[str, Any] = {"batch_size": BATCH, "size": SIZE, "device": "cpu", "threads": 1}
    return Loader(shards, split, **(values | settings))


def rows(loader: Loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def equal(one: Batch, other: Batch, *, depth: bool = True) -> bool:
    names = ("bg", "fg_bg", "mask", "index", *(["depth"] if depth else []))
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def test_batches_hold_the_pictures_of_their_sets(source: Path, packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    loader = load(packed, "all")
    for batch in loader:
        for position, row in enumerate(batch.index.tolist()):
            bg, fg = int(index["bg"][row]), int(index["fg"][row])
            files = [f"bg/bg_{bg:03}.jpg", *set_paths(bg, fg, bg * 10 + fg)]
            for name, path in zip(("bg", "fg_bg", "mask", "depth"), files, strict=True):
                picture = getattr(batch, name)[position]
                assert (picture.dtype, picture.shape) == (torch.uint8, (1, SIZE, SIZE))
                gray = Image.open(source / path).convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                difference = np.abs(picture[0].numpy().astype(int) - np.asarray(gray))
                # At the border DALI's antialiasing filter repeats the edge, Pillow's leaves the outside out.
                assert difference[1:-1, 1:-1].max() <= 3
                assert difference.max() <= 6


def test_every_set_comes_once_an_epoch_in_another_order(packed: Path) -> None:
    loader = load(packed)
    assert (loader.sets, len(loader)) == (64, 7)
    first, second = rows(loader), rows(loader)
    assert [len(batch) for batch in first] == [10, 10, 10, 10, 10, 10, 4]
    flat = [sum(epoch, []) for epoch in (first, second)]
    assert sorted(flat[0]) == sorted(flat[1])
    assert len(set(flat[0])) == 64
    assert flat[0] != flat[1] != sorted(flat[1])
    assert loader.epoch == 2
    assert rows(load(packed)) == first
    assert rows(load(packed, seed=1)) != first
    assert sum(rows(load(packed, shuffle=False)), []) == sorted(flat[0])


@pytest.mark.parametrize("worlds", [(1, 1), (2, 2), (3, 3), (4, 4), (1, 3), (4, 2)])
def test_resuming_at_any_step_on_any_ranks_equals_not_stopping(worlds: tuple[int, int], packed: Path) -> None:
    undisturbed = load(packed, batch_size=22)  # 3 batches of 64 sets, the last of 20
    expected = [*rows(undisturbed), *rows(undisturbed)]

    def on_ranks(
        world: int, state: dict[str, int | str] | None, steps: int
    ) -> tuple[list[list[int]], dict[str, int | str]]:
        shares, states = [], []
        for rank in range(world):
            loader = load(packed, batch_size=22, rank=rank, world=world)
            if state is not None:
                loader.load_state_dict(state)
            share: list[list[int]] = []
            while len(share) < steps:
                for batch in loader:
                    share.append(batch.index.tolist())
                    if len(share) == steps:
                        break
            shares.append(share)
            states.append(loader.state_dict())
        assert states == [states[0]] * world
        return [sum(parts, []) for parts in zip(*shares, strict=True)], states[0]

    for step in range(1, len(expected)):
        before, state = on_ranks(worlds[0], None, step)
        after, _ = on_ranks(worlds[1], state, len(expected) - step)
        assert before + after == expected


def test_a_batch_larger_than_the_split_is_the_split(packed: Path) -> None:
    loader = load(packed, batch_size=1000)
    for _ in range(2):
        [batch] = loader
        assert len(set(batch.index.tolist())) == len(batch.bg) == 64


@pytest.mark.parametrize("window", [1, 2, 5])
def test_in_windows_every_set_comes_once_from_few_shards_at_a_time(window: int, packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    loader = load(packed, "all", batch_size=4, window=window)
    for _ in range(2):
        seen = rows(loader)
        assert sorted(sum(seen, [])) == list(range(100))
        assert sum(seen, []) != list(range(100))
        shards = [set(index["shard"][batch].tolist()) for batch in seen]
        assert max(map(len, shards)) <= 2 * window  # a batch may end all that is read from, and begin other shards
        resumed = load(packed, "all", batch_size=4, window=window)
        resumed.load_state_dict({**resumed.state_dict(), "epoch": loader.epoch - 1, "position": 11})
        assert rows(resumed) == seen[11:]


def test_pictures_after_resuming_are_the_same_bits(packed: Path) -> None:
    batches = list(load(packed))
    loader = load(packed)
    loader.load_state_dict({**loader.state_dict(), "position": 3})
    assert all(equal(one, other) for one, other in zip(loader, batches[3:], strict=True))


def test_ranks_without_a_share_get_an_empty_batch(packed: Path) -> None:
    last = [list(load(packed, rank=rank, world=9))[-1] for rank in range(9)]
    assert sorted(len(batch.index) for batch in last) == [0] * 5 + [1] * 4
    for batch in last:
        assert batch.depth is not None
        assert batch.bg.shape == batch.depth.shape == (len(batch.index), 1, SIZE, SIZE)


@pytest.mark.parametrize("split", ["train", "all"])
def test_without_depth_all_else_is_the_same(split: str, packed: Path, bare: Path) -> None:
    for shards in (packed, bare):
        for one, other in zip(
            load(shards, split, depth=False, shuffle=False), load(packed, split, shuffle=False), strict=True
        ):
            assert one.depth is None
            assert other.depth is not None
            assert equal(one, other, depth=False)
    assert rows(load(packed, depth=False)) == rows(load(packed))


def test_depth_that_is_not_there_is_named_with_both_remedies(bare: Path) -> None:
    with pytest.raises(InputError) as error:
        load(bare)
    expected = f"the sets of {bare} have no depth: add it (fgbg-depth {bare} --model FILE.onnx --shards NEW), "
    assert str(error.value) == f"{expected}or train the mask alone (--no-depth)"


def test_damaged_depth_matters_only_to_those_who_ask_for_it(copy: Path) -> None:
    index = load_index(copy, Manifest.load(copy))
    flip_bit(copy / "sets-000003.tar", int(index["offset"][50][2]) + 30)
    with_depth, without = (load(copy, "all", depth=depth) for depth in (True, False))
    assert 50 not in sum(rows(with_depth), [])
    assert 50 in sum(rows(without), [])
    assert (len(with_depth.quarantined), without.quarantined) == (1, [])


def test_a_sibling_is_a_loader_of_its_own_but_for_the_bank(packed: Path, copy: Path) -> None:
    index = load_index(copy, Manifest.load(copy))
    loader = load(copy, max_bad_share=0.5)
    first = iter(loader)
    next(first)
    everything, of_train, of_val = (set(sum(rows(load(packed, split)), [])) for split in ("all", "train", "val"))
    row = min(everything - of_train - of_val)  # `loader` reads those of train ahead, at any time
    flip_bit(copy / f"sets-{index['shard'][row]:06}.tar", int(index["offset"][row][0]) + 30)
    before = loader.state_dict()
    for split, shuffle in (("train", True), ("all", False), ("val", True)):
        sibling, alone = loader.sibling(split, shuffle=shuffle), load(packed, split, shuffle=shuffle)
        assert sibling.state_dict() == alone.state_dict()
        assert sibling.sets == alone.sets
        seen = sum(rows(sibling), [])
        assert seen == [other for other in sum(rows(alone), []) if other != row]
        assert sibling.epoch == 1
    assert (loader.state_dict(), loader.quarantined) == (before, [])
    assert sum(1 for _ in first) == len(loader) - 1
    with pytest.raises(InputError, match="no split called 'none'"):
        loader.sibling("none")


def test_a_sibling_of_picked_rows_yields_these_alone(packed: Path) -> None:
    loader = load(packed)
    assert loader.rows().tolist() == sorted(sum(rows(load(packed)), []))
    picked = loader.rows()[[1, 2, 17, 30, 63]]
    sibling = loader.sibling("train", shuffle=False, picked=picked)
    assert (sibling.sets, sibling.rows().tolist()) == (5, picked.tolist())
    assert rows(sibling) == [picked.tolist()]
    shuffled = sum(rows(loader.sibling("train", picked=picked)), [])
    assert sorted(shuffled) == picked.tolist()
    with pytest.raises(InputError, match=r"no set of .* is in the split train"):
        loader.sibling("train", picked=picked[:0])
    with pytest.raises(InputError, match="loader state has split"):
        sibling.load_state_dict(loader.sibling("train", picked=picked + 1).state_dict())


@pytest.mark.parametrize("depth", [True, False])
def test_picked_sets_are_those_of_the_batches_in_the_order_asked_for(depth: bool, packed: Path) -> None:
    loader = load(packed, depth=depth)
    everything = next(iter(load(packed, "all", batch_size=100, depth=depth, shuffle=False)))
    asked = [99, 3, 50, 3, *range(20)]  # some more than a batch, of any split, one twice
    picked = loader.pick(asked)
    expected: dict[str, Any] = {n: p[torch.tensor(asked)] for n, p in everything.asdict().items()}
    assert equal(picked, Batch(**{"depth": None, **expected}), depth=depth)
    assert loader.state_dict() == load(packed).state_dict()
    assert [loader.key(row).split("_")[-1] for row in asked] == [f"{number:06}" for number in numbers(packed, asked)]


def numbers(shards: Path, asked: list[int]) -> list[int]:
    index = load_index(shards, Manifest.load(shards))
    return [int(index["bg"][row]) * 10 + int(index["fg"][row]) for row in asked]


def test_a_damaged_set_that_is_picked_is_an_error(copy: Path) -> None:
    index = load_index(copy, Manifest.load(copy))
    flip_bit(copy / "sets-000003.tar", int(index["offset"][50][1]) + 30)
    with pytest.raises(InputError, match=r"mask in sets-000003\.tar is damaged \(CRC differs\): copy it again"):
        load(copy).pick([49, 50])


def test_the_head_of_a_batch_has_memory_of_its_own(packed: Path) -> None:
    batch = next(iter(load(packed, depth=False)))
    head, expected = batch.head(3), batch.bg[:3].clone()
    batch.bg.zero_()
    assert torch.equal(head.bg, expected)
    assert (len(head.fg_bg), len(head.mask), len(head.index), head.depth) == (3, 3, 3, None)


def test_a_damaged_set_is_left_out_by_name(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = load_index(copy, Manifest.load(copy))
    flip_bit(copy / "sets-000003.tar", int(index["offset"][50][1]) + 30)
    loader = load(copy, "all", max_bad_share=0.01)
    with caplog.at_level(logging.WARNING):
        seen = [sum(rows(loader), []), sum(rows(loader), [])]
    assert [sorted(epoch) for epoch in seen] == [[row for row in range(100) if row != 50]] * 2
    key = index["key"][50].decode()
    assert loader.quarantined == [f"{key}: mask in sets-000003.tar is damaged (CRC differs)"]
    assert len(caplog.records) == 1  # once, not once an epoch
    undamaged = load(copy, "all")
    assert equal(next(iter(undamaged)), next(iter(load(copy, "all"))))


def test_a_batch_that_is_all_damaged_is_empty(copy: Path) -> None:
    index = load_index(copy, Manifest.load(copy))
    for row in range(10, 20):
        flip_bit(copy / f"sets-{index['shard'][row]:06}.tar", int(index["offset"][row][0]) + 30)
    sizes = [len(batch.index) for batch in load(copy, "all", shuffle=False, max_bad_share=0.5)]
    assert sizes == [10, 0, *[10] * 8]


def test_too_much_damage_stops_the_run_and_names_the_worst_shard(copy: Path) -> None:
    os.truncate(copy / "sets-000002.tar", 3000)
    with pytest.raises(
        InputError,
        match=r"^2 of 100 sets \(split all\) are damaged, at most 1\.0% may be; 2 of them in sets-000002\.tar",
    ):
        rows(load(copy, "all"))


def test_a_fault_of_the_machine_is_no_damaged_picture(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, picture, machine = load(packed, "all"), "Failed to decode sample #0 : ", "CUDA runtime API error"
    for said in ([machine], [picture, machine]):  # of the batch; of its sets one by one
        graphs = iter([FailingGraph(RuntimeError(words)) for words in said])
        monkeypatch.setattr("pipeline.loading.decode.build_graph", lambda *_, graphs=graphs: next(graphs))
        with pytest.raises(RuntimeError, match=rf"^{machine}$"):
            loader.pick([0, 1])
        assert next(graphs, None) is None
    monkeypatch.setattr("pipeline.loading.decode.build_graph", lambda *_: FailingGraph(RuntimeError(machine)))
    with pytest.raises(RuntimeError, match=rf"^{machine}$"):  # at the backgrounds
        load(packed, "all")


def test_state_of_something_else_is_refused(packed: Path, copy: Path) -> None:
    state = load(packed).state_dict()
    for other, name in [
        (load(packed, "val"), "split 'train', this loader 'val'"),
        (load(packed, seed=3), "seed 0, this loader 3"),
        (load(packed, batch_size=9), "batch_size 10, this loader 9"),
    ]:
        with pytest.raises(InputError, match=f"loader state has {name}"):
            other.load_state_dict(state)
    with pytest.raises(InputError, match="loader state has manifest 'x'"):
        load(packed).load_state_dict({**state, "manifest": "x"})
    with pytest.raises(InputError, match="loader state has version None"):
        load(packed).load_state_dict({})
    with pytest.raises(InputError, match="loader state has version 2, this loader 3"):
        load(packed, window=2).load_state_dict(state)
    with pytest.raises(InputError, match="loader state has version 3, this loader 2"):
        load(packed).load_state_dict(load(packed, window=2).state_dict())
    with pytest.raises(InputError, match="loader state has window 2, this loader 3"):
        load(packed, window=3).load_state_dict(load(packed, window=2).state_dict())
    before_lanes = {**load(packed, window=2).state_dict(), "version": 2}
    for window in (None, 2):
        with pytest.raises(InputError, match="state has an order in windows of 2 that this fgbg no longer has"):
            load(packed, window=window).load_state_dict(before_lanes)
    for wrong in ({"position": 7}, {"position": -1}, {"epoch": -1}):
        with pytest.raises(InputError, match="loader state is damaged: epoch"):
            load(packed).load_state_dict({**state, **wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size 0, rank 0 of 1"),
        ({"world": 11}, "rank 0 of 11"),
        ({"rank": 1}, "rank 1 of 1"),
        ({"size": 0}, "size 0"),
        ({"threads": 0}, "threads 0"),
        ({"resident_share": 0.0}, "resident_share 0"),
        ({"hw_decoder_load": 1.5}, "hw_decoder_load 1.5"),
        ({"max_bad_share": -1.0}, "max_bad_share -1"),
        ({"window": -1}, "window -1: expected 1 or more shards"),
        ({"readers": 0}, "readers 0"),
        ({"resident": "disk"}, "'disk'"),
        ({"split": "nope"}, "no split called 'nope'"),
        ({"device": "npu"}, "no device called 'npu'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str, packed: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(packed, **settings)


def test_an_empty_split_says_so(s15: Path, tmp_path: Path) -> None:
    pack(s15, tmp_path / "shards", PackOptions(workers=1))
    with pytest.raises(InputError, match=r"no set of .* is in the split test \(4 sets on 10 backgrounds\)"):
        load(tmp_path / "shards", "test")


def test_magma_depth_comes_out_linear_with_the_near_road_bright(s15: Path, tmp_path: Path) -> None:
    pack(s15, tmp_path / "shards", PackOptions(workers=1))
    loader = load(tmp_path / "shards", "all", size=256, shuffle=False)
    [batch] = loader
    assert batch.depth is not None
    index = load_index(tmp_path / "shards", Manifest.load(tmp_path / "shards"))
    magma = colormaps["magma"](np.arange(256))[:, :3] * 255
    for position, row in enumerate(batch.index.tolist()):
        depth = batch.depth[position, 0].numpy()
        assert depth[-20:].mean() > 240 > 120 > depth[:128].mean()
        bg, fg = int(index["bg"][row]), int(index["fg"][row])
        [path] = (s15 / f"fg_bg/bg_{bg:03}").glob(f"fg_{fg:03}*_disp.jpeg")
        colours = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        nearest = ((colours[:, :, None] - magma) ** 2).sum(axis=3).argmin(axis=2)  # matplotlib's map, inverted slowly
        error = (depth - nearest) / 255
        assert np.sqrt((error**2).mean()) < 0.015
        assert abs(error.mean()) < 0.005


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives(packed: Path) -> None:
    on_gpu, on_cpu = load(packed, device="gpu"), load(packed, device="cpu")
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(one.index.cpu(), other.index)
        for name in ("bg", "fg_bg", "mask", "depth"):
            picture = getattr(one, name)
            assert picture.is_cuda
            difference = (picture.cpu().int() - getattr(other, name).int()).abs()
            assert difference.max() <= 3  # decoders and resize kernels round differently
            assert difference.float().mean() < 0.5


def test_an_iteration_that_was_left_is_followed_by_the_whole_next_epoch(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(3)]
    for batch in loader:
        assert batch.index.tolist() == epochs[0][0]
        break
    assert loader.state_dict() == {**expected.state_dict(), "epoch": 0, "position": 1}  # until the next begins
    assert rows(loader) == epochs[1]
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 5})
    assert [rows(loader), rows(loader)] == [epochs[1][5:], epochs[2]]


def test_an_epoch_that_is_set_comes_whole(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(4)]
    loader.set_epoch(3)
    assert rows(loader) == epochs[3]
    loader.set_epoch(1)
    next(iter(loader))
    loader.set_epoch(1)
    assert rows(loader) == epochs[1]
    with pytest.raises(InputError, match="epoch -1: expected 0 or more"):
        loader.set_epoch(-1)


def test_setting_the_epoch_that_comes_next_loses_nothing_that_was_made_ahead(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(packed)
    rows(loader)
    running = loader._running
    monkeypatch.setattr(loader, "close", None)
    loader.set_epoch(1)  # as trainers do before each epoch
    assert running is not None
    assert loader._running is running


def test_leaving_a_with_block_ends_its_threads(packed: Path) -> None:
    with load(packed, resident="auto") as loader:
        next(iter(loader))
        rows(loader)
        assert loader._running is not None
    assert loader._running is None


def test_shards_are_named_by_text_or_path_and_devices_as_torch_does(packed: Path) -> None:
    expected = rows(load(packed))
    assert rows(Loader(str(packed), batch_size=BATCH, size=SIZE, device=torch.device("cpu"))) == expected
    assert rows(Loader(packed, "train", batch_size=BATCH, size=SIZE, device="cpu")) == expected


def test_settings_come_in_a_config_too_and_those_by_name_win(packed: Path) -> None:
    config = LoaderConfig(batch_size=BATCH, size=SIZE, seed=3)
    assert rows(Loader(packed, "train", config)) == rows(load(packed, seed=3))
    assert rows(Loader(packed, config=config, seed=4)) == rows(load(packed, seed=4))


@pytest.mark.parametrize(
    ("name", "value"), [("size", 64.5), ("batch_size", "8"), ("seed", None), ("threads", 2.0), ("readers", None)]
)
def test_numbers_that_are_not_whole_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} .*: expected a whole number$"):
        LoaderConfig(**{name: value})


def test_setting_the_epoch_of_a_loaded_state_keeps_its_place(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(3)]
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 4})
    loader.set_epoch(1)
    assert rows(loader) == epochs[1][4:]
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 4})
    loader.set_epoch(2)
    assert rows(loader) == epochs[2]


def test_a_setting_by_another_name_is_refused(packed: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        load(packed, batchsize=3)


def test_a_batch_can_be_moved_and_unpacked(packed: Path, bare: Path) -> None:
    [batch] = load(packed, "val")
    assert (len(batch), set(batch.asdict())) == (1, {"bg", "fg_bg", "mask", "depth", "index"})
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.asdict().values()} == {"meta"}
    assert {tensor.device.type for tensor in batch.asdict().values()} == {"cpu"}
    [without] = load(bare, "val", depth=False)
    assert set(without.asdict()) == {"bg", "fg_bg", "mask", "index"}
    assert without.to("meta").depth is None
    whole = next(iter(load(packed)))
    assert equal(whole.head(3), Batch(**{name: tensor[:3] for name, tensor in whole.asdict().items()}))


def test_the_public_names_come_in_one_import() -> None:
    import pipeline

    assert pipeline.Loader is Loader
    assert pipeline.Batch is Batch
    assert {"Augmentation", "LoaderConfig"} <= set(pipeline.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loader_'"):
        pipeline.loader_  # noqa: B018


def test_the_epoch_is_that_of_the_next_batch_everywhere(packed: Path) -> None:
    loader, last = load(packed), len(load(packed)) - 1
    for number, _ in enumerate(loader):
        assert loader.epoch == (number == last)
    assert loader.epoch == 1
    for _ in zip(range(2), loader, strict=False):  # two batches of a validation that is but tried
        assert loader.epoch == 1
    assert loader.epoch == 2
    seen, expected = rows(loader), load(packed)
    expected.set_epoch(2)
    assert seen == rows(expected)
    with pytest.raises(ValueError, match="of the user"):
        for _ in loader:
            raise ValueError("of the user")
    with pytest.raises(AttributeError):
        loader.epoch = 7  # type: ignore[misc]
    loader.set_epoch(7)
    assert loader.epoch == 7


def test_an_epoch_set_within_an_iteration_is_that_of_the_next(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(5)]
    for when, following in ((0, 4), (len(loader) - 1, 2), (3, 1)):
        current, seen = loader.epoch, list[list[int]]()
        for number, batch in enumerate(loader):
            if number == when:
                loader.set_epoch(following)
            seen.append(batch.index.tolist())
        assert seen == epochs[current]
        assert loader.epoch == following
    next(held := iter(loader))
    loader.set_epoch(3)
    assert loader.epoch == 1  # of which `held` has the next batch
    assert next(held).index.tolist() == epochs[1][1]
    held.close()  # type: ignore[attr-defined]
    assert (loader.epoch, rows(loader), loader.epoch) == (3, epochs[3], 4)


def test_a_second_iteration_ends_the_first_and_never_mixes_with_it(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(3)]
    first, second = iter(loader), iter(loader)
    assert next(first).index.tolist() == epochs[0][0]
    assert next(second).index.tolist() == epochs[1][0]
    with pytest.raises(RuntimeError, match="another iteration of this loader has begun"):
        next(first)
    assert [batch.index.tolist() for batch in second] == epochs[1][1:]
    never_drawn = iter(loader)
    assert rows(loader) == epochs[2]
    del never_drawn


def test_a_state_loaded_within_an_iteration_ends_it(packed: Path) -> None:
    loader, expected = load(packed), load(packed)
    epochs = [rows(expected) for _ in range(2)]
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    next(running)
    loader.load_state_dict(state)
    with pytest.raises(RuntimeError, match="or a state was loaded"):
        next(running)
    assert (loader.epoch, loader.state_dict()) == (0, state)
    assert [rows(loader), rows(loader)] == [epochs[0][1:], epochs[1]]


def test_the_state_after_an_iteration_that_was_left_goes_on_where_it_was(packed: Path) -> None:
    loader, expected = load(packed), rows(load(packed))
    for _ in zip(range(3), loader, strict=False):
        pass
    assert loader.epoch == 1
    other = load(packed)
    other.load_state_dict(loader.state_dict())
    assert (other.epoch, rows(other), other.epoch) == (0, expected[3:], 1)


@pytest.mark.parametrize("copied", [copying.deepcopy, copying.copy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_is_a_loader_of_its_own_at_the_same_place(packed: Path, copied: Callable[[Loader], Loader]) -> None:
    expected = rows(load(packed))
    loader = load(packed)
    loader.load_state_dict({**loader.state_dict(), "position": 3})
    other = copied(loader)
    assert rows(other) == rows(loader) == expected[3:]
    descriptor = os.open(packed / "manifest.json", os.O_RDONLY)  # may get the number of one that was closed twice
    other.close()
    del other
    gc.collect()
    os.close(descriptor)
    assert len(rows(loader)) == len(expected)


def test_a_copy_of_some_rows_has_these_rows(packed: Path) -> None:
    some = load(packed).sibling("all", picked=np.array([2, 3, 50]), shuffle=False)
    assert rows(copying.deepcopy(some)) == [[2, 3, 50]]


@pytest.mark.parametrize("name", ["batch_size", "size", "seed", "readers", "threads", "prefetch", "window"])
def test_a_setting_that_would_overflow_is_refused(packed: Path, name: str) -> None:
    settings: dict[str, Any] = {"size": SIZE, name: 2**70}
    with pytest.raises(InputError, match=f"^{name} {2**70}: expected at most "):
        Loader(packed, **settings)


@pytest.mark.parametrize(
    "place", [{"epoch": "x"}, {"epoch": 1.5}, {"epoch": True}, {"position": None}, {"position": [0]}]
)
def test_a_state_of_other_kinds_is_one_line(packed: Path, place: dict[str, Any]) -> None:
    loader = load(packed)
    with pytest.raises(InputError, match="loader state is damaged: epoch "):
        loader.load_state_dict({**loader.state_dict(), **place})
