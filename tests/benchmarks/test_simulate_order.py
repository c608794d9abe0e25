"""What is simulated of many hosts, beside the batches themselves and what another simulation counts."""

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.downloads import with_cache
from benchmarks.simulate_order import Cluster, cached_epochs, main, plan_costs, walk

CLUSTER = Cluster(shards=40, shard_sets=16, batch_size=32, window=16, hosts=2, ranks=2)


def test_ranks_take_every_set_of_every_shard() -> None:
    walks = [walk(CLUSTER, rank) for rank in range(CLUSTER.world)]
    assert (np.sum([found.sets for found in walks], axis=0) == CLUSTER.shard_sets).all()
    assert max(found.most_open for found in walks) < CLUSTER.window


def test_caches_download_what_the_other_simulation_counts() -> None:
    shares, epochs = (0.25, 0.5), 4
    found = [list(cached_epochs(CLUSTER, shares, epochs, host)) for host in range(CLUSTER.hosts)]
    sizes = np.full(CLUSTER.shards, CLUSTER.shard_sets)
    for place, share in enumerate(shares):
        downloads = [host[epoch][place].downloads for host in found for epoch in range(1, epochs)]
        expected = with_cache(CLUSTER.sampler(), sizes, CLUSTER.hosts, share, epochs).next_use
        assert sum(downloads) / CLUSTER.shards / (epochs - 1) == pytest.approx(expected, rel=0.05)


def test_a_cache_of_all_shards_downloads_each_once() -> None:
    epochs = [found for [found] in cached_epochs(CLUSTER, (1.0,), 12)]
    assert sum(found.downloads for found in epochs) == CLUSTER.shards
    assert not any(found.again or found.evictions for found in epochs)
    assert epochs[0].downloads == epochs[0].needed < CLUSTER.shards


def test_what_is_given_up_was_there_and_comes_again() -> None:
    first, *later = (found for [found] in cached_epochs(CLUSTER._replace(hosts=1), (0.5,), 3))
    assert first == (40, 40, 0, 20)
    for found in later:
        assert found.again == found.downloads == found.evictions >= 20


def test_memory_of_planning_grows_with_shards_and_not_with_sets() -> None:
    few = plan_costs(CLUSTER._replace(shards=400), 0.5).peak_mib
    more_sets = plan_costs(CLUSTER._replace(shards=400, shard_sets=1600, batch_size=3200), 0.5).peak_mib
    assert more_sets < few + 2  # of a window that is looked ahead in, not 10 MB for 640,000 sets


def test_the_tables_are_printed() -> None:
    arguments = "--sets 640 --shard-sets 16 --hosts 2 --ranks 2 --batch-size 32 --window 16 --epochs 2 --caches 50"
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 0, result.output
    assert "all 4 ranks take each of 640 sets once" in result.output
    assert "| 1 | 20 | 20 (0), 0 |" in result.output
