import errno
import functools
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import EstimateError, EstimateOptions
from pipeline.depth_estimation.shards import finish_with_depth, rewrite_with_depth
from pipeline.errors import AlreadyComplete, InputError
from pipeline.format.images import decode_gray, decode_rgb
from pipeline.format.manifest import BACKGROUNDS
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.parts import Part
from pipeline.resume import UNFINISHED
from pipeline.storage import Folder
from pipeline.workers import Progress
from tests.networks import WEIGHTS, weighted_sum
from tests.samples import files_below

OPTIONS = EstimateOptions(workers=2)


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> DepthModel:
    return DepthModel(weighted_sum(tmp_path_factory.mktemp("depth_model") / "net.onnx"), DepthModelSettings(), 4)


@pytest.fixture(scope="module")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets of `source` in shards of 30, without depth; read only."""
    shards = tmp_path_factory.mktemp("bare") / "shards"
    pack(source, shards, PackOptions(sets_per_shard=30, workers=1, depth=False))
    return shards


@pytest.fixture(scope="module")
def rewritten(bare: Path, depth_model: DepthModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes of them; read only."""
    shards = tmp_path_factory.mktemp("rewritten") / "shards"
    rewrite_with_depth(bare, shards, depth_model, OPTIONS)
    return shards


def test_the_same_sets_with_depth(bare: Path, rewritten: Path) -> None:
    old, new = ShardReader.open(bare), ShardReader.open(rewritten)
    assert (old.manifest.parts, new.manifest.parts) == (("fg_bg", "mask"), ("fg_bg", "mask", "depth"))
    assert (new.manifest.depth_encoding, new.manifest.depth_near) == ("gray", "bright")
    assert new.manifest.sizes == old.manifest.sizes | {"depth": {"min": [48, 48], "max": [48, 48]}}
    assert [shard.sets for shard in new.manifest.shards] == [30, 30, 30, 10]
    for column in ("key", "bg", "fg", "shard"):
        assert np.array_equal(old.index[column], new.index[column])
    for row in range(100):
        overlay, mask = (part.tobytes() for part in old.read(row))
        same_overlay, same_mask, depth = (part.tobytes() for part in new.read(row))
        assert (same_overlay, same_mask) == (overlay, mask)
        note, old_note = new.read_metadata(row), old.read_metadata(row)
        far, near = note.pop("depth_range")
        assert note == old_note
        output = decode_rgb(overlay) / 255 @ WEIGHTS
        assert np.allclose([far, near], [output.min(), output.max()], atol=0.01)
        assert np.abs(far + decode_gray(depth) / 255 * (near - far) - output).max() < 0.05
    for background in old.manifest.backgrounds:
        assert np.array_equal(old.read_background(background.id), new.read_background(background.id))
    batch = next(iter(Loader(rewritten, split="train", batch_size=8, size=32, device="cpu", seed=0)))
    assert batch.depth is not None
    assert batch.depth.shape == (8, 1, 32, 32)


def test_object_storage_gets_the_same_bytes(
    bare: Path, rewritten: Path, depth_model: DepthModel, tmp_path: Path
) -> None:
    """A folder behind the same seam."""
    rewrite_with_depth(bare, Folder(tmp_path), depth_model, OPTIONS)
    assert files_below(tmp_path) == files_below(rewritten)


def test_depth_that_is_there_is_replaced(packed: Path, depth_model: DepthModel, tmp_path: Path) -> None:
    rewrite_with_depth(packed, tmp_path / "shards", depth_model, OPTIONS)
    old, new = ShardReader.open(packed), ShardReader.open(tmp_path / "shards")
    for row in range(0, 100, 9):
        assert old.key(row) == new.key(row)
        pictures, before = new.read(row), old.read(row)
        assert [np.array_equal(a, b) for a, b in zip(pictures, before, strict=True)] == [True, True, False]
        assert np.abs(decode_rgb(pictures[0].tobytes()) @ WEIGHTS - decode_gray(pictures[2].tobytes())).std() < 60
    assert "depth_range" in new.read_metadata(0)


def test_a_full_disk_leaves_whole_shards_from_which_it_goes_on(
    bare: Path, rewritten: Path, depth_model: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, before, at = os.fsync, set[int](), 3
    while True:
        shards, syncs = tmp_path / f"{at}", list[int]()

        def full(descriptor: int, syncs: list[int] = syncs, at: int = at) -> None:
            syncs.append(descriptor)
            if len(syncs) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                rewrite_with_depth(bare, shards, depth_model, OPTIONS)
            except OSError:
                pass
            else:
                break
        for path, content in files_below(shards).items():
            assert UNFINISHED in path or content == files_below(rewritten)[path]
        other = DepthModel(depth_model.path, DepthModelSettings(near="low"), 4)
        if (shards / UNFINISHED).exists():
            with pytest.raises(InputError, match=r'holds an? \w+ fgbg-depth with near "high", now it is "low"'):
                rewrite_with_depth(bare, shards, other, OPTIONS)
        try:
            report = rewrite_with_depth(bare, shards, depth_model, OPTIONS)
        except AlreadyComplete:
            break
        before.add(report.sets_before)
        assert report.sets + report.sets_before == 100
        assert files_below(shards) == files_below(rewritten)
        at += 3
    assert {0, 30, 60, 90, 100} >= before >= {0, 30, 60, 90}


def test_batches_do_not_depend_on_what_is_done(
    bare: Path, rewritten: Path, tmp_path: Path, depth_model: DepthModel
) -> None:
    found, done = list[int](), list[int]()
    progress = Progress(sets_found=found.append, sets_done=done.append)
    rewrite_with_depth(bare, tmp_path / "shards", depth_model, EstimateOptions(workers=1), progress)
    assert files_below(tmp_path / "shards") == files_below(rewritten)
    assert found == [100]
    assert done == [*[4] * 7, 2] * 3 + [4, 4, 2]


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (0, r"fg_bg in sets-000001\.tar is damaged \(CRC differs\)"),
        (1, "mask in .*"),
        (2, r".*\.json in .* is damaged .*"),
    ],
)
def test_a_damaged_set_is_left_out_by_name(
    part: int, what: str, source: Path, depth_model: DepthModel, tmp_path: Path
) -> None:
    pack(source, tmp_path / "bare", PackOptions(sets_per_shard=30, workers=1, depth=False))
    store = ShardReader.open(tmp_path / "bare")
    with (tmp_path / "bare" / store.shard_name(33)).open("r+b") as tar:
        mask_end = int(store.index["offset"][33, 1] + store.index["size"][33, 1])
        tar.seek(int(store.index["offset"][33, part]) if part < 2 else -(-mask_end // 512) * 512)
        tar.write(b"damage")
    key = store.key(33)
    found = rf"^sets-000001\.tar/{key}: {what}: repair it, .* --skip-bad"
    new = tmp_path / "new"
    with pytest.raises(EstimateError, match=found):
        rewrite_with_depth(tmp_path / "bare", new, depth_model, OPTIONS)
    assert (new / "sets-000000.tar").exists()
    report = rewrite_with_depth(tmp_path / "bare", new, depth_model, EstimateOptions(skip_bad=True))
    assert (report.sets, report.sets_before) == (69, 30)
    store = ShardReader.open(new)
    assert [shard.sets for shard in store.manifest.shards] == [30, 29, 30, 10]
    assert key not in [store.key(row) for row in range(99)]
    [_, line] = (new / "problems.csv").read_text().splitlines()
    assert line.startswith(f"sets-000001.tar/{key},undecodable,")


def test_a_target_in_use_and_a_source_that_is_none(
    bare: Path, source: Path, depth_model: DepthModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is not empty"):
        rewrite_with_depth(bare, bare, depth_model, OPTIONS)
    with pytest.raises(InputError, match=r"no shards in .*: manifest\.json is missing"):
        rewrite_with_depth(source, tmp_path / "shards", depth_model, OPTIONS)
    assert not (tmp_path / "shards").exists()


def test_other_tools_read_the_json(rewritten: Path) -> None:
    with tarfile.open(rewritten / "sets-000000.tar") as tar:
        names = tar.getnames()
        assert [name.split(".", 1)[1] for name in names[:4]] == ["fg_bg.jpg", "mask.jpg", "depth.jpg", "json"]
        member = tar.extractfile(names[3])
        assert member is not None
        note = json.load(io.BytesIO(member.read()))
    assert list(note) == ["bg", "fg", "id", "depth_range"]


@pytest.mark.parametrize("behind_a_url", [False, True])
def test_parts_make_the_same_bytes(
    behind_a_url: bool, bare: Path, rewritten: Path, depth_model: DepthModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target, sets = Folder(tmp_path) if behind_a_url else tmp_path, list[int]()
    for number in (2, 0, 1):
        part = Part(number, 3)
        progress = Progress(sets_found=sets.append, sets_done=sets.append)
        report = rewrite_with_depth(bare, target, depth_model, OPTIONS, progress, part=part)
        assert report.part == (part, [2, 1, 1][number], 0, 4)
        if number == 0:
            assert (sets[-1], report.sets) == (2, 40), "of 30 sets of the first shard, and 10 of the last"
            with pytest.raises(InputError, match="1 of 4 shards are missing, of part 1 "):
                finish(bare, target, depth_model)
    again = rewrite_with_depth(bare, target, depth_model, OPTIONS, part=Part(0, 3))
    assert (again.sets, again.sets_before, again.part) == (0, 40, (Part(0, 3), 2, 2, 4))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # the network is not opened
    with pytest.raises(InputError, match=r"with size \[\d+, \d+\], now it is \[7, 7\]"):
        finish(bare, target, depth_model, (7, 7))
    assert finish(bare, target, depth_model) == 100
    assert {name: content for name, content in files_below(tmp_path).items() if name[0] != "."} == files_below(
        rewritten
    )
    for call in (finish, functools.partial(rewrite_with_depth, options=OPTIONS)):
        with pytest.raises(AlreadyComplete):
            call(bare, target, depth_model)


def finish(source: Path, target: Path | Folder, model: DepthModel, size: tuple[int, int] | None = None) -> int:
    return finish_with_depth(source, target, model.path, DepthModelSettings(size=size), OPTIONS.quality)


def test_a_damaged_background_is_told_before_the_work_and_parts_leave_it_to_the_finish(
    bare: Path, depth_model: DepthModel, tmp_path: Path
) -> None:
    spoilt = shutil.copytree(bare, tmp_path / "bare")
    with (spoilt / BACKGROUNDS).open("r+b") as tar:
        tar.seek(ShardReader.open(spoilt).manifest.backgrounds[0].offset)
        tar.write(b"damage")
    damaged = pytest.raises(InputError, match=r"backgrounds\.tar: background \d+ is damaged \(CRC differs\)")
    with damaged:
        rewrite_with_depth(spoilt, tmp_path / "whole", depth_model, OPTIONS, way=lambda *_: pytest.fail("it worked"))
    assert not (tmp_path / "whole").exists()
    assert rewrite_with_depth(spoilt, tmp_path / "parts", depth_model, OPTIONS, part=Part(0, 1)).sets == 100
    with damaged:
        finish(spoilt, tmp_path / "parts", depth_model)
    shutil.copy(bare / BACKGROUNDS, spoilt)
    assert finish(spoilt, tmp_path / "parts", depth_model) == 100
