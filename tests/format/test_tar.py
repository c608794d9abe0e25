import hashlib
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from nvidia.dali import Pipeline, fn
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.images import decode_rgb
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.sample import PARTS
from pipeline.format.tar import TarWriter, tar_header
from pipeline.loading.shard_reader import ShardReader


def tars(shards: Path) -> list[Path]:
    found = sorted(shards.glob("sets-*.tar"))
    assert len(found) == 7  # 100 sets, 16 each
    return found


def test_tar_and_tarfile_read_every_shard(packed: Path) -> None:
    manifest = Manifest.load(packed)
    index = load_index(packed, manifest)
    store = ShardReader(packed, manifest, index)
    members: dict[str, bytes] = {}
    for path in tars(packed):
        listed = subprocess.run(["tar", "tf", path], check=True, capture_output=True, text=True).stdout.split()
        with tarfile.open(path) as archive:
            assert archive.getnames() == listed
            for info in archive:
                content = archive.extractfile(info)
                assert content is not None
                members[info.name] = content.read()
    assert len(members) == 400
    for row in range(len(index)):
        for part, picture in zip(PARTS, store.read(row), strict=True):
            assert members[f"{store.key(row)}.{part}.jpg"] == picture.tobytes()


def test_stock_webdataset_reads_every_shard(packed: Path) -> None:
    urls = [str(path) for path in tars(packed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the closing of files to the collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    index = load_index(packed, Manifest.load(packed))
    assert [sample["__key__"].encode() for sample in samples] == index["key"].tolist()
    for sample, bg, fg in zip(samples, index["bg"], index["fg"], strict=True):
        assert (sample["json"]["bg"], sample["json"]["fg"]) == (bg, fg)
        assert isinstance(sample["fg_bg.jpg"], Image.Image)


def test_dalis_reader_reads_every_shard_through_our_idx(packed: Path) -> None:
    paths = tars(packed)
    graph = Pipeline(batch_size=50, num_threads=1, device_id=None)
    with graph:
        parts: Any = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=[*(f"{part}.jpg" for part in PARTS), "json"],
            tensor_init_bytes=32768,
        )
        graph.set_outputs(*parts)
    manifest = Manifest.load(packed)
    store = ShardReader(packed, manifest, load_index(packed, manifest))
    for row in range(manifest.sets):
        if row % 50 == 0:
            outputs = graph.run()
        for output, content in zip(outputs, store.read(row), strict=False):
            assert np.array_equal(output.at(row % 50), content)


def test_our_idx_is_the_one_that_dalis_tool_writes(packed: Path, tmp_path: Path) -> None:
    for path in tars(packed):
        subprocess.run(
            [Path(sys.executable).parent / "wds2idx", path, tmp_path / "their.idx"], check=True, capture_output=True
        )
        assert path.with_suffix(".idx").read_text() == (tmp_path / "their.idx").read_text()


def test_backgrounds_are_a_tar_too(packed: Path) -> None:
    with tarfile.open(packed / "backgrounds.tar") as archive:
        assert archive.getnames() == [f"bg_{bg:03}.bg.jpg" for bg in range(10)]
        content = archive.extractfile("bg_003.bg.jpg")
        assert content is not None
        assert decode_rgb(content.read()).shape == (48, 48, 3)


def test_headers_are_those_of_the_standard_library() -> None:
    for name, size in [("a.jpg", 0), ("fg_000_bg_005_000003.fg_bg.jpg", 123_456_789), ("x" * 100, 8**11 - 1)]:
        info = tarfile.TarInfo(name)
        info.size = size
        ours = tarfile.TarInfo.frombuf(tar_header(name, size), "utf-8", "strict")
        assert (ours.name, ours.size, ours.mode, ours.mtime, ours.uid, ours.gid) == (name, size, 0o644, 0, 0, 0)
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="name too long for a tar member \\(101 bytes"):
        tar_header("x" * 101, 1)


def test_nothing_appears_before_it_is_complete(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with TarWriter(tmp_path / "a.tar") as writer:
            writer.add("k", [("txt", b"1")])
            assert not (tmp_path / "a.tar").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_frozen(tmp_path: Path) -> None:
    # Golden: the same input gives the same shards under any later version, or it is another format version.
    with TarWriter(tmp_path / "a.tar") as writer:
        members = writer.add("fg_000_bg_005_000003", [("fg_bg.jpg", b"abc"), ("json", b"{}")])
    assert writer.sha256 == "21fe37889483a476562f04d18e26737852c4a1741a74abb04d923ba8a311b7d3"
    assert writer.sha256 == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert [(member.offset, member.size) for member in members] == [(512, 3), (1536, 2)]
