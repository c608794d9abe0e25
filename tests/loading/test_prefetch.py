"""Reading ahead: bounded, ended by whatever ends the iteration, leaking nothing, outliving what happens to files."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pipeline.loading.prefetch
from pipeline.errors import InputError
from pipeline.format.manifest import INDEX
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from tests.loading.test_loader import equal, load, rows

OURS = "fgbg-"


@pytest.fixture(params=["packed", "planes"])
def shards(request: pytest.FixtureRequest) -> Path:
    """The same sets, as pictures and as planes; read only."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(OURS)]


def test_reading_runs_ahead_of_the_consumer_by_so_much_and_no_more(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    enough = threading.Event()

    def read_records(store: ShardReader, asked: Any) -> Any:
        read.extend(asked.tolist())
        if len(read) >= 5 * 10:
            enough.set()
        return original(store, asked)

    original = ShardReader.read_records
    monkeypatch.setattr(ShardReader, "read_records", read_records)
    batches = iter(load(shards, "all", prefetch=2, readers=1))
    next(batches)
    assert enough.wait(30)  # nobody asked for more
    batches.close()  # type: ignore[attr-defined]
    taken, waiting, in_decoder, reading = 1, 2, 2, pipeline.loading.prefetch.READ_AHEAD
    assert len(read) <= (taken + waiting + in_decoder + reading + 3) * 10  # and one in each hand


def test_the_next_epoch_is_read_before_it_is_asked_for(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = load(shards)
    again.load_state_dict({**again.state_dict(), "epoch": 1})
    epochs = [rows(load(shards)), rows(again)]
    loader, read, enough = load(shards), list[int](), threading.Event()

    def read_records(store: ShardReader, records: Any) -> Any:
        read.extend(records["offset"][:, 0].tolist())
        if len(read) >= sum(map(len, epochs[0])) + len(epochs[1][0]):
            enough.set()
        return original(store, records)

    original = ShardReader.read_records
    monkeypatch.setattr(ShardReader, "read_records", read_records)
    assert rows(loader) == epochs[0]
    assert enough.wait(30)
    assert next(iter(loader)).index.tolist() == epochs[1][0]


def leave_the_loop(loader: Loader) -> None:
    for _ in loader:
        break


def close_the_generator(loader: Loader) -> None:
    batches = iter(loader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def fail_in_the_loop(loader: Loader) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            _ = 1 / 0


def interrupt(loader: Loader) -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in loader:
            raise KeyboardInterrupt


def close(loader: Loader) -> None:
    rows(loader)
    assert our_threads()  # they read the next epoch
    loader.close()


@pytest.mark.parametrize("leave", [leave_the_loop, close_the_generator, fail_in_the_loop, interrupt, close])
def test_whatever_ends_the_iteration_ends_its_threads(leave: Callable[[Loader], None], shards: Path) -> None:
    loader, expected = load(shards), load(shards)
    before = threading.active_count()
    leave(loader)
    assert (our_threads(), threading.active_count()) == ([], before)
    for one in (expected, loader):
        one.load_state_dict(loader.state_dict())
    assert rows(loader) == rows(expected)  # it goes on where it was


def test_letting_a_loader_go_ends_its_threads(shards: Path) -> None:
    loader = load(shards)
    rows(loader)
    assert our_threads()
    del loader
    assert our_threads() == []


def test_ctrl_c_while_waiting_ends_the_process_at_once(shards: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.loading.loader import Loader\n"
        "loader = Loader(Path(sys.argv[1]), 'all', batch_size=10, size=16, threads=1)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for batch in loader: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(shards)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGINT, 130)
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_many_loaders_leave_memory_threads_and_files_where_they_were(shards: Path) -> None:
    def use() -> None:
        loader = load(shards)
        next(iter(loader))
        rows(loader)

    def taken(loaders: int) -> tuple[int, int, int]:
        for _ in range(loaders):
            use()
        gc.collect()
        time.sleep(0.5)  # the last one's threads end by themselves
        return this.memory_info().rss, this.num_threads(), this.num_fds()

    this = psutil.Process()
    before, after = taken(8), taken(24)
    grown = (after[0] - before[0]) / 24
    assert grown < 200_000, f"{grown:,.0f} bytes a loader"
    assert after[1:] == before[1:]


def removed(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    os.truncate(path, 700)


def rewritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("damage", [removed, truncated, rewritten, replaced])
@pytest.mark.parametrize("limit", [0.01, 1.0])
def test_shards_damaged_under_a_running_loader(damage: Callable[[Path], None], limit: float, copy: Path) -> None:
    undamaged = list(load(copy, "all", batch_size=4, shuffle=False))
    loader = load(copy, "all", batch_size=4, shuffle=False, max_bad_share=limit, prefetch=1)
    batches = iter(loader)
    seen = [next(batches)]
    for path in sorted(copy.glob("sets-*.tar")):  # the first of them is open, the last is not
        damage(path)
    if limit < 1:
        with pytest.raises(InputError, match=r"are damaged, at most 1\.0% may be; .* in sets-00000\d\.tar"):
            seen += batches
    else:
        seen += batches
        came = {loader.key(row) for batch in seen for row in batch.index.tolist()}
        assert came | left_out(loader) == {loader.key(row) for row in range(100)}
        again = sum(rows(loader), [])
        assert again == [row for row in range(100) if loader.key(row) not in left_out(loader)]
        assert len(again) < 100
    for one, other in zip(seen, undamaged, strict=False):  # whatever came is right
        assert equal_where_there(one, other)


def left_out(loader: Loader) -> set[str]:
    return {line.split(":")[0] for line in loader.quarantined}


def equal_where_there(one: Any, other: Any) -> bool:
    there = [position for position, row in enumerate(other.index.tolist()) if row in one.index.tolist()]
    return equal(one, type(other)(**{name: part[there] for name, part in other.asdict().items()}))


def test_an_index_cut_short_under_a_running_loader_is_an_error_and_no_bus_error(copy: Path) -> None:
    loader = load(copy, "all", batch_size=4)
    batches: Iterator[Any] = iter(loader)
    next(batches)
    os.truncate(copy / INDEX, 200)
    with pytest.raises(InputError, match=r"index\.npy was cut short while it was in use: copy it again, then resume"):
        list(batches)
