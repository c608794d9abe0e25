import csv
import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.composing.compose import ComposeSummary, Progress, compose
from pipeline.composing.composer import SOLID, ComposeOptions, Composer
from pipeline.composing.photos import Photographs, find_pictures, hash_pictures
from pipeline.composing.recipe import Recipe
from pipeline.composing.stage import Stage, prepare
from pipeline.composing.synthetic.source import Synthetic
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.format.tar import TarWriter
from pipeline.loading.shard_reader import ShardReader
from pipeline.loading.split import SPLITS
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.workers import Workers
from tests.samples import S15, files_below, png, smooth_picture, split_rows, write
from train.metrics import difference, iou

U8 = NDArray[np.uint8]
SIZE = 64
SMALL = ComposeOptions(placements=3)


def cut_out(number: int) -> U8:
    """A foreground with a soft edge that is not the same mirrored: a disc with a bite, and a stem."""
    y, x = np.mgrid[0:48, 0:60]
    disc = 22 - np.hypot(x - 24, y - 24)
    bite = np.hypot(x - 34, y - 12) - 9
    alpha = np.clip(np.minimum(disc, bite) / 2 + 0.5, 0, 1)
    alpha[20:26, 40:58] = 1
    rgb = smooth_picture(100 + number, size=64)[:48, :60]
    return np.dstack([rgb, np.rint(255 * alpha).astype(np.uint8)])


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 3 backgrounds, their depth, and 2 foregrounds; read only."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(3):
        write(root / "bg" / f"street {number}.png", png(smooth_picture(number, size=96)))
        levels = np.repeat(np.linspace(0, 255 - 40 * number, 96).astype(np.uint8)[:, None], 96, 1)
        write(root / "depth" / f"street {number}.png", png(levels))
    for number in range(2):
        write(root / "fg" / f"car_{number}.png", png(cut_out(number)))
    return root


def photographs(folders: Path, **changes: Any) -> Photographs:
    names = find_pictures(folders / "bg"), find_pictures(folders / "fg")
    source = Photographs(folders / "bg", folders / "fg", *names, size=SIZE, scale=(0.3, 0.6))
    return dataclasses.replace(source, **changes)


def composer(tmp_path: Path, source: Photographs | Synthetic, options: ComposeOptions = SMALL) -> Composer:
    tmp_path.mkdir(exist_ok=True)
    with Workers(1) as workers:
        prepare(tmp_path / "stage", source, options.quality, workers)
    stage = Stage(tmp_path / "stage", source)
    return Composer(stage, options.recipe(stage.backgrounds, stage.foregrounds), options)


def run(target: Path, source: Photographs | Synthetic, options: ComposeOptions = SMALL, **more: Any) -> ComposeSummary:
    return compose(target, source, options, {"source": "test"}, **{"workers": 1, **more})


def labels(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return {line["key"]: line for line in csv.DictReader(file)}


def test_an_overlay_is_the_float_blend_of_its_parts(folders: Path, tmp_path: Path) -> None:
    made = composer(
        tmp_path, photographs(folders, scale=(45 / 64, 45 / 64))
    )  # the foreground's own size: nothing is resized
    for number in range(made.recipe.total):
        bg, fg, _, mirrored = made.recipe.ingredients(number)
        overlay, mask, levels, label, *_ = made.compose(number)
        rgba = np.asarray(made.stage.cutout(fg))
        if mirrored:
            rgba = rgba[:, ::-1]
        assert (label.height, label.width) == rgba.shape[:2]
        window = (slice(label.y, label.y + label.height), slice(label.x, label.x + label.width))
        alpha = np.zeros((SIZE, SIZE))
        alpha[window] = rgba[..., 3]
        assert (mask == alpha).all(), "soft alpha survives"
        assert ((mask > 0) & (mask < 255)).any()
        expected = made.stage.rgb(bg).astype(float)
        share = rgba[..., 3:] / 255
        expected[window] = share * rgba[..., :3] + (1 - share) * expected[window]
        assert np.abs(overlay - expected).max() <= 0.5
        assert levels is None


def test_twins_are_mirrored_in_the_same_place(folders: Path, tmp_path: Path) -> None:
    made = composer(tmp_path, photographs(folders))
    for number in range(0, made.recipe.total, 2):
        plain, twin = made.compose(number), made.compose(number + 1)
        assert plain.label._replace(mirrored=1) == twin.label
        x, y, width, height, *_ = plain.label
        window = (slice(y, y + height), slice(x, x + width))
        assert (plain.mask[window] == twin.mask[window][:, ::-1]).all()
        assert (plain.mask != twin.mask).any()
        assert plain.mask[window].sum() == plain.mask.sum()


def test_placements_differ_and_scales_are_drawn_from_their_range(folders: Path, tmp_path: Path) -> None:
    options = ComposeOptions(placements=40, mirror=False)
    made = composer(tmp_path, photographs(folders), options)
    found = [made.compose(number).label for number in range(made.recipe.total)]
    assert len({label[:4] for label in found}) > 200
    heights = np.array([label.height for label in found]) / SIZE
    assert 0.29 <= heights.min() < 0.33
    assert 0.57 < heights.max() <= 0.61
    for label in found:
        assert 0 <= label.x <= SIZE - label.width
        assert 0 <= label.y <= SIZE - label.height
        assert label.visible == 1.0


def test_min_visible_lets_foregrounds_leave_the_frame_so_far(folders: Path, tmp_path: Path) -> None:
    made = composer(tmp_path, photographs(folders, min_visible=0.5), ComposeOptions(placements=30))
    shares = []
    for number in range(made.recipe.total):
        _, mask, _, label, *_ = made.compose(number)
        fg, mirrored = made.recipe.ingredients(number).fg, bool(label.mirrored)
        whole = made.stage.sprite(fg, label.width, label.height, mirrored).alpha
        assert label.visible == pytest.approx(mask.sum() / whole.sum(dtype=float), abs=1e-4)
        shares.append(label.visible)
    assert 0.5 <= min(shares) < 0.6
    assert 0.1 < np.mean(np.array(shares) < 1) < 0.9


def test_edges_have_no_fringe(folders: Path, tmp_path: Path) -> None:
    """A foreground of the background's own colour vanishes, whatever colour lies under its transparent pixels."""
    rgba = cut_out(0)
    rgba[..., :3] = np.where(rgba[..., 3:] > 0, 200, 0)
    write(tmp_path / "fg" / "0.png", png(rgba))
    write(tmp_path / "bg" / "0.png", png(np.full((80, 80, 3), 200, np.uint8)))
    made = composer(tmp_path, photographs(tmp_path), ComposeOptions(placements=20))
    for number in range(made.recipe.total):
        overlay, mask, *_ = made.compose(number)
        assert ((mask > 0) & (mask < 255)).any()
        assert np.abs(overlay.astype(int) - 200).max() <= 2


def test_depth_is_the_backgrounds_with_the_foreground_in_it(folders: Path, tmp_path: Path) -> None:
    depth_folder = folders / "depth"
    for level in (None, 77):
        source = photographs(folders, depth_folder=depth_folder, foreground_level=level)
        made = composer(tmp_path / str(level), source)
        for number in range(made.recipe.total):
            _, mask, levels, label, *_ = made.compose(number)
            assert levels is not None
            far = made.stage.levels(made.recipe.ingredients(number).bg)
            assert (levels[mask < SOLID] == far[mask < SOLID]).all()
            # The test's depth is the same along a row, so the foot's level is plain.
            assert set(levels[mask >= SOLID].tolist()) == {
                far[label.y + label.height - 1, 0] if level is None else level
            }


def test_a_shadow_darkens_the_overlay_and_not_the_mask(folders: Path, tmp_path: Path) -> None:
    plain, shadowed = (
        composer(tmp_path / str(shadow), photographs(folders), dataclasses.replace(SMALL, shadow=shadow))
        for shadow in (False, True)
    )
    for number in range(plain.recipe.total):
        one, other = plain.compose(number), shadowed.compose(number)
        assert (one.mask == other.mask).all()
        assert one.label == other.label
        assert (other.overlay <= one.overlay).all()
        darker = (one.overlay.astype(int) - other.overlay).max(axis=2) > 5
        assert darker.sum() > 20
        assert not darker[one.mask == 255].any()


def best_iou(overlays: list[U8], backgrounds: list[U8], masks: list[U8]) -> float:
    """What thresholding |fg_bg - bg| reaches at its best threshold, gray, on these sets."""
    import torch

    def gray(pictures: list[U8]) -> torch.Tensor:
        return torch.stack(
            [torch.from_numpy(np.asarray(Image.fromarray(picture).convert("L")).copy()) for picture in pictures]
        )[:, None]

    change, mask = (
        difference(gray(backgrounds), gray(overlays)),
        torch.stack([torch.from_numpy(m.copy()) for m in masks])[:, None],
    )
    return max(float(iou(change > t, mask).mean()) for t in range(1, 100, 2))


def test_hard_sets_defeat_the_difference_baseline(folders: Path, tmp_path: Path) -> None:
    reached = {}
    for hard in (False, True):
        made = composer(tmp_path / str(hard), photographs(folders), dataclasses.replace(SMALL, hard=hard))
        sets = [made.compose(number) for number in range(made.recipe.total)]
        backgrounds = [made.stage.rgb(made.recipe.ingredients(number).bg) for number in range(made.recipe.total)]
        reached[hard] = best_iou([one.overlay for one in sets], backgrounds, [one.mask for one in sets])
        for one in sets:  # the label follows the shift
            x, y, width, height, *_ = one.label
            assert one.mask[y : y + height, x : x + width].sum() == one.mask.sum() > 0
    assert reached[False] > 0.8
    assert reached[True] < reached[False] - 0.2


def test_loose_files_are_the_seeds_layout(folders: Path, tmp_path: Path) -> None:
    summary = run(tmp_path, photographs(folders))
    recipe = summary.recipe
    assert (recipe.backgrounds, recipe.foregrounds, recipe.sets, summary.output.sets) == (3, 2, 36, 36)
    files = files_below(tmp_path)
    expected = {"labels.csv", "sources.csv"}
    expected |= {f"bg/bg_{b:03}.jpg" for b in range(3)} | {f"fg/fg_{f:03}.png" for f in range(2)}
    for number in range(36):
        bg, fg, *_ = recipe.ingredients(number)
        expected.add(f"fg_bg/bg_{bg:03}/fg_{fg:03}_bg_{bg:03}_{number:06}.jpg")
        expected.add(f"fg_bg_mask/bg_{bg:03}/fg_{fg:03}_bg_{bg:03}_mask_{number:06}.jpg")
    assert set(files) == expected
    assert summary.output.bytes == sum(len(data) for name, data in files.items() if name.startswith("fg_bg"))
    assert files["sources.csv"].decode().splitlines()[:3] == ["part,id,file", "bg,0,street 0.png", "bg,1,street 1.png"]
    for name, data in files.items():
        if name.endswith(".jpg"):
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            assert (height, width, colour == "Gray") == (SIZE, SIZE, "_mask_" in name)


def test_labels_tell_where_the_mask_is(folders: Path, tmp_path: Path) -> None:
    run(tmp_path, photographs(folders))
    table = labels(tmp_path)
    assert len(table) == 36
    for key, line in table.items():
        bg, fg = int(line["bg"]), int(line["fg"])
        assert key.startswith(f"fg_{fg:03}_bg_{bg:03}_")
        data = (tmp_path / f"fg_bg_mask/bg_{bg:03}" / f"{key[:13]}_mask_{key[14:]}.jpg").read_bytes()
        rows, columns = np.nonzero(simplejpeg.decode_jpeg(data, "GRAY")[..., 0] > 100)
        x, y, width, height = (int(line[name]) for name in ("x", "y", "width", "height"))
        for first, last, start, length in (
            (columns.min(), columns.max(), x, width),
            (rows.min(), rows.max(), y, height),
        ):
            assert start - 1 <= first <= start + 2
            assert start + length - 4 <= last <= start + length


def test_same_seed_same_bytes_for_any_number_of_workers(folders: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for shards in (None, 10):
        one, two, other = (tmp_path / f"{name}{shards}" for name in ("one", "two", "other"))
        run(one, photographs(folders), sets_per_shard=shards)
        run(two, photographs(folders), sets_per_shard=shards, workers=2)
        assert files_below(one) == files_below(two)
        run(other, photographs(folders), dataclasses.replace(SMALL, seed=1), sets_per_shard=shards)
        assert labels(other).keys() == labels(one).keys()
        assert all(labels(other)[key] != line for key, line in labels(one).items())


@pytest.mark.parametrize("depth", [False, True])
def test_shards_hold_what_the_loose_files_hold(depth: bool, folders: Path, tmp_path: Path) -> None:
    source = photographs(folders, depth_folder=folders / "depth" if depth else None)
    run(tmp_path / "loose", source)
    run(tmp_path / "shards", source, sets_per_shard=10)
    loose = files_below(tmp_path / "loose")
    store = ShardReader.open(tmp_path / "shards")
    assert [shard.sets for shard in store.manifest.shards] == [10, 10, 10, 6]
    assert store.manifest.parts == (("fg_bg", "mask", "depth") if depth else ("fg_bg", "mask"))
    table = labels(tmp_path / "shards")
    assert table == labels(tmp_path / "loose")
    assert [store.key(row) for row in range(36)] == list(table), "in the shards' order"
    for row in range(36):
        key, (bg, fg) = store.key(row), (int(store.index[name][row]) for name in ("bg", "fg"))
        stem = f"bg_{bg:03}/fg_{fg:03}_bg_{bg:03}"
        names = [
            f"fg_bg/{stem}_{key[14:]}.jpg",
            f"fg_bg_mask/{stem}_mask_{key[14:]}.jpg",
            f"fg_bg/{stem}_{key[14:]}_disp.jpeg",
        ]
        assert [part.tobytes() for part in store.read(row)] == [loose[name] for name in names[: 2 + depth]]
        assert store.read_background(bg).tobytes() == loose[f"bg/bg_{bg:03}.jpg"]
        note = {name: str(value) for name, value in store.read_metadata(row).items() if name != "id"}
        assert note == {name: value for name, value in table[key].items() if name != "key"}
    # Packed, the loose files are the very same shards.
    pack(tmp_path / "loose", tmp_path / "packed", PackOptions(sets_per_shard=10, depth=depth, workers=1))
    assert files_below(tmp_path / "packed") == files_below(tmp_path / "shards")


def test_any_one_shard_is_a_fair_sample(folders: Path, tmp_path: Path) -> None:
    options = ComposeOptions(placements=60)
    run(tmp_path, photographs(folders, size=16), options, sets_per_shard=120)
    store = ShardReader.open(tmp_path)
    for shard in range(6):
        backgrounds = store.index["bg"][store.index["shard"] == shard]
        assert np.bincount(backgrounds, minlength=3).min() > 20


@pytest.mark.parametrize("sets_per_shard", [None, 6])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_what_stops_it_loses_nothing(
    failure: BaseException, sets_per_shard: int | None, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.composing.compose.SETS_PER_JOB", 6)
    source = photographs(folders)
    run(tmp_path / "whole", source, sets_per_shard=sets_per_shard)
    made = Composer.compose
    calls = []

    def fail_later(self: Composer, number: int) -> object:
        calls.append(number)
        if len(calls) == 15:
            raise failure
        return made(self, number)

    monkeypatch.setattr(Composer, "compose", fail_later)
    with pytest.raises(type(failure)) as stopped:
        run(tmp_path / "stopped", source, sets_per_shard=sets_per_shard)
    assert "the same command continues it" in stopped.value.__notes__[-1]
    assert not (tmp_path / "stopped" / "labels.csv").exists()
    with pytest.raises(InputError, match="holds an unfinished fgbg-compose with seed 0, now it is 5"):
        run(tmp_path / "stopped", source, dataclasses.replace(SMALL, seed=5), sets_per_shard=sets_per_shard)
    told: list[tuple[int, int]] = []
    progress = Progress(sets=lambda more, total: told.append((more, total)))
    summary = run(tmp_path / "stopped", source, sets_per_shard=sets_per_shard, progress=progress)
    assert summary.output.sets == 24
    assert told == [(12, 36), *[(6, 36)] * 4]
    assert files_below(tmp_path / "stopped") == files_below(tmp_path / "whole")


def test_an_even_sample_holds_the_very_sets_of_the_whole(folders: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", photographs(folders))
    run(tmp_path / "some", photographs(folders), dataclasses.replace(SMALL, sets=12))
    whole, some = files_below(tmp_path / "whole"), files_below(tmp_path / "some")
    some.pop("labels.csv")
    assert sum(name.startswith("fg_bg/") for name in some) == 12
    assert some.items() <= whole.items()


def test_bad_pictures_stop_it_by_name_or_are_skipped(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "in")
    write(tmp_path / "in" / "bg" / "street 1.png", b"\x89PNG\r\n\x1a\nno more")
    write(tmp_path / "in" / "fg" / "car_2.png", png(smooth_picture(1)))
    source = photographs(tmp_path / "in")
    with pytest.raises(
        InputError, match=r"background street 1\.png: .*does not decode.*; repair or remove it, or pass --skip-bad"
    ):
        run(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()
    summary = run(tmp_path / "out", source, skip_bad=True)
    assert [problem.path for problem in summary.problems] == ["street 1.png", "car_2.png"]
    assert (summary.recipe.backgrounds, summary.recipe.foregrounds, summary.output.sets) == (2, 2, 24)
    assert (tmp_path / "out" / "sources.csv").read_text().splitlines()[2] == "bg,1,street 2.png"
    lines = (tmp_path / "out" / "problems.csv").read_text().splitlines()
    assert lines[0] == "path,kind,why"
    assert lines[1].startswith('car_2.png,unusable,"no alpha channel (RGB)')
    run(tmp_path / "shards", source, skip_bad=True, sets_per_shard=10)
    assert (tmp_path / "shards" / "problems.csv").read_text().splitlines() == lines
    for name in find_pictures(tmp_path / "in" / "fg"):
        write(tmp_path / "in" / "fg" / name, b"")
    with pytest.raises(InputError, match=r"no usable foreground; the first problem is street 1\.png"):
        run(tmp_path / "none", source, skip_bad=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("min_visible", [1.0, 0.7])
def test_a_wide_foreground_is_drawn_no_higher_than_fits(min_visible: float, folders: Path, tmp_path: Path) -> None:
    source = photographs(folders, scale=(0.2, 1.0), min_visible=min_visible)
    run(tmp_path / "out", source)
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").read_text().splitlines()))
    if min_visible < 1:  # 80 x 64 of 64 x 64 pixels, of which 51 x 64 are more than 70 %
        assert "capped" not in rows[0]
        return
    capped = [row for row in rows if row["capped"] == "1"]
    assert 0 < len(capped) < len(rows)
    assert all(int(row["width"]) <= 64 and row["visible"] == "1.0" for row in rows)
    assert all(int(row["width"]) >= 63 for row in capped)


def test_a_sparse_file_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", 1 << 40)
    with pytest.raises(InputError, match=r"a\.png has 1,099,511,627,776 bytes, at most 1,073,741,824 expected"):
        hash_pictures(tmp_path, ("a.png",))


@pytest.mark.parametrize("names", [("st.1.a", "st.1.a"), ("s\u00e9j", "se\u0301j"), ("se\u0301j", "s\u00e9j")])
def test_depth_is_found_by_the_whole_name_but_its_extension(
    names: tuple[str, str], folders: Path, tmp_path: Path
) -> None:
    for kind, name in zip(("bg", "depth"), names, strict=True):
        write(tmp_path / kind / f"{name}.png", (folders / kind / "street 1.png").read_bytes())
    shutil.copytree(folders / "fg", tmp_path / "fg")
    made = composer(tmp_path, photographs(tmp_path, depth_folder=tmp_path / "depth"))
    assert made.stage.levels(0)[0, 0] < made.stage.levels(0)[-1, 0]


def test_a_background_without_its_depth_is_refused(folders: Path, tmp_path: Path) -> None:
    write(tmp_path / "depth" / "street 0.jpg", (folders / "depth" / "street 0.png").read_bytes())
    with pytest.raises(InputError, match=r"background street 1\.png: no depth picture: expected .*street 1\.png or"):
        run(tmp_path / "out", photographs(folders, depth_folder=tmp_path / "depth"))


def test_synthetic_sets_have_exact_depth(tmp_path: Path) -> None:
    source = Synthetic(seed=3, streets=4, objects=3)
    made = composer(tmp_path, source, ComposeOptions(sets=24, placements=None))
    assert made.recipe == Recipe(4, 3, 1, True, 24)
    for number in range(24):
        overlay, mask, levels, label, *_ = made.compose(number)
        assert levels is not None
        bg = made.recipe.ingredients(number).bg
        far = made.stage.levels(bg)
        assert (levels[mask < SOLID] == far[mask < SOLID]).all()
        [near] = set(levels[mask >= SOLID].tolist())
        inside = mask.copy()
        inside[label.y + label.height - 1] = 0  # its lowest row may touch road that is a little nearer
        assert (far[inside >= SOLID] <= near + 1).all(), "nothing of the street is before it"
        assert (overlay[mask == 0] == made.stage.rgb(bg)[mask == 0]).all()
        assert mask.max() == 255
        assert 0 <= label.x <= 224 - label.width
        assert 0 <= label.y <= 224 - label.height


def test_synthetic_sets_fill_every_split(tmp_path: Path) -> None:
    recipe = ComposeOptions(sets=400, placements=None).recipe(40, 40)
    made = np.array([recipe.ingredients(number)[:2] for number in recipe.numbers().tolist()], np.int32)
    sizes = {split: len(split_rows(made[:, 0], made[:, 1], split)) for split in SPLITS}
    assert sizes["train"] > 200
    assert min(sizes.values()) >= 1


def test_the_originals_cars_on_its_streets(s15: Path, tmp_path: Path) -> None:
    names = find_pictures(S15 / "bg"), find_pictures(S15 / "fg")
    source = Photographs(S15 / "bg", S15 / "fg", *names)
    summary = run(tmp_path, source, ComposeOptions(sets=100), sets_per_shard=50)
    assert summary.recipe.total == 4000
    manifest = Manifest.load(tmp_path)
    assert (manifest.sets, manifest.foregrounds, len(manifest.backgrounds)) == (100, 10, 10)
    store = ShardReader.open(tmp_path)
    for row in range(100):
        overlay, mask = (part.tobytes() for part in store.read(row))
        outside = simplejpeg.decode_jpeg(mask, "GRAY")[..., 0] < 2
        street = simplejpeg.decode_jpeg(store.read_background(int(store.index["bg"][row])).tobytes())
        assert np.abs(simplejpeg.decode_jpeg(overlay).astype(int) - street)[outside].mean() < 3


def test_a_writer_that_fails_leaves_no_half_shard(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = TarWriter.add, []

    def full(self: TarWriter, key: str, parts: list[tuple[str, bytes]]) -> object:
        calls.append(key)
        if len(calls) == 15:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add(self, key, parts)

    monkeypatch.setattr(TarWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "out", photographs(folders), sets_per_shard=10)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["sets-000000.idx", "sets-000000.tar"]


def test_the_manifest_comes_last(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", photographs(folders), sets_per_shard=10)
    monkeypatch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", photographs(folders), sets_per_shard=10)
    missing = files_below(tmp_path / "whole").keys() - files_below(tmp_path / "stopped").keys()
    assert missing == {"manifest.json"}
