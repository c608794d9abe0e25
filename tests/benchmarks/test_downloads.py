"""What the order makes hosts download, with the planning of the cache on it."""

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import downloads
from benchmarks.downloads import in_an_epoch, with_cache
from pipeline.loading.sampler import Sampler

SIZES = np.append(np.full(63, 40), 17)


@pytest.mark.parametrize("hosts", [1, 2, 8])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_what_is_needed_last_goes_first_and_no_order_is_better(hosts: int, share: float) -> None:
    again = with_cache(Sampler(SIZES, 32, "k", window=8), SIZES, hosts, share, 5)
    assert again.best <= again.next_use <= 1.05 * again.best
    if hosts == 1:
        assert again.best == pytest.approx(1 - share, abs=0.06)
    if hosts < 8 or share < 0.5:  # else all that a host has read stays
        assert again.recent > 1.05 * again.next_use


def test_the_tables_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOSTS": (1, 2), "SHARDS": (8,), "CACHING_HOSTS": (1,), "CACHED_SHARDS": 8}.items():
        monkeypatch.setattr(downloads, name, value)
    result = CliRunner().invoke(downloads.main, ["--shard-sets", "20", "--batch-size", "8", "--window", "4"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:4] == ["| hosts | 8 shards |", "|---|---|", "| 1 | 1.00 |", "| 2 | 1.12 |"]
    assert lines[5] == "| hosts | cache of a host, of 8 shards | LRU | next use | best possible |"
    assert len(lines) == 10


def test_hosts_download_what_they_read() -> None:
    sampler = Sampler(SIZES, 32, "k", window=8)
    read = [
        {int(s) for n in range(sampler.batches) for p in sampler.batch(0, n, r, 3) for s in p.shards} for r in range(3)
    ]
    assert in_an_epoch(sampler, 64, 3) == sum(map(len, read)) / 64
