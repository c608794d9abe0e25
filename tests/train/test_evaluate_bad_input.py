"""Data and runs that are not what evaluation expects: each is one clear line, or is said in the table."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pipeline.format.manifest import Manifest, load_index, save_index
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, PEER_SALT, SPLITS, group
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.loading.test_shard_reader import flip_bit
from tests.samples import jpeg, overlay, set_paths, smooth_picture, soft_disc, split_rows, write
from tests.tools.test_evaluate_command import evaluate, scored
from tests.tools.test_train_command import one_line_error
from train.checkpoint import load_run, write_archive
from train.evaluate import CELLS, open_split
from train.evaluate import evaluate as score
from train.evaluation_table import text

CPU = torch.device("cpu")
SEEN, NEW = "train", "test"
IDS = {
    (salt, of): next(n for n in range(99) if group(salt, n) == of)
    for salt, of in product((BACKGROUND_SALT, FOREGROUND_SALT), SPLITS)
}


def shards_of(folder: Path, *cells: tuple[str, str]) -> Path:
    """Two sets for each pair of groups, of a background and of a foreground."""
    number = 0
    for of_bg, of_fg in cells:
        bg, fg = IDS[BACKGROUND_SALT, of_bg], IDS[FOREGROUND_SALT, of_fg]
        write(folder / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
        for _ in range(2):
            pictures = overlay(bg, number), soft_disc(2000 + number), smooth_picture(3000 + number, 1)
            for path, picture in zip(set_paths(bg, fg, number), pictures, strict=True):
                write(folder / "source" / path, jpeg(picture))
            number += 1
    pack(folder / "source", folder / "shards", PackOptions(workers=1))
    return folder / "shards"


PAIRS = dict(zip(CELLS, product((NEW, SEEN), (NEW, SEEN)), strict=True))


@pytest.mark.parametrize("filled", [{name} for name in CELLS] + [set(CELLS) - {name} for name in CELLS])
def test_cells_without_sets_are_named_and_the_others_scored(trained: Path, tmp_path: Path, filled: set[str]) -> None:
    shards = shards_of(tmp_path, *(PAIRS[name] for name in CELLS if name in filled))
    numbers = scored(trained, shards, tmp_path / "out", "--sets-per-cell", "1")
    assert {name for name, cell in numbers["cells"].items() if cell["sets"] == 1} == filled
    assert {name for name, cell in numbers["cells"].items() if cell["scores"]} == filled
    table = (tmp_path / "out/evaluation.txt").read_text()
    for name, title in CELLS.items():
        headline = " (headline)" if name == "new_new" else ""
        size = "1 of 2 sets on 1 background" if name in filled else "EMPTY, no set is in it"
        assert f"  {title}{headline}: {size}" in table.splitlines()
    assert (tmp_path / "out/worst.png").exists()


def test_a_cell_whose_sets_are_damaged_says_so(trained: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    index = load_index(packed, Manifest.load(packed))
    [row] = split_rows(np.array(index["bg"]), np.array(index["fg"]), "test")
    flip_bit(shards / f"sets-{index['shard'][row]:06}.tar", int(index["offset"][row][0]) + 30)
    run = load_run(trained, "best", CPU, shards)
    run = run._replace(config=replace(run.config, max_bad_share=0.5))
    evaluation = score(run, "test", open_split(run, "test", CPU))
    assert evaluation.cells["new_new"][1:] == (0, 1, 0, 0, {})
    lines = text(evaluation).splitlines()
    assert "  new background, new foreground (headline): EMPTY, its sets are damaged" in lines
    assert lines[0] == "no result: all sets with new background, new foreground, which count, are damaged"
    assert lines[1].endswith("split test: 80 of 81 sets at 32 x 32")
    assert evaluation.picture().height > 128


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_sets_is_one_line(trained: Path, tmp_path: Path, split: str) -> None:
    other = {"train": "val", "val": "test", "test": "val"}[split]
    shards = shards_of(tmp_path, (other, other))
    for flags in ([], ["--sets-per-cell", "3"]):
        line = one_line_error(evaluate(trained, shards, "--split", split, "--out", str(tmp_path / "out"), *flags))
        assert f"no set of {shards} is in the split {split}" in line
        assert "more backgrounds and foregrounds needed" in line
    assert not (tmp_path / "out").exists()


def test_a_peer_split_without_sets_is_one_line(trained: Path, tmp_path: Path) -> None:
    shards = shards_of(tmp_path, (SEEN, SEEN))
    filled = {group(PEER_SALT, row["key"].decode()) for row in load_index(shards, Manifest.load(shards))}
    empty = next(split for split in SPLITS if split not in filled)  # there are but two sets
    line = one_line_error(evaluate(trained, shards, "--peer-protocol", "--split", empty))
    assert f"is in the split peer-{empty} (2 sets on 1 background)" in line


@pytest.mark.parametrize("share", [0.01, 1])
def test_sets_without_masks_are_one_line(trained: Path, packed: Path, tmp_path: Path, share: float) -> None:
    """fgbg-pack makes no such shards, and --repair-index leaves such sets out; a hand may."""
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    manifest = Manifest.load(shards)
    rows = np.array(load_index(shards, manifest))
    for name in ("size", "crc32"):
        rows[name][: int(share * len(rows)), 1] = 0  # an empty mask, whose checksum is right
    msgspec.structs.replace(manifest, index_sha256=save_index(shards, len(rows), [rows])).save(shards)
    line = one_line_error(evaluate(trained, shards, "--split", "all", "--out", str(tmp_path / "out")))
    assert "in which set 0 of index.npy cannot lie as index.npy says" in line
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_masks_is_one_line(trained: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    content = json.loads((shards / "manifest.json").read_text())
    content["parts"] = ["fg_bg", "depth"]
    (shards / "manifest.json").write_text(json.dumps(content))
    assert "manifest.json has a field that this fgbg does not know (parts)" in one_line_error(evaluate(trained, shards))


def test_a_run_that_is_none_is_one_line(trained: Path, packed: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    (tmp_path / "folder/best.pt").mkdir(parents=True)
    for run, message in (
        (tmp_path / "file", "file: is a file; expected a run of fgbg-train"),
        (trained / "best.pt", "best.pt: is a file; expected a run"),
        (tmp_path / "nothing", "nothing: no such folder; expected a run"),
        (tmp_path / "folder", "folder: no checkpoint in it; expected a run"),
        (packed, "shards: no checkpoint in it; expected a run"),
    ):
        assert message in one_line_error(evaluate(run, packed))


def broken(whole: bytes) -> dict[str, bytes]:
    return {
        "cut in half": whole[: len(whole) // 2],
        "without its end": whole[:-100],
        "zeros": bytes(len(whole)),
        "text": b"step 100: mask IoU 0.93\n" * 50,
        "nothing": b"",
        "a picture": jpeg(smooth_picture(0)),
    }


@pytest.mark.parametrize("how", broken(b""))
def test_a_checkpoint_that_is_none_is_one_line(trained: Path, packed: Path, tmp_path: Path, how: str) -> None:
    content = broken((trained / "best.pt").read_bytes())[how]
    write(tmp_path / "best.pt", content)
    line = one_line_error(evaluate(tmp_path, packed))
    assert f"{tmp_path / 'best.pt'}: not a whole checkpoint ({len(content):,} bytes)" in line


def test_a_checkpoint_of_others_is_one_line(trained: Path, packed: Path, tmp_path: Path) -> None:
    whole = torch.load(trained / "best.pt", weights_only=True)
    state = json.loads(whole["state"])
    state["settings"]["model"] = "transformer-9000"
    for content, message in (
        ({"state_dict": whole["network"], "epoch": 3}, "not a whole checkpoint"),
        (whole | {"state": json.dumps(state | {"format": 99})}, "checkpoint format 99, but this version reads"),
        (whole | {"state": json.dumps(state)}, "network 'transformer-9000': expected one of"),
        (whole | {"network": dict(list(whole["network"].items())[1:]), "ema": None}, "is missing, but here it is"),
    ):
        write_archive(tmp_path / "best.pt", content)
        assert message in one_line_error(evaluate(tmp_path, packed))


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_scored(
    trained: Path, packed: Path, tmp_path: Path
) -> None:
    write(tmp_path / "file", b"mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "file is a file: give a folder" in one_line_error(evaluate(trained, packed, "--out", str(out)))
    assert (tmp_path / "file").read_bytes() == b"mine"
