"""Depth of every encoding, from loose files through packing to the loader."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.depth import CONVERTED, ENCODINGS, HOLE_COLOUR
from pipeline.format.manifest import Manifest
from pipeline.loading.loader import Loader
from pipeline.packing.finalize import GAP, TILE, TITLE
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import PackSummary, pack
from pipeline.verify.check import CheckOptions, check
from pipeline.verify.merge import merge
from pipeline.verify.repair import repair
from tests.samples import coloured, files_below, jpeg, npy, png, set_paths, street_depth, write, write_sets

SETS = 4
NEARNESS = [np.roll(street_depth(224), 40 * number, axis=1) for number in range(SETS)]


def depth_paths(source: Path) -> list[Path]:
    """Where the depth pictures of 4 sets are, which are removed."""
    write_sets(source, 1, SETS)
    paths = [source / set_paths(0, fg, fg)[2] for fg in range(SETS)]
    for path in paths:
        path.unlink()
    return paths


def load(shards: Path, size: int = 96) -> NDArray[np.int64]:
    """Depth as it leaves the loader, by set number: [sets, size, size]."""
    loader = Loader(shards, split="all", batch_size=SETS, size=size)
    [batch] = loader
    assert batch.depth is not None
    order = np.argsort([loader.key(row) for row in batch.index.tolist()])
    return batch.depth[:, 0].numpy()[order].astype(np.int64)


def pack_depth(source: Path, **options: object) -> tuple[Path, PackSummary]:
    shards = source.with_name(f"{source.name}-shards")
    return shards, pack(source, shards, PackOptions(workers=1, **options))  # type: ignore[arg-type]


def notes(shards: Path) -> dict[str, dict[str, object]]:
    with tarfile.open(shards / "sets-000000.tar") as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")}
        return {name[:6]: json.load(file) for name, file in files.items() if file}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.int64]:
    """The same depth as gray PNG, which loses nothing."""
    source = tmp_path_factory.mktemp("reference") / "png"
    for path, levels in zip(depth_paths(source), NEARNESS, strict=True):
        write(path.with_suffix(".png"), png(levels))
    return load(pack_depth(source)[0])


@pytest.mark.parametrize("near", ["bright", "dark"])
@pytest.mark.parametrize("encoding", [*ENCODINGS, *CONVERTED])
def test_every_map_comes_out_of_the_loader_like_gray(
    encoding: str, near: str, reference: NDArray[np.int64], tmp_path: Path
) -> None:
    # Two sets each of quality 75 and 95, 4:2:0; the tolerance is that of pipeline/format/depth.py, lowered by resizing.
    for number, path in enumerate(depth_paths(tmp_path / "source")):
        levels = NEARNESS[number] if near == "bright" else 255 - NEARNESS[number]
        picture = levels[..., None] if encoding == "gray" else coloured(levels, encoding)
        write(path, jpeg(picture, 75 if number < 2 else 95))
    shards, summary = pack_depth(tmp_path / "source", depth_near=near)
    assert f"4 sampled depth maps are {encoding} (" in summary.depth
    stored = ("gray", "bright") if encoding in CONVERTED else (encoding, near)
    assert (summary.manifest.depth_encoding, summary.manifest.depth_near) == stored
    error = load(shards) - reference
    tolerance = [6.0, 3.5] if encoding in CONVERTED else [2.0, 1.2]
    for sets, rmse in zip((error[:2], error[2:]), tolerance, strict=True):
        assert np.sqrt((sets**2).mean()) < rmse


def test_a_stated_encoding_is_believed(tmp_path: Path) -> None:
    for path, levels in zip(depth_paths(tmp_path / "source"), NEARNESS, strict=True):
        write(path, jpeg(coloured(levels, "magma")))
    _, summary = pack_depth(tmp_path / "source", depth_encoding="inferno")
    assert summary.manifest.depth_encoding == "inferno"
    assert summary.depth == "stated to be inferno"


def test_arrays_are_preferred_to_pictures_of_them(reference: NDArray[np.int64], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        disparity = (NEARNESS[number] * 0.25 + 3).astype(np.float32)
        write(path, jpeg(coloured(np.zeros_like(NEARNESS[0]), "magma")))  # not what the arrays hold
        write(path.with_suffix(".npy"), npy(disparity[None, None] if number % 2 else disparity))
    shards, summary = pack_depth(source)
    assert summary.problems == 0
    assert summary.depth.startswith("4 are numbers (.npy), scaled each by its smallest and largest value")
    assert (summary.manifest.depth_encoding, summary.manifest.depth_near) == ("gray", "bright")
    stretched = 255 / np.array([levels.max() for levels in NEARNESS])[:, None, None]
    assert np.sqrt(((load(shards) - reference * stretched) ** 2).mean()) < 1.5
    known = notes(shards)
    assert known["fg_001"]["depth_range"] == [3.0, 3 + 0.25 * NEARNESS[1].max()]


def test_arrays_of_metres_in_one_range(reference: NDArray[np.int64], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        metres = (10 + (255 - NEARNESS[number]) * 0.2).astype(np.float32)
        metres[:8] = np.inf  # sky
        write(path.with_suffix(".npy"), npy(metres))
    shards, _ = pack_depth(source, depth_near="dark", depth_range=(10.0, 61.0))
    assert {str(note["depth_range"]) for note in notes(shards).values()} == {"[61.0, 10.0]"}
    error = (load(shards) - reference)[:, 8:]
    assert np.sqrt((error**2).mean()) < 1.5


def test_where_arrays_are_missing_pictures_are_taken(reference: NDArray[np.int64], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        if number < 2:
            write(path.with_suffix(".NPY"), npy(-NEARNESS[number].astype(np.float32)))
        else:
            write(path, jpeg(coloured(255 - NEARNESS[number], "magma"), 95))
    shards, summary = pack_depth(source, depth_near="dark")
    assert "2 are numbers (.npy)" in summary.depth
    assert "2 sampled depth maps are magma" in summary.depth
    stretched = np.array([255 / NEARNESS[0].max(), 255 / NEARNESS[1].max(), 1, 1])[:, None, None]
    assert np.sqrt(((load(shards) - reference * stretched) ** 2).mean()) < 1.5


def test_a_bad_array_leaves_its_set_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        content = npy(NEARNESS[number].astype(np.float32))
        write(path.with_suffix(".npy"), content if number else content[:-1000])
    _, summary = pack_depth(source)
    assert (summary.manifest.sets, dict(+summary.left_out)) == (3, {"undecodable": 1})


def test_sixteen_bits_in_loader_and_preview(reference: NDArray[np.int64], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        write(path.with_suffix(".png"), png(NEARNESS[number].astype(np.uint16) * 257))
    shards, summary = pack_depth(source)
    assert np.array_equal(load(shards), reference)  # as they came, by DALI
    with Image.open(shards / "preview.jpg") as sheet:
        columns = [np.asarray(sheet.convert("L"), dtype=int)[:, GAP + column * (TILE + GAP) :] for column in range(4)]
    loader = Loader(shards, split="all", batch_size=SETS, size=TILE, shuffle=False)
    [batch] = loader
    for row in range(SETS):
        top = TITLE + row * (TILE + GAP + TITLE)
        assert batch.depth is not None
        shown = columns[3][top : top + TILE, :TILE]
        assert np.sqrt(((shown - batch.depth[row, 0].numpy()) ** 2).mean()) < 12  # two ways of resizing, and JPEG
    assert summary.depth == "4 sampled depth maps are gray (channels differ by 0.0 of 255)"


def test_sixteen_bits_each_by_itself(reference: NDArray[np.int64], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        write(path.with_suffix(".png"), png(NEARNESS[number].astype(np.uint16) * 7 + 100))
    shards, _ = pack_depth(source, depth_per_image=True)
    stretched = 255 / np.array([levels.max() for levels in NEARNESS])[:, None, None]
    assert np.sqrt(((load(shards) - reference * stretched) ** 2).mean()) < 1.5
    assert notes(shards)["fg_000"]["depth_range"] == [100.0, 100.0 + 7 * int(NEARNESS[0].max())]


def test_a_converted_data_set_has_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(depth_paths(source)):
        write(path, jpeg(coloured(NEARNESS[number], "jet")))
    for workers in (1, 2):
        pack(source, tmp_path / str(workers), PackOptions(workers=workers, sets_per_shard=2))
    assert files_below(tmp_path / "1") == files_below(tmp_path / "2")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"depth_range": (2.0, 1.0)}, "depth range 2 1: expected the low end, then the high one"),
        ({"depth_range": (0.0, float("nan"))}, "depth range 0 nan"),
        ({"depth_range": (0.0, 1.0), "depth_per_image": True}, "choose one"),
        ({"depth_range": (0.0, 1.0)}, "all 4 sampled depth maps are pictures of 8 bits"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(options: dict[str, object], why: str, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, SETS)
    with pytest.raises(InputError, match=why):
        pack_depth(source, **options)
    assert not (tmp_path / "source-shards").exists()


def test_pictures_that_are_all_broken_are_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in depth_paths(source):
        write(path, b"")
    with pytest.raises(InputError, match=r"none of 4 sampled depth maps can be used: .*empty file"):
        pack_depth(source)


HOLE = (slice(60, 110), slice(30, 90))  # a part of depth maps of 224 x 224, in whole pixels of 112 x 112


def write_holed(source: Path, kind: str) -> None:
    """Depth in metres or millimetres with a hole, as a depth camera leaves it."""
    for number, path in enumerate(depth_paths(source)):
        metres = (10 - NEARNESS[number] / 32).astype(np.float32)  # 2 to 10
        metres[HOLE] = {"nan": np.nan, "inf": np.inf}.get(kind, 0)
        if kind == "zero of 16 bits":
            write(path.with_suffix(".png"), png(np.rint(metres * 1000).astype(np.uint16)))
        else:
            write(path.with_suffix(".npy"), npy(metres))


@pytest.mark.parametrize("codec", ["jpeg", "planes"])
@pytest.mark.parametrize("kind", ["zero", "nan", "inf", "zero of 16 bits"])
def test_holes_from_files_to_batches(kind: str, codec: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_holed(source, kind)
    low, high = (2000.0, 10000.0) if kind == "zero of 16 bits" else (2.0, 10.0)
    shards, summary = pack_depth(source, depth_near="dark", depth_range=(low, high), codec=codec, size=112)
    manifest = summary.manifest
    assert (manifest.sets, manifest.depth_encoding, manifest.depth_near) == (SETS, "gray-holes", "bright")
    assert "is no measurement" in summary.depth
    assert summary.depth.endswith("stored as gray, near bright, with holes")
    assert manifest.conversions == [f"depth: {next(part for part in summary.depth.split('; ') if 'no meas' in part)}"]
    share = 50 * 60 / 224**2
    assert all(note["depth_holes"] == round(share, 6) for note in notes(shards).values())
    loader = Loader(shards, split="all", batch_size=SETS, size=112)
    [batch] = loader
    assert batch.depth is not None
    assert batch.depth_valid is not None
    hole = torch.zeros(112, 112, dtype=torch.bool)
    hole[30:55, 15:45] = True
    # The filter reaches a pixel further than a pixel of the result: at the hole's edge three of four were measured.
    assert torch.equal(~batch.depth_valid, hole.expand(SETS, 1, 112, 112))
    assert torch.equal(batch.depth > 0, batch.depth_valid)
    order = np.argsort([loader.key(row) for row in batch.index.tolist()])
    expected = NEARNESS_HALF
    error = batch.depth[:, 0].numpy()[order].astype(int) - expected
    away = ~hole.numpy()
    away[28:57, 13:47] = False  # at the edge the mean is over fewer pixels
    assert np.abs(error[:, away]).max() <= 2
    with Image.open(shards / "preview.jpg") as sheet:
        top, left = TITLE, GAP + 3 * (TILE + GAP)
        colour = np.asarray(sheet)[top + 50 : top + 70, left + 30 : left + 55].reshape(-1, 3).mean(0)
        assert np.abs(colour - HOLE_COLOUR).max() < 12
    pick = loader.pick([0, 1])
    assert pick.depth_valid is not None
    assert torch.equal(pick.depth_valid[0, 0], ~hole)
    bare = Loader(shards, split="all", batch_size=SETS, size=112, depth=False)
    assert next(iter(bare)).depth_valid is None


def halved() -> NDArray[np.int64]:
    """NEARNESS as metres make it, each 2 x 2 pixels one, by the loader's filter: [sets, 112, 112]."""
    planes = [Image.fromarray(np.maximum(255 * (levels / 256), 1).astype(np.float32)) for levels in NEARNESS]
    return np.rint([np.asarray(plane.resize((112, 112), Image.Resampling.BILINEAR)) for plane in planes]).astype(int)


NEARNESS_HALF = halved()


def test_shards_with_holes_are_checked_repaired_merged_and_given_other_depth(tmp_path: Path) -> None:
    for codec in ("jpeg", "planes"):
        source = tmp_path / codec
        write_holed(source, "nan")
        shards, _ = pack_depth(source, depth_near="dark", codec=codec, size=64)
        assert check(shards, CheckOptions(decode=True, workers=1)).damage == []
        before = files_below(shards)
        (shards / "index.npy").unlink()
        repair(shards)
        assert files_below(shards) == before
        (shards / "manifest.json").unlink()
        repair(shards)  # each json says that there are holes
        assert Manifest.load(shards).depth_encoding == "gray-holes"
        assert files_below(shards).keys() == before.keys()
        other = tmp_path / f"other-{codec}"
        for path in (tmp_path / codec).rglob("*_bg_000*"):
            write(other / str(path.relative_to(source)).replace("bg_000", "bg_007"), path.read_bytes())
        write(other / "bg/bg_007.jpg", (source / "bg/bg_000.jpg").read_bytes())
        two, _ = pack_depth(other, depth_near="dark", codec=codec, size=64)
        merged = merge([shards, two], tmp_path / f"merged-{codec}")
        assert (merged.sets, merged.depth_encoding) == (2 * SETS, "gray-holes")
        assert merged.conversions == Manifest.load(two).conversions
        plain, _ = pack_depth(write_sets(tmp_path / f"plain-{codec}", 1, 1), codec=codec, size=64)
        with pytest.raises(InputError, match=r"has depth encoding gray-holes, .* has depth encoding gray: only shards"):
            merge([two, plain], tmp_path / "refused")


def test_a_set_is_lost_only_if_nothing_of_its_depth_was_measured(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_holed(source, "nan")
    write((source / set_paths(0, 2, 2)[2]).with_suffix(".npy"), npy(np.full((9, 9), np.nan, np.float32)))
    _, summary = pack_depth(source)
    assert (summary.manifest.sets, dict(+summary.left_out)) == (SETS - 1, {"undecodable": 1})
    with (source.with_name("source-shards") / "problems.csv").open() as problems:
        assert "nothing of it was measured" in problems.read()


def test_a_few_pictures_of_another_encoding_are_named_and_many_are_an_error(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 3, 10)
    stray = source / set_paths(0, 3, 3)[2]  # not of the sample
    write(stray, jpeg(coloured(NEARNESS[0], "magma")))
    _, summary = pack_depth(source)
    assert dict(+summary.left_out) == {"other encoding": 1}
    text = (tmp_path / "source-shards/problems.csv").read_text()
    assert '_disp.jpeg,other encoding,"it is magma, the sampled depth maps are gray"' in text
    for fg in (4, 6):
        write(source / set_paths(0, fg, fg)[2], jpeg(coloured(NEARNESS[0], "magma")))
    with pytest.raises(
        InputError, match=r"3 depth maps are not gray, as those sampled are \(the first is .*000003_disp"
    ):
        pack(source, tmp_path / "many", PackOptions(workers=1))
    assert not (tmp_path / "many/manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"depth_percentiles": (99.0, 1.0)}, "depth percentiles 99 1: expected the low one, then the high one"),
        ({"depth_percentiles": (1.0, 99.0), "depth_range": (0.0, 1.0)}, "choose one"),
        ({"depth_invalid": "black"}, "depth invalid 'black': expected auto, zero, nan, none, or a number"),
        ({"depth_invalid": "zero"}, "is a JPEG, which has no exact values"),
    ],
)
def test_what_makes_no_sense_of_holes_is_refused(options: dict[str, object], why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        pack_depth(write_sets(tmp_path / "source", 1, 2), **options)
