"""Image sets that are composed in parts are those of an undivided run, as shards and as loose files."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.composing import compose as module
from pipeline.composing.compose import ComposeSummary, Progress, compose
from pipeline.composing.composer import ComposeOptions
from pipeline.errors import AlreadyComplete, InputError
from pipeline.parts import Part
from pipeline.resume import COMPLETE
from pipeline.storage import Folder
from tests.composing.test_compose import folders, photographs
from tests.samples import files_below, write

__all__ = ["folders"]
OPTIONS = ComposeOptions(placements=2)  # 24 sets


def run(target: Path | Folder, photos: Path, sets_per_shard: int | None, **more: Any) -> ComposeSummary:
    how = {"skip_bad": True, "workers": 1, "sets_per_shard": sets_per_shard}
    return compose(target, photographs(photos), OPTIONS, {"source": "test"}, **{**how, **more})


@pytest.fixture(scope="module")
def photos(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, one of which is none: it is skipped, and listed."""
    copy = tmp_path_factory.mktemp("photos")
    for path, content in files_below(folders).items():
        write(copy / path, content)
    write(copy / "bg" / "none.png", b"no picture")
    return copy


@pytest.mark.parametrize(
    ("sets_per_shard", "behind_a_url", "jobs"),
    [(5, False, "shards"), (5, True, "shards"), (None, False, "blocks of 5 sets")],
)
def test_parts_make_the_same_bytes(
    sets_per_shard: int | None,
    behind_a_url: bool,
    jobs: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETS_PER_JOB", 5)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    target = Folder(parts) if behind_a_url else parts
    told = list[tuple[int, int]]()
    made = run(target, photos, sets_per_shard, part=Part(1, 3), progress=Progress(sets=lambda *at: told.append(at)))
    assert made.part == (Part(1, 3), 2, 0, 5)
    assert (made.output.sets, told[0], told[-1]) == (9, (0, 9), (4, 9)), "five sets, and the last four"
    before = files_below(parts)
    assert not {"labels.csv", "manifest.json", "bg/bg_000.jpg"} & set(before)
    with pytest.raises(InputError, match=f"3 of 5 {jobs} are missing, of parts 0,2 "):
        run(target, photos, sets_per_shard, finish=True)
    assert run(target, photos, sets_per_shard, part=Part(1, 3)).part == (Part(1, 3), 2, 2, 5)
    assert files_below(parts) == before
    for number in (2, 0):
        run(target, photos, sets_per_shard, part=Part(number, 3))
    assert run(target, photos, sets_per_shard, finish=True).recipe.sets == 24
    run(whole, photos, sets_per_shard)
    assert b"none.png" in (whole / "problems.csv").read_bytes()
    assert files_below(parts) == files_below(whole)
    assert (parts / COMPLETE).read_bytes() == (whole / COMPLETE).read_bytes()
    for again in ({"finish": True}, {"part": Part(2, 3)}, {}):
        with pytest.raises(AlreadyComplete, match="already complete: 24 sets"):
            run(target, photos, sets_per_shard, **again)


def test_parts_of_loose_files_are_refused_where_they_do_not_belong(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no parts to finish: write them first"):
        run(tmp_path, photos, None, finish=True)
    run(tmp_path, photos, None, part=Part(0, 1))
    before = files_below(tmp_path)
    for how in ({"part": Part(0, 2)}, {"part": Part(0, 1), "skip_bad": False}, {}):
        with pytest.raises(InputError, match="holds an unfinished fgbg-compose with "):
            run(tmp_path, photos, None, **how)
    assert files_below(tmp_path) == before
