import csv
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.images import decode_gray, decode_rgb
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.tar import TarWriter
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.workers import Progress
from tests.samples import files_below, jpeg, png, set_paths, smooth_picture, write, write_sets


def problems(shards: Path) -> list[tuple[str, ...]]:
    with (shards / "problems.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows[0] == ("path", "kind", "why")
    return rows[1:]


def test_the_directory_is_format_1(packed: Path) -> None:
    shards = [f"sets-{number:06}" for number in range(7)]
    expected = {"manifest.json", "index.npy", "backgrounds.tar", "problems.csv", "preview.jpg"}
    assert set(files_below(packed)) == expected | {f"{name}{end}" for name in shards for end in (".tar", ".idx")}
    manifest = Manifest.load(packed)
    assert (manifest.sets, manifest.foregrounds, len(manifest.backgrounds)) == (100, 10, 10)
    assert [shard.sets for shard in manifest.shards] == [16] * 6 + [4]
    assert (manifest.codec, manifest.depth_encoding, manifest.depth_near) == ("jpeg", "gray", "bright")
    assert manifest.sizes["mask"] == {"min": [48, 48], "max": [48, 48]}


def test_every_byte_is_as_it_came(source: Path, packed: Path) -> None:
    manifest = Manifest.load(packed)
    index = load_index(packed, manifest)
    store = ShardReader(packed, manifest, index)
    for row in range(100):
        bg, fg = int(index["bg"][row]), int(index["fg"][row])
        loose = [(source / path).read_bytes() for path in set_paths(bg, fg, bg * 10 + fg)]
        assert [part.tobytes() for part in store.read(row)] == loose
    for background in manifest.backgrounds:
        assert store.read_background(background.id).tobytes() == (source / f"bg/bg_{background.id:03}.jpg").read_bytes()


def test_same_input_same_bytes_for_any_number_of_workers(source: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")  # elsewhere, with other times and another order of creation
    pack(tmp_path / "copy", tmp_path / "shards", PackOptions(sets_per_shard=16, workers=2))
    assert files_below(tmp_path / "shards") == files_below(packed)


def test_another_seed_is_another_shuffle_of_the_same_sets(source: Path, packed: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=16, workers=1, seed=1))
    ours, other = (load_index(shards, Manifest.load(shards))["key"] for shards in (packed, tmp_path / "shards"))
    assert sorted(ours) == sorted(other)
    assert ours.tolist() != other.tolist()
    assert ours.tolist() != sorted(ours.tolist())


@pytest.mark.parametrize(
    ("damage", "kind", "why"),
    [
        (lambda data: data[:-400], "undecodable", "JPEG does not decode"),
        (lambda data: b"", "undecodable", "empty file"),
        (lambda data: b"<!DOCTYPE html>", "undecodable", "neither JPEG nor PNG: starts with b'<!DOCTYP'"),
        (lambda data: jpeg(smooth_picture(0, 1, 32)), "mismatch", "mask is 32 x 32, its overlay 48 x 48 pixels"),
    ],
)
def test_a_bad_picture_leaves_its_set_out_by_name(damage: object, kind: str, why: str, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    mask = set_paths(1, 0, 2)[1]
    assert callable(damage)
    write(source / mask, damage((source / mask).read_bytes()))
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1))
    assert summary.manifest.sets == 3
    assert dict(+summary.left_out) == {kind: 1}
    [(path, found_kind, found_why)] = [row for row in problems(tmp_path / "shards") if row[1] != "incomplete"]
    assert (path, found_kind) == (mask, kind)
    assert why in found_why
    overlay, _, depth = set_paths(1, 0, 2)
    left_out = f"set fg_000_bg_001_000002 is left out for {mask}"
    assert {row for row in problems(tmp_path / "shards") if row[0] != mask} == {
        (overlay, "incomplete", left_out),
        (depth, "incomplete", left_out),
    }


def test_header_verification_sees_truncation_and_strangers(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    write(source / set_paths(0, 0, 0)[0], (source / set_paths(0, 0, 0)[0]).read_bytes()[:-400])
    write(source / set_paths(0, 1, 1)[2], b"GIF89a")
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1, verify="header"))
    assert summary.manifest.sets == 2
    bad = [path for path, kind, _ in problems(tmp_path / "shards") if kind == "undecodable"]
    assert bad == [set_paths(0, 0, 0)[0], set_paths(0, 1, 1)[2]]


def test_a_picture_that_only_its_header_vouched_for_is_not_previewed(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 4)
    picture = bytearray(png(smooth_picture(0)))
    picture[len(picture) // 2] ^= 255
    overlay = source / set_paths(0, 1, 1)[0]
    overlay.unlink()
    overlay.with_suffix(".png").write_bytes(picture)
    assert pack(source, tmp_path / "shards", PackOptions(workers=1, verify="header")).manifest.sets == 4
    with Image.open(tmp_path / "shards" / "preview.jpg") as sheet:
        assert sheet.height == 16 + 3 * 180


def test_a_bad_background_leaves_its_sets_out(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    write(source / "bg/bg_000.jpg", b"no picture")
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1))
    assert summary.manifest.sets == 2
    assert dict(+summary.left_out) == {"undecodable": 2}
    assert [path for path, *_ in problems(tmp_path / "shards")] == [
        "bg/bg_000.jpg",
        *sorted(path for fg in range(2) for path in set_paths(0, fg, fg)),
    ]


def test_shards_without_a_usable_set_are_not_written(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    for number in range(3):
        write(source / set_paths(number // 2, number % 2, number)[0], b"")
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1, sets_per_shard=1))
    assert summary.manifest.sets == 1
    assert [path.name for path in (tmp_path / "shards").glob("sets-*.tar")] == [summary.manifest.shards[0].name]


def test_a_source_without_a_usable_set_is_an_error(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 2)
    for fg in range(2):
        write(source / set_paths(0, fg, fg)[0], b"")
    with pytest.raises(
        InputError, match=r"no usable set in .*: 2 undecodable; the first problem is fg_bg/.*: empty file"
    ):
        pack(source, tmp_path / "shards", PackOptions(workers=1))
    for fg in range(2):
        (source / set_paths(0, fg, fg)[2]).unlink()
    with pytest.raises(InputError, match=r"no usable set in .*: 2 incomplete; .* has no depth"):
        pack(source, tmp_path / "shards", PackOptions(workers=1))
    assert not (tmp_path / "shards").exists()
    write(tmp_path / "lonely" / "bg" / "0.jpg", jpeg(smooth_picture(0)))
    with pytest.raises(InputError, match=r"no image sets in .*lonely: its one file is no overlay"):
        pack(tmp_path / "lonely", tmp_path / "shards", PackOptions(workers=1))


@pytest.mark.parametrize("found", ["notes.txt", "manifest.json"])
def test_a_target_in_use_is_refused_and_kept(found: str, source: Path, tmp_path: Path) -> None:
    write(tmp_path / found, b"precious")
    with pytest.raises(InputError, match=f"is not empty \\(it holds {found}\\): give a new or an empty folder"):
        pack(source, tmp_path, PackOptions(workers=1))
    with pytest.raises(InputError, match=f"{found} is a file"):
        pack(source, tmp_path / found, PackOptions(workers=1))
    assert files_below(tmp_path) == {found: b"precious"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
@pytest.mark.parametrize("sets", [5, 60])  # 10 backgrounds are added before
def test_whatever_stops_it_the_same_call_goes_on(
    failure: BaseException, sets: int, source: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / ".gitkeep", b"")
    options, calls = PackOptions(sets_per_shard=16, workers=1), list[str]()
    add = TarWriter.add

    def fail_later(self: TarWriter, key: str, parts: list[tuple[str, bytes]]) -> object:
        calls.append(key)
        if len(calls) == 10 + sets:
            raise failure
        return add(self, key, parts)

    monkeypatch.setattr(TarWriter, "add", fail_later)
    with pytest.raises(type(failure)):
        pack(source, tmp_path, options)
    if sets < 16:
        assert files_below(tmp_path) == {".gitkeep": b""}
        return
    with pytest.raises(InputError, match="is unfinished: run the same fgbg-pack again"):
        Manifest.load(tmp_path)
    monkeypatch.undo()
    finished = [f"sets-{number:06}.tar" for number in range(sets // 16)]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["backgrounds.tar", *finished]
    with pytest.raises(InputError, match=r"holds an unfinished fgbg-pack with seed 0, now it is 1"):
        pack(source, tmp_path, replace(options, seed=1))
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in finished}
    progress = list[int]()
    pack(source, tmp_path, options, Progress(sets_done=progress.append))
    assert progress == [48, 16, 16, 16, 4]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in finished} == times
    assert files_below(tmp_path) == {".gitkeep": b"", **files_below(packed)}


def test_progress_adds_up(source: Path, tmp_path: Path) -> None:
    files, found, packed = list[int](), list[int](), list[int]()
    progress = Progress(files.append, found.append, packed.append)
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=30, workers=1), progress)
    assert files == [310]
    assert found == [100]
    assert packed == [0, 30, 30, 30, 10]


def test_the_preview_pairs_parts_rightly(source: Path, packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    sheet = np.asarray(Image.open(packed / "preview.jpg"))
    bg, fg = int(index["bg"][0]), int(index["fg"][0])
    files = [f"bg/bg_{bg:03}.jpg", *set_paths(bg, fg, bg * 10 + fg)]
    for column, path in enumerate(files):
        tile = sheet[16:176, 4 + 164 * column : 164 + 164 * column]
        loose = Image.open(source / path).convert("RGB").resize((160, 160), Image.Resampling.BILINEAR)
        assert np.abs(tile.astype(int) - np.asarray(loose)).mean() < 6


def test_options_out_of_range() -> None:
    for wrong in ({"workers": 0}, {"sets_per_shard": 0}, {"depth_encoding": "hsv"}, {"verify": "hope"}):
        with pytest.raises(InputError, match=r"expected|must be"):
            PackOptions(**wrong)


def test_the_originals_own_pictures(s15: Path, tmp_path: Path) -> None:
    summary = pack(s15, tmp_path / "shards", PackOptions(workers=1))
    assert (summary.manifest.sets, len(summary.manifest.backgrounds), summary.problems) == (4, 10, 0)
    assert not +summary.left_out
    assert (summary.manifest.depth_encoding, summary.manifest.depth_near) == ("magma", "bright")
    # Rightly paired: outside the mask, an overlay is its background (which is stored at another size).
    manifest = summary.manifest
    index = load_index(tmp_path / "shards", manifest)
    store = ShardReader(tmp_path / "shards", manifest, index)
    for row in range(4):
        overlay, mask, _ = (part.tobytes() for part in store.read(row))
        outside = decode_gray(mask) < 10
        distance = {}
        for background in manifest.backgrounds:
            street = Image.fromarray(decode_rgb(store.read_background(background.id).tobytes())).resize((256, 256))
            difference = np.abs(decode_rgb(overlay).astype(int) - np.asarray(street))
            distance[background.id] = difference[outside].mean()
        assert min(distance, key=lambda bg: distance[bg]) == index["bg"][row]
