import json
from pathlib import Path

import numpy as np
import pytest

from tests.samples import split_rows
from tools.benchmark import plans
from tools.benchmark.plans import bench_order


@pytest.mark.parametrize("sparse", [False, True])
def test_an_epoch_is_planned_in_windows_and_without(
    sparse: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if sparse:
        monkeypatch.setattr(plans, "WRITTEN_ROWS", 0)
    report = bench_order(20_500, 4)
    assert not list(tmp_path.iterdir())
    assert list(report["plans"]) == ["whole set", "window of 4"]
    for plan in report["plans"].values():
        assert plan["planned_sets"] == plan["sets"]
        assert plan["sets"] == 20_500 if sparse else 11_000 < plan["sets"] < 15_000
        assert plan["order_sec"] > 0
        assert plan["us_per_set"] == pytest.approx(plan["plan_sec"] / plan["sets"] * 1e6)
        assert 0 < plan["peak_mib"] < 20
    assert report["ids"] == ("zeros (sparse file)" if sparse else "random")
    assert json.loads(json.dumps(report)) == report
    shown = capsys.readouterr().out
    assert shown.startswith("20,500 rows, ids: ")
    assert len(shown.splitlines()) == 4


def test_of_many_rows_three_stretches_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "WHOLE_ROWS", 20_000)
    monkeypatch.setattr(plans, "WRITTEN_ROWS", 0)
    monkeypatch.setattr(plans, "SAMPLE_BATCHES", 2)
    report = bench_order(30_000, 4)
    for plan in report["plans"].values():
        assert plan["sets"] == 30_000
        assert plan["planned_sets"] == 5 * 512 + 30_000 % 512


def test_the_index_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = plans._make_index(tmp_path / "index.npy", 5000)
    assert index["shard"].tolist() == [row // 1000 for row in range(5000)]
    assert set(np.unique(index["bg"]).tolist()) == set(np.unique(index["fg"]).tolist()) == set(range(100))
    assert 2500 < len(split_rows(index["bg"], index["fg"], "train")) < 4000
    monkeypatch.setattr(plans, "WRITTEN_ROWS", 0)
    sparse = plans._make_index(tmp_path / "sparse.npy", 100_000)
    assert len(sparse) == 100_000
    assert (tmp_path / "sparse.npy").stat().st_size > 8_000_000
    assert (tmp_path / "sparse.npy").stat().st_blocks * 512 < 1_000_000
