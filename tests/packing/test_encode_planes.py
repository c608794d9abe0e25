"""Packing with the codec "planes": what lies in the shards, and that anybody can read it."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.depth import colour_map
from pipeline.format.images import BadImage, Picture
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.planes import encode_set
from pipeline.loading.loader import Loader
from pipeline.packing.encode_planes import BackgroundEncoder, NoPlanes, PlaneRasterizer
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.samples import files_below, png, set_paths, smooth_picture, write, write_sets

SIZE = 16
OPTIONS = PackOptions(sets_per_shard=16, workers=1, codec="planes", size=SIZE)


def parts_by_key(shards: Path, *, depth: bool = True) -> dict[str, list[NDArray[np.uint8]]]:
    """What the loader gives of each set: bg, fg_bg, mask, depth."""
    loader, found = Loader(shards, "all", batch_size=10, size=SIZE, depth=depth, threads=1), {}
    for batch in loader:
        names = ["bg", "fg_bg", "mask", *(["depth"] if depth else [])]
        for position, row in enumerate(batch.index.tolist()):
            found[loader.key(row)] = [getattr(batch, name)[position, 0].numpy() for name in names]
    return found


def same(one: dict[str, list[NDArray[np.uint8]]], other: dict[str, list[NDArray[np.uint8]]]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_planes_are_what_the_loader_makes_of_the_pictures(packed: Path, planes: Path) -> None:
    expected = parts_by_key(packed)
    assert len(expected) == 100
    assert same(parts_by_key(planes), expected)


@pytest.mark.parametrize("depth", [True, False])
def test_where_the_planes_are_and_what_the_manifest_says(
    depth: bool, source: Path, planes: Path, tmp_path: Path
) -> None:
    shards = planes
    if not depth:
        shards = tmp_path / "bare"
        pack(source, shards, PackOptions(sets_per_shard=16, workers=1, codec="planes", size=SIZE, depth=False))
    manifest = Manifest.load(shards)
    index = load_index(shards, manifest)
    sizes = {"min": [SIZE, SIZE], "max": [SIZE, SIZE]}
    assert (manifest.codec, manifest.members, manifest.plane_size) == ("planes", ("planes",), SIZE)
    assert manifest.sizes == {"planes": sizes, "bg": sizes}
    assert (manifest.depth_encoding, manifest.depth_near) == ("gray" if depth else "none", "bright")
    assert not index["offset"][:, 1:].any()
    assert not index["size"][:, 1:].any()
    assert not index["crc32"][:, 1:].any()
    with tarfile.open(shards / "sets-000000.tar") as tar:
        members = tar.getmembers()
        for position, row in enumerate(index[index["shard"] == 0]):
            frame, note = members[2 * position : 2 * position + 2]
            key = row["key"].decode()
            assert (frame.name, note.name) == (f"{key}.planes.zst", f"{key}.json")
            assert (frame.offset_data, frame.size) == (row["offset"][0], row["size"][0])
            content = tar.extractfile(frame).read()  # type: ignore[union-attr]
            assert len(zstandard.decompress(content)) == (3 if depth else 2) * SIZE * SIZE
            assert not zstandard.get_frame_parameters(content).has_checksum
    first = (shards / "sets-000000.idx").read_text().splitlines()[1].split()
    assert (first[0], first[4]) == ("planes.zst", "json")
    assert (shards / "preview.jpg").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of files to the collector
def test_any_webdataset_reader_reads_them_with_the_recipe_of_the_format(planes: Path) -> None:
    # As in docs/format.md.
    def plane_stack(frame: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(zstandard.decompress(frame), np.uint8).reshape(-1, SIZE, SIZE).copy()

    def reader(names: str) -> webdataset.WebDataset:
        return webdataset.WebDataset(f"{planes}/{names}", shardshuffle=False, empty_check=False)

    streets = {int(sample["__key__"][3:]): plane_stack(sample["bg.zst"])[0] for sample in reader("backgrounds.tar")}
    expected, seen = parts_by_key(planes), 0
    for sample in reader("sets-{000000..000006}.tar"):
        note, (fg_bg, mask, depth) = json.loads(sample["json"]), plane_stack(sample["planes.zst"])
        fg_bg += streets[note["bg"]]  # modulo 256
        depth = np.cumsum(depth, axis=0, dtype=np.uint8)
        assert np.array_equal(expected[sample["__key__"]], [streets[note["bg"]], fg_bg, mask, depth])
        seen += 1
    assert seen == 100


def test_the_bytes_depend_on_the_input_alone(source: Path, planes: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "again", PackOptions(sets_per_shard=16, workers=2, codec="planes", size=SIZE))
    assert files_below(tmp_path / "again") == files_below(planes)


def test_a_packing_that_is_stopped_goes_on_to_the_same_bytes(
    source: Path, planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail_later(*arguments: NDArray[np.uint8]) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return encode_set(*arguments)

    monkeypatch.setattr("pipeline.packing.encode_planes.encode_set", fail_later)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "shards", OPTIONS)
    monkeypatch.undo()
    assert len(list((tmp_path / "shards").glob("sets-*.tar"))) == 3
    pack(source, tmp_path / "shards", OPTIONS)
    assert files_below(tmp_path / "shards") == files_below(planes)


@pytest.mark.parametrize("near", ["bright", "dark"])
def test_depth_is_stored_as_nearness(near: str, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 3)
    for fg in range(3):
        path = source / set_paths(0, fg, fg)[2]
        scalar = smooth_picture(fg, 1, 64)[..., 0]
        path.unlink()
        write(path.with_suffix(".png"), png(np.rint(colour_map("magma")[scalar]).astype(np.uint8)))
    options: dict[str, Any] = {"depth_near": near, "workers": 1}
    pack(source, tmp_path / "pictures", PackOptions(**options))
    pack(source, tmp_path / "planes", PackOptions(codec="planes", size=SIZE, **options))
    manifest = Manifest.load(tmp_path / "planes")
    assert (manifest.depth_encoding, manifest.depth_near) == ("gray", "bright")
    assert same(parts_by_key(tmp_path / "planes"), parts_by_key(tmp_path / "pictures"))


def broken_png(seed: int) -> bytes:
    """Its header and its end are those of a PNG; what is between is not."""
    picture = bytearray(png(smooth_picture(seed)))
    picture[len(picture) // 2] ^= 255
    return bytes(picture)


def test_a_picture_that_dali_cannot_decode_is_left_out_by_name(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 40)
    pack(source, tmp_path / "whole", PackOptions(workers=1, codec="planes", size=SIZE))
    whole = parts_by_key(tmp_path / "whole")
    path = source / set_paths(0, 33, 33)[1]
    path.unlink()
    path = path.with_suffix(".png")
    path.write_bytes(broken_png(0))
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1, verify="header", codec="planes", size=SIZE))
    assert dict(+summary.left_out) == {"undecodable": 1}
    problems = (tmp_path / "shards" / "problems.csv").read_text().splitlines()
    [line] = [line for line in problems if ",undecodable," in line]
    assert line.startswith(f"{path.relative_to(source)},undecodable,DALI cannot decode it: ")
    del whole["fg_033_bg_000_000033"]
    assert same(parts_by_key(tmp_path / "shards"), whole)


def test_a_background_that_dali_cannot_decode_takes_its_sets_along(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = BackgroundEncoder.encode
    asked = 0

    def refuse(*arguments: Any) -> Picture:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise BadImage("DALI cannot decode it: no reason")
        return encode(*arguments)

    monkeypatch.setattr(BackgroundEncoder, "encode", refuse)
    summary = pack(source, tmp_path / "shards", OPTIONS)
    assert (summary.manifest.sets, len(summary.manifest.backgrounds), asked) == (90, 9, 10)


def test_the_encoder_names_the_picture() -> None:
    rasterizer = PlaneRasterizer({"fg_bg": None, "mask": None}, SIZE)
    good = [Picture("png", png(smooth_picture(seed)), (48, 48)) for seed in range(2)]
    bad = Picture("png", broken_png(1), (48, 48))
    [expected] = rasterizer.rasterize([good])
    assert isinstance(expected, np.ndarray)
    [first, wrong, last] = rasterizer.rasterize([good, [good[0], bad], good])
    for planes in (first, last):
        assert isinstance(planes, np.ndarray)
        assert np.array_equal(planes, expected)
    assert isinstance(wrong, NoPlanes)
    assert (wrong.part, wrong.why.startswith("DALI cannot decode it: ")) == (1, True)
    with pytest.raises(BadImage, match="DALI cannot decode it"):
        BackgroundEncoder(SIZE).encode(bad)


def test_the_preview_shows_the_planes(source: Path, planes: Path) -> None:
    index = load_index(planes, Manifest.load(planes))
    sheet = np.asarray(Image.open(planes / "preview.jpg"))
    bg, fg = int(index["bg"][0]), int(index["fg"][0])
    for column, path in enumerate([f"bg/bg_{bg:03}.jpg", *set_paths(bg, fg, bg * 10 + fg)]):
        tile = sheet[16:176, 4 + 164 * column : 164 + 164 * column]
        loose = Image.open(source / path).convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        large = np.asarray(loose.convert("RGB").resize((160, 160), Image.Resampling.BILINEAR))
        assert np.abs(tile.astype(int) - large).mean() < 6


def test_options_out_of_range() -> None:
    wrong: dict[str, Any]
    for wrong in ({"codec": "wavelets"}, {"codec": "planes", "size": 0}):
        with pytest.raises(InputError, match="expected one of jpeg, planes, and 1 pixel or more"):
            PackOptions(**wrong)


def test_who_packs_pictures_need_not_wait_for_torch() -> None:
    code = "import sys, pipeline.packing.pack; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
