import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.loader import Loader
from tests.loading.test_shard_reader import flip_bit
from tests.tools.test_evaluate_command import evaluate, printed, scored
from train.checkpoint import load_run
from train.evaluate import CELLS, cells_of, draw, open_split

CPU = torch.device("cpu")
SIZES = {"new_new": 4, "new_seen": 16, "seen_new": 16, "seen_seen": 64}  # of the split "all"


def in_cells(shards: Path, rows: list[int]) -> dict[str, set[int]]:
    index = load_index(shards, Manifest.load(shards))[rows]
    cells = cells_of(np.array(index["bg"]), np.array(index["fg"])).tolist()
    return {name: {row for row, cell in zip(rows, cells, strict=True) if cell == name} for name in CELLS}


def opened_rows(run: Path, shards: Path, most: int | None, *, batch_size: int = 16) -> list[int]:
    of_run = load_run(run, "best", CPU, shards)
    opened = open_split(of_run._replace(config=replace(of_run.config, batch_size=batch_size)), "all", CPU, most=most)
    assert opened.sizes == SIZES
    rows = [row for batch in opened.loader for row in batch.index.tolist()]
    assert rows == opened.loader.rows().tolist() == sorted(rows)
    return rows


@pytest.mark.parametrize("most", [1, 3, 10, 1000])
def test_at_most_so_many_sets_of_each_cell_are_scored(trained: Path, packed: Path, most: int) -> None:
    found = in_cells(packed, opened_rows(trained, packed, most))
    assert {name: len(rows) for name, rows in found.items()} == {name: min(most, of) for name, of in SIZES.items()}
    assert opened_rows(trained, packed, most, batch_size=7) == opened_rows(trained, packed, most)
    more = in_cells(packed, opened_rows(trained, packed, most + 2))
    assert all(found[name] <= more[name] for name in CELLS)


def test_a_draw_is_fair() -> None:
    rows = np.arange(1000, 2000)
    drawn = draw(rows, 300)
    assert len(set(drawn.tolist())) == 300
    assert set(drawn.tolist()) <= set(rows.tolist())
    assert np.histogram(drawn, 5, (1000, 2000))[0] == pytest.approx([60] * 5, abs=25)
    assert np.bincount(drawn % 10) == pytest.approx([30] * 10, abs=18)
    assert draw(rows[:0], 3).size == 0


def test_numbers_and_tables_say_how_many_of_how_many(trained: Path, packed: Path, tmp_path: Path) -> None:
    whole, few = (
        scored(trained, packed, tmp_path / name, "--split", "all", *flags)
        for name, flags in (("whole", ()), ("few", ("--sets-per-cell", "5")))
    )
    assert (few["sets"], few["sets_in_split"]) == (19, 100)
    assert (whole["sets"], whole["sets_in_split"]) == (100, 100)
    for name, of in SIZES.items():
        assert (few["cells"][name]["sets"], few["cells"][name]["sets_in_cell"]) == (min(5, of), of)
    assert few["cells"]["new_new"] == whole["cells"]["new_new"]  # all of its sets were scored
    assert few["sets_trained_on"] == 5
    table = (tmp_path / "few" / "evaluation.txt").read_text()
    assert "split all: 19 of 100 sets at 32 x 32" in table
    assert "  new background, new foreground (headline): 4 sets on 2 backgrounds" in table
    assert "  seen background, seen foreground: 5 of 64 sets on " in table
    assert "of 100 sets" not in (tmp_path / "whole" / "evaluation.txt").read_text()


def test_scores_are_means_over_the_sets_that_were_drawn(trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers = scored(trained, packed, tmp_path, "--split", "train", "--sets-per-cell", "6")
    drawn = opened_rows(trained, packed, 6)
    batch = Loader(packed, "all", batch_size=1, size=32).pick(sorted(in_cells(packed, drawn)["seen_seen"]))
    assert batch.depth is not None
    with torch.no_grad():
        depth = load_run(trained, "best", CPU).network(batch.bg, batch.fg_bg)[1]
    expected = (depth - batch.depth / 255).square().flatten(1).mean(1).sqrt().mean().item()
    assert numbers["cells"]["seen_seen"]["scores"]["network"]["depth_rmse"]["mean"] == pytest.approx(expected, rel=1e-4)


def test_under_the_peer_protocol_all_sets_are_one_cell(trained: Path, packed: Path, tmp_path: Path) -> None:
    printed(evaluate(trained, packed, "--peer-protocol", "--sets-per-cell", "2", "--out", str(tmp_path)))
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers["sets"] == numbers["cells"]["leaking"]["sets"] == 2 < numbers["sets_in_split"]


def test_damage_among_the_drawn_is_told(trained: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    index = load_index(shards, Manifest.load(shards))
    row = min(in_cells(packed, opened_rows(trained, packed, 64))["new_new"])
    flip_bit(shards / f"sets-{index['shard'][row]:06}.tar", int(index["offset"][row][0]) + 30)
    numbers = scored(trained, shards, tmp_path / "out", "--split", "all", "--sets-per-cell", "64")
    assert (numbers["sets"], numbers["sets_in_split"], numbers["sets_damaged"]) == (99, 100, 1)


def test_none_of_a_cell_is_wrong_usage(trained: Path, packed: Path) -> None:
    result = evaluate(trained, packed, "--sets-per-cell", "0")
    assert result.exit_code == 2
    assert "--sets-per-cell" in result.output
