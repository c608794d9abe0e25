import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.format.manifest import Manifest
from pipeline.loading.loader import Loader
from tests.samples import split_rows
from tools import bench_loader
from tools.bench_loader import bench_order, drop_pages, first_shards

# --- files


def test_part_of_the_shards_is_a_data_set_of_its_own(packed: Path) -> None:
    with first_shards(packed, 20) as folder:
        assert Manifest.load(folder).sets == 32  # two shards of 16
        rows = [
            row for batch in Loader(folder, "all", batch_size=8, size=16, threads=1) for row in batch.index.tolist()
        ]
    assert sorted(rows) == list(range(32))
    assert not folder.exists()


def cached(path: Path) -> bool:
    """Whether the first byte of a file can be read without waiting for storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("this file system does not tell what is cached")
        raise
    finally:
        os.close(descriptor)
    return True


def test_files_leave_the_page_cache_through_links_too(tmp_path: Path) -> None:
    inside, outside = tmp_path / "folder" / "below", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    files = [inside / "a", outside / "b"]
    for file in files:
        file.write_bytes(bytes(1 << 20))  # not on the disk yet
    (tmp_path / "folder" / "link").symlink_to(outside / "b")
    assert all(map(cached, files))
    assert drop_pages(tmp_path / "folder", tmp_path / "missing") == 2
    assert not any(map(cached, files))
    assert all(file.read_bytes() == bytes(1 << 20) for file in files)


# --- the order


@pytest.mark.parametrize("sparse", [False, True])
def test_an_epoch_is_planned_in_windows_and_without(
    sparse: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if sparse:
        monkeypatch.setattr(bench_loader, "WRITTEN_ROWS", 0)
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
    monkeypatch.setattr(bench_loader, "WHOLE_ROWS", 20_000)
    monkeypatch.setattr(bench_loader, "WRITTEN_ROWS", 0)
    monkeypatch.setattr(bench_loader, "SAMPLE_BATCHES", 2)
    report = bench_order(30_000, 4)
    for plan in report["plans"].values():
        assert plan["sets"] == 30_000
        assert plan["planned_sets"] == 5 * 512 + 30_000 % 512


def test_the_index_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = bench_loader._make_index(tmp_path / "index.npy", 5000)
    assert index["shard"].tolist() == [row // 1000 for row in range(5000)]
    assert set(np.unique(index["bg"]).tolist()) == set(np.unique(index["fg"]).tolist()) == set(range(100))
    assert 2500 < len(split_rows(index["bg"], index["fg"], "train")) < 4000
    monkeypatch.setattr(bench_loader, "WRITTEN_ROWS", 0)
    sparse = bench_loader._make_index(tmp_path / "sparse.npy", 100_000)
    assert len(sparse) == 100_000
    assert (tmp_path / "sparse.npy").stat().st_size > 8_000_000
    assert (tmp_path / "sparse.npy").stat().st_blocks * 512 < 1_000_000
