import shutil
from pathlib import Path

import pytest

from pipeline.format.manifest import Manifest, load_index
from pipeline.storage import Url, storage_of
from tests.tools.test_bench import SMALL, report, run


@pytest.fixture
def remote(planes: Path, s3: Url) -> Url:
    """The shards of `planes` in a bucket."""
    storage = storage_of(s3)
    for file in planes.iterdir():
        storage.put(file.name, file)
    return s3


def test_our_loader_is_timed_through_a_cache_without_one_and_beside_a_folder(planes: Path, remote: Url) -> None:
    result = run("--shards", remote, "--local", planes, *SMALL)
    found = report(result)
    manifest = Manifest.load(planes)
    assert found["data"] == {"manifest_sha256": manifest.sha256, "sets": 100}
    assert {which: list(rows) for which, rows in found["epochs"].items()} == {
        "first": ["cache", "ranges", "local", "local-lanes"], "later": ["cache", "local", "local-lanes"]
    }  # fmt: skip
    cached, ranges, local, _ = found["epochs"]["first"].values()
    stored = sum(shard.bytes for shard in manifest.shards)
    assert cached["source_bytes_a_set"] * 100 >= stored
    assert cached["requests_a_set"] * 100 >= len(manifest.shards)
    assert ranges["hit_share"] == 0
    assert ranges["requests_a_set"] >= 1
    assert ranges["source_bytes_a_set"] >= load_index(planes, manifest)["size"].sum(axis=1).mean()
    assert local["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert local["requests_a_set"] is None
    for row in (cached, ranges, local):
        assert row["sets_per_sec"]["q1"] <= row["sets_per_sec"]["median"] <= row["sets_per_sec"]["q3"]
        assert row["first_batch_sec"] > 0
        assert 0 <= row["wait_ms"]["p50"] <= row["wait_ms"]["p99"] <= row["wait_ms"]["max"]
    later = found["epochs"]["later"]["cache"]
    assert (later["hit_share"], later["requests_a_set"], later["source_bytes_a_set"]) == (1, 0, 0)
    assert max(map(len, result.output.splitlines()[:-1])) <= 120


def test_a_folder_of_other_shards_is_refused(packed: Path, remote: Url) -> None:
    result = run("--shards", remote, "--local", packed)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {packed} does not hold the shards of {remote}: give the same, copied or packed, with --local\n"
    )


def test_a_sweep_opens_a_url(planes: Path, bucket: Path) -> None:
    shutil.copytree(planes, bucket / "planes")
    grid = [word for axis in ("threads=1", "prefetch=1", "batch-size=16") for word in ("--grid", axis)]
    found = report(run("--shards", "s3://bucket/planes", "--sweep", *grid, "--sets", 50, "--rounds", 2, "--size", 16))
    assert found["recommended"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s3://bucket/shards", "--loader", "ours"], "--loader goes with shards in a folder, not with a URL"),
        (["s3://bucket/shards", "--planes", "there"], "--planes goes with shards in a folder, not with a URL"),
        (["s3://bucket/shards", "--step", "--sets", "9"], "--sets goes with shards in a folder, not with a URL"),
        (["shards", "--local", "there"], "--local is measured beside loaders of a URL: give --shards URL"),
        (["s3://bucket/shards", "--step", "--local", "there"], "--local is measured beside loaders of a URL"),
    ],
)
def test_what_does_not_go_with_a_url_is_refused(arguments: list[str], message: str) -> None:
    result = run("--shards", *arguments)
    assert (result.exit_code, message in result.output) == (2, True)
