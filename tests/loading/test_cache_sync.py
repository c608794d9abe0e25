"""The sync: afterwards every rank keeps what any of them kept, as far as it has room."""

import os
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from pipeline.loading.cache_sync import sync
from pipeline.loading.sample_cache import SampleCache
from tests.loading.test_sample_cache import CPU, PARTS, pictures
from tests.ranks import in_ranks

ROWS, SIZE = 60, 4
SET = len(PARTS) * SIZE**2


class Case(NamedTuple):
    """What each rank keeps before, the sets it has room for, and the sets that are sent at once."""

    kept: list[list[int]]
    room: list[int]
    at_once: int = 1000


THIRDS = [list(map(int, rows)) for rows in np.array_split(np.random.default_rng(5).permutation(ROWS), 3)]
CASES = {
    "each kept its share": Case(THIRDS, [ROWS] * 3),
    "in small pieces": Case(THIRDS, [ROWS] * 3, at_once=7),
    "one at a time": Case(THIRDS, [ROWS] * 3, at_once=0),
    "some kept the same, one nothing": Case([[3, 1, 2], [], [2, 7, 3, 9]], [ROWS] * 3, at_once=2),
    "little room": Case([[3, 1, 2], [5, 4], [2, 7, 3, 9]], [4, 9, ROWS], at_once=2),
    "no room": Case([[1, 2], [], [3]], [2, 0, 1]),
    "room only where nothing is kept": Case([[1, 2], [], [3]], [2, ROWS, 1]),
    "nothing kept": Case([[], [], []], [ROWS] * 3),
    "all kept all": Case([[1, 2]] * 3, [ROWS] * 3),
    "two ranks": Case([THIRDS[0], THIRDS[1]], [ROWS, 30], at_once=8),
}


def expected(case: Case, rank: int) -> list[int]:
    """The rows of a rank in the order of their slots: its own, then the others' as they come, while there is room."""
    rows = case.kept[rank][: case.room[rank]]
    for other in [sorted(kept[:room]) for kept, room in zip(case.kept, case.room, strict=True)]:
        rows = rows + [row for row in other if row not in rows]
    return rows[: case.room[rank]]


def run(case: Case, group: dist.ProcessGroup | None) -> None:
    rank = dist.get_rank(group)
    with patch("pipeline.loading.sample_cache.available_host_memory", lambda: case.room[rank] * SET):
        resident = SampleCache(ROWS, ROWS, PARTS, SIZE, CPU, share=1.0)
        if case.kept[rank]:
            resident.keep(np.array(case.kept[rank]), pictures(case.kept[rank], SIZE))
        sync(resident, group, case.at_once * SET)
    rows = expected(case, rank)
    assert resident.slots(np.array(rows, dtype=np.int64)).tolist() == list(range(len(rows)))
    assert resident.kept == len(rows)
    taken = resident.take(np.arange(len(rows)), {})
    for part, picture in pictures(rows, SIZE).items():
        assert torch.equal(taken[part], picture)
    full = all(len(expected(case, other)) == room for other, room in enumerate(case.room))
    if full or min(case.room) == ROWS:  # nobody can get any more
        with patch("torch.distributed.broadcast", side_effect=AssertionError("sent in vain")):
            sync(resident, group)


def ranks() -> None:
    """What a process does: each case in turn."""
    del os.environ["LOCAL_WORLD_SIZE"]  # each has all the room that its case says
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pair = dist.new_group([0, 2])
    for name, case in CASES.items():
        if len(case.room) == 3 or rank != 1:
            try:
                run(case, None if len(case.room) == 3 else pair)
            except BaseException as error:
                error.add_note(f"case: {name}")
                raise
    dist.destroy_process_group()


def test_afterwards_all_ranks_keep_what_any_kept() -> None:
    in_ranks(3, ranks)
