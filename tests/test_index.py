import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.index import Manifest, load_index


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def edit(folder: Path, changes: dict[str, object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | changes))


def test_the_manifest_survives_its_file(packed: Path) -> None:
    manifest = Manifest.load(packed)
    assert manifest.to_json() == (packed / "manifest.json").read_text()
    assert len(manifest.sha256) == 64
    assert "time" not in manifest.to_json()
    assert str(packed) not in manifest.to_json()


def test_the_index_tells_where_every_byte_is(packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    assert isinstance(index, np.memmap)
    shard, offset, size = index["shard"][50], index["offset"][50], index["size"][50]
    content = (packed / f"sets-{shard:06}.tar").read_bytes()
    assert [content[start : start + 3] for start in offset] == [b"\xff\xd8\xff"] * 3
    assert [content[start + length - 2 : start + length] for start, length in zip(offset, size, strict=True)] == (
        [b"\xff\xd9"] * 3
    )


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no shards in .*manifest\.json is missing; make them with fgbg-pack"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is fgbg-shards version 2; this fgbg reads fgbg-shards version 1"),
        ({"format": "tfrecord"}, "is tfrecord version 1; this fgbg reads"),
        ({"depth_encoding": "octarine"}, "depth octarine .* cannot read that"),
        ({"codec": "wavelets"}, "codec wavelets, .* cannot read that"),
        ({"shards": [{"name": "a"}]}, r"manifest\.json is damaged"),
        ({"surprise": 1}, r"manifest\.json is damaged"),
    ],
)
def test_manifests_of_another_kind(changes: dict[str, object], message: str, copy: Path) -> None:
    edit(copy, changes)
    with pytest.raises(InputError, match=message):
        Manifest.load(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff"])
def test_a_manifest_that_is_none(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*: rebuild it from the tars"):
        Manifest.load(copy)


def test_an_index_from_elsewhere(copy: Path) -> None:
    manifest = Manifest.load(copy)
    (copy / "index.npy").write_bytes((copy / "index.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"index\.npy does not belong to the manifest beside it"):
        load_index(copy, manifest)
    (copy / "index.npy").unlink()
    with pytest.raises(InputError, match=r"index\.npy is missing"):
        load_index(copy, manifest)
