import csv
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.depth_estimation.folder import JOURNAL, SETTINGS, TABLE, add_depth
from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import EstimateError, EstimateOptions, EstimateReport
from pipeline.errors import InputError
from pipeline.format.images import decode_gray, decode_rgb
from pipeline.packing.join import find_sets
from pipeline.packing.metadata import MetadataTables
from pipeline.resume import UNFINISHED
from pipeline.workers import Progress
from tests.networks import WEIGHTS, weighted_sum
from tests.samples import files_below, jpeg, overlay, set_paths, write, write_sets

BACKGROUNDS, FOREGROUNDS = 3, 5
SETS = [(bg, fg, bg * FOREGROUNDS + fg) for bg in range(BACKGROUNDS) for fg in range(FOREGROUNDS)]
OPTIONS = EstimateOptions(workers=2)


def without_depth(source: Path) -> Path:
    write_sets(source, BACKGROUNDS, FOREGROUNDS)
    for path in source.rglob("*_disp.jpeg"):
        path.unlink()
    return source


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> DepthModel:
    return DepthModel(weighted_sum(tmp_path_factory.mktemp("depth_model") / "net.onnx"), DepthModelSettings(), 4)


@pytest.fixture(scope="module")
def finished(depth_model: DepthModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    source = without_depth(tmp_path_factory.mktemp("finished"))
    add_depth(source, depth_model, OPTIONS)
    return files_below(source)


def test_each_set_gets_a_depth_map_and_nothing_else_changes(depth_model: DepthModel, tmp_path: Path) -> None:
    source = without_depth(tmp_path / "source")
    before, files, found, done = files_below(source), list[int](), list[int](), list[int]()
    report = add_depth(source, depth_model, OPTIONS, progress=Progress(files.append, found.append, done.append))
    assert (report.sets, report.sets_before, report.problems) == (15, 0, [])
    assert (files, found, sum(done)) == ([33], [15], 15)
    after = files_below(source)
    new = {path: content for path, content in after.items() if path not in before}
    assert {path: after[path] for path in before} == before
    assert set(new) == {TABLE, SETTINGS, *(set_paths(*ids)[2] for ids in SETS)}
    table = list(csv.reader(new[TABLE].decode().splitlines()))
    assert table[0] == ["key", "far", "near"]
    assert [key for key, *_ in table[1:]] == [f"fg_{fg:03}_bg_{bg:03}_{number:06}" for bg, fg, number in SETS]
    for ids, (_, far, near) in zip(SETS, table[1:], strict=True):
        output = decode_rgb(before[set_paths(*ids)[0]]) / 255 @ WEIGHTS
        assert np.allclose([float(far), float(near)], [output.min(), output.max()], atol=0.01)
        levels = decode_gray(new[set_paths(*ids)[2]])
        scaled = float(far) + levels / 255 * (float(near) - float(far))
        assert np.abs(scaled - output).max() < 0.05
    assert json.loads(new[SETTINGS]) == {
        "command": "fgbg-depth",
        "model_sha256": depth_model.sha256,
        "size": [48, 48],
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "near": "high",
        "range": None,
        "quality": 90,
    }


def stopped(source: Path, depth_model: DepthModel, monkeypatch: pytest.MonkeyPatch, at: int) -> bool:
    """Run until the disk is full at the `at`th sync; False if the run needs fewer."""
    syncs, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        try:
            add_depth(source, depth_model, OPTIONS)
        except OSError as error:
            return error.errno == errno.ENOSPC
    return False


def test_a_full_disk_leaves_whole_files_from_which_it_goes_on(
    depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, kept = 1, set[int]()
    while stopped(source := without_depth(tmp_path / f"{at}"), depth_model, monkeypatch, at):
        whole = {path: content for path, content in files_below(source).items() if UNFINISHED not in path}
        assert whole == {path: finished[path] for path in whole}
        assert whole == finished or TABLE not in whole
        kept.add(sum(path.endswith("_disp.jpeg") for path in whole))
        report = add_depth(source, depth_model, OPTIONS)
        assert report.sets + report.sets_before == len(SETS)
        assert files_below(source) == finished
        at += 1
    assert kept == {0, 4, 8, 12, 15}
    assert files_below(source) == finished


def half_done(source: Path, depth_model: DepthModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which some batches are done; the paths of their sets."""
    assert stopped(source, depth_model, monkeypatch, 5)
    done = list(source.rglob("*_disp.jpeg"))
    assert 0 < len(done) < len(SETS)
    return source / UNFINISHED / JOURNAL


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_journal_that_is_cut_short(
    cut: int, depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = without_depth(tmp_path)
    journal = half_done(source, depth_model, monkeypatch)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    # As a kill does, before the files that its last batch tells of have their names.
    journal.write_bytes(b"".join(lines)[:-cut])
    report = add_depth(source, depth_model, OPTIONS)
    assert report.sets_before == 8
    assert files_below(source) == finished


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], lambda content: None])
def test_a_file_that_is_not_as_noted_is_made_again(
    damage: object, depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = without_depth(tmp_path)
    half_done(source, depth_model, monkeypatch)
    path = source / set_paths(*SETS[1])[2]
    assert callable(damage)
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    assert add_depth(source, depth_model, OPTIONS).sets_before > 0
    assert files_below(source) == finished


def test_a_finished_folder_stays_and_new_sets_are_added(
    depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path
) -> None:
    source = without_depth(tmp_path)
    hidden = {ids: [(source / path).read_bytes() for path in set_paths(*ids)[:2]] for ids in SETS[8:]}
    for ids in hidden:
        for path in set_paths(*ids)[:2]:
            (source / path).unlink()
    assert add_depth(source, depth_model, OPTIONS).sets == 8
    assert add_depth(source, depth_model, OPTIONS)[:2] == (0, [])
    for ids, contents in hidden.items():
        for path, content in zip(set_paths(*ids), contents, strict=False):
            (source / path).write_bytes(content)
    report = add_depth(source, depth_model, OPTIONS)
    assert (report.sets, report.sets_before) == (7, 8)
    assert files_below(source) == finished


def other(depth_model: DepthModel, path: Path) -> list[tuple[DepthModel, EstimateOptions, str]]:
    """Runs that would not make the same, and what their refusal names."""
    return [
        (DepthModel(depth_model.path, DepthModelSettings(near="low"), 4), OPTIONS, 'near "high", now it is "low"'),
        (
            DepthModel(depth_model.path, DepthModelSettings(range=(0, 1)), 4),
            OPTIONS,
            r"range null, now it is \[0, 1\]",
        ),
        (depth_model, EstimateOptions(quality=80), "quality 90, now it is 80"),
        (DepthModel(weighted_sum(path, shrink=2), DepthModelSettings(), 4), OPTIONS, 'model_sha256 ".*, now it is ".*'),
    ]


def test_other_arguments_are_refused_by_name(
    depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = without_depth(tmp_path / "source")
    half_done(source, depth_model, monkeypatch)
    runs = other(depth_model, tmp_path / "other.onnx")
    for their, options, named in runs:
        with pytest.raises(InputError, match=f"holds an unfinished fgbg-depth with {named}"):
            add_depth(source, their, options)
    add_depth(source, depth_model, OPTIONS)
    for their, options, named in runs:
        with pytest.raises(InputError, match=f"has depth maps made with {named}: use the same, or give --overwrite"):
            add_depth(source, their, options)
    assert files_below(source) == finished


def test_depth_maps_of_another_making_are_replaced_only_when_told(
    depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = without_depth(tmp_path / "source")
    names = [set_paths(*SETS[place])[2] for place in (5, 9, 11)]
    theirs = [source / name.replace(".jpeg", end) for name, end in zip(names, (".jpeg", ".png", ".npy"), strict=True)]
    for path in theirs:
        write(path, b"precious")
    before = files_below(source)
    found = (
        r"has 3 depth maps that were not made by this run \(such as .*_disp\.jpeg\): remove them, or give --overwrite"
    )
    with pytest.raises(InputError, match=found):
        add_depth(source, depth_model, OPTIONS)
    assert files_below(source) == before
    add_depth(source, depth_model, OPTIONS, overwrite=True)
    assert files_below(source) == finished

    # Ours, by another network: a run that is stopped while it replaces them is continued, too.
    their, options, _ = other(depth_model, tmp_path / "other.onnx")[3]
    add_depth(source, their, options, overwrite=True)
    assert files_below(source).keys() == finished.keys()
    assert files_below(source) != finished
    fsync, syncs = os.fsync, list[int]()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(descriptor: int) -> None:
            syncs.append(descriptor)
            if len(syncs) == 5:
                raise KeyboardInterrupt
            fsync(descriptor)

        patch.setattr(os, "fsync", interrupted)
        add_depth(source, depth_model, OPTIONS, overwrite=True)
    with pytest.raises(InputError, match=r"has \d+ depth maps that were not made by this run"):
        add_depth(source, depth_model, OPTIONS)
    report = add_depth(source, depth_model, OPTIONS, overwrite=True)
    assert 0 < report.sets_before < len(SETS)
    assert files_below(source) == finished


def test_a_bad_overlay_is_left_without_depth(
    depth_model: DepthModel, finished: dict[str, bytes], tmp_path: Path
) -> None:
    source = without_depth(tmp_path)
    path, _, depth = set_paths(*SETS[6])
    write(source / path, (source / path).read_bytes()[:-300])
    with pytest.raises(EstimateError, match=rf"^{path}: JPEG does not decode.*--skip-bad"):
        add_depth(source, depth_model, OPTIONS)
    skipping = EstimateOptions(skip_bad=True)
    report = add_depth(source, depth_model, skipping)
    assert report.sets + report.sets_before == 14
    assert [problem.path for problem in report.problems] == [path]
    after = files_below(source)
    assert set(finished) - set(after) == {depth}
    assert after[TABLE].count(b"\n") == 15
    # Mended, it gets its depth map.
    write(source / path, jpeg(overlay(SETS[6][0], SETS[6][2])))
    report = add_depth(source, depth_model, OPTIONS)
    assert not report.problems
    assert files_below(source) == finished


def test_a_bad_overlay_keeps_no_depth_of_another_making(depth_model: DepthModel, tmp_path: Path) -> None:
    source = without_depth(tmp_path)
    overlay, _, depth = set_paths(*SETS[6])
    write(source / overlay, b"GIF89a")
    theirs = [source / depth, source / depth.replace(".jpeg", ".png")]
    for path in theirs:
        write(path, b"theirs")
    add_depth(source, depth_model, EstimateOptions(skip_bad=True), overwrite=True)
    assert not any(path.exists() for path in theirs)
    assert len(list(source.rglob("*_disp.*"))) == 14


@pytest.mark.parametrize(
    "theirs",
    [
        {TABLE: b"frame;metres\n1;2\n"},
        {TABLE: b"", SETTINGS: b"[1, 2]"},
        {TABLE: b"key,far,near\na,b\n", SETTINGS: b"{}"},
        {TABLE: b"key,far,near\n", SETTINGS: b"{"},
    ],
)
def test_tables_of_another_making_stay(theirs: dict[str, bytes], depth_model: DepthModel, tmp_path: Path) -> None:
    source = without_depth(tmp_path)
    for name, content in theirs.items():
        write(source / name, content)
    before = files_below(source)
    with pytest.raises(
        InputError, match=r"depth\.csv and depth\.json were not made by fgbg-depth, or are damaged \(.*"
    ):
        add_depth(source, depth_model, OPTIONS, overwrite=True)
    assert files_below(source) == before


def test_what_cannot_be_done_changes_nothing(depth_model: DepthModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        add_depth(tmp_path / "nowhere", depth_model, OPTIONS)
    source = without_depth(tmp_path / "source")
    shutil.rmtree(source / "fg_bg_mask")
    before = files_below(source)
    with pytest.raises(
        InputError,
        match=r"no set in .* has an overlay, a mask and a background: fg_bg/.* has no mask",
    ):
        add_depth(source, depth_model, OPTIONS)
    shutil.rmtree(source / "fg_bg")
    with pytest.raises(InputError, match="there are backgrounds only"):
        add_depth(source, depth_model, OPTIONS)
    assert files_below(source) == {path: before[path] for path in before if path.startswith("bg/")}


def test_the_originals_own_overlays(s15: Path, tmp_path: Path) -> None:
    for path in [*s15.glob("bg/*"), *s15.glob("fg_bg*/*/*.jpg")]:
        write(tmp_path / "s15" / path.relative_to(s15), path.read_bytes())
    depth_model = DepthModel(weighted_sum(tmp_path / "net.onnx", (128, 128), shrink=2), DepthModelSettings(), 3)
    report: EstimateReport = add_depth(tmp_path / "s15", depth_model, OPTIONS)
    assert report.sets == 4
    for path in (tmp_path / "s15").glob("fg_bg/*/*_disp.jpeg"):
        overlay = decode_rgb(path.with_name(path.name.replace("_disp.jpeg", ".jpg")).read_bytes())
        sums, depth = overlay / 255 @ WEIGHTS, decode_gray(path.read_bytes())
        assert depth.shape == sums.shape == (256, 256)
        assert (
            np.corrcoef(sums.ravel(), depth.ravel())[0, 1] > 0.85
        )  # it saw the picture at half its size, and said it at a quarter


def test_sets_below_another_folder_and_behind_links(depth_model: DepthModel, tmp_path: Path) -> None:
    """depth.csv lies at the top, and fgbg-pack finds it there; what links hide is told, or read."""
    without_depth(tmp_path / "real")
    source, told = tmp_path / "source", list[str]()
    write(source / "README.md", b"")
    write(source / "sets" / ".ipynb_checkpoints" / "x.jpg", b"")
    for folder in ("bg", "fg_bg", "fg_bg_mask"):
        (source / "sets" / folder).symlink_to(tmp_path / "real" / folder)
    with pytest.raises(InputError, match=r"3 not read: a link to a folder, not followed without --follow-links"):
        add_depth(source, depth_model, OPTIONS)
    (source / "sets" / "gone.jpg").symlink_to("nothing")
    report = add_depth(source, depth_model, OPTIONS, follow_links=True, tell=told.append)
    assert (report.sets, report.problems) == (15, [])
    assert told == [f"{source}: 1 not read: a link to nothing (1, as sets/gone.jpg)"]
    sets = find_sets(source, follow_links=True)
    tables = MetadataTables(*sets.metadata_places())
    assert [[*one] for one in tables.find([sets[0].key])] == [["depth_range"]]
