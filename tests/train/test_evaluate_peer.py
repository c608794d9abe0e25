import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.loading.loader import Loader
from pipeline.loading.split import PEER_SALT, group
from tests.tools.test_evaluate_command import evaluate, printed
from tests.tools.test_train_command import trained_on
from train.checkpoint import load_run
from train.evaluate import CELLS


@pytest.fixture(scope="module")
def peer_trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on a random split by set."""
    return trained_on(packed, tmp_path_factory.mktemp("peer") / "run", "--peer-protocol")


def said(run: Path, shards: Path, out: Path, *flags: str) -> tuple[Any, str]:
    """What evaluation.json says, and the tables."""
    tables = printed(evaluate(run, shards, "--out", str(out), *flags))
    return json.loads((out / "evaluation.json").read_text()), tables


def trained_on_slowly(shards: Path, rows: range | list[int]) -> int:
    loader = Loader(shards, "all", batch_size=1, size=32)
    return sum(group(PEER_SALT, loader.key(row)) == "train" for row in rows)


def test_a_run_knows_how_it_was_trained(peer_trained: Path, trained: Path) -> None:
    assert load_run(peer_trained, "best", torch.device("cpu")).peer_protocol
    assert not load_run(trained, "best", torch.device("cpu")).peer_protocol


@pytest.mark.parametrize("split", ["val", "test"])
def test_under_its_own_protocol_no_set_was_trained_on_but_it_leaks(
    peer_trained: Path, packed: Path, tmp_path: Path, split: str
) -> None:
    numbers, tables = said(peer_trained, packed, tmp_path, "--peer-protocol", "--split", split)
    assert numbers["sets"] > 0
    assert numbers["sets_trained_on"] == 0
    assert numbers["leaking"]
    assert numbers["protocol"].startswith("LEAKING")
    assert numbers["run_trained_on"].startswith("LEAKING")
    assert "LEAKING: a random split by set" in tables
    assert "too, and 0 of these very sets in that of this run." in tables.replace("\n", " ")
    assert "headline" not in tables


def test_its_own_validation_is_found_again(peer_trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers, _ = said(peer_trained, packed, tmp_path, "--peer-protocol", "--split", "val", "--checkpoint", "last")
    logged = [json.loads(line) for line in (peer_trained / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in logged if line["kind"] == "val"][-1]
    found = numbers["cells"]["leaking"]["scores"]["network"]
    assert numbers["sets"] == last["sets"]
    for name in ("mask_iou", "depth_ssim"):
        assert found[name]["mean"] == pytest.approx(last[name], abs=1e-4)


def test_in_four_cells_nothing_is_new_to_it(peer_trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers, tables = said(peer_trained, packed, tmp_path, "--split", "all")
    assert set(numbers["cells"]) == set(CELLS)
    assert (numbers["leaking"], numbers["protocol"]) == (True, "split by background and foreground id")
    assert numbers["sets_trained_on"] == trained_on_slowly(packed, range(100)) > numbers["cells"]["seen_seen"]["sets"]
    assert "LEAKING: this run was trained on a random split by set (--peer-protocol)" in tables
    assert f"on {numbers['sets_trained_on']} of these very sets. Nothing here is new to it" in tables.replace("\n", " ")
    assert "headline" not in tables
    assert max(len(line) for line in tables.splitlines() if "best.pt" not in line) <= 100


def test_elsewhere_it_leaks_where_ids_are_the_same(peer_trained: Path, bare: Path, tmp_path: Path) -> None:
    numbers, tables = said(peer_trained, bare, tmp_path)
    assert numbers["sets_trained_on"] is None
    assert (
        "trained on other shards, on a random split by set: LEAKING where the ids of this data are the same" in tables
    )
    assert "seen and new go by this data's ids" not in tables
