import gc
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from pipeline.format.images import decode_gray
from pipeline.format.sample import UNKNOWN
from pipeline.loading.interop import _PillowDecoder, _read_ids, as_webdataset
from pipeline.loading.loader import Loader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.samples import write_sets

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SIZE = 16  # that of the planes


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Stock webdataset leaves the closing of files to the collector, which then warns: here, not in another test."""
    yield
    gc.collect()


def samples(shards: Path, split: str, **settings: Any) -> list[dict[str, Any]]:
    return list(as_webdataset(shards, split, size=SIZE, **settings))


@pytest.mark.parametrize("codec", ["packed", "planes"])
def test_samples_are_the_loaders_sets(codec: str, request: pytest.FixtureRequest) -> None:
    shards = request.getfixturevalue(codec)
    loader = Loader(shards, "train", batch_size=64, size=SIZE)
    [batch] = loader
    expected = {loader.key(row): number for number, row in enumerate(batch.index.tolist())}
    found = samples(shards, "train")
    assert sorted(sample["__key__"] for sample in found) == sorted(expected)
    for sample in found:
        for part in ("bg", "fg_bg", "mask", "depth"):
            plane, loaded = sample[part], getattr(batch, part)[expected[sample["__key__"]]]
            assert (plane.shape, plane.dtype) == ((1, SIZE, SIZE), torch.uint8)
            apart = (plane.int() - loaded.int()).abs().float()
            if codec == "planes":
                assert not apart.any()
            else:  # Pillow and DALI repeat the edge by different rules
                assert apart.mean() < 1
        bg, fg = (int(name) for name in re.findall(r"\d+", sample["__key__"])[1::-1])
        assert (sample["bg_id"], sample["fg_id"]) == (bg, fg)


def test_splits_part_the_sets_as_the_loader_does(packed: Path) -> None:
    for split in ("train", "val", "test", "val-cells", "all"):
        loader = Loader(packed, split, batch_size=100, size=SIZE)
        keys = {loader.key(row) for row in loader.rows().tolist()}
        assert {sample["__key__"] for sample in samples(packed, split)} == keys


def test_sets_without_depth_have_none(bare: Path) -> None:
    assert set(samples(bare, "val")[0]) == {"__key__", "bg_id", "fg_id", "bg", "fg_bg", "mask"}


def test_the_seed_decides_the_order_and_without_shuffling_sets_come_as_they_lie(packed: Path) -> None:
    def keys(**settings: Any) -> list[str]:
        return [sample["__key__"] for sample in samples(packed, "all", **settings)]

    loader = Loader(packed, "all", batch_size=100, size=SIZE, shuffle=False)
    assert keys(shuffle=False) == [loader.key(row) for row in range(100)]
    assert keys(seed=1) == keys(seed=1) != keys(seed=2) != keys(shuffle=False)
    assert sorted(keys()) == sorted(keys(seed=1))


def test_without_a_seed_each_epoch_has_another_order(packed: Path) -> None:
    pipeline = as_webdataset(packed, "all", size=SIZE)
    epochs = [[sample["__key__"] for sample in pipeline] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_it_is_a_stock_pipeline_that_a_data_loader_batches_in_workers(packed: Path) -> None:
    pipeline = as_webdataset(packed, "train", size=SIZE)
    assert isinstance(pipeline, webdataset.WebDataset)
    loader = DataLoader(pipeline, batch_size=16, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    assert sorted(key for batch in batches for key in batch["__key__"]) == sorted(
        sample["__key__"] for sample in samples(packed, "train")
    )
    assert {batch["mask"].shape[1:] for batch in batches} == {torch.Size([1, SIZE, SIZE])}
    assert np.isin(batches[0]["depth"].numpy(), np.arange(256)).all()


def test_what_cannot_be_is_refused_in_one_line(packed: Path, planes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split called 'peer-train' here"):
        as_webdataset(packed, "peer-train")
    with pytest.raises(InputError, match=r"holds planes of 16 pixels, size 128 was asked for"):
        as_webdataset(planes)
    with pytest.raises(InputError, match=str(tmp_path)):
        as_webdataset(tmp_path)


def test_depth_with_holes_says_where_it_was_measured(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    for path in source.rglob("*_disp.jpeg"):
        levels = decode_gray(path.read_bytes()).astype(np.float32)
        levels[6:30, 12:36] = np.nan
        np.save(path.with_suffix(".npy"), levels)
    for codec in ("jpeg", "planes"):
        shards = tmp_path / codec
        pack(source, shards, PackOptions(workers=1, codec=codec, size=SIZE))
        loader = Loader(shards, "all", batch_size=4, size=SIZE, shuffle=False, resident="host")
        for _ in range(2):  # the second epoch from what stayed in memory
            [batch] = loader
            assert batch.depth is not None
            assert batch.depth_valid is not None
            for sample, depth, valid in zip(
                samples(shards, "all", shuffle=False), batch.depth, batch.depth_valid, strict=True
            ):
                assert torch.equal(sample["depth_valid"], valid)
                assert (sample["depth"].int() - depth.int()).abs().float().mean() < 1
                assert 0.2 < (~valid).float().mean() < 0.3  # a quarter
        if codec == "jpeg":
            expected = batch
    assert batch.depth is not None
    assert expected.depth is not None
    assert torch.equal(batch.depth, expected.depth)  # planes are what the CPU loader makes of pictures


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"bg": null, "fg": 1}', b'{"bg": 1.5, "fg": 1}', b"[" * 100_000])
def test_a_set_that_is_damaged_is_named(text: bytes) -> None:
    with pytest.raises(InputError, match="k: its json is missing or damaged"):
        _read_ids({"__key__": "k", "json": text})
    with pytest.raises(InputError, match="k: its json is missing or damaged"):
        _read_ids({"__key__": "k"})
    assert _read_ids({"json": b'{"bg": 3, "fg": null}'})["fg_id"] == UNKNOWN


def test_a_set_without_a_picture_is_named(packed: Path) -> None:
    decoder = _PillowDecoder(packed, SIZE)
    for sample in ({"bg_id": 0, "fg_bg.jpg": b"?"}, {"bg_id": 0}, {"bg_id": 77}):
        with pytest.raises(InputError, match="k: its pictures are missing or damaged"):
            decoder({"__key__": "k", "fg_id": 0, **sample})


def test_a_manifest_without_its_shards_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | {"shards": []}))
    with pytest.raises(InputError, match=r"has 100 sets, 0 in its shards and 100 in index\.npy"):
        as_webdataset(folder)


def test_shards_behind_a_url_are_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"webdataset cannot read s3://bucket/shards: copy the shards to a folder"):
        as_webdataset("s3://bucket/shards")
