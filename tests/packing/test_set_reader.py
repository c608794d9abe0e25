"""What is wrong with the pictures of sets: left out, kept and told, or refused altogether."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.errors import InputError
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import find_sets
from pipeline.packing.pack import PackOptions, Summary, pack
from pipeline.packing.set_reader import SetReader
from pipeline.packing.sources import Reader
from tests.samples import files_below, jpeg, png, set_paths, smooth_picture, soft_disc, write, write_sets
from tools.pack import main

BLACK = jpeg(np.zeros((48, 48, 1), np.uint8))
GRAY = png(soft_disc(0)[..., 0] // 2)


def problems(shards: Path) -> list[tuple[str, ...]]:
    with (shards / "problems.csv").open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def spoilt(source: Path) -> Path:
    """6 sets: the mask of one is blank, that of one is gray, and a third has no depth that decodes."""
    write_sets(source, 2, 3)
    write(source / set_paths(0, 1, 1)[1], BLACK)
    (source / set_paths(1, 0, 3)[1]).unlink()
    write((source / set_paths(1, 0, 3)[1]).with_suffix(".png"), GRAY)
    write(source / set_paths(1, 2, 5)[2], b"")
    return source


def test_masks_that_look_wrong_are_kept_and_told(tmp_path: Path) -> None:
    source = spoilt(tmp_path / "source")
    for workers in (1, 2):
        shards = tmp_path / f"shards-{workers}"
        summary = pack(source, shards, PackOptions(workers=workers, sets_per_shard=2))
        assert (summary.manifest.sets, dict(+summary.left_out)) == (5, {"undecodable": 1})
        assert summary.findings == Counter({"blank": 1, "not binary": 1})
        (depth, blank, gray) = (problem for problem in problems(shards) if problem[1] != "incomplete")
        assert depth == (set_paths(1, 2, 5)[2], "undecodable", "empty file")
        assert blank == (set_paths(0, 1, 1)[1], "blank", "the mask has no foreground: its largest value is 0 of 255")
        assert gray[:2] == (set_paths(1, 0, 3)[1].replace(".jpg", ".png"), "not binary")
        assert 0 < summary.decode_share < 1
    assert files_below(tmp_path / "shards-1") == files_below(tmp_path / "shards-2")


def test_headers_tell_nothing_of_masks(tmp_path: Path) -> None:
    summary: Summary = pack(spoilt(tmp_path / "source"), tmp_path / "shards", PackOptions(workers=1, verify="header"))
    assert (summary.manifest.sets, summary.findings, summary.decode_share) == (5, Counter(), 0)


def test_a_set_that_is_left_out_is_told_for_that_alone(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 2)
    write(source / set_paths(0, 0, 0)[1], BLACK)
    write(source / set_paths(0, 0, 0)[0], b"")
    pack(source, tmp_path / "shards", PackOptions(workers=1))
    assert "blank" not in {kind for _, kind, _ in problems(tmp_path / "shards")}


SPOIL: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing part": (lambda source: (source / set_paths(1, 1, 4)[1]).unlink(), "has no mask (incomplete)"),
    "a stranger": (lambda source: write(source / "notes.txt", b""), "notes.txt: "),
    "a broken background": (
        lambda source: write(source / "bg/bg_001.jpg", b""),
        "problems, the first: bg/bg_001.jpg: empty file",
    ),
    "a broken overlay": (lambda source: write(source / set_paths(1, 1, 4)[0], b""), "empty file (undecodable)"),
    "a blank mask": (lambda source: write(source / set_paths(1, 1, 4)[1], BLACK), "is 0 of 255 (blank)"),
    "another size": (
        lambda source: write(source / set_paths(1, 1, 4)[1], jpeg(soft_disc(0, 32))),
        "mask is 32 x 32, its overlay 48 x 48 pixels (mismatch)",
    ),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", SPOIL)
def test_strict_lets_any_problem_end_it_with_nothing_written(name: str, workers: int, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 3)
    spoil, message = SPOIL[name]
    spoil(source)
    (tmp_path / "shards").mkdir()
    options = PackOptions(workers=workers, sets_per_shard=1, strict=True)
    with pytest.raises(InputError) as refusal:
        pack(source, tmp_path / "shards", options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "shards").iterdir()) == []


def test_strict_changes_nothing_where_nothing_is_wrong(source: Path, packed: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=16, workers=1, strict=True))
    assert files_below(tmp_path / "shards") == files_below(packed)


def test_the_command_tells(tmp_path: Path) -> None:
    source, shards = spoilt(tmp_path / "source"), tmp_path / "shards"
    arguments = [str(source), "--shards", str(shards), "--workers", "1"]
    refused = CliRunner().invoke(main, [*arguments, "--strict"])
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert not shards.exists()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    *_, depth, last = done.output.splitlines()
    assert depth == "depth: 5 sampled depth maps are gray (channels differ by 0.0 of 255)"
    assert (
        "% of the workers' time is decoding), depth gray near bright; left out: 1 undecodable; kept with masks" in last
    )
    assert "kept with masks that look wrong: 1 blank, 1 not binary; " in last


def test_a_depth_map_may_have_another_size(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 1)
    write(source / set_paths(0, 0, 0)[2], jpeg(smooth_picture(0, 1, 20)))
    sets = find_sets(source)
    reader = SetReader(Reader(sets.listing.sources), "decode", DepthFiles("gray", "bright"))
    pictures, note, wrong, findings = reader.read(sets[0])
    assert ([picture.size for picture in pictures], note, wrong, findings) == (
        [(48, 48), (48, 48), (20, 20)],
        {},
        [],
        [],
    )
    assert reader.decode_sec > 0
